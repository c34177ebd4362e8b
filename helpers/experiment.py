"""The patching experiment: from items and a model to one tidy table of effects, with everything left out listed.

Pairs are made by symmetric token replacement. Which pairs enter is fixed by the model under study (its clean logit
difference must exceed the profile's minimum); nulls and the base model are then patched on the very same pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from helpers.config import Items, Patching
from helpers.metrics import normalise, with_effects
from helpers.pairs import PromptPair, symmetric_replacement
from helpers.patching import measure_runs, sweep
from helpers.values import OTHER_RUN, Value

ROLE_ORDER = ("prefix", "subject_first", "subject_middle", "subject_last", "relation", "last", "all")


class ExperimentError(ValueError):
    """An experiment with nothing to measure."""


@dataclass(frozen=True)
class Selection:
    """The pairs of one model, what is known of each (pair, item_id, kind, relation, arm), and which items are out."""

    pairs: list[PromptPair]
    described: pd.DataFrame
    excluded: pd.DataFrame


def select_pairs(model, tokenizer, items: pd.DataFrame, *, settings: Items, phase: str = "confirmatory") -> Selection:
    """Pairs of one phase, in the profile's wording, that the model under study knows.

    `excluded` has item_id, kind, reason. Raises ExperimentError when no pair is left, with the commonest reason.
    """
    asked = items[items["wording_id"].str.endswith(f"-{settings.group}-{settings.wording}")]
    chosen = asked[asked["phase"] == phase].reset_index(drop=True)
    if settings.max_pairs_per_kind is not None:
        chosen = chosen.sort_values("item_id").groupby("kind").head(settings.max_pairs_per_kind)
    pairs, unpaired = symmetric_replacement(chosen, tokenizer, seed=settings.seed)
    reasons = dict(zip(unpaired["item_id"], unpaired["reason"], strict=True))
    if pairs and settings.minimum_clean_logit_difference is not None:
        clean = measure_runs(model, pairs, metrics=("logit_difference",)).query("run == 'clean'")
        known = set(clean.loc[clean["logit_difference"] > settings.minimum_clean_logit_difference, "pair"])
        rule = f"clean logit difference not above {settings.minimum_clean_logit_difference:g}"
        reasons |= {pair.pair_id.split("/")[0]: rule for pair in pairs if pair.pair_id not in known}
        pairs = [pair for pair in pairs if pair.pair_id in known]
    excluded = chosen[chosen["item_id"].isin(reasons)][["item_id", "kind"]]
    excluded = excluded.assign(reason=excluded["item_id"].map(reasons)).reset_index(drop=True)
    if not pairs:
        common = excluded["reason"].mode().iat[0] if len(excluded) else "no item was asked in this wording"
        raise ExperimentError(
            f"Of {len(chosen)} {phase} items no pair is left to patch; the commonest reason: {common}."
        )
    named = pd.DataFrame({"pair": [p.pair_id for p in pairs], "item_id": [p.pair_id.split("/")[0] for p in pairs]})
    described = named.merge(chosen[["item_id", "kind", "relation", "arm"]], on="item_id", validate="one_to_one")
    return Selection(pairs, described, excluded)


def why_excluded(excluded: pd.DataFrame) -> pd.DataFrame:
    """Items left out per kind and reason, with the numbers inside a reason made general; `count` is item × seed."""
    reason = excluded["reason"].str.replace(r"(?<= )\d+( to \d+)?", "n", regex=True)
    return excluded.assign(reason=reason).groupby(["reason", "kind"]).size().rename("count").reset_index()


def measure_effects(
    model, pairs: Sequence[PromptPair], *, settings: Patching, directions: Sequence[str], value: Value = OTHER_RUN
) -> pd.DataFrame:
    """Sweep the profile's components at each position, and attention, MLPs and heads at all positions together.

    One row per patch of one pair. Columns of `patching.sweep` and of `metrics.with_effects`, in logits: the ratio is
    taken later, of means. The residual stream is not patched at all positions: it would recover 1 by construction.
    """
    tables = []
    for direction in directions:
        options = {"direction": direction, "row_budget": settings.row_budget, "value": value}
        tables.append(sweep(model, pairs, components=settings.components, **options))
        whole = [component for component in settings.components if not component.startswith("resid")]
        tables.append(sweep(model, pairs, components=[*whole, "head_out"], positions="all", **options))
    runs = measure_runs(model, pairs, metrics=("logit_difference",), row_budget=settings.row_budget)
    return with_effects(pd.concat(tables, ignore_index=True), runs)


def by_role(effects: pd.DataFrame) -> pd.DataFrame:
    """Effects averaged within each pair over the positions of one role, roles in reading order; heads are left out.

    The role "all" is one patch of all positions together. Averaging first within the pair lets every pair weigh the
    same, whatever the length of its subject.
    """
    keys = [
        c
        for c in ("network", "seed", "pair", "item_id", "kind", "arm", "component", "layer", "direction", "role")
        if c in effects
    ]
    rows = effects[effects["component"] != "head_out"]
    table = rows.groupby(keys, as_index=False, observed=True)[["numerator", "denominator"]].mean()
    return table.assign(role=pd.Categorical(table["role"], ROLE_ORDER, ordered=True))


def role_recovery(effects: pd.DataFrame) -> pd.DataFrame:
    """Recovery per direction, kind, component, role (in reading order) and layer, as heatmaps show it."""
    return normalise(by_role(effects[effects["role"] != "all"]), by=["direction", "kind", "component", "role", "layer"])


def head_recovery(effects: pd.DataFrame) -> pd.DataFrame:
    """Recovery per direction, kind and head, its output patched at all positions."""
    return normalise(effects[effects["component"] == "head_out"], by=["direction", "kind", "layer", "head"])
