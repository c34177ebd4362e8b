"""The patching experiment: from items and a model to one tidy table of effects, with everything left out listed.

Pairs are made by symmetric token replacement. Which pairs enter is fixed by the model under study (its clean logit
difference must exceed the profile's minimum); nulls and the base model are then patched on the very same pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from scipy.stats import binomtest

from helpers.answers import ANSWER_LOG_PROBABILITY, measure_answers, sweep_answers
from helpers.config import Items, Patching
from helpers.donors import shuffled_donors, symmetric_replacement
from helpers.draws import draw_rank
from helpers.metrics import normalise, with_effects
from helpers.pairs import PromptPair
from helpers.patching import measure_runs, sweep

EFFECTS = ["pair", "component", "layer", "position", "role", "head", "direction", "metric", "numerator", "denominator"]
ROLE_ORDER = ("prefix", "subject_first", "subject_middle", "subject_last", "relation", "last", "all")


class ExperimentError(ValueError):
    """An experiment with nothing to measure."""


@dataclass(frozen=True)
class Selection:
    """The pairs of one model that enter, and all that it was asked.

    `asked` are all pairs that could be made, `pairs` those of them that the rules let in. `described` has pair,
    item_id, donor_id, kind, relation and arm of all asked; `excluded` item_id, kind and reason of every item left out.
    """

    pairs: list[PromptPair]
    asked: list[PromptPair]
    described: pd.DataFrame
    excluded: pd.DataFrame


def select_pairs(model, tokenizer, items: pd.DataFrame, *, settings: Items, phase: str = "confirmatory") -> Selection:
    """Pairs of one phase, in the profile's wording, that the model under study knows; donors are of the item's own arm.

    Where the profile caps the pairs of a kind, they are drawn at random among those that the model knows. Raises
    ExperimentError when no pair is left, with the commonest reason.
    """
    asked = items[items["wording_id"].str.endswith(f"-{settings.group}-{settings.wording}")]
    chosen = asked[asked["phase"] == phase].reset_index(drop=True)
    pairs, reasons = [], {}
    for _, arm in chosen.groupby("arm"):
        made, unpaired = symmetric_replacement(arm, tokenizer, seed=settings.seed)
        pairs += made
        reasons |= dict(zip(unpaired["item_id"], unpaired["reason"], strict=True))
    entered = pairs
    if pairs and settings.minimum_clean_logit_difference is not None:
        clean = measure_runs(model, pairs, metrics=("logit_difference",)).query("run == 'clean'")
        known = set(clean.loc[clean["logit_difference"] > settings.minimum_clean_logit_difference, "pair"])
        rule = f"clean logit difference not above {settings.minimum_clean_logit_difference:g}"
        reasons |= {_item_of(pair): rule for pair in pairs if pair.pair_id not in known}
        entered = [pair for pair in pairs if pair.pair_id in known]
    named = pd.DataFrame(
        [(pair.pair_id, _item_of(pair), pair.donor_id) for pair in pairs], columns=["pair", "item_id", "donor_id"]
    )
    described = named.merge(chosen[["item_id", "kind", "relation", "arm"]], on="item_id", validate="one_to_one")
    if settings.max_pairs_per_kind is not None:
        drawn = _drawn(described, {pair.pair_id for pair in entered}, settings)
        rule = f"beyond the {settings.max_pairs_per_kind} pairs that are drawn of a kind"
        reasons |= {_item_of(pair): rule for pair in entered if pair.pair_id not in drawn}
        entered = [pair for pair in entered if pair.pair_id in drawn]
    excluded = chosen[chosen["item_id"].isin(reasons)][["item_id", "kind"]]
    excluded = excluded.assign(reason=excluded["item_id"].map(reasons)).reset_index(drop=True)
    if not entered:
        common = excluded["reason"].mode().iat[0] if len(excluded) else "no item was asked in this wording"
        raise ExperimentError(
            f"Of {len(chosen)} {phase} items no pair is left to patch; the commonest reason: {common}."
        )
    return Selection(entered, pairs, described, excluded)


def _item_of(pair: PromptPair) -> str:
    return pair.pair_id.split("/")[0]


def _drawn(described: pd.DataFrame, among: set[str], settings: Items) -> set[str]:
    """At most as many pairs of each arm and kind as the profile allows, by a hash of seed and item."""
    rows = described[described["pair"].isin(among)]
    rank = rows["item_id"].map(lambda item: draw_rank(settings.seed, item))
    first = rows.assign(rank=rank).sort_values("rank").groupby(["arm", "kind"]).head(settings.max_pairs_per_kind)
    return set(first["pair"])


def clean_differences(model, selection: Selection, *, row_budget: int | None) -> pd.DataFrame:
    """What a model makes of every pair that was asked, known or not: pair, and its clean logit difference.

    The columns numerator (the difference, in logits) and denominator (1) make its mean a ratio of means.
    """
    runs = measure_runs(model, selection.asked, metrics=("logit_difference",), row_budget=row_budget)
    clean = runs[runs["run"] == "clean"].drop(columns="run")
    return clean.rename(columns={"logit_difference": "numerator"}).assign(denominator=1.0).reset_index(drop=True)


def shares_known(clean: pd.DataFrame, *, confidence: float) -> pd.DataFrame:
    """Share of the asked items that a network prefers to the donor's answer, beside the half that chance gives.

    `clean` has network, kind, item_id and numerator (clean logit difference); an item's seeds are averaged. One row per
    network and kind: items, share, low, high (Wilson interval).
    """
    items = clean.groupby(["network", "kind", "item_id"])["numerator"].mean().gt(0)
    rows = []
    for (network, kind), known in items.groupby(level=["network", "kind"]):
        interval = binomtest(int(known.sum()), len(known)).proportion_ci(confidence, method="wilson")
        found = {"items": len(known), "share": known.mean(), "low": interval.low, "high": interval.high}
        rows.append({"network": network, "kind": kind} | found)
    return pd.DataFrame(rows)


def why_excluded(excluded: pd.DataFrame) -> pd.DataFrame:
    """Items left out per kind and reason, with the numbers inside a reason made general; `count` is item × seed."""
    reason = excluded["reason"].str.replace(r"(?<= )\d+( to \d+)?", "n", regex=True)
    return excluded.assign(reason=reason).groupby(["reason", "kind"]).size().rename("count").reset_index()


def measure_effects(
    model,
    pairs: Sequence[PromptPair],
    *,
    settings: Patching,
    directions: Sequence[str],
    metrics: Sequence[str] = ("logit_difference",),
) -> pd.DataFrame:
    """Sweep the profile's components at each position, and attention, MLPs and heads at all positions together.

    One row per patch of one pair and metric. Columns: pair, component, layer, position, role, head, direction, metric,
    numerator, denominator (metrics.with_effects), in the metric's unit: the ratio is taken later, of means.
    `metrics` are those of helpers.metrics, and the whole answer's of helpers.answers. The residual stream is not
    patched at all positions: it would recover 1 by construction.
    """
    whole = [component for component in settings.components if not component.startswith("resid")]
    kinds = ({"components": settings.components}, {"components": [*whole, "head_out"], "positions": "all"})
    first_token, budget = [name for name in metrics if name != ANSWER_LOG_PROBABILITY], settings.row_budget
    ways = []
    if first_token:
        ways.append((first_token, partial(sweep, metrics=first_token), partial(measure_runs, metrics=first_token)))
    if ANSWER_LOG_PROBABILITY in metrics:
        ways.append(([ANSWER_LOG_PROBABILITY], sweep_answers, measure_answers))
    tables = []
    for names, patch, measure in ways:
        runs = measure(model, pairs, row_budget=budget)
        swept = pd.concat(
            patch(model, pairs, direction=direction, window=settings.window, **kind, row_budget=budget)
            for direction in directions
            for kind in kinds
        )
        tables += [with_effects(swept, runs, metric=name).assign(metric=name) for name in names]
    return pd.concat(tables, ignore_index=True)[EFFECTS]


def strangers_of(selection: Selection, *, seed: int) -> list[PromptPair]:
    """The pairs that enter, with shuffled donors of their own arm (helpers.donors); fewer, where there is none."""
    arm = selection.described.set_index("pair")["arm"]
    by_arm: dict[str, list[PromptPair]] = {}
    for pair in selection.pairs:
        by_arm.setdefault(arm[pair.pair_id], []).append(pair)
    return [stranger for pairs in by_arm.values() for stranger in shuffled_donors(pairs, seed=seed)]


def in_units_of(effects: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Effects over the denominators that the same pairs have in `reference`, for networks without a ratio of their own.

    Rows of pairs that `reference` lacks are left out.
    """
    own = reference.drop_duplicates("pair").set_index("pair")["denominator"]
    known = effects[effects["pair"].isin(own.index)]
    return known.assign(denominator=known["pair"].map(own))


def by_role(effects: pd.DataFrame) -> pd.DataFrame:
    """Effects averaged within each pair over the positions of one role, roles in reading order; heads are left out.

    The role "all" is one patch of all positions together. Averaging first within the pair lets every pair weigh the
    same, whatever the length of its subject.
    """
    of_pair = ("network", "seed", "pair", "item_id", "kind", "arm")
    keys = [name for name in (*of_pair, "metric", "component", "layer", "direction", "role") if name in effects]
    rows = effects[effects["component"] != "head_out"]
    table = rows.groupby(keys, as_index=False, observed=True)[["numerator", "denominator"]].mean()
    return table.assign(role=pd.Categorical(table["role"], ROLE_ORDER, ordered=True))


def role_recovery(effects: pd.DataFrame) -> pd.DataFrame:
    """Recovery per direction, kind, component, role (in reading order) and layer, as heatmaps show it."""
    return normalise(by_role(effects[effects["role"] != "all"]), by=["direction", "kind", "component", "role", "layer"])


def head_recovery(effects: pd.DataFrame) -> pd.DataFrame:
    """Recovery per direction, kind and head, its output patched at all positions."""
    return normalise(effects[effects["component"] == "head_out"], by=["direction", "kind", "layer", "head"])
