"""Figures: equal numbers give equal bytes anywhere, redrawing needs the saved files alone, sidecars tell all."""

import hashlib
import io
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers import figures
from helpers.config import Paths
from helpers.drawings import DRAWINGS, KINDS, PALETTE, bars, curves, heatmaps, intervals, null_bars, site_map
from helpers.figures import FigureError, preview, redraw, save_figure

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = ("csv", "json", "pdf", "png", "svg")
PICTURES = ("pdf", "png", "svg")
FOREST = {"drawing": "forest", "caption": "A caption.", "seed": 3, "xlabel": "difference"}
SAVE_AGAIN = """
import sys
from pathlib import Path
import pandas as pd
from helpers.config import Paths
from helpers.figures import redraw, save_figure
root, first = map(Path, sys.argv[1:])
source = root / "data" / "mini" / "table.csv"
save_figure(
    "f", pd.read_csv(source), paths=Paths("mini", root), plumbing=False, inputs=[source],
    drawing="forest", caption="A caption.", seed=3, xlabel="difference",
)
redraw("f", Paths("mini", first))
"""


def coefficients() -> pd.DataFrame:
    return pd.DataFrame({"term": ["β layer", "kind"], "estimate": [0.1, -0.2], "low": [0.0, -0.4], "high": [0.3, 0.1]})


def source_in(root: Path) -> Path:
    """The artifact that the numbers of `coefficients` came from, below a project's root."""
    path = root / "data" / "mini" / "table.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    coefficients().to_csv(path, index=False)
    return path


def save(root: Path, *, plumbing: bool = False) -> dict[str, bytes]:
    """Save the coefficients as figure f; the bytes of all its files."""
    paths, source = Paths("mini", root), source_in(root)
    save_figure("f", coefficients(), paths=paths, plumbing=plumbing, inputs=[source], **FOREST)
    return content(root)


def content(root: Path, suffixes=SUFFIXES) -> dict[str, bytes]:
    return {suffix: (root / "figures" / "mini" / f"f.{suffix}").read_bytes() for suffix in suffixes}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A project folder with figure f, and the bytes of its files."""
    root = tmp_path_factory.mktemp("project")
    return root, save(root)


def test_all_formats_and_the_numbers_are_written(saved):
    root, files = saved
    folder = root / "figures" / "mini"
    assert sorted(path.name for path in folder.iterdir()) == [f"f.{suffix}" for suffix in SUFFIXES]
    assert files["pdf"].startswith(b"%PDF") and files["png"].startswith(b"\x89PNG")
    assert ElementTree.fromstring(files["svg"]).tag.endswith("svg")
    pd.testing.assert_frame_equal(pd.read_csv(folder / "f.csv"), coefficients())


def test_equal_numbers_give_equal_bytes_in_another_process_folder_and_hash_seed(saved, tmp_path):
    root, files = saved
    source_in(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for suffix in PICTURES:  # what the process below redraws there must be its own
        (root / "figures" / "mini" / f"f.{suffix}").unlink()
    environment = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"}
    environment |= {"PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"}
    subprocess.run(
        [sys.executable, "-c", SAVE_AGAIN, str(tmp_path), str(root)], cwd=elsewhere, env=environment, check=True
    )
    assert content(tmp_path) == files
    assert content(root) == files


def test_redrawing_gives_the_bytes_of_saving(saved):
    root, files = saved
    for suffix in PICTURES:
        (root / "figures" / "mini" / f"f.{suffix}").write_bytes(b"")
    redraw("f", Paths("mini", root))
    assert content(root) == files


def test_other_numbers_give_another_picture(saved, tmp_path):
    _, files = saved
    paths = Paths("mini", tmp_path)
    save_figure("f", coefficients().assign(estimate=[0.1, -0.1]), paths=paths, plumbing=False, **FOREST)
    other = content(tmp_path)
    assert all(other[suffix] != files[suffix] for suffix in SUFFIXES)


def test_a_plumbing_run_is_marked_and_stays_marked(saved, tmp_path):
    _, plain = saved
    marked = save(tmp_path, plumbing=True)
    assert all(marked[suffix] != plain[suffix] for suffix in PICTURES)
    assert marked["csv"] == plain["csv"]
    redraw("f", Paths("mini", tmp_path))
    assert content(tmp_path) == marked


def test_the_sidecar_tells_where_the_numbers_came_from_and_nothing_of_this_machine(saved):
    root, files = saved
    sidecar = json.loads(files["json"])

    def digest(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    assert sidecar["inputs"] == {"data/mini/table.csv": digest((root / "data" / "mini" / "table.csv").read_bytes())}
    assert sidecar["sources"] == {
        f"helpers/{name}.py": digest((ROOT / "helpers" / f"{name}.py").read_bytes()) for name in ("figures", "drawings")
    }
    assert sidecar["numbers"] == digest(files["csv"])
    assert (sidecar["caption"], sidecar["seed"], sidecar["profile"]) == ("A caption.", 3, "mini")
    assert (sidecar["drawing"], sidecar["options"], sidecar["plumbing"]) == ("forest", {"xlabel": "difference"}, False)
    # No date, no revision: a key more would have to be thought about here.
    assert set(sidecar) == {
        "caption", "drawing", "inputs", "numbers", "options", "plumbing", "profile", "seed", "sources"
    }  # fmt: skip
    assert not any(str(place).encode() in text for place in (root, ROOT, Path.home()) for text in files.values())
    assert b"CreationDate" not in files["pdf"] and b"<dc:date>" not in files["svg"] and b"tIME" not in files["png"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"drawing": "pie"}, "drawing 'pie'; there are bars, curves"),
        ({"table": coefficients().head(0)}, "no row to draw"),
        ({"table": coefficients().assign(high=[0.3, np.inf])}, "infinite values in high"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path, changes, words):
    arguments = {"table": coefficients(), **FOREST, **changes}
    with pytest.raises(FigureError, match=words):
        save_figure("f", paths=Paths("mini", tmp_path), plumbing=False, **arguments)
    assert not list(tmp_path.iterdir())


def test_redrawing_an_unknown_name_lists_the_known_ones(saved, tmp_path):
    with pytest.raises(FigureError, match=r"no saved figure 'g' in figures/mini; there are: f\."):
        redraw("g", Paths("mini", saved[0]))
    with pytest.raises(FigureError, match="there are: none"):
        redraw("f", Paths("mini", tmp_path))


def test_redrawing_without_the_numbers_is_refused(tmp_path):
    (tmp_path / "figures" / "mini").mkdir(parents=True)
    (tmp_path / "figures" / "mini" / "f.json").write_text("{}")
    with pytest.raises(FigureError, match="no saved figure 'f'"):
        redraw("f", Paths("mini", tmp_path))


def test_style_and_figures_do_not_leak(saved):
    before = dict(plt.rcParams)
    redraw("f", Paths("mini", saved[0]))
    assert dict(plt.rcParams) == before and not plt.get_fignums()


@pytest.mark.parametrize("arguments, words", [(["--only", "nothing"], "'nothing'"), (["--profile", "mimi"], "'mini'")])
def test_the_command_answers_a_wrong_name_in_one_sentence(capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(sys, "argv", ["figures", *arguments])
    assert figures.main() == 1
    out, err = capsys.readouterr()
    assert not out and words in err and err.strip().count("\n") == 0


def test_the_command_fails_without_a_traceback():
    command = [sys.executable, "-m", "helpers.figures", "--only", "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "There is no saved figure 'nothing'" in done.stderr and "Traceback" not in done.stderr


def small_table(drawing: str, facets: int) -> tuple[pd.DataFrame, dict]:
    """A table that the drawing accepts, with so many facets, and its options."""
    names = [f"facet {number}" for number in range(facets)]
    kinds = list(KINDS)
    if drawing == "forest":
        return coefficients(), {"xlabel": "x"}
    if drawing == "bars":
        rows = [(f, k, arm, 1.5) for f in names for k in kinds for arm in ("real", "made-up")]
        return pd.DataFrame(rows, columns=["what", "kind", "arm", "mean"]), {
            "x": "arm", "y": "mean", "hue": "kind", "facet": "what"
        }  # fmt: skip
    if drawing == "curves":
        rows = [(f, "run-0", s, e, 1 / e, e == 2) for f in names for s in ("training", "validation") for e in (1, 2, 3)]
        columns = ["configuration", "run", "loss", "epoch", "nats", "best"]
        return pd.DataFrame(rows, columns=columns), {"y": "nats", "hue": "loss", "ylabel": "nats"}
    if drawing == "intervals":
        rows = [(f, k, layer, 0.5, 0.4, 0.7) for f in names for k in kinds for layer in (0, 1)]
        columns = ["arm", "kind", "layer", "recovery", "low", "high"]
        return pd.DataFrame(rows, columns=columns), {"facet": "arm"}
    if drawing == "heatmaps":
        rows = [(f, k, role, layer, 0.1 * layer) for f in names for k in kinds for role in "ab" for layer in (0, 1)]
        return pd.DataFrame(rows, columns=["component", "kind", "role", "layer", "recovery"]), {}
    if drawing == "site_map":
        rows = [(f"{number} w", layer, 0.1 * layer) for number in range(facets) for layer in (0, 1)]
        return pd.DataFrame(rows, columns=["place", "layer", "recovery"]), {"title": "t", "xlabel": "x", "label": "l"}
    assert drawing == "null_bars", "a new drawing needs a table here"
    rows = [
        (f, s, g, v) for f in names for s in "ab" for g, v in (("untrained", 0.1), ("untrained", 9.0), ("base", -5))
    ]
    return pd.DataFrame(rows, columns=["item", "site", "group", "recovery"]), {"xlabel": "x"}


def labels(figure) -> list[str]:
    """What the figure's one legend says."""
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


@pytest.fixture
def closed():
    """Close what a test has drawn."""
    yield
    plt.close("all")


@pytest.mark.parametrize("facets", [1, 5])
@pytest.mark.parametrize("drawing", DRAWINGS)
def test_every_drawing_draws_every_facet(drawing, facets, closed):
    table, options = small_table(drawing, facets)
    figure = DRAWINGS[drawing](table, **options)
    figure.canvas.draw()
    titles = [axis.get_title().split("\n")[0] for axis in figure.axes]
    wanted = [] if drawing in ("forest", "site_map") else [f"facet {number}" for number in range(facets)]
    assert [title for title in titles if title.startswith("facet")] == wanted


def test_bars_are_the_numbers_of_the_table(closed):
    table, options = small_table("bars", 2)
    table["mean"] = np.arange(1.0, 9.0)
    figure = bars(table, **options)
    heights = [sorted(patch.get_height() for patch in axis.patches if patch.get_height()) for axis in figure.axes]
    assert heights == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert labels(figure) == list(KINDS)


def test_bars_of_several_rows_draw_no_random_interval(closed):
    table, options = small_table("bars", 1)
    table = pd.concat([table.assign(mean=value) for value in (1.0, 2.0, 6.0)])
    figure = bars(table, **options)
    # A resampled interval would differ from run to run, so that equal numbers gave other bytes.
    assert all(not len(line.get_xdata()) for line in figure.axes[0].lines)
    assert {patch.get_height() for patch in figure.axes[0].patches} - {0} == {3.0}


def test_repeats_share_one_entry_of_the_legend(closed):
    table, options = small_table("curves", 1)
    figure = curves(pd.concat([table, table.assign(run="run-1")]), **options)
    assert labels(figure) == ["training", "validation"]
    assert len([line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]) == 4
    marked = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in marked] == [(2, 0.5)] * 4


def test_a_name_that_only_a_later_panel_draws_is_in_the_legend(closed):
    table, options = small_table("intervals", 2)
    first = table["place" if "place" in table else options["facet"]].iloc[0]
    later = table[(table[options["facet"]] != first) | (table["kind"] == "associative")]
    assert sorted(labels(intervals(later, **options))) == sorted(KINDS)


def test_the_kinds_keep_their_colours(closed):
    for order in (KINDS, KINDS[::-1]):
        table, options = small_table("intervals", 1)
        figure = intervals(table.sort_values("kind", key=lambda k: k.map(order.index)), **options)
        drawn = {line.get_label(): line[0].get_color() for line in figure.axes[0].containers}
        assert drawn == {kind: PALETTE[kind] for kind in KINDS}


def test_intervals_reach_from_low_to_high(closed):
    table, options = small_table("intervals", 1)
    figure = intervals(table[table["kind"] == "associative"], **options)
    (bar,) = figure.axes[0].containers
    segments = bar[2][0].get_segments()
    np.testing.assert_allclose([segment[:, 1] for segment in segments], [[0.4, 0.7]] * 2)


def test_heatmaps_put_each_number_in_its_cell(closed):
    rows = [
        ("mlp_out", "definitional", role, layer, v) for role, layer, v in (("b", 1, 0.3), ("a", 0, 0.1), ("b", 0, 2))
    ]
    figure = heatmaps(pd.DataFrame(rows, columns=["component", "kind", "role", "layer", "recovery"]))
    (image,) = figure.axes[0].images
    # Roles in order of appearance, layers from below; a missing cell stays empty, a large number stays itself.
    np.testing.assert_allclose(image.get_array().filled(np.nan), [[2, 0.1], [0.3, np.nan]])
    assert image.get_clim() == (-1, 1) and not figure.axes[0].texts


def test_annotated_heatmaps_show_their_numbers_and_names_stand_from_the_top(closed):
    rows = [("noising", "A", 0.3), ("zero", "B", -2.5), ("denoising", "A", 0.004)]
    table = pd.DataFrame(rows, columns=["way", "sites", "share"]).assign(gate="AND", metric="logits")
    axes = {"x": "sites", "y": "way", "row": "metric", "column": "gate"}
    axis = heatmaps(table, **axes, value="share", annotated=True).axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["denoising", "zero", "noising"]
    # (column, row), from below: what rounds to 0 has no number, and white ink is for dark cells.
    found = {text.get_position(): (text.get_text(), text.get_color()) for text in axis.texts}
    assert found == {(0, 2): ("0.30", "black"), (1, 1): ("-2.50", "white")}


def test_values_beyond_the_axis_are_triangles_at_its_edge(closed):
    rows = [("q", "s", "base", value) for value in (-5.0, 0.5, 7.0)] + [("q", "s", "untrained", 0.0)]
    figure = null_bars(pd.DataFrame(rows, columns=["item", "site", "group", "recovery"]), xlabel="x", limit=3.0)
    points = {line.get_marker(): line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() in "<o>"}
    assert points == {"<": -3.0, "o": 0.5, ">": 3.0}


def test_a_site_map_puts_each_number_in_its_cell_and_marks_where_the_prompts_differ(closed):
    rows = [("0 $a", 1, 0.25), ("1 b → $c", 0, -1.5), ("0 $a", 0, 0.001), ("1 b → $c", 1, np.nan)]
    table = pd.DataFrame(rows, columns=["place", "layer", "recovery"])
    figure = site_map(table, title="a title", xlabel="token", label="share")
    axis = figure.axes[0]
    np.testing.assert_allclose(axis.images[0].get_array().filled(np.nan), [[0.001, -1.5], [0.25, np.nan]])
    assert axis.images[0].get_clim() == (-1, 1)
    # (column, row): what rounds to 0, and what is undefined, has no number.
    assert {text.get_position(): text.get_text() for text in axis.texts} == {(1, 0): "-1.50", (0, 1): "0.25"}
    ticks = axis.get_xticklabels()
    assert [tick.get_text() for tick in ticks] == [r"0 \$a", "1 b\n→ \\$c"]
    assert [tick.get_fontweight() for tick in ticks] == ["normal", "bold"]
    figure.canvas.draw()  # two dollar signs are no formula


def test_a_wide_site_map_has_no_numbers_and_heads_keep_their_order(closed):
    table = pd.DataFrame({"place": range(17), "layer": 0, "recovery": 1.0})
    axis = site_map(table, title="", xlabel="head", label="share").figure.axes[0]
    assert not axis.texts and [tick.get_text() for tick in axis.get_xticklabels()] == [str(n) for n in range(17)]


def test_a_preview_is_the_saved_picture_and_saves_nothing(saved):
    root, files = saved
    options = {"drawing": "forest", "plumbing": False, "xlabel": FOREST["xlabel"]}
    before = sorted(root.rglob("*"))
    pictures = [preview(coefficients(), **options), files["png"]]
    # The layout settles a little further with every format that is written, by a pixel or two.
    sizes = [plt.imread(io.BytesIO(picture)).shape for picture in pictures]
    assert np.allclose(*sizes, atol=4)
    assert preview(coefficients(), **(options | {"plumbing": True})) != pictures[0]
    assert sorted(root.rglob("*")) == before and not plt.get_fignums()


def test_null_bars_in_rows_label_the_first_of_each_row_and_say_what_is_missing(closed):
    rows = [(f, s, "base", 0.5) for f in "abc" for s in ("one", "two") if (f, s) != ("c", "two")]
    table = pd.DataFrame(rows, columns=["item", "site", "group", "recovery"])
    figure = null_bars(table, xlabel="x", columns=2, missing="shape error")
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "x", "x"]
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes] == [[], [], ["shape error"]]
    assert figure.axes[2].texts[0].get_position()[1] == 1  # the second site
    for axis in (figure.axes[0], figure.axes[2]):
        assert [label.get_text() for label in axis.get_yticklabels()] == ["one", "two"]
