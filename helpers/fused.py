"""The same training arithmetic in fewer passes over memory: GPT-2's GELU in one kernel, the loss without the logits.

GPT-2 writes its GELU as eight operations, each of which reads and writes the largest activations of a block; torch has
it as one. And the logits of a batch are its largest tensor by far (vocabulary × tokens): torch's
`linear_cross_entropy` makes them, and their gradient, for a slice of the tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear_cross_entropy
from transformers.activations import NewGELUActivation

from helpers.examples import UNSCORED

# Larger slices gain nothing; smaller ones read the projection too often.
SLICES = LinearCrossEntropyOptions(batch_chunk_size=512, chunking_method=None)


@contextmanager
def fused_gelu(model: nn.Module) -> Iterator[None]:
    """Let every `gelu_new` of a model be torch's own tanh GELU, the same function, while the context lasts."""
    replaced = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, NewGELUActivation)
    ]
    for parent, name, _ in replaced:
        setattr(parent, name, nn.GELU(approximate="tanh"))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def fused_loss(model: nn.Module, head: nn.Linear, inputs: Mapping[str, Tensor], *, divisor: Tensor | None) -> Tensor:
    """The loss of a causal language model on `inputs` (with labels), in nats per scored token; float32 only.

    `head` is the model's output projection; the model may be wrapped, for several processes or by the compiler. The
    sum over the scored tokens is divided by `divisor`, the number of them in a step of several batches, or by the
    batch's own. In half precision torch rounds the sum itself, by up to half a percent; hence float32.
    """
    others = {name: value for name, value in inputs.items() if name != "labels"}
    # One logit per row keeps the projection in the graph: several processes wait for every parameter's gradient.
    states = model(**others, output_hidden_states=True, logits_to_keep=1).hidden_states[-1][:, :-1].flatten(0, 1)
    targets = inputs["labels"][:, 1:].flatten()
    reading = {"reduction": "sum", "ignore_index": UNSCORED, "options": SLICES}
    total = linear_cross_entropy(states, head.weight, targets, **reading)
    return total / ((targets != UNSCORED).sum() if divisor is None else divisor)
