"""Figures: one way to save them, and redrawing from the saved numbers alone.

`save_figure` draws a tidy table by one of the functions of `helpers.drawings`, `head_drawings` or `board_drawings` and
writes the picture as pdf, svg and png, the plotted numbers as csv, and a sidecar with the drawing, its options, the
caption and the hashes of everything the numbers came from. Equal numbers give equal bytes. `python -m helpers.figures`
redraws from csv and sidecar.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from helpers import board_drawings, drawings, head_drawings
from helpers.artifacts import ArtifactError, read_json, sha256_bytes, sha256_file, sha256_tree, write_bytes, write_json
from helpers.config import Paths, load_profile
from helpers.drawings import PALETTE

matplotlib.use("agg")
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "clap",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
DRAWINGS = drawings.DRAWINGS | head_drawings.DRAWINGS | board_drawings.DRAWINGS
PLUMBING = "plumbing: numbers without meaning"
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
TRIMMED = {"bbox_inches": "tight", "pad_inches": 0.05}


class FigureError(ValueError):
    """A figure that cannot be drawn or saved."""


def save_figure(
    name: str,
    table: pd.DataFrame,
    *,
    drawing: str,
    caption: str,
    paths: Paths,
    seed: int,
    plumbing: bool,
    inputs: Sequence[Path] = (),
    **options,
):
    """Draw `table`, save figure NAME in all formats, and return the png for display in a notebook.

    `options` go to the drawing and must be plain data. `inputs` are the artifacts the table was computed from; their
    sha256 go into the sidecar. A `plumbing` run is marked on the picture. Raises FigureError for an unknown drawing,
    an empty table, or a value that is infinite.
    """
    if table.empty:
        raise FigureError(f"Figure {name!r} has no row to draw: an earlier step has left nothing over.")
    if infinite := [c for c in table.select_dtypes("number") if np.isinf(table[c].to_numpy(float, na_value=0)).any()]:
        raise FigureError(
            f"Figure {name!r} would draw infinite values in {', '.join(infinite)}: a ratio was taken over exactly 0."
        )
    _check_drawing(name, drawing)  # before anything is written
    text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_bytes(paths.figures / f"{name}.csv", text.encode())
    modules = dict.fromkeys(("figures", "drawings", DRAWINGS[drawing].__module__.removeprefix("helpers.")))
    sidecar = {
        "caption": caption,
        "drawing": drawing,
        "options": options,
        "plumbing": plumbing,
        "profile": paths.profile,
        "seed": seed,
        "inputs": sha256_tree(inputs, paths.root),
        "numbers": sha256_bytes(text.encode()),
        "sources": {f"helpers/{m}.py": sha256_file(Path(__file__).with_name(f"{m}.py")) for m in modules},
    }
    _draw(name, paths, sidecar)
    write_json(paths.figures / f"{name}.json", sidecar)
    from IPython.display import Image

    return Image(filename=str(paths.figures / f"{name}.png"), width=680, alt=caption)


def preview(table: pd.DataFrame, *, drawing: str, plumbing: bool, **options) -> bytes:
    """The picture that `save_figure` would keep of this table, as png for the screen: nothing is saved."""
    buffer = io.BytesIO()
    with _drawn(table, {"drawing": drawing, "options": options, "plumbing": plumbing}) as figure:
        figure.savefig(buffer, format="png", **TRIMMED)
    return buffer.getvalue()


def redraw(name: str, paths: Paths) -> None:
    """Draw figure NAME again from its saved numbers; raises FigureError when it was never saved."""
    saved = [paths.figures / f"{name}.{suffix}" for suffix in ("json", "csv")]
    if not all(path.is_file() for path in saved):
        known = sorted(path.stem for path in paths.figures.glob("*.json"))
        raise FigureError(
            f"There is no saved figure {name!r} in {paths.figures.relative_to(paths.root)}; there are: "
            f"{', '.join(known) or 'none'}. Run `make reproduce PROFILE={paths.profile}` first."
        )
    sidecar = read_json(saved[0])
    _draw(name, paths, sidecar)


def _draw(name: str, paths: Paths, sidecar: dict) -> None:
    """From the csv, never from memory: what is redrawn later is then what was drawn first."""
    _check_drawing(name, sidecar["drawing"])
    table = pd.read_csv(paths.figures / f"{name}.csv", keep_default_na=True)
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
    with _drawn(table, sidecar) as figure:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # all formats have the layout that was found once
        for suffix, metadata in UNDATED.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=metadata, **TRIMMED)
            write_bytes(paths.figures / f"{name}.{suffix}", buffer.getvalue())


@contextmanager
def _drawn(table: pd.DataFrame, sidecar: dict) -> Iterator[Figure]:
    """The figure in the house style, marked when it is plumbing, and closed when the block ends."""
    with matplotlib.rc_context():
        sns.set_theme(context="paper", style="ticks", palette=list(PALETTE.values()), rc=STYLE)
        figure = DRAWINGS[sidecar["drawing"]](table, **sidecar["options"])
        if sidecar["plumbing"]:
            figure.text(
                0.5, 0.5, PLUMBING, ha="center", va="center", rotation=18, fontsize=20, color="#BB0000", alpha=0.35
            )
        try:
            yield figure
        finally:
            matplotlib.pyplot.close(figure)


def _check_drawing(name: str, drawing: str) -> None:
    if drawing not in DRAWINGS:
        raise FigureError(f"Figure {name!r} asks for the drawing {drawing!r}; there are {', '.join(DRAWINGS)}.")


def main() -> int:
    """Redraw the figures of one profile from their saved tables."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--only", help="the name of one figure")
    arguments = parser.parse_args()
    try:
        paths = Paths(load_profile(arguments.profile).name)
        names = [arguments.only] if arguments.only else sorted(path.stem for path in paths.figures.glob("*.json"))
        if not names:
            raise FigureError(
                f"Profile {paths.profile} has no saved figure yet: run `make reproduce PROFILE={paths.profile}`."
            )
        for name in names:
            redraw(name, paths)
            print(f"figures/{paths.profile}/{name}.{{pdf,svg,png}}")
    except (ValueError, ArtifactError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
