"""Head drawings: pictures that set methods beside one another, from tidy tables as those of `helpers.drawings`."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.drawings import COLUMN_WIDTH, PALETTE

DIAGONAL = "#EDEDED"
IMPOSSIBLE = "#F3D9D9"
LABELLED = 6  # heads by name in a panel, the lowest first: more would not be read


def agreement_matrix(table: pd.DataFrame, *, facet: str | None = None) -> Figure:
    """Rank correlation above the diagonal, Jaccard index below, and on it how many heads each method detects.

    `table` is that of agreement.agreement, for one group, or for one per value of `facet`. A dash is a Jaccard index of
    two empty sets, or a correlation with effects that do not vary.
    """
    facets = list(dict.fromkeys(table[facet])) if facet else [None]
    methods = list(dict.fromkeys([*table["first"], *table["second"]]))
    columns = min(2, len(facets))
    cell = (COLUMN_WIDTH - 1.9) / columns / len(methods)
    height = min(max(0.24, cell), 0.5) * len(methods) + 0.35
    rows = math.ceil(len(facets) / columns)
    style = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, figsize=(COLUMN_WIDTH, height * rows + 1.3), **style)
    for axis in axes.flat[len(facets) :]:
        axis.set_visible(False)
    size = float(np.clip(26 * cell, 5, 7))
    for axis, name in zip(axes.flat, facets, strict=False):
        part = table[table[facet] == name] if facet else table
        grid, counts = _matrix(part, methods)
        axis.imshow(np.where(np.eye(len(methods)) > 0, np.nan, grid), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        for row, column in np.ndindex(grid.shape):
            value = grid[row, column]
            if row == column:
                axis.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, color=DIAGONAL))
                axis.text(column, row, f"{counts[row]:.0f}", ha="center", va="center", fontsize=size, weight="bold")
            else:
                text = "–" if np.isnan(value) else f"{round(value, 2) + 0.0:.2f}"  # no "-0.00"
                ink = "white" if abs(value) > 0.65 else "black"
                axis.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)
        axis.set_xticks(range(len(methods)), methods, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
        axis.set_yticks(range(len(methods)), methods, fontsize=7)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(name or "")
    colours = plt.cm.ScalarMappable(plt.Normalize(-1, 1), "RdBu_r")
    label = "above: rank correlation\nbelow: Jaccard index"
    figure.colorbar(colours, ax=axes, label=label, aspect=25, pad=0.01)
    return figure


def head_dots(table: pd.DataFrame) -> Figure:
    """Every head's effect, sorted, one row of panels per method, one column per metric, with thresholds and floor.

    `table` is that of floors.floor_dots. Heads in colour are those that logit difference detects as negative, the same
    in both columns; the floor is the line of the corrupted probability, and nothing can lie in what is shaded.
    """
    methods, metrics = list(dict.fromkeys(table["method"])), list(dict.fromkeys(table["metric"]))
    size = (COLUMN_WIDTH, 0.5 + 1.75 * len(methods))
    figure, axes = plt.subplots(len(methods), len(metrics), figsize=size, squeeze=False, layout="constrained")
    for (row, column), axis in np.ndenumerate(axes):
        part = table[(table["method"] == methods[row]) & (table["metric"] == metrics[column])]
        part = part.sort_values("score", kind="stable").reset_index(drop=True)
        first = part.iloc[0]
        low, high = part["score"].min(), part["score"].max()
        ends = [v for v in (low, high, first["threshold_low"], first["threshold_high"], first["floor"]) if v == v]
        bottom, top = min(ends), max(ends)
        margin = 0.12 * (top - bottom) or 1.0
        axis.set_ylim(bottom - margin, top + margin)
        for end in ("threshold_low", "threshold_high"):
            axis.axhline(first[end], color=PALETTE["null"], linewidth=0.9, linestyle="--")
        if first["floor"] == first["floor"]:
            axis.axhspan(bottom - 2 * margin, first["floor"], color=IMPOSSIBLE, linewidth=0)
            axis.axhline(first["floor"], color=PALETTE["associative"], linewidth=1.2)
        axis.axhline(0, color=PALETTE["null"], linewidth=0.5, zorder=0)
        for marked, colour, width in ((False, PALETTE["null"], 2), (True, PALETTE["definitional"], 4)):
            dots = part[part["marked"] == marked]
            axis.plot(dots.index, dots["score"], "o", color=colour, markersize=width, linestyle="")
        _label(axis, part)
        axis.set(title=f"{methods[row]}: {metrics[column]}", ylabel="" if column else "effect", xticks=[])
        if row == len(methods) - 1:
            axis.set_xlabel(f"{len(part)} heads, sorted by effect")
    handles = [
        plt.Line2D([], [], color=PALETTE["associative"], label="lowest effect there can be"),
        plt.Line2D([], [], color=PALETTE["null"], linestyle="--", label="thresholds of detection"),
        plt.Line2D([], [], marker="o", linestyle="", markersize=4, color=PALETTE["definitional"],
                   label="negative by logit difference"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.get_layout_engine().set(h_pad=0.08)
    return figure


DRAWINGS = {f.__name__: f for f in (agreement_matrix, head_dots)}


def _matrix(table: pd.DataFrame, methods: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The annotated values, `(methods, methods)`, and the number of heads each method detects."""
    place = {name: number for number, name in enumerate(methods)}
    grid, counts = np.full((len(methods), len(methods)), np.nan), np.full(len(methods), np.nan)
    for row in table.itertuples():
        one, other = sorted((place[row.first], place[row.second]))
        grid[one, other], grid[other, one] = row.rank_correlation, row.jaccard
        counts[place[row.first]], counts[place[row.second]] = row.first_heads, row.second_heads
    return grid, counts


def _label(axis: plt.Axes, part: pd.DataFrame) -> None:
    """The names of the marked heads in one line above the crowd, or below it where there is no room."""
    bottom, top = axis.get_ylim()
    room = 0.15 * (top - bottom)
    height = part["score"].quantile(0.75) + room
    if height > top - room / 3:
        height = part["score"].quantile(0.25) - room
    marked = part[part["marked"]].iloc[:LABELLED]
    places, free = [], 0.0
    for place in marked.index:
        places.append(max(place, free))
        free = places[-1] + 0.14 * len(part)
    beyond = max(0.0, free - len(part))
    for (place, row), to in zip(marked.iterrows(), places, strict=True):
        line = {"arrowstyle": "-", "linewidth": 0.5, "color": PALETTE["definitional"], "shrinkA": 0, "shrinkB": 2}
        name = f"{row['layer']:.0f}.{row['head']:.0f}"
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        at, label = (place, row["score"]), (to - beyond, height)
        axis.annotate(name, at, label, fontsize=6.5, ha="left", arrowprops=line, bbox=paper)
