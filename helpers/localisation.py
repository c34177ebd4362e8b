"""Localisation: how concentrated an item's effects are over sites, and whether any site stands out at all.

With a_i = |effect of site i| of one item, over n sites:

    participation   (Σ a)² / (n Σ a²)                   1 when all sites matter alike, 1/n when one holds everything
    gini            Σ_i Σ_j |a_i − a_j| / (2 n Σ a)     0 when all matter alike, 1 − 1/n when one holds everything
    top_share       max a / Σ a
    centre          Σ layer · a / Σ a                   the layer centre of mass

"Localised" and "distributed" are statements about these numbers, compared between kinds with items as units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.stats import contrasts

INDICES = {
    "participation": "participation ratio",
    "gini": "Gini index",
    "top_share": "share in the top site",
    "centre": "layer centre of mass",
}
ALIKE = 0.1  # sites whose recoveries differ by less than this are not told apart


class LocalisationError(ValueError):
    """Effects from which no index can be computed."""


def localisation_indices(effects: pd.DataFrame, *, by: list[str], sites: list[str]) -> pd.DataFrame:
    """The indices of every group of `by` (an item in one run) over its `sites`: columns `by`, then INDICES.

    `effects` has the columns `by`, `sites` (of which one is `layer`) and numerator; rows of one site (its positions,
    its pairs) are averaged. An item none of whose patches does anything has NaN. Raises LocalisationError when the
    items do not all have the same sites.
    """
    grid = effects.pivot_table(index=by, columns=sites, values="numerator", aggfunc="mean", observed=True, sort=True)
    if grid.isna().any(axis=None):
        item, site = grid.isna().stack(list(range(grid.columns.nlevels)), future_stack=True).idxmax(), grid.shape[1]
        raise LocalisationError(f"Indices compare items over the same {site} sites, and one is missing: {item}.")
    layers = grid.columns.get_level_values("layer").to_numpy(float)
    values = np.abs(grid.to_numpy())
    indices = {"participation": participation(values), "gini": gini(values), "top_share": top_share(values)}
    return pd.DataFrame(indices | {"centre": centre(values, layers)}, index=grid.index).reset_index()


def participation(a: np.ndarray) -> np.ndarray:
    """(Σ a)² / (n Σ a²) of every row of `a`, `(items, sites)`."""
    return _over(a.sum(1) ** 2, a.shape[1] * (a**2).sum(1))


def gini(a: np.ndarray) -> np.ndarray:
    """Mean absolute difference of two sites over twice the mean, of every row of `a`, `(items, sites)`."""
    rank = np.arange(1, a.shape[1] + 1)
    return _over((np.sort(a, axis=1) * (2 * rank - a.shape[1] - 1)).sum(1), a.shape[1] * a.sum(1))


def top_share(a: np.ndarray) -> np.ndarray:
    """The largest site's part of the whole, of every row of `a`, `(items, sites)`."""
    return _over(a.max(1), a.sum(1))


def centre(a: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """The mean of `layers`, `(sites,)`, weighted by `a`, of every row of `a`, `(items, sites)`."""
    return _over(a @ layers, a.sum(1))


def _over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


@dataclass(frozen=True)
class Signature:
    """What the recoveries of a sweep look like from afar: their range, and whether any site stands out."""

    low: float
    middle: float
    high: float
    sites: int

    @property
    def name(self) -> str:
        """`nothing` is recovered; `uniform`: something is, but no sites differ by more than ALIKE; else `peaked`."""
        if max(abs(self.low), abs(self.high)) < ALIKE:
            return "nothing"
        return "uniform" if self.high - self.low < ALIKE else "peaked"

    def explained(self, what: str) -> str:
        """One or two sentences on what a reader may conclude from `what`, which is patched."""
        seen = f"over {self.sites} sites, {what} recovers between {self.low:.2f} and {self.high:.2f}"
        if self.name == "uniform":
            return f"""{seen}: *uniform recovery everywhere*, the signature of a patch that carries the whole run along.
                It says that information passes there, as it passes everywhere, and localises nothing."""
        if self.name == "nothing":
            return f"{seen}: no site does anything, so there is nothing to localise."
        return f"{seen} (median {self.middle:.2f}): sites differ, so it can localise."


def signature(recoveries: pd.Series) -> Signature:
    """The signature of the recoveries of different sites; raises LocalisationError for none, or NaN."""
    values = recoveries.to_numpy(float)
    if not len(values) or not np.isfinite(values).all():
        raise LocalisationError(f"A signature needs recoveries that are numbers, not {recoveries.tolist()}.")
    return Signature(float(values.min()), float(np.median(values)), float(values.max()), len(values))


def index_contrasts(effects: pd.DataFrame, *, kinds: tuple[str, str], statistics: Mapping) -> pd.DataFrame:
    """Every index of the fine-tuned model, first kind less second, over the mean of the two: one row per index and arm.

    `effects` are denoising effects of attention and MLP outputs at all positions, with network, seed, item_id, kind and
    arm. Columns: index, arm, the kinds' own means, difference, low, high, null_low, null_high, items. The null reaches
    from the lowest to the highest end of what exchanged kinds give and of the intervals of the other networks, each
    over its own mean. Items none of whose patches does anything are left out.
    """
    keys = ["network", "arm", "seed", "item_id", "kind"]
    indices = localisation_indices(effects, by=keys, sites=["component", "layer"]).dropna()
    tall = indices.melt(keys, list(INDICES), "index", "numerator").assign(denominator=1.0)
    tall["index"] = pd.Categorical(tall["index"].map(INDICES), list(INDICES.values()), ordered=True)
    both = tall.groupby(["network", "arm"])["kind"].transform("nunique") == 2
    found = contrasts(tall[both], by=["index", "arm", "network"], item="item_id", kinds=kinds, **statistics)
    parts = ["difference", "low", "high", "null_low", "null_high"]
    found[parts] = found[parts].div(found[list(kinds)].mean(axis=1), axis=0)
    tuned = found[found["network"] == "fine-tuned"].drop(columns="network")
    others = found[found["network"] != "fine-tuned"].groupby(["index", "arm"], observed=True)
    ends = pd.DataFrame({"lowest": others["low"].min(), "highest": others["high"].max()})
    widest = tuned.join(ends, on=["index", "arm"])
    tuned["null_low"] = widest[["null_low", "lowest"]].min(axis=1)
    tuned["null_high"] = widest[["null_high", "highest"]].max(axis=1)
    return tuned.reset_index(drop=True)
