"""Costs: how many forward passes a method is worth, and how many seconds it took.

A sweep that shares work makes few calls with many rows, and a hook that counts calls would flatter it. What is counted
is therefore the work itself, tokens that enter the attention of a block, over those of one prompt in one pass:

    passes = Σ rows × positions  over all blocks that ran  /  (layers × positions of one prompt)

A backward pass through a block counts as two forward ones (it multiplies by every weight twice), where the gradient
reaches it. Attention is where to count, because nnsight replaces what enters a block and leaves that alone: rows that
join a pass halfway up are seen. Not counted is what runs outside blocks: embedding, unembedding, and the single MLPs of
single tokens that helpers.staircase calls by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import nan

from torch import Tensor, nn

from helpers.architectures import architecture_of, layer_count
from helpers.tracing import module_of

BACKWARD = 2.0  # forward passes


@dataclass
class Cost:
    """What has been counted so far; `seconds` is NaN until the count has ended."""

    forward: float = 0.0
    backward: float = 0.0
    seconds: float = nan

    @property
    def passes(self) -> float:
        """Forward passes of one prompt through one model that the work is worth."""
        return self.forward + BACKWARD * self.backward


@contextmanager
def counted(models: Sequence, *, positions: float) -> Iterator[Cost]:
    """Count what runs in these models until the block ends; `positions` are those of one prompt (their mean).

    Each model, plain or nnsight's, counts by its own number of layers; one that is given twice counts once. Copies that
    are made meanwhile count too. No hook is left behind, also by an error. Raises ArchitectureError for a model whose
    blocks are not known.
    """
    cost, networks = Cost(), list({id(module_of(model)): module_of(model) for model in models}.values())
    with ExitStack() as hooks:
        for network in networks:
            for attention in attentions(network):
                handle = attention.register_forward_pre_hook(
                    _counter(cost, layer_count(network) * positions), with_kwargs=True
                )
                hooks.callback(handle.remove)
        started = time.perf_counter()
        try:
            yield cost
        finally:
            cost.seconds = time.perf_counter() - started


def attentions(model: nn.Module) -> list[nn.Module]:
    """The attention module of every block."""
    architecture = architecture_of(model)
    blocks = model.get_submodule(architecture.blocks)
    return [block.get_submodule(architecture.attention) for block in blocks]


def _counter(cost: Cost, tokens_per_pass: float):
    """A hook that adds what enters; a plain function, so that copies of the model add to the same count."""

    def count(module: nn.Module, inputs: tuple, named: dict) -> None:
        stream: Tensor = inputs[0] if inputs else named["hidden_states"]
        share = stream.shape[0] * stream.shape[1] / tokens_per_pass
        cost.forward += share
        if stream.requires_grad:

            def count_backward(gradient: Tensor) -> None:
                cost.backward += share

            stream.register_hook(count_backward)

    return count
