"""Ablation: how much of the clean logit difference is lost when a place says nothing, or nothing about this prompt.

A place is overwritten at all positions of the clean run, by

    zero        zeros
    mean        its mean over the prompts of the pairs that are as long, position by position
    resample    what it holds in another of those prompts
    optimal     the one vector, the same for all prompts and positions, that harms the least

    score = (LD_clean − LD_ablated) / LD_clean

Other ablations can take a model off its distribution, and what is lost is then partly damage. Optimal ablation (Li &
Janson, arXiv 2409.09951) asks for the least that removing the information costs, min_c E D(clean ‖ place ← c), with D
the divergence of the answer's distribution from the clean run's: it is never below 0, so that no vector is rewarded for
answering better than the model. The vector starts at the mean over prompts and positions and follows the gradient for a
few steps; the best one seen is kept, so that it never does worse than that mean. All places are fitted at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from nnsight import save
from torch import Tensor
from torch.nn.functional import kl_div

from helpers.architectures import layer_count
from helpers.live_readout import last_logits, logit_difference
from helpers.memory import in_chunks
from helpers.methods import PER_PAIR, MethodError, Place, places_of
from helpers.pairs import PromptPair
from helpers.plans import check_pairs
from helpers.recoveries import at_places, overwritten
from helpers.runs import prompt_tokens, record
from helpers.tracing import Traced, forward_arguments, read, traceable, write
from helpers.values import Mean, Resample, Zero

VALUES = ("zero", "mean", "resample")
STEPS, STEP_SIZE = 8, 0.25  # a step moves a vector's entries by this much of the place's own deviation


@dataclass(frozen=True)
class Constants:
    """What optimal ablation found: a vector per place, and what it costs.

    `vectors` is `(places, width)`; `start` and `objective`, `(places,)`, are the mean divergence, in nats, of the mean
    over prompts and positions and of the vector; `clean`, `(pairs,)`, and `ablated`, `(places, pairs)`, are logit
    differences.
    """

    places: tuple[Place, ...]
    vectors: Tensor
    start: Tensor
    objective: Tensor
    clean: Tensor
    ablated: Tensor


@dataclass(frozen=True)
class _Chunk:
    """The clean run of pairs of one length: the streams that enter every block, activations, and last logits.

    `activations` are `(places, pairs, positions, width)`.
    """

    pairs: list[PromptPair]
    tokens: Tensor
    streams: list[Tensor]
    activations: Tensor
    logits: Tensor


def ablations(model, pairs: Sequence[PromptPair], value: str) -> pd.DataFrame:
    """What each place's ablation by one of VALUES takes from the clean logit difference, in logits: PER_PAIR.

    The denominator is the clean logit difference. Mean and resample refer to the clean and corrupted prompts of all
    pairs. Raises MethodError for another value.
    """
    prompts = sorted({prompt for pair in pairs for prompt in (pair.clean, pair.corrupted)})
    values = {"zero": Zero(), "mean": Mean(prompts), "resample": Resample(prompts, seed=0)}
    if value not in values:
        raise MethodError(f"A place is ablated by {', '.join(VALUES)} here, not {value!r}.")
    effects = overwritten(model, pairs, position="all", value=values[value])
    lost = effects["clean"] - effects["logit_difference"]
    return at_places(effects.assign(numerator=lost, denominator=effects["clean"]))


def optimal_ablations(model, pairs: Sequence[PromptPair], *, steps: int = STEPS) -> pd.DataFrame:
    """What the least harmful constant of each place takes from the clean logit difference, in logits: PER_PAIR."""
    found = optimal_constants(model, pairs, steps=steps)
    lost = (found.clean - found.ablated).double().tolist()
    rows = [
        (pair.pair_id, place.component, place.layer, lost[number][of], float(found.clean[of]))
        for of, pair in enumerate(pairs)
        for number, place in enumerate(found.places)
    ]
    return pd.DataFrame(rows, columns=PER_PAIR)


def optimal_constants(
    model, pairs: Sequence[PromptPair], *, steps: int = STEPS, step_size: float = STEP_SIZE
) -> Constants:
    """The constant of every place that `steps` of Adam find from the mean; pairs are in the order given.

    Every pair weighs the same, whatever its length. Raises MethodError for a negative number of steps.
    """
    check_pairs(model, pairs, None)
    if steps < 0:
        raise MethodError(f"Gradient descent takes 0 steps or more, not {steps}.")
    places = tuple(places_of(model))
    rows = len(places) * layer_count(model) // 2  # a place's run begins at its block, and a gradient remembers it all
    with torch.no_grad(), traceable(model) as traced:
        chunks = list(in_chunks(traced, pairs, _recorded, row_budget=None, rows_per_pair=rows))
        means, deviation = _moments(chunks)
        offsets = torch.zeros_like(means, requires_grad=True)
        optimizer = torch.optim.Adam([offsets], lr=step_size)
        best = None
        for step in range(steps + 1):
            vectors = (means + deviation * offsets).detach()
            divergence, ablated, slopes = _evaluate(traced, chunks, places, vectors, slopes=step < steps)
            if best is None:
                start, best = divergence, (divergence, vectors, ablated)
            else:
                better = divergence < best[0]
                best = tuple(
                    torch.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
                    for new, old in zip((divergence, vectors, ablated), best, strict=True)
                )
            if step < steps:
                offsets.grad = slopes * deviation
                optimizer.step()
        clean = torch.cat([logit_difference(chunk.logits, chunk.pairs) for chunk in chunks])
    order = {pair.pair_id: number for number, pair in enumerate(p for chunk in chunks for p in chunk.pairs)}
    at = [order[pair.pair_id] for pair in pairs]
    return Constants(places, best[1], start, best[0], clean[at], best[2][:, at])


def _recorded(traced: Traced, chunk: list[PromptPair], budget: int) -> _Chunk:
    tokens = prompt_tokens(chunk, "clean", traced.device)
    places, streams = places_of(traced.model), [("resid_pre", layer) for layer in range(layer_count(traced.model))]
    run = record(traced, tokens, [*streams, *((place.component, place.layer) for place in places)])
    activations = torch.stack([run.sites[place.component, place.layer] for place in places])
    return _Chunk(chunk, tokens, [run.sites[key] for key in streams], activations, last_logits(traced, run.final))


def _moments(chunks: Sequence[_Chunk]) -> tuple[Tensor, Tensor]:
    """Every place's mean `(places, width)` and the root of its mean variance `(places, 1)`, over prompts, positions."""
    seen = torch.cat([chunk.activations.flatten(1, 2) for chunk in chunks], 1)
    return seen.mean(1), seen.var(1, correction=0).mean(-1, keepdim=True).sqrt()


def _evaluate(
    traced: Traced, chunks: Sequence[_Chunk], places: Sequence[Place], vectors: Tensor, *, slopes: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean divergence `(places,)`, logit differences `(places, pairs)`, and the divergence's slopes at vectors."""
    total, count = torch.zeros(len(places), device=vectors.device), sum(len(chunk.pairs) for chunk in chunks)
    gradient, ablated = torch.zeros_like(vectors), []
    for chunk in chunks:
        with torch.set_grad_enabled(slopes):
            leaf = vectors.clone().requires_grad_(slopes)
            logits = last_logits(traced, _ablated(traced, chunk, places, leaf))
            clean = chunk.logits.log_softmax(-1).repeat(len(places), 1)
            divergence = kl_div(logits.log_softmax(-1), clean, reduction="none", log_target=True).sum(-1)
            divergence = divergence.unflatten(0, (len(places), -1)).sum(-1)
            if slopes:
                gradient += torch.autograd.grad(divergence.sum(), leaf)[0] / count
        total += divergence.detach() / count
        ablated.append(logit_difference(logits.detach(), chunk.pairs * len(places)).unflatten(0, (len(places), -1)))
    return total, torch.cat(ablated, 1), gradient


def _ablated(traced: Traced, chunk: _Chunk, places: Sequence[Place], vectors: Tensor) -> Tensor:
    """The last residuals `(places × pairs, width)`, each place overwritten by its vector; rows join at their block."""
    count = len(chunk.pairs)
    layers = layer_count(traced.model)
    own = {layer: [number for number, place in enumerate(places) if place.layer == layer] for layer in range(layers)}
    with traced.trace(chunk.tokens, **forward_arguments(traced, chunk.tokens.shape[1])) as tracer:
        for layer in range(layers):
            before = own[layer][0] * count  # rows of the places in earlier blocks
            arriving = chunk.streams[layer].repeat(len(own[layer]), 1, 1)
            stream = read(traced, "resid_pre", layer)
            write(traced, "resid_pre", layer, torch.cat([stream[:before], arriving]))
            for number in own[layer]:
                live = read(traced, places[number].component, layer).clone()
                live[number * count : (number + 1) * count] = vectors[number]
                write(traced, places[number].component, layer, live)
        final = save(read(traced, "resid_post", layers - 1)[:, -1])
        tracer.stop()
    return final
