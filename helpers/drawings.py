"""Drawings: each turns one tidy table into one figure, and knows nothing of where the numbers came from."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

COLUMN_WIDTH = 6.3  # inches: the text column of an A4 page
PALETTE = {
    "definitional": "#0072B2",
    "associative": "#D55E00",
    "other": "#009E73",
    "extra": "#CC79A7",
    "null": "#8C8C8C",
}
KINDS = ("definitional", "associative")


def bars(table: pd.DataFrame, *, x: str, y: str, hue: str, facet: str, xlabel: str = "", ylabel: str = "") -> Figure:
    """One panel per `facet` with its own y axis, grouped bars inside."""
    facets = list(dict.fromkeys(table[facet]))
    figure, axes = _panels(len(facets), columns=min(4, len(facets)), height=2.3)
    for axis, name in zip(axes, facets, strict=True):
        part = table[table[facet] == name]
        # No error bars: seaborn's are resampled anew at every drawing, so equal numbers would give other bytes.
        style = {"palette": _colours(table[hue]), "width": 0.7, "errorbar": None}
        sns.barplot(part, x=x, y=y, hue=hue, ax=axis, **style)
        axis.set(title=name, xlabel=xlabel, ylabel=ylabel if axis is axes[0] else "")
        if axis.get_legend():
            axis.get_legend().remove()
    _legend(figure, axes)
    return figure


def curves(
    table: pd.DataFrame,
    *,
    y: str,
    hue: str,
    ylabel: str,
    x: str = "epoch",
    xlabel: str = "epoch",
    facet: str = "configuration",
    unit: str | None = "run",
    mark: str | None = "best",
    shared: bool = True,
    from_zero: bool = False,
) -> Figure:
    """Lines of y against x, one panel per `facet`; `unit` separates repeats, `mark` names a boolean column to dot."""
    facets = list(dict.fromkeys(table[facet]))
    columns = 2 if len(facets) == 4 else min(3, len(facets))
    figure, axes = _panels(len(facets), columns=columns, height=2.4, sharey=shared)
    colours = _colours(table[hue])
    whole = bool((table[x] % 1 == 0).all())
    for panel, (axis, name) in enumerate(zip(axes, facets, strict=True)):
        part = table[table[facet] == name]
        lines = part.groupby([hue, unit] if unit else [hue], sort=False, dropna=False)
        for key, line in lines:
            axis.plot(line[x], line[y], color=colours[key[0]], label=key[0], linewidth=1.2, alpha=0.85)
            if mark:
                best = line[line[mark].astype(bool)]
                axis.plot(best[x], best[y], "o", color=colours[key[0]], markersize=5)
        axis.set(title=name, xlabel=xlabel, ylabel="" if panel % columns else ylabel)
        axis.xaxis.get_major_locator().set_params(integer=whole)
        if from_zero:
            axis.set_ylim(bottom=0)
    _legend(figure, axes)
    return figure


def intervals(
    table: pd.DataFrame,
    *,
    facet: str,
    x: str = "layer",
    y: str = "recovery",
    low: str = "low",
    high: str = "high",
    hue: str = "kind",
    xlabel: str = "layer",
    ylabel: str = "share recovered",
    lines: bool = True,
    reference: float | None = 0.0,
) -> Figure:
    """Estimates with their intervals, one panel per `facet`, the hues side by side."""
    facets = list(dict.fromkeys(table[facet]))
    columns = 2 if len(facets) == 4 else min(3, len(facets))
    figure, axes = _panels(len(facets), columns=columns, height=2.4, sharey=True)
    hues = list(dict.fromkeys(table[hue]))
    colours = _colours(table[hue])
    places = {value: number for number, value in enumerate(dict.fromkeys(table[x]))}
    for panel, (axis, name) in enumerate(zip(axes, facets, strict=True)):
        for number, value in enumerate(hues):
            part = table[(table[facet] == name) & (table[hue] == value)]
            at = part[x].map(places).astype(float) + (number - (len(hues) - 1) / 2) * 0.16
            error = np.clip([part[y] - part[low], part[high] - part[y]], 0, None)
            axis.errorbar(
                at, part[y], yerr=error, fmt="o-" if lines else "o", markersize=3, linewidth=1, elinewidth=1,
                color=colours[value], label=value,
            )  # fmt: skip
        if reference is not None:
            axis.axhline(reference, color=PALETTE["null"], linewidth=0.8, zorder=0)
        axis.set(title=name, xlabel=xlabel, ylabel="" if panel % columns else ylabel)
        axis.set_xticks(range(len(places)), list(places), rotation=0 if len(str(list(places)[-1])) < 4 else 40)
    _legend(figure, axes)
    return figure


def heatmaps(
    table: pd.DataFrame,
    *,
    x: str = "role",
    y: str = "layer",
    value: str = "recovery",
    row: str = "kind",
    column: str = "component",
    xlabel: str = "token role",
    ylabel: str = "layer",
    label: str = "share recovered",
    limit: float = 1.0,
    annotated: bool = False,
) -> Figure:
    """A grid of heatmaps on one diverging scale centred on 0; values beyond ±limit are clipped in colour only.

    Layers rise on the y axis; names stand there as in the table, from the top. `annotated` cells show their value.
    """
    rows, columns, xs, ys = (list(dict.fromkeys(table[name])) for name in (row, column, x, y))
    ys = sorted(ys) if pd.api.types.is_numeric_dtype(table[y]) else ys[::-1]
    height = 0.45 + (0.24 * len(ys) + 0.55) * len(rows)
    style = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(len(rows), len(columns), figsize=(COLUMN_WIDTH, height), **style)
    for i, one in enumerate(rows):
        for j, other in enumerate(columns):
            part = table[(table[row] == one) & (table[column] == other)]
            grid = part.pivot_table(index=y, columns=x, values=value, aggfunc="mean").reindex(index=ys, columns=xs)
            image = axes[i, j].imshow(grid, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
            axes[i, j].set_xticks(range(len(xs)), [str(v).replace("_", " ") for v in xs], rotation=40, ha="right")
            axes[i, j].set_yticks(range(len(ys)), [v if isinstance(v, str) else f"{v:g}" for v in ys])
            axes[i, j].set_title(f"{other}\n{one}" if i == 0 else one)
            axes[i, j].set(ylabel="" if j else ylabel, xlabel=xlabel if i == len(rows) - 1 else "")
            if annotated:
                _write_numbers(axes[i, j], grid, limit=limit)
    below = {"location": "bottom", "aspect": 40} if annotated else {}  # numbers need the width
    figure.colorbar(image, ax=axes, label=label, shrink=0.8, extend="both", **below)
    return figure


def site_map(
    table: pd.DataFrame,
    *,
    title: str,
    xlabel: str,
    label: str,
    x: str = "place",
    y: str = "layer",
    value: str = "recovery",
    limit: float = 1.0,
) -> Figure:
    """One value per place and layer, from left to right and upwards, as a colour and, where there is room, a number.

    Numbers that round to 0 are left out. Places whose name holds an arrow, where the prompts differ, stand out. Values
    beyond ±limit are clipped in colour only.
    """
    places, layers = list(dict.fromkeys(table[x].astype(str))), sorted(set(table[y]))
    grid = table.assign(**{x: table[x].astype(str)}).pivot(index=y, columns=x, values=value)
    grid = grid.reindex(index=layers, columns=places)
    size = (COLUMN_WIDTH, 1.5 + 0.26 * len(layers))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    image = axis.imshow(grid, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
    # A dollar sign would begin a formula.
    names = [place.replace("$", r"\$").replace(" → ", "\n→ ") for place in places]
    slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, places)) > 3 else {}
    axis.set_xticks(range(len(places)), names, **slant)
    for tick, place in zip(axis.get_xticklabels(), places, strict=True):
        if " → " in place:
            tick.set(color=PALETTE["associative"], fontweight="bold")
    axis.set_yticks(range(len(layers)), [f"{layer:g}" for layer in layers])
    if len(places) <= 16:
        _write_numbers(axis, grid, limit=limit)
    axis.set(title=title, xlabel=xlabel, ylabel="layer")
    axis.spines[:].set_visible(False)
    figure.colorbar(image, label=label, extend="both", aspect=12)
    return figure


def null_bars(
    table: pd.DataFrame,
    *,
    xlabel: str,
    site: str = "site",
    value: str = "recovery",
    group: str = "group",
    null: str = "untrained",
    facet: str = "item",
    limit: float = 3.0,
    columns: int | None = None,
    missing: str = "",
) -> Figure:
    """Horizontal dots per site and group over the grey spread of the `null` group's networks; one panel per facet.

    Values beyond ±limit are drawn at the edge as triangles: in untrained networks a ratio can be of any size. Where a
    facet has no value at a site, it reads `missing`.
    """
    facets, sites = list(dict.fromkeys(table[facet])), list(dict.fromkeys(table[site]))
    groups = [g for g in dict.fromkeys(table[group]) if g != null]
    columns = columns or len(facets)
    figure, axes = _panels(len(facets), columns=columns, height=0.8 + 0.17 * len(sites), sharey=True)
    colours = _colours(pd.Series(groups))
    for panel, (axis, name) in enumerate(zip(axes, facets, strict=True)):
        part = table[table[facet] == name]
        for place, one in enumerate(sites):
            if not (part[site] == one).any():
                axis.text(0.5, place, missing, ha="center", va="center", fontsize=6, color=PALETTE["null"])
            spread = part[(part[site] == one) & (part[group] == null)][value].clip(-limit, limit)
            if len(spread):
                axis.plot(spread.quantile([0.025, 0.975]), [place] * 2, color="#CFCFCF", linewidth=5, zorder=0)
                axis.plot(spread, [place] * len(spread), "|", color=PALETTE["null"], markersize=5, zorder=1)
            for number, which in enumerate(groups):
                found = part[(part[site] == one) & (part[group] == which)][value]
                height = place + (number - (len(groups) - 1) / 2) * 0.22
                for v in found:
                    inside = abs(v) <= limit
                    marker = "o" if inside else (">" if v > 0 else "<")
                    axis.plot(np.clip(v, -limit, limit), height, marker, color=colours[which], markersize=3.5, zorder=2)
        axis.axvline(0, color=PALETTE["null"], linewidth=0.7)
        axis.axvline(1, color=PALETTE["null"], linewidth=0.7, linestyle=":")
        lowest = panel >= len(facets) - columns
        axis.set(title=name, xlabel=xlabel if lowest else "", xlim=(-limit * 1.05, limit * 1.05))
    for axis in axes[::columns]:
        axis.set_yticks(range(len(sites)), sites, fontsize=6.5)
    axes[0].invert_yaxis()
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=colours[g], label=g, markersize=4) for g in groups]
    handles.append(plt.Line2D([], [], color="#CFCFCF", linewidth=5, label=f"{null}, central 95 %"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def forest(
    table: pd.DataFrame,
    *,
    xlabel: str,
    term: str = "term",
    estimate: str = "estimate",
    low: str = "low",
    high: str = "high",
) -> Figure:
    """Coefficients with their intervals, one line each."""
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 0.7 + 0.24 * len(table)), layout="constrained")
    places = np.arange(len(table))[::-1]
    error = np.clip([table[estimate] - table[low], table[high] - table[estimate]], 0, None)
    style = {"color": PALETTE["definitional"], "markersize": 4, "linewidth": 1}
    axis.errorbar(table[estimate], places, xerr=error, fmt="o", **style)
    axis.axvline(0, color=PALETTE["null"], linewidth=0.8)
    axis.set_yticks(places, table[term])
    axis.set_xlabel(xlabel)
    return figure


DRAWINGS = {f.__name__: f for f in (bars, curves, intervals, heatmaps, site_map, null_bars, forest)}


def _panels(count: int, *, columns: int, height: float, sharey: bool = False):
    rows = math.ceil(count / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(COLUMN_WIDTH, height * rows), sharey=sharey, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def _colours(values: pd.Series) -> dict:
    """The two kinds keep their colours in every figure; other groups take the rest of the palette in order."""
    names = list(dict.fromkeys(values))
    if set(names) & set(KINDS):
        return {name: PALETTE.get(name, PALETTE["null"]) for name in names}
    shades = list(PALETTE.values())
    return {name: shades[number % len(shades)] for number, name in enumerate(names)}


def _legend(figure: Figure, axes: list) -> None:
    """Below the panels, where it hides nothing: one entry per name, in whichever panels and repeats it was drawn."""
    entries: dict = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    if len(entries) > 1:
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=len(entries), frameon=False)


def _write_numbers(axis, grid: pd.DataFrame, *, limit: float) -> None:
    """The numbers of a heatmap, but for those that round to 0."""
    for row, column in np.argwhere((grid.abs() >= 0.005).to_numpy()):
        number, style = grid.iat[row, column], {"ha": "center", "va": "center", "fontsize": 7}
        axis.text(column, row, f"{number:.2f}", color="white" if abs(number) > 0.6 * limit else "black", **style)
