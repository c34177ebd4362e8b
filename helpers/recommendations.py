"""Recommendations: what the papers conclude about patching, and whether this run's own numbers say the same.

A `Reading` is a measured quantity and the values of it that speak against a conclusion. With its 95 % interval:

    against   the whole interval lies among those values
    for       none of the interval does
    open      anything else, or a quantity that is not defined

One conclusion may read several keys, each on several tasks. Per key: for, if some tasks speak for it and none against;
against, if some speak against it and none for; else open. Per conclusion:

    not tested            a key that it reads was measured on no task
    holds here            every key speaks for it
    does not hold here    some key speaks against it
    undecided             anything else; tasks that contradict one another leave it undecided, and are named

`helpers.verdicts` applies these rules.

The bounds were written down before anything was measured, and RECOMMENDATIONS holds them: ratios of peaks 1.2 (windows
"typically" inflate by 20 %); differences of normalised effects, attention and overlap 0.1 (as the claims of notebook
04); numbers of heads 0.5 (at least one more than not); overlap 0.5; rank correlation 0.8; and for the floor of
probability twice the threshold. That two ways *differ* is read off what they share less than two halves of the prompts
do by one way; that they *agree* needs no such null, for chance can only lower agreement. Advice on procedure
(exploratory and confirmatory prompts, Pareto frontiers) predicts nothing, and is not listed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ZN, HN = "Zhang & Nanda (2309.16042)", "Heimersheim & Nanda (2404.15255)"
KEYS = {
    "gn_over_str_peak": "largest effect of a single site under GN over the largest under STR",
    "gn_less_str_heads": "heads that one draw of GN detects, less those of one draw of STR",
    "attention_lost_to_gn": "the movers' largest attention to a name or answer, under STR less under GN",
    "values_lost_to_gn": "normalised effect of restoring the values that move the answer, under STR less under GN",
    "floor_over_threshold": "−P*(r), the floor of probability, over the (negative) lower threshold",
    "negatives_missed": "heads that logit difference and KL both detect as negative and probability does not",
    "probability_over_ld_focus": "last over middle subject tokens by probability, over the same by logit difference",
    "ld_kl_overlap": "Jaccard overlap of the heads that logit difference and KL detect",
    "ld_kl_correlation": "rank correlation of the heads' effects by logit difference and by KL",
    "single_layer_peak": "largest normalised effect of a single layer",
    "joint_over_sum": "peak of a window patched jointly over the peak of its summed single layers",
    "overlap_lost_to_tokens": "overlap of the detected heads of two halves, less that of two choices of tokens",
    "overlap_lost_to_direction": "overlap of the detected heads of two halves, less that of the two directions",
    "direct_heads_missed": "heads that move the answer directly (by direct attribution) and that patching misses",
    "backup_heads_missed": "heads that act once the movers are knocked out, and that patching misses",
    "correlation_lost_to_ablation": "rank correlation of the heads in two halves, less that of ablation and patching",
    "attribution_correlation": "rank correlation of attribution patching and patching, over heads",
}


@dataclass(frozen=True)
class Reading:
    """A key of the evidence, and the values, `low` to `high` and both included, that speak against the conclusion."""

    key: str
    low: float = -math.inf
    high: float = math.inf

    def side(self, low: float, high: float) -> str:
        """`for`, `against` or `open`, of an interval from `low` to `high`."""
        if math.isnan(low) or math.isnan(high):
            return "open"
        if self.low <= low and high <= self.high:
            return "against"
        return "for" if high < self.low or low > self.high else "open"

    def __str__(self) -> str:
        if self.low == -math.inf:
            return f"above {self.high:g}"
        return f"below {self.low:g}" if self.high == math.inf else f"outside {self.low:.3g} to {self.high:.3g}"


@dataclass(frozen=True)
class Recommendation:
    """What a paper concludes, what it therefore advises, and the readings that decide whether it is so here.

    Of a `setting` of notebook 04 it advises the values `advised` where it holds, and `otherwise` where it does not;
    where there are none, it says nothing about that setting.
    """

    conclusion: str
    advice: str
    source: str
    readings: tuple[Reading, ...]
    setting: str = ""
    advised: tuple[str, ...] = ()
    otherwise: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the evidence that it reads."""
        return tuple(reading.key for reading in self.readings)


STR, BOTH, ONE_LAYER, WINDOW = ("STR",), ("both",), ("single layers",), ("windows",)
SOFT = ("logit_difference", "kl_divergence")
RECOMMENDATIONS = {
    "corruptions_differ": Recommendation(
        "The height of a peak depends on how the prompt is corrupted",
        "say with every number how the prompt was corrupted",
        f"{ZN}, section 3",
        (Reading("gn_over_str_peak", 1 / 1.2, 1.2),),
    ),
    "noise_finds_more": Recommendation(
        "Noise spreads effects over more heads than token replacement",
        "STR whenever there is an aligned prompt",
        f"{ZN}, section 3",
        (Reading("gn_less_str_heads", high=0.5),),
        "corruption",
        STR,
    ),
    "noise_breaks_circuits": Recommendation(
        "Noise takes the model out of its distribution, so that attention patterns and the use of values are lost",
        "STR whenever there is an aligned prompt",
        f"{ZN}, section 3.2",
        (Reading("attention_lost_to_gn", high=0.1), Reading("values_lost_to_gn", high=0.1)),
        "corruption",
        STR,
    ),
    "probability_has_a_floor": Recommendation(
        "The floor of probability lies too near the threshold for a negative head to be detected",
        "avoid probability",
        f"{ZN}, section 4",
        (Reading("floor_over_threshold", low=2),),
        "metric",
        SOFT,
    ),
    "probability_misses_negatives": Recommendation(
        "Probability misses negative heads that logit difference and KL find",
        "avoid probability",
        f"{ZN}, section 4",
        (Reading("negatives_missed", high=0.5),),
        "metric",
        SOFT,
    ),
    "probability_exaggerates": Recommendation(
        "Probability concentrates effects on the last subject token more than logit difference does",
        "avoid probability",
        f"{ZN}, section 4.1",
        (Reading("probability_over_ld_focus", high=1.2),),
        "metric",
        SOFT,
    ),
    "soft_metrics_agree": Recommendation(
        "Logit difference and KL find the same heads",
        "prefer logit difference; KL is reasonable",
        f"{ZN}, section 6; {HN}, section 4",
        (Reading("ld_kl_overlap", high=0.5), Reading("ld_kl_correlation", high=0.8)),
        "metric",
        SOFT,
    ),
    "single_layers_suffice": Recommendation(
        "Single layers have effects large enough to be read",
        "patch single layers first, windows only where these are small",
        f"{ZN}, section 6",
        (Reading("single_layer_peak", high=0.1),),
        "window",
        ONE_LAYER,
        WINDOW,
    ),
    "windows_inflate": Recommendation(
        "A window patched jointly does more than the sum of its layers",
        "read a window as a joint effect, never as that of its middle layer",
        f"{ZN}, section 5",
        (Reading("joint_over_sum", high=1.2),),
        "window",
        ONE_LAYER,
    ),
    "tokens_matter": Recommendation(
        "Which tokens are corrupted decides which heads are found",
        "try several choices of corrupted tokens",
        f"{ZN}, section 6; {HN}, section 5",
        (Reading("overlap_lost_to_tokens", high=0.1),),
    ),
    "directions_differ": Recommendation(
        "Denoising and noising find different heads",
        "patch in both directions: one tests sufficiency, the other necessity",
        f"{HN}, section 5",
        (Reading("overlap_lost_to_direction", high=0.1),),
        "directions",
        BOTH,
    ),
    "patching_misses_writers": Recommendation(
        "Patching alone misses heads that write the answer",
        "add direct attribution, path patching and inspection",
        f"{ZN}, section 6",
        (Reading("direct_heads_missed", high=0.5),),
    ),
    "patching_misses_backups": Recommendation(
        "Patching alone misses heads that stand in for others",
        "knock out groups of heads together",
        f"{HN}, section 3",
        (Reading("backup_heads_missed", high=0.5),),
    ),
    "ablation_differs": Recommendation(
        "Zero ablation ranks heads differently from patching",
        "patch rather than ablate",
        f"{HN}, section 5",
        (Reading("correlation_lost_to_ablation", high=0.1),),
    ),
    "attribution_stands_in": Recommendation(
        "Attribution patching ranks heads as patching does",
        "use it where an exact sweep is too slow",
        f"{HN}, section 5",
        (Reading("attribution_correlation", high=0.8),),
    ),
}
