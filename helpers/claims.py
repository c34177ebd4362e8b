"""Claims: what the study says, what its own protocol gives here, what the corrected one gives, and a verdict by rule.

A claim is a region in which some quantity should lie. With the 95 % interval of the corrected estimate, over items:

    supported   the interval lies inside the region, and beyond the null's central 95 % by at least MARGIN (but for
                claims that something is small, which a null's size does not speak against)
    refuted     the interval and the region have nothing in common
    undecided   anything else, or a quantity that is not defined

The null is the widest of those that were run: untrained networks, shuffled donors, the base model, or kinds and layers
exchanged at random. A verdict carries its scope. Of weights without training there is no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from helpers.config import Model
from helpers.localisation import localisation_indices, participation
from helpers.plans import Site
from helpers.stats import contrasts, layer_range, recovery_intervals

MARGIN = 0.1
KINDS = ("definitional", "associative")
COLUMNS = ["claim", "published", "published protocol here", "corrected protocol here", "null", "made-up arm"]
COLUMNS += ["verdict", "scope"]
FIRST_MLP, FIRST_ATTENTION, LAST_BLOCK = "first feed-forward layer", "first attention layer", "last block"


@dataclass(frozen=True)
class Region:
    """Where a claim says a quantity lies, both ends included."""

    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Estimate:
    """A quantity with its interval over items, and the central part of its null; NaN where there is none."""

    value: float
    low: float
    high: float
    null_low: float = math.nan
    null_high: float = math.nan
    defined: bool = True

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]" if self.defined else "undefined"

    @property
    def null(self) -> str:
        """The null's central part, in words."""
        return "–" if math.isnan(self.null_low) else f"{self.null_low:.2f} to {self.null_high:.2f}"


@dataclass(frozen=True)
class Claim:
    """A sentence of the study, the figure it gives, and the region in which the quantity behind it should lie."""

    sentence: str
    published: str
    region: Region


CLAIMS = {
    "first_mlp": Claim(
        "The first feed-forward layer recovers about half of the preference for associative items",
        "56 %",
        Region(0.46, 0.66),
    ),
    "distributed": Claim(
        "Associative knowledge is distributed: more of the sites take part than for definitional items",
        "from the 56 %, one item",
        Region(low=0.0),
    ),
    "last_layer": Claim(
        "The final layer recovers all of it for definitional items: definitional knowledge is localised there",
        "100 %",
        Region(low=0.9),
    ),
    "first_attention": Claim(
        "The “convolutional” layer (attention's Conv1D) contributes marginally", "13.6 %", Region(high=0.236)
    ),
    "layers_differ": Claim(
        "Layers differ (the best feed-forward layer less the worst)",
        "p < 0.01, test and unit unknown",
        Region(low=MARGIN),
    ),
    "clean_difference": Claim(
        "The clean preference is stronger for definitional items (difference, over the mean of all)",
        "stated, without a number",
        Region(low=0.0),
    ),
    "layers_add": Claim(
        "Contributions of layers add up (joint patch of all feed-forward layers over the sum of single ones)",
        "assumed",
        Region(0.9, 1.1),
    ),
}
EDITING = Claim("Whether editing works depends on the kind of knowledge", "stated, without a number", Region())


def verdict(estimate: Estimate, region: Region) -> str:
    """`supported`, `refuted` or `undecided`, by the rule above."""
    if not estimate.defined or math.isnan(estimate.value):
        return "undecided"
    if estimate.high < region.low or estimate.low > region.high:
        return "refuted"
    inside = region.low <= estimate.low and estimate.high <= region.high
    beyond = (
        math.isnan(estimate.null_low)
        or region.low == -math.inf
        or (estimate.low >= estimate.null_high + MARGIN or estimate.high <= estimate.null_low - MARGIN)
    )
    return "supported" if inside and beyond else "undecided"


def claimed_sites(layers: int) -> dict[str, list[Site]]:
    """The places the study speaks of, as sets of sites at all positions, in a network of `layers` blocks."""
    return {
        FIRST_MLP: [Site("mlp_out", 0, "all")],
        FIRST_ATTENTION: [Site("attn_out", 0, "all")],
        LAST_BLOCK: [Site("attn_out", layers - 1, "all"), Site("mlp_out", layers - 1, "all")],
    }


def corrected_estimates(measured: Mapping[str, pd.DataFrame], *, arm: str, statistics: Mapping) -> dict[str, Estimate]:
    """The quantity behind each of CLAIMS by the corrected protocol, from one arm's confirmatory items, seeds averaged.

    `measured` are the tables of helpers.clap; used are `effects`, `sites`, `joint` and `clean`, by denoising.
    `statistics` are resamples, confidence and seed. An arm that was not run gives no estimate.
    """
    tables = (measured[name] for name in ("sites", "effects", "joint", "clean"))
    sites, effects, joint, clean = (table[table["arm"] == arm] for table in tables)
    if sites.empty:
        return {}
    layers = whole_layers(effects).query("network == 'fine-tuned'")
    together = joint.query("group == 'feed-forward' and direction == 'denoising'")
    together = together.assign(numerator=together["joint"], denominator=together["added"])
    options = {"item": "item_id", **statistics}
    indices = localisation_indices(layers, by=["seed", "item_id", "kind"], sites=["component", "layer"]).dropna()
    taking_part = indices.assign(numerator=indices["participation"], denominator=1.0)
    scale = clean.groupby("item_id")["numerator"].mean().mean()
    stronger = clean.assign(numerator=clean["numerator"] / scale)
    apart = contrasts(taking_part.assign(arm=arm), by=["arm"], kinds=KINDS[::-1], **options).iloc[0]
    clearer = contrasts(stronger, by=["arm"], kinds=KINDS, **options).iloc[0]
    spread = layer_range(layers[layers["component"] == "mlp_out"], **options)
    return {
        "first_mlp": _at_site(sites, FIRST_MLP, "associative", options),
        "distributed": _of_contrast(apart),
        "last_layer": _at_site(sites, LAST_BLOCK, "definitional", options),
        "first_attention": _at_site(sites, FIRST_ATTENTION, "associative", options),
        "layers_differ": Estimate(spread["estimate"], *(spread[k] for k in ("low", "high", "null_low", "null_high"))),
        "clean_difference": _of_contrast(clearer),
        "layers_add": _of_recovery(recovery_intervals(together, by=["arm"], **options).iloc[0]),
    }


def whole_layers(effects: pd.DataFrame) -> pd.DataFrame:
    """Of the effects, denoising of one layer's attention or MLP output at all positions, in logit difference."""
    return effects.query(
        "role == 'all' and component != 'head_out' and direction == 'denoising' and metric == 'logit_difference'"
    )


def _at_site(sites: pd.DataFrame, name: str, kind: str, options: Mapping) -> Estimate:
    """Recovery at one of the claimed sites; its null reaches from the lowest to the highest end of all nulls."""
    here = sites[(sites["sites"] == name) & (sites["kind"] == kind)]
    found = recovery_intervals(here[here["network"] != "untrained"], by=["network"], **options).set_index("network")
    ends = [found.loc[other, ["low", "high"]].tolist() for other in found.index if other != "fine-tuned"]
    untrained = here[here["network"] == "untrained"]
    if len(untrained):
        drawn = untrained.groupby("draw")[["numerator", "denominator"]].mean()
        tail = (1 - options["confidence"]) / 2
        ends.append((drawn["numerator"] / drawn["denominator"]).quantile([tail, 1 - tail]).tolist())
    lows, highs = zip(*ends, strict=True) if ends else ((math.nan,), (math.nan,))
    tuned = _of_recovery(found.loc["fine-tuned"])
    return Estimate(tuned.value, tuned.low, tuned.high, min(lows), max(highs), tuned.defined)


def _of_recovery(row: pd.Series) -> Estimate:
    return Estimate(row["recovery"], row["low"], row["high"], defined=bool(row["defined"]))


def _of_contrast(row: pd.Series) -> Estimate:
    return Estimate(row["difference"], row["low"], row["high"], row["null_low"], row["null_high"])


def published_numbers(sweep: pd.DataFrame, *, layers: int) -> dict[str, str]:
    """The same quantities by the published protocol: the median of the fine-tuned runs, and the untrained range.

    `sweep` is that of notebook 03 (helpers.published.published_sweep, with group and network), `layers` the number of
    blocks. A quantity that needs a module which cannot be patched, for the prompts differ in length, is a shape error.
    """
    denoised = sweep[sweep["direction"] == "denoising"]
    rows = [
        {"group": group} | _published(own.set_index(["item", "site"]), layers)
        for (group, _), own in denoised.groupby(["group", "network"])
    ]
    return {name: _summary(pd.DataFrame(rows), name) for name in CLAIMS if name in rows[0]}


def _published(own: pd.DataFrame, layers: int) -> dict[str, float]:
    """What one network gives. Modules that are one causal cut (c_attn and c_proj, c_fc and c_proj) count once."""
    recovery, clean = own["recovery"], own.groupby("item")["clean"].first()
    cuts = {part: [f"transformer.h.{layer}.{part}.c_proj" for layer in range(layers)] for part in ("attn", "mlp")}
    taking = {
        kind: float(participation(recovery[kind].reindex(cuts["attn"] + cuts["mlp"]).abs().to_numpy()[None])[0])
        for kind in KINDS
    }
    mlps, associative = recovery["associative"].reindex(cuts["mlp"]), recovery["associative"]
    return {
        "first_mlp": associative[cuts["mlp"][0]],
        "distributed": taking["associative"] - taking["definitional"],
        "last_layer": recovery["definitional", "lm_head"],
        "first_attention": associative[cuts["attn"][0]],
        "layers_differ": mlps.max() - mlps.min(),
        "clean_difference": (clean["definitional"] - clean["associative"]) / clean[[*KINDS]].abs().mean(),
    }


def _summary(table: pd.DataFrame, name: str) -> str:
    tuned, untrained = (table[table["group"] == group][name].dropna() for group in ("fine-tuned", "untrained"))
    if not len(tuned):
        return "shape error"
    null = f"; untrained {untrained.quantile(0.025):.2f} to {untrained.quantile(0.975):.2f}" if len(untrained) else ""
    return f"{tuned.median():.2f}{null}"


def claims_table(
    real: Mapping[str, Estimate],
    made_up: Mapping[str, Estimate],
    published: Mapping[str, str],
    *,
    model: Model,
    shape: str,
) -> pd.DataFrame:
    """One row per claim, COLUMNS: verdicts are by the `real` arm, and there is none on random weights.

    `shape` says what the model under study is.
    """
    rows = []
    for name, claim in CLAIMS.items():
        estimate, beside = real[name], str(made_up[name]) if made_up else "–"
        said = "not tested" if model.plumbing else verdict(estimate, claim.region)
        rows.append([claim.sentence, claim.published, published.get(name, "–"), estimate, estimate.null, beside, said])
    rows.append([EDITING.sentence, EDITING.published, "–", "–", "–", "–", "not tested"])
    return pd.DataFrame([[*map(str, row), scope_of(model, shape)] for row in rows], columns=COLUMNS)


def scope_of(model: Model, shape: str) -> str:
    """Of which model and weights a verdict speaks; what a folder holds is not known, so it is named."""
    if model.plumbing:
        return f"{shape}, random weights; GPT-2: not tested"
    if model.name_or_path == "embedded":
        return f"{shape}, embedded and fine-tuned; GPT-2: not tested"
    return f"{shape}, {model.name_or_path}{f' at {model.revision[:7]}' if model.revision else ''}, fine-tuned"
