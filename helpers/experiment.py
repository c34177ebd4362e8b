"""The patching experiment: from items and a model to one tidy table of effects, with everything left out listed.

Pairs are made by symmetric token replacement. Which pairs enter is fixed by the model under study (its clean logit
difference must exceed the profile's minimum); nulls and the base model are then patched on the very same pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from helpers.answers import ANSWER_LOG_PROBABILITY, measure_answers, sweep_answers
from helpers.config import Items, Patching
from helpers.donors import shuffled_donors, symmetric_replacement
from helpers.metrics import normalise, with_effects
from helpers.pairs import PromptPair
from helpers.patching import measure_runs, sweep

EFFECTS = ["pair", "component", "layer", "position", "role", "head", "direction", "metric", "numerator", "denominator"]
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
    first_token, tables = [name for name in metrics if name != ANSWER_LOG_PROBABILITY], []
    if first_token:
        options = {"metrics": first_token, "row_budget": settings.row_budget}
        runs = measure_runs(model, pairs, **options)
        swept = [sweep(model, pairs, direction=d, **kind, **options) for d in directions for kind in kinds]
        tables += [with_effects(pd.concat(swept), runs, metric=name).assign(metric=name) for name in first_token]
    if ANSWER_LOG_PROBABILITY in metrics:
        options = {"row_budget": settings.row_budget}
        runs = measure_answers(model, pairs, **options)
        swept = [sweep_answers(model, pairs, direction=d, **kind, **options) for d in directions for kind in kinds]
        name = ANSWER_LOG_PROBABILITY
        tables.append(with_effects(pd.concat(swept), runs, metric=name).assign(metric=name))
    return pd.concat(tables, ignore_index=True)[EFFECTS]


def shuffled_effects(model, pairs: Sequence[PromptPair], *, settings: Patching, seed: int) -> pd.DataFrame:
    """`measure_effects` by denoising with an unrelated item's activations, over the pairs' own denominators: a null."""
    strangers = shuffled_donors(pairs, seed=seed)
    if not strangers:
        raise ExperimentError(f"None of {len(pairs)} pairs has a stranger of its own form to be patched from.")
    effects = measure_effects(model, strangers, settings=settings, directions=("denoising",))
    runs = measure_runs(model, pairs, metrics=("logit_difference",), row_budget=settings.row_budget)
    ends = runs.pivot(index="pair", columns="run", values="logit_difference")
    return effects.assign(denominator=effects["pair"].map(ends["clean"] - ends["corrupted"]))


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
    run, item, site = (
        ("network", "seed"),
        ("pair", "item_id", "kind", "arm"),
        ("component", "layer", "direction", "role"),
    )
    keys = [name for name in (*run, *item, "metric", *site) if name in effects]
    rows = effects[effects["component"] != "head_out"]
    table = rows.groupby(keys, as_index=False, observed=True)[["numerator", "denominator"]].mean()
    return table.assign(role=pd.Categorical(table["role"], ROLE_ORDER, ordered=True))


def role_recovery(effects: pd.DataFrame) -> pd.DataFrame:
    """Recovery per direction, kind, component, role (in reading order) and layer, as heatmaps show it."""
    return normalise(by_role(effects[effects["role"] != "all"]), by=["direction", "kind", "component", "role", "layer"])


def head_recovery(effects: pd.DataFrame) -> pd.DataFrame:
    """Recovery per direction, kind and head, its output patched at all positions."""
    return normalise(effects[effects["component"] == "head_out"], by=["direction", "kind", "layer", "head"])
