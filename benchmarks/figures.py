"""The benchmarks' figures, in the house style of `helpers.figures`."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.comparisons import OURS
from helpers.artifacts import write_bytes
from helpers.drawings import COLUMN_WIDTH, PALETTE
from helpers.figures import STYLE, UNDATED

NAMES = {
    "transformerlens": "TransformerLens",
    "bridge": "TransformerLens, bridge",
    "hooks": "forward hooks",
    "one-trace-per-patch": "nnsight, one trace per patch",
    "limit": "plain torch, same arithmetic",
}
MARKERS = "osD^vP"


def save(draw: Callable[[], Figure], path: Path) -> None:
    """Draw in the house style and write `path` with the endings png and pdf."""
    with matplotlib.rc_context():
        sns.set_theme(context="paper", style="ticks", palette=list(PALETTE.values()), rc=STYLE)
        figure = draw()
        for suffix in ("png", "pdf"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=UNDATED[suffix], bbox_inches="tight", pad_inches=0.05)
            write_bytes(path.with_suffix(f".{suffix}"), buffer.getvalue())
        plt.close(figure)


def draw_ratios(times: pd.DataFrame) -> Figure:
    """Time of every implementation over ours, one line each, one mark per case; columns case, implementation, seconds.

    Cases without a second implementation are left out.
    """
    seconds = times.pivot(index="implementation", columns="case", values="seconds")
    ratios = (seconds / seconds.loc[OURS]).drop(index=OURS)
    names = [name for name in NAMES if name in ratios.index][::-1]
    cases = [case for case in dict.fromkeys(times["case"]) if ratios[case].notna().any()]
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 1.2 + 0.34 * len(names)), layout="constrained")
    places = np.arange(len(names))
    models = list(dict.fromkeys(case.split()[0] for case in cases))
    for number, case in enumerate(cases):
        # Marks of one line stand side by side, so that equal ratios do not hide one another.
        shift = 0.12 * ((len(cases) - 1) / 2 - number)
        axis.plot(
            ratios.loc[names, case],
            places + shift,
            MARKERS[number],
            color=list(PALETTE.values())[models.index(case.split()[0])],
            fillstyle="full" if case.endswith("blocks") else "none",
            markersize=4.5,
            label=f"{case} (ours: {seconds.loc[OURS, case]:.2g} s)",
        )
    axis.axvline(1, color=PALETTE["null"], linewidth=0.8, zorder=0)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.grid(axis="x", which="both", color=PALETTE["null"], alpha=0.15, linewidth=0.6)
    axis.set_yticks(places, [NAMES[name] for name in names])
    axis.set_ylim(-0.5, len(names) - 0.5)
    axis.set_xlabel("time / time of ours, on the same patches")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_scaling(times: pd.DataFrame, exponents: dict[str, float]) -> Figure:
    """Median seconds against what is varied, one panel each, both logarithmic; columns varied, value, seconds."""
    figure, axes = plt.subplots(1, len(exponents), figsize=(COLUMN_WIDTH, 1.9), layout="constrained", sharey=True)
    for axis, (varied, exponent) in zip(axes, exponents.items(), strict=True):
        points = times[times["varied"] == varied]
        axis.plot(points["value"], points["seconds"], "o-", color=PALETTE["definitional"], markersize=3, linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(points["value"], points["value"].astype(str))
        axis.minorticks_off()
        axis.set(xlabel=varied, title=f"time ∝ {varied}$^{{{exponent:.2f}}}$")
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[0].set_ylabel("seconds")
    return figure
