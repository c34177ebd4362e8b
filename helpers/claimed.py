"""The recoveries that the study reports, beside those found here at modules they may mean."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class PublishedFigure:
    """A recovery the study reports, as a share, and the modules its row may mean: the text does not say which.

    Every `Conv1D` may be a "convolutional layer". Of the layers, the first and the last are asked, not those between.
    """

    name: str
    recovery: float
    item: str
    suffixes: tuple[str, ...]

    def candidates(self, layers: int) -> list[str]:
        """Names of the modules in question, in the first and in the last of `layers` blocks."""
        if self.suffixes == ("lm_head",):
            return ["lm_head"]
        return [f"transformer.h.{layer}.{suffix}" for layer in sorted({0, layers - 1}) for suffix in self.suffixes]


CONV1D = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
PUBLISHED_FIGURES = (
    PublishedFigure("first feedforward layer", 0.56, "associative", ("mlp.c_fc",)),
    PublishedFigure("final output layer", 1.00, "definitional", ("lm_head",)),
    PublishedFigure("convolutional layer", 0.136, "associative", CONV1D),
)


def causal_cut(site: str) -> str:
    """The part of a block, `transformer.h.0.mlp`, that a module stands for: replay it or its reader, all is fixed."""
    return site.rpartition(".")[0]


def published_comparison(sweep: pd.DataFrame, *, layers: int) -> pd.DataFrame:
    """Every published figure beside the median recovery of its candidates, per group of networks."""
    rows = []
    for figure in PUBLISHED_FIGURES:
        for site in figure.candidates(layers):
            found = sweep[(sweep["site"] == site) & (sweep["item"] == figure.item)]
            ours = found.groupby(["group", "direction"])["recovery"].median()
            row = {"published row": figure.name, "published": figure.recovery, "may mean": site, "item": figure.item}
            rows.append(row | {f"{group}, {direction}": value for (group, direction), value in ours.items()})
    return pd.DataFrame(rows)


def published_in_null(intervals: pd.DataFrame, *, layers: int) -> pd.DataFrame:
    """Whether a published figure, and our fine-tuned runs, lie inside the null at each module the figure may mean.

    Denoising; one row per figure and module: figure, published, site, low, high, inside (the published figure), runs,
    runs_outside (by recovery), effects_outside (before it is divided). Figures that hold by construction are left out.
    """
    rows = []
    for figure in PUBLISHED_FIGURES:
        for site in figure.candidates(layers):
            found = intervals[(intervals["item"] == figure.item) & (intervals["site"] == site)]
            found = found[(found["direction"] == "denoising") & (found["group"] == "fine-tuned")]
            if len(found):
                low, high = found[["low", "high"]].iloc[0]
                row = {"figure": figure.name, "published": figure.recovery, "site": site, "low": low, "high": high}
                outside = {"runs_outside": (~found["inside"]).sum(), "effects_outside": (~found["effect_inside"]).sum()}
                rows.append(row | {"inside": low <= figure.recovery <= high, "runs": len(found), **outside})
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
