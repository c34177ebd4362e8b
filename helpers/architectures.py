"""Architectures: what a patchable site is called in each family of models, and how it is read and written in a trace.

A site is one of five tensors of a block, listed here in the order in which a forward pass makes them:

    resid_pre   the residual stream that enters the block           (rows, positions, width)
    head_out    the heads' outputs before the output projection     (rows, positions, heads × head width)
    attn_out    what attention adds to the stream                   (rows, positions, width)
    mlp_out     what the MLP adds to the stream                     (rows, positions, width)
    resid_post  the residual stream that leaves the block           (rows, positions, width)

`read`, `write` and `last_logits` are the only functions of the project that touch nnsight's `.input` and `.output`.
The reason is a trap: since transformers 5 a block returns a tensor where it used to return a tuple, and the `output[0]`
of every older tutorial then silently takes the first prompt of the batch. Here a tuple is opened where there is one,
and what comes out must have three axes. A new family is one more row of `ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from nnsight import NNsight
from torch import Tensor, nn

# Order matters: nnsight lets a trace read sites only in the order of the forward pass.
SITES = ("resid_pre", "head_out", "attn_out", "mlp_out", "resid_post")


class ArchitectureError(ValueError):
    """A model whose sites are not known, or are not what the table says."""


@dataclass(frozen=True)
class Architecture:
    """Names of the modules that hold the sites of one family.

    `blocks` and `final_norm` are paths from the model; `attention` and `mlp` are paths from a block, and
    `output_projection` is a path from its attention: the heads are equal slices of that projection's *input*.
    """

    model_type: str
    blocks: str
    attention: str
    output_projection: str
    mlp: str
    final_norm: str


ARCHITECTURES = MappingProxyType(
    {
        row.model_type: row
        for row in (Architecture("gpt2", "transformer.h", "attn", "c_proj", "mlp", "transformer.ln_f"),)
    }
)


def architecture_of(model: nn.Module) -> Architecture:
    """The row of the table for a Hugging Face causal language model.

    Raises ArchitectureError when its model type has no row, or when it lacks a module that the row names.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in ARCHITECTURES:
        raise ArchitectureError(
            f"Patching knows the model types {', '.join(ARCHITECTURES)}, not {model_type!r} ({type(model).__name__}): "
            "load a model of a known type, or add a row to helpers.architectures.ARCHITECTURES."
        )
    architecture = ARCHITECTURES[model_type]
    block = f"{architecture.blocks}.0"
    attention = f"{block}.{architecture.attention}"
    named = (attention, f"{attention}.{architecture.output_projection}", f"{block}.{architecture.mlp}")
    for path in (*named, architecture.final_norm):
        try:
            model.get_submodule(path)
        except AttributeError:
            raise ArchitectureError(
                f"{type(model).__name__} has no module {path!r}: load the model with its language-modelling head "
                "(AutoModelForCausalLM), with at least one block."
            ) from None
    return architecture


def layer_count(model: nn.Module) -> int:
    """Number of blocks."""
    return len(model.get_submodule(architecture_of(model).blocks))


def head_count(model: nn.Module) -> int:
    """Number of attention (query) heads of a block."""
    return model.config.num_attention_heads


@dataclass(frozen=True)
class Traced:
    """A model in the middle of being traced: itself, its nnsight network, and its row of the table."""

    model: nn.Module
    network: NNsight
    architecture: Architecture


@contextmanager
def traceable(model: nn.Module) -> Iterator[Traced]:
    """Give a model's nnsight network in evaluation mode, and leave nothing of it behind.

    nnsight leaves its own `forward` on every module it has seen. Here whatever was put on a module, and the training
    flag of every module, is taken back when the block ends, also by an error.
    """
    architecture = architecture_of(model)
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    model.eval()  # dropout would make two runs of one prompt differ
    try:
        yield Traced(model, NNsight(model), architecture)
    finally:
        for module, before in zip(modules, attributes, strict=True):
            for name in vars(module).keys() - before.keys():
                del vars(module)[name]
            for name in ("forward", "training"):
                if name in before:
                    vars(module)[name] = before[name]


def forward_arguments(traced: Traced, positions: int) -> dict:
    """Arguments of a forward pass of prompts of one length: for a batch of any size, with the last logits only.

    The causal mask, `(1, 1, positions, positions)`, is additive, which every attention implementation reads alike. It
    is given because a mask made by the model has the rows of the prompt it was called with, and rows may join later.
    """
    dtype, device = traced.model.dtype, traced.model.device
    blocked = torch.full((positions, positions), torch.finfo(dtype).min, dtype=dtype, device=device)
    return {"attention_mask": blocked.triu(1)[None, None], "use_cache": False, "logits_to_keep": 1}


def read(traced: Traced, site: str, layer: int) -> Tensor:
    """Inside a trace: the live tensor of a site, `(rows, positions, width)`."""
    envoy, side = _locate(traced, site, layer)
    value = envoy.input if side == "input" else envoy.output
    if isinstance(value, tuple):
        value = value[0]
    if value.ndim != 3:
        raise ArchitectureError(
            f"{site} of layer {layer} has the shape {tuple(value.shape)}, not (rows, positions, width): the installed "
            "transformers returns something else there than helpers.architectures expects."
        )
    return value


def write(traced: Traced, site: str, layer: int, value: Tensor) -> None:
    """Inside a trace: the rest of the forward pass continues from `value`, `(rows, positions, width)`."""
    envoy, side = _locate(traced, site, layer)
    if side == "input":
        envoy.input = value
    elif isinstance(envoy.output, tuple):
        envoy.output = (value, *envoy.output[1:])
    else:
        envoy.output = value


def last_logits(traced: Traced) -> Tensor:
    """Inside a trace: the logits at the last position, `(rows, vocabulary)`."""
    return traced.network.output.logits[:, -1]


def _locate(traced: Traced, site: str, layer: int):
    architecture = traced.architecture
    block = traced.network.get(architecture.blocks)[layer]
    if site in ("resid_pre", "resid_post"):
        return block, "input" if site == "resid_pre" else "output"
    if site == "mlp_out":
        return block.get(architecture.mlp), "output"
    attention = block.get(architecture.attention)
    if site == "head_out":
        return attention.get(architecture.output_projection), "input"
    return attention, "output"
