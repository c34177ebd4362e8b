"""Localisers: every method of the benchmark that says where knowledge is, one line each.

A *score* is a function of one model and pairs that answers in lines per pair. A blind method is the score of the taught
model; a *difference* is a score of the taught model less the same of the base model, both over the taught model's
denominator, for a base model that has nothing to lose would divide by nearly nothing. The rest compares the two models
directly, or draws.

What its authors ask with it is a method's `question`. Patching between two subjects and ablation ask through which
activations an answer flows: mediation. Comparing two models asks what was written: storage. The study asks for storage
with a patch between two answers, and causal tracing (Meng et al.), which restores clean activations in a run whose
subject is noise, where facts are stored.

`given` are the kinds of plant that a method cannot miss. Where one block was changed, cross-model patching at all
positions recovers exactly 0 below it and exactly 1 at the changed place, by algebra. At the last subject token, and at
the last one, only the zeros below are given: what the changed place carries there is a finding, but for the last block,
of which the last token alone is read: a change there carries 1 at it, which is given, and 0 at the subject, where the
method cannot but miss. With two blocks changed the zeros below the lower one are given, and nothing else: neither has
to carry all, and what lies between them carries something. The norm of the change is 0 wherever nothing was written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd

from helpers.ablation import VALUES, ablations, optimal_ablations
from helpers.attribution import attribute
from helpers.draws import draw_rank
from helpers.integrated import integrated_attributions
from helpers.methods import COMPONENTS, LAST_BLOCK, PER_PAIR, Method, Models, places_of
from helpers.metrics import with_effects
from helpers.models import model_digest
from helpers.noise import GaussianNoise, embedding_deviation
from helpers.pairs import PromptPair
from helpers.patching import measure_runs
from helpers.published_places import published_recoveries
from helpers.recoveries import carried, having, recoveries, stream_gains
from helpers.streams import direct_attribution, lens_gains
from helpers.weight_change import weight_changes, weight_norms

Score = Callable[[object, Sequence[PromptPair]], pd.DataFrame]
DIRECTIONS = ("denoising", "noising")
WHERE = {"all": "all positions", "subject_last": "last subject token", "last": "last token"}
METRICS = {
    "logit_difference": "logit difference",
    "probability": "probability",
    "log_probability": "log-probability",
    "kl_divergence": "KL divergence",
}
WRITTEN = frozenset({"single", "two"})
BETWEEN_MODELS = {"all": frozenset({"single"}), "subject_last": frozenset(), "last": frozenset({LAST_BLOCK})}


def blind(name: str, score: Score, *, question: str = "mediation") -> Method:
    """The method that scores the taught model alone."""
    return Method(name, question, False, lambda models, pairs: score(models.taught, pairs))


def difference(name: str, score: Score) -> Method:
    """The method that takes a score of the base model from the taught model's, over the taught one's denominator."""

    def locate(models: Models, pairs: Sequence[PromptPair]) -> pd.DataFrame:
        taught, base = (score(model, pairs).set_index(PER_PAIR[:3]) for model in (models.taught, models.base))
        return taught.assign(numerator=taught["numerator"] - base["numerator"]).reset_index()

    return Method(name, "storage", True, locate)


def cross_model(direction: str, position: str) -> Method:
    """The method that carries activations from one model to the other, at all positions or at one role's tokens."""

    def locate(models: Models, pairs: Sequence[PromptPair]) -> pd.DataFrame:
        return carried(models.taught, models.base, pairs, direction=direction, position=position)

    return Method(f"cross-model {direction}, {WHERE[position]}", "storage", True, locate, BETWEEN_MODELS[position])


def weight_change(name: str, *, relative: bool) -> Method:
    """The method that measures how far the parameters of a place have moved."""

    def locate(models: Models, pairs: Sequence[PromptPair]) -> pd.DataFrame:
        return weight_changes(models.taught, models.base, relative=relative)

    return Method(name, "storage", True, locate, WRITTEN)


def patching(*, noised: bool = False, **options) -> Score:
    """The score of `recoveries` with these options; noised, the corrupted run is the clean one with a noisy subject.

    The noise has three standard deviations of the model's embeddings (Meng et al., arXiv 2202.05262), drawn once.
    """

    def score(model, pairs: Sequence[PromptPair]) -> pd.DataFrame:
        if not noised:
            return recoveries(model, pairs, **options)
        noise = GaussianNoise(3 * embedding_deviation(model), seed=0)
        return recoveries(model, having(pairs, *noise.roles), corruption=noise, **options)

    return score


def attribution(direction: str, *corrections: str) -> Score:
    """The score of attribution patching at all positions; with the dropout correction, its rank_score."""

    def score(model, pairs: Sequence[PromptPair]) -> pd.DataFrame:
        options = {"components": COMPONENTS, "positions": "all", "corrections": corrections}
        estimated = attribute(model, pairs, direction=direction, **options)
        effects = with_effects(estimated, measure_runs(model, pairs, metrics=("logit_difference",)))
        if "dropout" in corrections:
            effects["numerator"] = effects["rank_score"]
        return effects[PER_PAIR]

    return score


def direct_contributions(model, pairs: Sequence[PromptPair]) -> pd.DataFrame:
    """What each place itself adds to the clean logit difference, through the frozen final norm, over all of it."""
    parts = direct_attribution(model, pairs).query("component != 'head_out'")
    whole = parts.groupby("pair")["contribution"].sum()
    own = parts[parts["component"].isin(COMPONENTS)].rename(columns={"contribution": "numerator"})
    return own.assign(denominator=own["pair"].map(whole))[PER_PAIR]


def lens_readings(model, pairs: Sequence[PromptPair]) -> pd.DataFrame:
    """How much more the logit lens reads after each place than before it, over the logit difference of the run."""
    return lens_gains(model, pairs).rename(columns={"gain": "numerator", "logit_difference": "denominator"})[PER_PAIR]


def random_draws(model, pairs: Sequence[PromptPair]) -> pd.DataFrame:
    """A number from 0 to 1 for every pair and place, drawn anew for every model: each plant has draws of its own."""
    weights = model_digest(model)
    rows = [
        (pair.pair_id, place.component, place.layer, _uniform(weights, pair.pair_id, place.component, place.layer), 1.0)
        for pair in pairs
        for place in places_of(model)
    ]
    return pd.DataFrame(rows, columns=PER_PAIR)


def _uniform(*names: object) -> float:
    return int(draw_rank("random score", *names)[:13], 16) / 16**13


def _blind() -> list[Method]:
    """The methods that see the taught model alone."""
    places = "MLP and attention"
    methods = [blind("CLAP as published", published_recoveries, question="storage")]
    for direction in DIRECTIONS:
        for position, where in WHERE.items():
            score = patching(direction=direction, position=position)
            methods.append(blind(f"{direction} {places}, {where}", score))
            if position != "all":
                score = partial(stream_gains, direction=direction, position=position)
                methods.append(blind(f"{direction} residual stream, {where}", score))
    whole = {"direction": "denoising"}  # at all positions
    for metric, metric_name in METRICS.items():
        if metric != "logit_difference":
            methods.append(blind(f"denoising {places}, {metric_name}", patching(metric=metric, **whole)))
        noised = patching(metric=metric, noised=True, **whole)
        methods.append(blind(f"denoising {places}, Gaussian noise, {metric_name}", noised, question="storage"))
    noised = patching(direction="noising", noised=True)
    methods.append(blind(f"noising {places}, Gaussian noise, {METRICS['logit_difference']}", noised))
    for direction in DIRECTIONS:
        for window in (3, 5):
            score = patching(direction=direction, window=window)
            methods.append(blind(f"{direction} windows of {window} layers", score))
        methods.append(blind(f"attribution patching, {direction}", attribution(direction)))
    for correction in ("softmax", "dropout"):
        methods.append(blind(f"attribution patching, {correction} correction", attribution("denoising", correction)))
    methods.append(blind("integrated gradients", integrated_attributions))
    methods += [blind(f"{value} ablation", partial(ablations, value=value)) for value in VALUES]
    methods.append(blind("optimal ablation", optimal_ablations))
    methods.append(blind("direct logit attribution", direct_contributions))
    methods.append(blind("logit lens", lens_readings))
    return methods


def _informed() -> list[Method]:
    """The methods that see the base model too."""
    return [
        *(cross_model(direction, position) for direction in DIRECTIONS for position in WHERE),
        *(difference(f"difference of models, {name}", patching(direction=name)) for name in DIRECTIONS),
        difference("difference of models, attribution patching", attribution("denoising")),
        difference("difference of models, zero ablation", partial(ablations, value="zero")),
        weight_change("weight change", relative=False),
        weight_change("weight change, relative to the norm before", relative=True),
    ]


FLOORS = (
    blind("random", random_draws, question="storage"),
    blind("weight norm", lambda model, pairs: weight_norms(model), question="storage"),
)
METHODS: tuple[Method, ...] = (*_blind(), *_informed(), *FLOORS)
