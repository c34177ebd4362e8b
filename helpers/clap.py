"""CLAP done right: all that is measured of one fine-tuned model and its nulls, as tidy tables.

Every table has one row per measurement of one pair, with item_id, kind, arm and network beside it; the unit of what is
later inferred is the item. Nothing is averaged here.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from helpers.answers import ANSWER_LOG_PROBABILITY
from helpers.architectures import layer_count
from helpers.claims import claimed_sites
from helpers.config import Items, Patching
from helpers.crossmodel import cross_model_effects
from helpers.experiment import (
    Selection,
    clean_differences,
    in_units_of,
    measure_effects,
    select_pairs,
    strangers_of,
)
from helpers.interactions import all_layers, joint_effects, top_heads
from helpers.metrics import with_effects
from helpers.models import untrained_twin
from helpers.patching import measure_runs, sweep, sweep_sets
from helpers.streams import direct_attribution, run_distances

METRICS = ("logit_difference", "kl_divergence", ANSWER_LOG_PROBABILITY)
KNOCKED_OUT = (2, 3, 5, 8)  # heads at a time


def measure_tuned(model, selection: Selection, *, settings: Patching, all_metrics: bool) -> dict[str, pd.DataFrame]:
    """The fine-tuned model itself, by table: effects, sites, joint, direct, distances, clean.

    effects: helpers.experiment.measure_effects in the profile's directions; with `all_metrics`, METRICS by denoising.
    sites: claims.claimed_sites by denoising. joint: all MLPs, all attention, and both, beside the sum of single ones.
    direct, distances: helpers.streams. clean: the clean logit difference of all that was asked.
    """
    pairs, budget = selection.pairs, settings.row_budget
    effects = []
    for direction in settings.directions:  # metrics of one direction come from one pass
        metrics = METRICS if all_metrics and direction == "denoising" else METRICS[:1]
        effects.append(measure_effects(model, pairs, settings=settings, directions=(direction,), metrics=metrics))
    mlps, attention = all_layers(model, "mlp_out"), all_layers(model, "attn_out")
    layers = {"feed-forward": mlps, "attention": attention, "both": [*attention, *mlps]}
    tables = {
        "effects": pd.concat(effects, ignore_index=True),
        "sites": _at_claimed_sites(model, pairs, budget),
        "joint": joint_effects(model, pairs, layers, directions=settings.directions, row_budget=budget),
        "direct": direct_attribution(model, pairs, row_budget=budget),
        "distances": run_distances(model, pairs, row_budget=budget),
        "clean": clean_differences(model, selection, row_budget=budget),
    }
    return {name: _described(table, selection, "fine-tuned") for name, table in tables.items()}


def measure_heads(
    model, tokenizer, items: pd.DataFrame, selection: Selection, *, rule: Items, settings: Patching
) -> pd.DataFrame:
    """The strongest heads knocked out together by noising, beside the sum of single ones: `joint_effects`.

    Which heads are the strongest is decided on exploratory items, and measured on the pairs of `selection`.
    """
    explored = select_pairs(model, tokenizer, items, settings=rule, phase="exploratory")
    options = {"direction": "noising", "row_budget": settings.row_budget}
    swept = sweep(model, explored.pairs, components=["head_out"], positions="all", **options)
    effects = with_effects(swept, _runs(model, explored.pairs, settings.row_budget))
    heads = top_heads(effects, direction="noising", count=max(KNOCKED_OUT))
    groups = {f"top {count}": heads[:count] for count in KNOCKED_OUT if count <= len(heads)}
    table = joint_effects(model, selection.pairs, groups, directions=("noising",), row_budget=settings.row_budget)
    return _described(table, selection, "fine-tuned")


def measure_nulls(model, base, selection: Selection, *, settings: Patching, seed: int) -> dict[str, pd.DataFrame]:
    """The same pairs in networks without the facts: effects, sites and clean by `network`.

    base model, shuffled donor (the fine-tuned model, patched from an unrelated item), and untrained networks: one for
    the effects, as many as the profile asks for at the claimed sites (`draw`). Effects have the denominators of their
    own network, sites those of the fine-tuned model, and so has the shuffled donor in both. A null that no pair can be
    made for is left out.
    """
    pairs, budget, options = selection.pairs, settings.row_budget, {"settings": settings, "directions": ("denoising",)}
    ends = _runs(model, pairs, budget).pivot(index="pair", columns="run", values="logit_difference")
    own = (ends["clean"] - ends["corrupted"]).rename("denominator").reset_index()
    strangers = strangers_of(selection, seed=seed)
    effects, sites = {"base": measure_effects(base, pairs, **options)}, {"base": _at_claimed_sites(base, pairs, budget)}
    clean = {"base": clean_differences(base, selection, row_budget=budget)}
    if strangers:
        effects["shuffled donor"] = in_units_of(measure_effects(model, strangers, **options), own)
        sites["shuffled donor"] = _at_claimed_sites(model, strangers, budget)
    drawn = []
    for draw in range(settings.untrained_networks):  # one at a time: twenty of a large model would not fit
        twin = untrained_twin(model, seed=draw)
        drawn.append(_at_claimed_sites(twin, pairs, budget).assign(draw=draw))
        if draw == 0:
            effects["untrained"] = measure_effects(twin, pairs, **options)
            clean["untrained"] = clean_differences(twin, selection, row_budget=budget)
    if drawn:
        sites["untrained"] = pd.concat(drawn, ignore_index=True)
    return {
        "effects": _labelled(effects, selection),
        "sites": _labelled({name: in_units_of(table, own) for name, table in sites.items()}, selection),
        "clean": _labelled(clean, selection),
    }


def measure_change(model, base, selection: Selection, *, settings: Patching) -> pd.DataFrame:
    """What fine-tuning changed: `cross_model_effects` at all positions."""
    table = cross_model_effects(model, base, selection.pairs, row_budget=settings.row_budget)
    return _described(table, selection, "fine-tuned")


def gathered(parts: Iterable[dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """The tables of several measurements, each put end to end by name."""
    found: dict[str, list[pd.DataFrame]] = {}
    for part in parts:
        for name, table in part.items():
            found.setdefault(name, []).append(table)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in found.items()}


def _at_claimed_sites(model, pairs, row_budget: int | None) -> pd.DataFrame:
    swept = sweep_sets(model, pairs, claimed_sites(layer_count(model)), direction="denoising", row_budget=row_budget)
    effects = with_effects(swept, _runs(model, pairs, row_budget))
    return effects[["pair", "sites", "direction", "numerator", "denominator"]]


def _runs(model, pairs, row_budget: int | None) -> pd.DataFrame:
    return measure_runs(model, pairs, metrics=("logit_difference",), row_budget=row_budget)


def _described(table: pd.DataFrame, selection: Selection, network: str) -> pd.DataFrame:
    return table.merge(selection.described, on="pair", validate="many_to_one").assign(network=network)


def _labelled(tables: dict[str, pd.DataFrame], selection: Selection) -> pd.DataFrame:
    return pd.concat([_described(t, selection, name) for name, t in tables.items()], ignore_index=True)
