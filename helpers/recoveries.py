"""Recoveries: what patching a place brings back or destroys, pair by pair, in the form that methods answer in.

Every score here is a sweep of `helpers.patching`, each place patched alone, or, with a window, together with its own
component in the adjacent layers. A numerator is what the patch moves the metric by, towards the run that the activation
is from; the denominator is how far apart the two runs are.

A residual stream belongs to no component. What block k is given for it is what its stream has and the one before has
not, and both its places get it, a tie:

    gain(k) = numerator(resid_post k) − numerator(resid_pre k),  and resid_post k is resid_pre k + 1

so that the gains of all blocks sum to what the last residual has more than the embeddings. At all positions every
stream recovers 1 by construction, and the question has no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from helpers.architectures import layer_count
from helpers.methods import COMPONENTS, PER_PAIR, MethodError, places_of
from helpers.metrics import with_effects
from helpers.noise import GaussianNoise
from helpers.pairs import PromptPair
from helpers.patching import measure_runs, sweep_sets
from helpers.plans import Site, check_sites, window_layers
from helpers.values import OtherModel, Value

UNTOUCHED = "untouched"  # the name of the set that has no site


def recoveries(
    model,
    pairs: Sequence[PromptPair],
    *,
    direction: str,
    position: str = "all",
    metric: str = "logit_difference",
    corruption: GaussianNoise | None = None,
    window: int = 1,
) -> pd.DataFrame:
    """What each place recovers (denoising) or destroys (noising), in the unit of `metric`: PER_PAIR.

    `position` is "all" or a role of helpers.pairs; pairs without such a token are left out. A `window` of w layers
    around a place is patched in its own component, and is the place's. Raises MethodError when no pair has the
    position, and PatchingError for a window below 1 and as `patching.sweep_sets` does.
    """
    check_sites(model, components=COMPONENTS, layers=None, positions="all", window=window)
    pairs, sets = having(pairs, position), place_sets(model, position, window=window)
    return at_places(_effects(model, pairs, sets, direction=direction, metric=metric, corruption=corruption))


def stream_gains(model, pairs: Sequence[PromptPair], *, direction: str, position: str) -> pd.DataFrame:
    """What each block's residual stream recovers or destroys more than the stream before it, in logits: PER_PAIR.

    Attention and MLP of a block have the same score. Raises MethodError for all positions, where every stream recovers
    1 by construction, and when no pair has the position.
    """
    if position == "all":
        raise MethodError("At all positions a residual stream recovers 1 by construction: take one token's stream.")
    pairs, layers = having(pairs, position), layer_count(model)
    sets = {str(layer): [Site("resid_pre", layer, position)] for layer in range(layers)}
    sets[str(layers)] = [Site("resid_post", layers - 1, position)]
    effects = _effects(model, pairs, sets, direction=direction, metric="logit_difference", corruption=None)
    # The lines of a pair are its sets in order, so that the line after a block's is what leaves it.
    effects["numerator"] = -effects.groupby("pair")["numerator"].diff(-1)
    gains = effects.assign(layer=effects["sites"].astype(int)).query("layer < @layers")
    both = [gains.assign(component=component) for component in COMPONENTS]
    return pd.concat(both, ignore_index=True)[PER_PAIR]


def carried(taught, base, pairs: Sequence[PromptPair], *, direction: str, position: str = "all") -> pd.DataFrame:
    """What each place carries over between two models' runs of the clean prompt, in logits: PER_PAIR.

    Denoising puts the taught model's activation into the base model, noising the base model's into the taught one: the
    formulas of `helpers.crossmodel`. The denominator is how far the two models' logit differences are apart. Raises
    MethodError when no pair has the position, and PatchingError for models of two shapes.
    """
    pairs = having(pairs, position)
    into, other = (base, taught) if direction == "denoising" else (taught, base)
    effects = overwritten(into, pairs, position=position, value=OtherModel(other))
    moved, apart = effects["logit_difference"] - effects["clean"], effects["pair"].map(_clean(other, pairs))
    apart = apart - effects["clean"]
    sign = 1 if direction == "denoising" else -1  # both are towards `other`, which is the base model in noising
    return at_places(effects.assign(numerator=sign * moved, denominator=sign * apart))


def overwritten(model, pairs: Sequence[PromptPair], *, position: str, value: Value) -> pd.DataFrame:
    """The clean run with each place overwritten by a value of helpers.values.

    Columns pair, sites (as in `place_sets`), logit_difference, and clean, that of the run as it is: what is overwritten
    by itself changes nothing, to the bit.
    """
    sets = place_sets(model, position) | {UNTOUCHED: []}
    # A base run that is the clean prompt is what `sweep_sets` calls noising, whatever is written into it.
    swept = sweep_sets(model, pairs, sets, direction="noising", value=value)
    untouched = swept["sites"] == UNTOUCHED
    clean = swept[untouched].set_index("pair")["logit_difference"]
    return swept[~untouched].assign(clean=lambda table: table["pair"].map(clean))


def having(pairs: Sequence[PromptPair], *roles: str) -> list[PromptPair]:
    """The pairs with a token of one of the roles, "all" being every pair's; raises MethodError when none has one."""
    found = [pair for pair in pairs if {"all", *pair.roles} & set(roles)]
    if not found:
        raise MethodError(
            f"None of the {len(pairs)} pairs has a token with the role {' or '.join(roles)}: where the subject ends "
            "the prompt, its last token is `last`; word the prompts so that something follows the subject."
        )
    return found


def place_sets(model, position: str, *, window: int = 1) -> dict[str, list[Site]]:
    """A set of sites for every place, to be read by `at_places`: itself and its window, at one role's tokens."""
    layers = layer_count(model)
    return {
        f"{place.component} {place.layer}": [
            Site(place.component, layer, position) for layer in window_layers(place.layer, window=window, layers=layers)
        ]
        for place in places_of(model)
    }


def at_places(effects: pd.DataFrame) -> pd.DataFrame:
    """Effects of `place_sets` (column sites), with numerator and denominator, as PER_PAIR."""
    names = effects["sites"].str.split(" ", expand=True)
    return effects.assign(component=names[0], layer=names[1].astype(int))[PER_PAIR]


def _effects(
    model,
    pairs: list[PromptPair],
    sets: Mapping[object, Sequence[Site]],
    *,
    direction: str,
    metric: str,
    corruption: GaussianNoise | None,
) -> pd.DataFrame:
    """Every set patched, with numerator and denominator; `sites` holds its key."""
    options = {"metrics": (metric,), "corruption": corruption}
    swept = sweep_sets(model, pairs, sets, direction=direction, **options)
    effects = with_effects(swept, measure_runs(model, pairs, **options), metric=metric)
    if metric == "kl_divergence":  # is 0 in the clean run: turned round, as all metrics are where clean is more
        effects[["numerator", "denominator"]] *= -1
    return effects


def _clean(model, pairs: Sequence[PromptPair]) -> pd.Series:
    """The clean run's logit difference of every pair, by pair_id."""
    runs = measure_runs(model, pairs, metrics=("logit_difference",))
    return runs[runs["run"] == "clean"].set_index("pair")["logit_difference"]
