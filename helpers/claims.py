"""Claims: what the study says, what its own protocol gives here, what the corrected one gives, and a verdict by rule.

A claim is a region in which some quantity should lie. With the 95 % interval of the corrected estimate, over items:

    supported   the interval lies inside the region and beyond the null's central 95 % by at least MARGIN; where the
                claim is that something is small, no null stands against it, but some other single layer must recover
                at least CONTROL in the same run, or nothing would be found anywhere
    refuted     the interval and the region have nothing in common
    undecided   anything else, or a quantity that is not defined

The null is the widest of those that were run: untrained networks, shuffled donors, the base model, and kinds or layers
exchanged at random. Quantities that are no recoveries are taken relative to their mean, so that MARGIN is a tenth of
it. A verdict carries its scope; there is none on weights without training, nor on a model whose answers are guesses.
`helpers.quantities` computes the estimates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from helpers.config import Model
from helpers.plans import Site

MARGIN, CONTROL = 0.1, 0.5
FIRST_MLP, LAST_BLOCK = "first feed-forward layer", "last block"
FIRST_ATTENTION, LAST_ATTENTION = "first attention layer", "last attention layer"


@dataclass(frozen=True)
class Region:
    """Where a claim says a quantity lies, both ends included."""

    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Estimate:
    """A quantity with its interval over items, and the widest of its nulls; NaN where there is none.

    `control` is the most that any single layer recovers in the same run.
    """

    value: float
    low: float
    high: float
    null_low: float = math.nan
    null_high: float = math.nan
    defined: bool = True
    control: float = math.nan

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]" if self.defined else "undefined"

    @property
    def null(self) -> str:
        """The null in words."""
        return "–" if math.isnan(self.null_low) else f"{self.null_low:.2f} to {self.null_high:.2f}"


@dataclass(frozen=True)
class Claim:
    """A sentence of the study, its figure, where the quantity behind it is measured, and the region it should lie in.

    Without a region nothing is measured, and `outcome` says why.
    """

    sentence: str
    published: str
    measured_at: str
    region: Region | None
    outcome: str = ""


_FINAL = "The final output layer recovers all of the preference for definitional items, so they are localised there"
_CONVOLUTION = "The “convolutional” layer contributes marginally to associative items"
CLAIMS = {
    "first_mlp": Claim(
        "The first feed-forward layer recovers about half of the preference for associative items",
        "56 %",
        "MLP output of block 0",
        Region(0.46, 0.66),
    ),
    "distributed": Claim(
        "Associative knowledge is distributed, definitional knowledge localised",
        "read off the 56 % and 100 %",
        "participation ratio over attention and MLP outputs: associative less definitional, over the mean",
        Region(low=0.0),
    ),
    "final_output": Claim(_FINAL, "100 %", "unembedding (lm_head)", None, "by construction"),
    "last_block": Claim(_FINAL, "100 %", "attention and MLP outputs of the last block together", Region(low=0.9)),
    "first_attention": Claim(_CONVOLUTION, "13.6 %", "attention output of block 0", Region(high=0.236)),
    "last_attention": Claim(_CONVOLUTION, "13.6 %", "attention output of the last block", Region(high=0.236)),
    "layers_differ": Claim(
        "Layers differ", "p < 0.01, test and unit unknown", "best MLP output less the worst", Region(low=MARGIN)
    ),
    "clean_difference": Claim(
        "The clean preference is stronger for definitional items",
        "stated, without a number",
        "clean logit difference: definitional less associative, over the mean",
        Region(low=0.0),
    ),
    "layers_add": Claim(
        "Contributions of layers add up", "assumed", "all MLP outputs together over the sum of single ones",
        Region(0.9, 1.1),
    ),
    "editing": Claim(
        "Whether editing works depends on the kind of knowledge", "stated, without a number", "–", None, "not tested"
    ),
}  # fmt: skip
COLUMNS = ["claim", "published", "published protocol here", "measured at", "corrected protocol here", "seeds", "null"]
COLUMNS += ["made-up arm", "verdict"]


def verdict(estimate: Estimate, region: Region) -> str:
    """`supported`, `refuted` or `undecided`, by the rule above."""
    if not estimate.defined or math.isnan(estimate.value):
        return "undecided"
    if estimate.high < region.low or estimate.low > region.high:
        return "refuted"
    inside = region.low <= estimate.low and estimate.high <= region.high
    if region.low == -math.inf:
        allowed = estimate.control >= CONTROL
    else:
        above, below = estimate.low >= estimate.null_high + MARGIN, estimate.high <= estimate.null_low - MARGIN
        allowed = math.isnan(estimate.null_low) or above or below
    return "supported" if inside and allowed else "undecided"


def claimed_sites(layers: int) -> dict[str, list[Site]]:
    """The places the study speaks of, as sets of sites at all positions, in a network of `layers` blocks."""
    return {
        FIRST_MLP: [Site("mlp_out", 0, "all")],
        FIRST_ATTENTION: [Site("attn_out", 0, "all")],
        LAST_ATTENTION: [Site("attn_out", layers - 1, "all")],
        LAST_BLOCK: [Site("attn_out", layers - 1, "all"), Site("mlp_out", layers - 1, "all")],
    }


def no_verdict(model: Model, known: pd.DataFrame) -> str:
    """Why a run gives no verdict at all, or nothing.

    `known` is that of experiment.shares_known: where the fine-tuned model prefers the right answer no more often than
    chance, the pairs that pass the rule are lucky guesses, and their recoveries mean nothing.
    """
    if model.plumbing:
        return "not tested"
    tuned = known[known["network"] == "fine-tuned"]
    return "" if len(tuned) and (tuned["low"] > 0.5).all() else "undecided"


def claims_table(
    real: Mapping[str, Estimate],
    made_up: Mapping[str, Estimate],
    published: Mapping[str, str],
    *,
    seeds: Mapping[str, str],
    instead: str,
) -> pd.DataFrame:
    """One row per claim, COLUMNS: verdicts are by the `real` arm, or `instead` where there can be none.

    `published` and `seeds` are the published protocol's numbers and the range of the real arm's estimates over
    training seeds, in words. What was not run is a dash.
    """
    rows = []
    for name, claim in CLAIMS.items():
        estimate = real.get(name)
        own = [str(estimate), seeds.get(name, "–"), estimate.null] if estimate else ["–", "–", "–"]
        said = instead or verdict(estimate, claim.region) if estimate else claim.outcome or "not tested"
        row = [claim.sentence, claim.published, published.get(name, "–"), claim.measured_at, *own]
        rows.append([*row, str(made_up[name]) if name in made_up else "–", said])
    return pd.DataFrame(rows, columns=COLUMNS)


def scope_of(model: Model, network) -> str:
    """Of which model and weights a verdict speaks; what a folder holds is not known, so it is named."""
    config = network.config
    weights = f"{model.name_or_path}{f' at {model.revision[:7]}' if model.revision else ''}, fine-tuned"
    if model.plumbing:
        weights = "random weights (GPT-2 itself: not tested)"
    elif model.name_or_path == "embedded":
        weights = "the embedded model, fine-tuned (GPT-2 itself: not tested)"
    return f"{config.model_type} of {config.num_hidden_layers} blocks × {config.hidden_size}, {weights}"
