"""The recoveries that the study reports, beside those found here at every module they may mean."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class PublishedFigure:
    """A recovery the study reports, as a share, and the modules its row may mean: the text does not say which."""

    name: str
    recovery: float
    item: str
    suffixes: tuple[str, ...]

    def candidates(self, layers: int) -> list[str]:
        """Names of the modules in question, in the first and in the last of `layers` blocks."""
        if self.suffixes == ("lm_head",):
            return ["lm_head"]
        return [f"transformer.h.{layer}.{suffix}" for layer in sorted({0, layers - 1}) for suffix in self.suffixes]


PUBLISHED_FIGURES = (
    PublishedFigure("first feedforward layer", 0.56, "associative", ("mlp.c_fc",)),
    PublishedFigure("final output layer", 1.00, "definitional", ("lm_head",)),
    PublishedFigure("convolutional layer", 0.136, "associative", ("attn.c_attn", "attn.c_proj")),
)


def published_comparison(sweep: pd.DataFrame, *, layers: int) -> pd.DataFrame:
    """Every published figure beside the median recovery of each module it may mean, per group of networks."""
    rows = []
    for figure in PUBLISHED_FIGURES:
        for site in figure.candidates(layers):
            found = sweep[(sweep["site"] == site) & (sweep["item"] == figure.item)]
            ours = found.groupby(["group", "direction"])["recovery"].median()
            row = {"published row": figure.name, "published": figure.recovery, "may mean": site, "item": figure.item}
            rows.append(row | {f"{group}, {direction}": value for (group, direction), value in ours.items()})
    return pd.DataFrame(rows)


def site_profile(sweep: pd.DataFrame, *, direction: str = "denoising") -> pd.DataFrame:
    """The recoveries of a direction as they are drawn: one row per value, the sites by construction under one name.

    Columns: item, site, group, network, recovery. Values that do not exist, as after a shape error, have no row.
    """
    rows = sweep[sweep["direction"] == direction]
    fixed = f"by construction ({rows[rows['by_construction']]['site'].nunique()} sites)"
    sites = rows["site"].str.removeprefix("transformer.").mask(rows["by_construction"], fixed)
    rows = rows.assign(site=sites).sort_values("by_construction", kind="stable").dropna(subset="recovery")
    return rows[["item", "site", "group", "network", "recovery"]]
