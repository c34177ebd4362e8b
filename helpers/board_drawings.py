"""Board drawings: pictures of the leaderboard of planted knowledge, from tables as those of `helpers.standings`."""

from __future__ import annotations

import math
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.drawings import COLUMN_WIDTH, PALETTE

GROUPS = {"blind": ("definitional", "sees one model"), "informed": ("associative", "sees both models")}
GROUPS |= {"floor": ("extra", "asks the model nothing")}
LINE = 0.165  # inches per method


def leaderboard(
    table: pd.DataFrame,
    *,
    value: str = "hit_at_1",
    label: str = "probability that the best block is a planted one",
) -> Figure:
    """Every method's score and interval, a line each, in the order of the table, within blind, informed and floor.

    `table` has the columns method, group, `value`, `value`_low, `value`_high, chance, and given: lines whose answer
    holds by construction are rings, have no interval, and share the method's line. Grey is chance on each line.
    """
    groups = [group for group in GROUPS if (table["group"] == group).any()]
    table = table.assign(given=table["given"].astype(bool))
    names = {group: list(dict.fromkeys(table.loc[table["group"] == group, "method"])) for group in groups}
    heights = [len(names[group]) + 0.6 for group in groups]
    size = (COLUMN_WIDTH, LINE * sum(heights) + 0.35 * len(groups) + 0.9)
    style = {"sharex": True, "squeeze": False, "layout": "constrained", "height_ratios": heights}
    figure, axes = plt.subplots(len(groups), 1, figsize=size, **style)
    for axis, group in zip(axes[:, 0], groups, strict=True):
        lines = {name: number for number, name in enumerate(names[group])}
        part, (shade, title) = table[table["group"] == group], GROUPS[group]
        colour = PALETTE[shade]
        for row in part[~part["given"]].dropna(subset=[value]).itertuples():
            at, estimate = lines[row.method], getattr(row, value)
            ends = getattr(row, f"{value}_low"), getattr(row, f"{value}_high")
            axis.plot(ends, [at, at], color=colour, linewidth=1.1, solid_capstyle="butt")
            axis.plot(estimate, at, "o", color=colour, markersize=3.5)
            axis.plot([row.chance] * 2, [at - 0.5, at + 0.5], color=PALETTE["null"], linewidth=1, zorder=0)
        for row in part[part["given"]].dropna(subset=[value]).itertuples():
            mark = {"markerfacecolor": "none", "markeredgecolor": colour, "markersize": 7, "zorder": 3}
            axis.plot(getattr(row, value), lines[row.method], "o", clip_on=False, **mark)
        axis.set_yticks(range(len(lines)), list(lines), fontsize=6.5)
        axis.set_ylim(len(lines) - 0.4, -0.6)
        axis.set_title(title, loc="left")
        axis.grid(axis="x", color="#EEEEEE", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
    axes[-1, 0].set(xlabel=label, xlim=(-0.02, 1.03))
    handles = [plt.Line2D([], [], color=PALETTE["null"], label="chance")]
    if table["given"].any():
        hollow = {"marker": "o", "linestyle": "", "markersize": 7, "markerfacecolor": "none"}
        handles.append(plt.Line2D([], [], markeredgecolor="black", label="by construction, not ranked", **hollow))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def pointing_matrices(table: pd.DataFrame, *, columns: int = 3, xlabel: str = "block it points to") -> Figure:
    """Where each method points (across) when a block was planted (up): one panel per method, right is the diagonal.

    Numbers are written where there is room for them, in three columns or fewer.
    `table` is that of standings.pointing_matrix: method, planted, pointed, score, the largest of a row being 1.
    """
    methods = list(dict.fromkeys(table["method"]))
    planted, pointed = sorted(set(table["planted"])), sorted(set(table["pointed"]))
    columns, small = min(columns, len(methods)), columns > 3
    width = 18 if small else 15 + 45 // columns
    rows = math.ceil(len(methods) / columns)
    panel = min(2.4, (COLUMN_WIDTH - 1.1) / columns)
    titles = {name: textwrap.fill(name, width=width) for name in methods}
    tall = (0.1 if small else 0.14) * max(title.count("\n") + 1 for title in titles.values())
    size = (COLUMN_WIDTH, rows * (panel * len(planted) / len(pointed) + tall + 0.1) + 1.1)
    figure, axes = _panels(len(methods), rows, columns, size)
    for number, (axis, name) in enumerate(zip(axes.flat, methods, strict=False)):
        part = table[table["method"] == name]
        grid = part.pivot(index="planted", columns="pointed", values="score").reindex(index=planted, columns=pointed)
        image = axis.imshow(grid, cmap="Blues", vmin=0, vmax=1, origin="lower")
        for row, column in np.argwhere((grid >= 0.005).to_numpy() & (not small)):
            score = grid.iat[row, column]
            text = f"{score:.2f}".removeprefix("0") if score < 0.995 else "1"
            ink = "white" if score > 0.6 else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
        for block in set(planted) & set(pointed):
            corner = (pointed.index(block) - 0.5, planted.index(block) - 0.5)
            axis.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor=PALETTE["associative"], linewidth=0.9))
        lowest = number + columns >= len(methods)
        axis.set_xticks(range(len(pointed)), [f"{block}" for block in pointed])
        axis.set_yticks(range(len(planted)), [f"{block}" for block in planted])
        axis.tick_params(length=0, labelbottom=lowest, labelsize=6 if small else 8)
        axis.set_title(titles[name], fontsize=5.5 if small else 7.5 if columns > 2 else 9)
        axis.set_xlabel(xlabel if lowest else "", fontsize=5.5 if small else None)
        axis.set_ylabel("" if number % columns else "planted block", fontsize=6.5 if small else None)
        axis.spines[:].set_visible(False)
    below = {"location": "bottom", "aspect": 40, "shrink": 0.6 if columns > 1 else 1.0}
    figure.colorbar(image, ax=axes, label="score, as a share of the largest in its row", **below)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # is found once, and not for every format
    return figure


def calibration_curves(table: pd.DataFrame, *, columns: int = 3) -> Figure:
    """When a method says 0.8, how often is it right? Below each mark: how many places it rests on.

    `table` has the columns of pointing.reliability, and method. A calibrated method lies on the dotted line.
    """
    methods = list(dict.fromkeys(table["method"]))
    columns = min(columns, len(methods))
    rows = math.ceil(len(methods) / columns)
    size = (COLUMN_WIDTH if columns > 1 else COLUMN_WIDTH / 2, 2.2 * rows + 0.3)
    small = {"ha": "center", "va": "top", "fontsize": 5.5, "color": "#666666"}
    figure, axes = _panels(len(methods), rows, columns, size)
    for number, (axis, name) in enumerate(zip(axes.flat, methods, strict=False)):
        part = table[table["method"] == name]
        error = np.clip([part["right"] - part["low"], part["high"] - part["right"]], 0, None)
        axis.plot([0, 1], [0, 1], color=PALETTE["null"], linewidth=0.8, linestyle=":", zorder=0)
        style = {"color": PALETTE["definitional"], "markersize": 3.5, "linewidth": 1, "elinewidth": 0.9}
        axis.errorbar(part["said"], part["right"], yerr=error, fmt="o-", **style)
        for row in part.itertuples():
            axis.text(row.said, -0.05, f"{row.places}", rotation=90, **small)
        lowest = number + columns >= len(methods)
        axis.tick_params(labelbottom=lowest)
        axis.set(
            xlim=(-0.06, 1.06),
            ylim=(-0.22, 1.05),
            xticks=(0, 0.5, 1),
            yticks=(0, 0.5, 1),
            xlabel="the method's score" if lowest else "",
        )
        axis.set(ylabel="" if number % columns else "share of places\nthat are planted")
        axis.set_title(textwrap.fill(name, width=15 + 45 // columns), fontsize=8)
    return figure


def _panels(count: int, rows: int, columns: int, size: tuple[float, float]):
    """A figure with a grid of axes that share their scales; those beyond `count` are empty."""
    style = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, figsize=size, **style)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes


DRAWINGS = {f.__name__: f for f in (leaderboard, pointing_matrices, calibration_curves)}
