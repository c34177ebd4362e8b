"""Slopes: how the logit difference of every pair answers to a small change of its base run, site by site.

Pairs do not touch one another, so one backward pass of the summed logit difference gives the gradient of each. Beside
the plain backward pass there is one per *dropped* layer, in which no gradient goes through what that layer writes: its
attention and its MLP are constants, and only the skip connection passes. The stream is h′ = h + attention + MLP, so the
gradient at h is then the one at h′, and the pass for a dropped layer starts there, with what the plain pass has found.
Above it nothing differs. L layers dropped one at a time so cost L / 2 backward passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from nnsight import save
from torch import Tensor

from helpers.architectures import SITES, attention, layer_count
from helpers.metrics import logit_difference
from helpers.patterns import Pattern, recorder
from helpers.tracing import Traced, forward_arguments, read, write

Key = tuple[str, int]  # (site, layer), or one of the two below
PATTERN = "pattern"  # ∂LD/∂A of a block's attention pattern A
VALUES = "values"  # ∂LD/∂resid_pre through all of the block but its pattern


@dataclass(frozen=True)
class Slopes:
    """A base run of pairs of one length, and the gradients of their logit differences.

    `sites` are `(pairs, positions, width)`, `gradients` `(passes, pairs, positions, width)` (of a pattern `(passes,
    pairs, heads, queries, keys)`), each by (site, layer); the first pass is the plain one, the others drop one layer
    each, in order. The stream that leaves the last block goes by the name of what a next one would read: resid_pre.
    """

    sites: dict[Key, Tensor]
    gradients: dict[Key, Tensor]
    patterns: dict[int, Pattern]


def slopes_of(
    traced: Traced,
    tokens: Tensor,
    answer: Tensor,
    foil: Tensor,
    sites: Iterable[Key],
    *,
    patterns: bool = False,
    drop_layers: bool = False,
) -> Slopes:
    """Run `tokens`, `(pairs, positions)`, and differentiate the logit differences, `(pairs,)`, at `sites`.

    `answer` and `foil` are `(pairs, tokens)`, as metrics.right_and_wrong makes them. Every block's resid_pre is among
    the sites. `patterns` adds PATTERN and VALUES of each block, `drop_layers` a pass per dropped layer.
    """
    seen: dict[int, Pattern] = {}
    with torch.enable_grad(), attention(traced.model, recorder(seen)) if patterns else nullcontext():
        live = _run(traced, tokens, sites)
        difference = _difference(traced, live["resid_pre", layer_count(traced.model)][:, -1], answer, foil)
        live |= {(PATTERN, layer): pattern.weights for layer, pattern in seen.items()}
        passes = [_backward(difference.sum(), None, live)]
        if drop_layers:
            passes += [_without(layer, live, passes[0]) for layer in range(layer_count(traced.model))]
        gradients = {key: torch.stack([one[key] for one in passes]) for key in live}
        for layer in seen:
            gradients[VALUES, layer] = gradients["resid_pre", layer] - _through_pattern(live, gradients, layer)
    values = {key: value.detach() for key, value in live.items() if key[0] != PATTERN}
    return Slopes(values, gradients, {layer: _detached(pattern) for layer, pattern in seen.items()})


def _run(traced: Traced, tokens: Tensor, sites: Iterable[Key]) -> dict[Key, Tensor]:
    """The live tensors of a forward pass, with the graph that made them."""
    layers = layer_count(traced.model)
    wanted = {*sites, *(("resid_pre", layer) for layer in range(layers))} - {("resid_post", layers - 1)}
    ordered = sorted(wanted, key=lambda key: (key[1], SITES.index(key[0])))
    with traced.trace(tokens, **forward_arguments(traced, tokens.shape[1])) as tracer:
        live = save({})
        # A leaf of its own: the gradient must reach it also in a model whose parameters are frozen.
        write(traced, "embedding", 0, read(traced, "embedding").detach().requires_grad_())
        for site, layer in ordered:
            live[site, layer] = read(traced, site, layer)
        live["resid_pre", layers] = read(traced, "resid_post", layers - 1)
        tracer.stop()
    return dict(live)


def _difference(traced: Traced, final: Tensor, answer: Tensor, foil: Tensor) -> Tensor:
    """The logit differences, `(pairs,)`, as a function of the last residual, which readout.score is not."""
    normalised = traced.model.get_submodule(traced.architecture.final_norm)(final)
    logits = traced.model.get_output_embeddings()(normalised)
    return logit_difference(logits, answer.to(logits.device), foil.to(logits.device))


def _backward(output: Tensor, seed: Tensor | None, live: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """The gradient of `output`, weighted by `seed`, at every live tensor."""
    return dict(zip(live, torch.autograd.grad(output, list(live.values()), seed, retain_graph=True), strict=True))


def _without(dropped: int, live: Mapping[Key, Tensor], plain: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """The gradient at every live tensor when none goes through what one layer writes."""
    entering = {("embedding", 0), ("resid_pre", dropped)} if dropped == 0 else {("resid_pre", dropped)}
    below = {key: value for key, value in live.items() if key[1] < dropped or key in entering}
    found = _backward(live["resid_pre", dropped], plain["resid_pre", dropped + 1], below)
    inside = {key: torch.zeros_like(value) for key, value in live.items() if key[1] == dropped}
    return {**plain, **inside, **found}


def _through_pattern(live: Mapping[Key, Tensor], gradients: Mapping[Key, Tensor], layer: int) -> Tensor:
    """The part of the gradient at a block's resid_pre that goes through its pattern, `(passes, pairs, …)`."""
    found: list[Tensor] = []
    seeds = gradients[PATTERN, layer]
    for number, seed in enumerate(seeds):
        # Passes that drop a layer below this block leave it the plain slopes.
        if 0 < number <= layer:
            found.append(found[0])
        else:
            through = torch.autograd.grad(live[PATTERN, layer], live["resid_pre", layer], seed, retain_graph=True)
            found.append(through[0])
    return torch.stack(found)


def _detached(pattern: Pattern) -> Pattern:
    return Pattern(
        pattern.query.detach(), pattern.key.detach(), pattern.weights.detach(), pattern.mask, pattern.scaling
    )
