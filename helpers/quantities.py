"""Quantities: the number behind each of helpers.claims, by the corrected protocol and by the published one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from helpers.claims import FIRST_ATTENTION, FIRST_MLP, LAST_ATTENTION, LAST_BLOCK, Estimate
from helpers.experiment import in_units_of
from helpers.localisation import localisation_indices, participation
from helpers.stats import contrasts, layer_range, recovery_intervals

KINDS = ("definitional", "associative")
TUNED = "fine-tuned"


def corrected_estimates(measured: Mapping[str, pd.DataFrame], *, arm: str, statistics: Mapping) -> dict[str, Estimate]:
    """By the corrected protocol, from one arm's confirmatory items; an item's seeds are averaged.

    `measured` are the tables of helpers.clap; used are `effects`, `sites`, `joint` and `clean`, by denoising.
    `statistics` are resamples, confidence and seed. An arm that was not run, or has one kind alone, gives no estimate.
    """
    tables = (measured[name] for name in ("sites", "effects", "joint", "clean"))
    sites, effects, joint, clean = (table[table["arm"] == arm] for table in tables)
    if set(sites["kind"]) != {*KINDS}:
        return {}
    options = {"item": "item_id", **statistics}
    layers = whole_layers(effects)
    tuned, nulls = layers[layers["network"] == TUNED], _by_network(layers)
    together = joint[(joint["group"] == "feed-forward") & (joint["direction"] == "denoising")]
    together = together.assign(numerator=together["joint"], denominator=together["added"])
    return {
        "first_mlp": _at_site(sites, layers, FIRST_MLP, "associative", options),
        "distributed": _widest(
            _contrast(_participating(tuned), KINDS[::-1], options),
            [_contrast(_participating(other), KINDS[::-1], options) for other in nulls],
        ),
        "last_block": _at_site(sites, layers, LAST_BLOCK, "definitional", options),
        "first_attention": _at_site(sites, layers, FIRST_ATTENTION, "associative", options),
        "last_attention": _at_site(sites, layers, LAST_ATTENTION, "associative", options),
        "layers_differ": _widest(
            _range(tuned, options),
            [_range(in_units_of(other, tuned[tuned["seed"].isin(other["seed"])]), options) for other in nulls],
        ),
        "clean_difference": _clearer(clean, options),
        "layers_add": _of_recovery(recovery_intervals(together, by=["arm"], **options).iloc[0]),
    }


def seed_ranges(measured: Mapping[str, pd.DataFrame], *, arm: str, statistics: Mapping) -> dict[str, str]:
    """From the lowest to the highest estimate of single training seeds, in words."""
    found: dict[str, list[float]] = {}
    for seed in sorted(measured["sites"]["seed"].unique()):
        own = {name: measured[name][measured[name]["seed"] == seed] for name in ("sites", "effects", "joint", "clean")}
        for name, estimate in corrected_estimates(own, arm=arm, statistics={**statistics, "resamples": 2}).items():
            found.setdefault(name, []).append(estimate.value)
    return {name: f"{min(values):.2f} to {max(values):.2f}" for name, values in found.items() if len(values) > 1}


def whole_layers(effects: pd.DataFrame) -> pd.DataFrame:
    """Of the effects, denoising of one layer's attention or MLP output at all positions, in logit difference."""
    return effects.query(
        "role == 'all' and component != 'head_out' and direction == 'denoising' and metric == 'logit_difference'"
    )


def _by_network(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The nulls of a table that have items of both kinds."""
    others = table[table["network"] != TUNED].groupby("network")
    return [part for _, part in others if set(part["kind"]) == {*KINDS}]


def _participating(layers: pd.DataFrame) -> pd.DataFrame:
    """The participation ratio of every item over its mean, as numerator."""
    indices = localisation_indices(layers, by=["arm", "seed", "item_id", "kind"], sites=["component", "layer"]).dropna()
    return indices.assign(numerator=indices["participation"] / indices["participation"].mean(), denominator=1.0)


def _clearer(clean: pd.DataFrame, options: Mapping) -> Estimate:
    """How much clearer definitional items are; a null's difference is over the fine-tuned model's mean too."""
    tuned = clean[clean["network"] == TUNED]
    scaled = clean.assign(numerator=clean["numerator"] / tuned.groupby("item_id")["numerator"].mean().mean())
    nulls = [_contrast(other, KINDS, options) for other in _by_network(scaled)]
    return _widest(_contrast(scaled[scaled["network"] == TUNED], KINDS, options), nulls)


def _contrast(table: pd.DataFrame, kinds: tuple[str, str], options: Mapping) -> Estimate:
    row = contrasts(table, by=["arm"], kinds=kinds, **options).iloc[0]
    return Estimate(row["difference"], row["low"], row["high"], row["null_low"], row["null_high"])


def _range(layers: pd.DataFrame, options: Mapping) -> Estimate:
    mlps = layers[layers["component"] == "mlp_out"]
    defined = bool(recovery_intervals(mlps, by=["component"], **options)["defined"].all())
    found = layer_range(mlps, **options)
    ends = (found[name] for name in ("estimate", "low", "high", "null_low", "null_high"))
    return Estimate(*ends, defined=defined)


def _widest(estimate: Estimate, nulls: Iterable[Estimate]) -> Estimate:
    """The estimate with a null from the lowest to the highest end of its own and of the other networks' intervals."""
    return _with_null(
        estimate, [(estimate.null_low, estimate.null_high), *((other.low, other.high) for other in nulls)]
    )


def _with_null(estimate: Estimate, ends: Sequence[tuple[float, float]]) -> Estimate:
    """The estimate with a null from the lowest to the highest of `ends`; none where there are none."""
    if not ends:
        return estimate
    lows, highs = zip(*ends, strict=True)
    return replace(estimate, null_low=min(lows), null_high=max(highs))


def _at_site(sites: pd.DataFrame, layers: pd.DataFrame, name: str, kind: str, options: Mapping) -> Estimate:
    """Recovery at one of the claimed sites; its null reaches from the lowest to the highest end of all nulls."""
    here = sites[(sites["sites"] == name) & (sites["kind"] == kind)]
    found = recovery_intervals(here[here["network"] != "untrained"], by=["network"], **options).set_index("network")
    ends = [found.loc[other, ["low", "high"]].tolist() for other in found.index if other != TUNED]
    untrained = here[here["network"] == "untrained"]
    if len(untrained):
        drawn = untrained.groupby("draw")[["numerator", "denominator"]].mean()
        tail = (1 - options["confidence"]) / 2
        ends.append((drawn["numerator"] / drawn["denominator"]).quantile([tail, 1 - tail]).tolist())
    own = layers[(layers["network"] == TUNED) & (layers["kind"] == kind)]
    means = own.groupby(["component", "layer"])[["numerator", "denominator"]].mean()
    control = float((means["numerator"] / means["denominator"]).max())
    return replace(_with_null(_of_recovery(found.loc[TUNED]), ends), control=control)


def _of_recovery(row: pd.Series) -> Estimate:
    return Estimate(row["recovery"], row["low"], row["high"], defined=bool(row["defined"]))


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
    return {name: _summary(pd.DataFrame(rows), name) for name in rows[0] if name != "group"}


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
        "distributed": (taking["associative"] - taking["definitional"]) / (sum(taking.values()) / 2),
        "final_output": recovery["definitional", "lm_head"],
        "first_attention": associative[cuts["attn"][0]],
        "last_attention": associative[cuts["attn"][-1]],
        "layers_differ": mlps.max() - mlps.min(),
        "clean_difference": (clean["definitional"] - clean["associative"]) / clean[[*KINDS]].abs().mean(),
    }


def _summary(table: pd.DataFrame, name: str) -> str:
    tuned, untrained = (table[table["group"] == group][name].dropna() for group in ("fine-tuned", "untrained"))
    if not len(tuned):
        return "shape error"
    null = f"; untrained {untrained.quantile(0.025):.2f} to {untrained.quantile(0.975):.2f}" if len(untrained) else ""
    return f"{tuned.median():.2f}{null}"
