"""Architectures: what a patchable site is called in each family of models, and how it is read and written in a trace.

A site is one of six tensors, listed here in the order in which a forward pass makes them; all but the first exist once
per block:

    embedding   the token embeddings, before any position is added  (rows, positions, width)
    resid_pre   the residual stream that enters the block           (rows, positions, width)
    head_out    the heads' outputs before the output projection     (rows, positions, heads × head width)
    attn_out    what attention adds to the stream                   (rows, positions, width)
    mlp_out     what the MLP adds to the stream                     (rows, positions, width)
    resid_post  the residual stream that leaves the block           (rows, positions, width)

`read` and `write` are the only functions of the project that touch nnsight's `.input` and `.output`. The reason is a
trap: since transformers 5 a block returns a tensor where it used to return a tuple, and the `output[0]` of every older
tutorial then silently takes the first prompt of the batch. Here a tuple is opened where there is one, and what comes
out must have three axes. They also know `mlp_in`, the MLP's normalised input, which is no site of the residual stream.
A new family is one more row of `ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from nnsight import Envoy, NNsight, save
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

# Order matters: nnsight lets a trace read sites only in the order of the forward pass.
SITES = ("embedding", "resid_pre", "head_out", "attn_out", "mlp_out", "resid_post")


class ArchitectureError(ValueError):
    """A model whose sites are not known, or are not what the table says."""


@dataclass(frozen=True)
class Architecture:
    """Names of the modules that hold the sites of one family.

    `embedding`, `blocks` and `final_norm` are paths from the model; `attention`, `mlp_norm` and `mlp` are paths from a
    block, and `output_projection` is a path from its attention: the (query) heads are equal slices of that
    projection's *input*, also where they share keys and values.
    """

    model_type: str
    embedding: str
    blocks: str
    attention: str
    output_projection: str
    mlp_norm: str
    mlp: str
    final_norm: str

    @property
    def head_projection(self) -> str:
        """The path of the output projection from a block."""
        return f"{self.attention}.{self.output_projection}"


def _llama_like(model_type: str) -> Architecture:
    return Architecture(
        model_type=model_type,
        embedding="model.embed_tokens",
        blocks="model.layers",
        attention="self_attn",
        output_projection="o_proj",
        mlp_norm="post_attention_layernorm",
        mlp="mlp",
        final_norm="model.norm",
    )


ARCHITECTURES = MappingProxyType(
    {
        row.model_type: row
        for row in (
            Architecture(
                model_type="gpt2",
                embedding="transformer.wte",
                blocks="transformer.h",
                attention="attn",
                output_projection="c_proj",
                mlp_norm="ln_2",
                mlp="mlp",
                final_norm="transformer.ln_f",
            ),
            Architecture(
                model_type="gpt_neox",
                embedding="gpt_neox.embed_in",
                blocks="gpt_neox.layers",
                attention="attention",
                output_projection="dense",
                mlp_norm="post_attention_layernorm",
                mlp="mlp",
                final_norm="gpt_neox.final_layer_norm",
            ),
            *map(_llama_like, ("llama", "mistral", "qwen2", "qwen3")),
        )
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
    row = ARCHITECTURES[model_type]
    block = f"{row.blocks}.0"
    attention = f"{block}.{row.attention}"
    inner = (attention, f"{attention}.{row.output_projection}", f"{block}.{row.mlp_norm}", f"{block}.{row.mlp}")
    for path in (row.embedding, *inner, row.final_norm):
        try:
            model.get_submodule(path)
        except AttributeError:
            raise ArchitectureError(
                f"{type(model).__name__} has no module {path!r}: load the model with its language-modelling head "
                "(AutoModelForCausalLM), with at least one block."
            ) from None
    return row


def layer_count(model: nn.Module) -> int:
    """Number of blocks."""
    return len(model.get_submodule(architecture_of(model).blocks))


def head_count(model: nn.Module) -> int:
    """Number of attention (query) heads of a block."""
    return model.config.num_attention_heads


def has_parallel_residual(model: nn.Module) -> bool:
    """Whether the MLP of a block reads what its attention reads, and so not what attention wrote (GPT-NeoX)."""
    return bool(getattr(model.config, "use_parallel_residual", False))


@dataclass(frozen=True)
class Traced:
    """A model in the middle of being traced: itself, its nnsight network, its row of the table, and where it runs.

    `remote` is False here, True on NDIF, "local" in nnsight's simulation of it.
    """

    model: nn.Module
    network: Envoy
    architecture: Architecture
    remote: bool | str = False

    @property
    def device(self) -> torch.device:
        """Where prompts go: the model's device, or the processor for a model whose weights are elsewhere."""
        device = self.model.device
        return torch.device("cpu") if device.type == "meta" else device

    def trace(self, tokens: Tensor, **arguments):
        """Trace a forward pass of `tokens`, `(rows, positions)`; what the block makes is lost unless it is saved."""
        where = {"remote": self.remote} if self.remote else {}
        return self.network.trace(tokens, **arguments, **where)

    def block_module(self, layer: int, path: str) -> nn.Module:
        """The module at `path` of a block, to be called directly."""
        return self.model.get_submodule(f"{self.architecture.blocks}.{layer}.{path}")

    def compute(self, function: Callable, *arguments):
        """Call `function(traced, *arguments)` where the weights are: here, or in a trace that runs no prompt."""
        if not self.remote:
            return function(self, *arguments)
        nothing = torch.zeros(1, 1, dtype=torch.long)
        with self.trace(nothing) as tracer:
            result = save(function(self, *arguments))
            tracer.stop()
        return result


def module_of(model: nn.Module | Envoy) -> nn.Module:
    """The torch module of a model that may be wrapped by nnsight."""
    return model._module if isinstance(model, Envoy) else model


class _Network(NNsight):
    """A network whose inputs stay where they are: nnsight sends them to the weights, which may be on no device."""

    device = None


@contextmanager
def traceable(model: nn.Module | Envoy, *, remote: bool | str = False) -> Iterator[Traced]:
    """Give a model's nnsight network in evaluation mode, and leave nothing of it behind.

    nnsight leaves its own `forward` on every module it has seen. Here whatever was put on a module, and the training
    flag of every module, is taken back when the block ends, also by an error. In between, GPT-2's activation function,
    which transformers computes in five passes over memory, is torch's fused form of the same function. A model that is
    nnsight's already, which `remote` needs, is used as it is. Raises ArchitectureError for `remote` without one.
    """
    architecture = architecture_of(module_of(model))
    if isinstance(model, Envoy):
        yield Traced(module_of(model), model, architecture, remote)
        return
    if remote:
        raise ArchitectureError(
            f"A remote run names its model instead of sending it: give nnsight's TransformersModel, not "
            f"{type(model).__name__}."
        )
    fused = _fuse_activations(model)
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    model.eval()  # dropout would make two runs of one prompt differ
    try:
        yield Traced(model, _Network(model), architecture)
    finally:
        for module, before in zip(modules, attributes, strict=True):
            for name in vars(module).keys() - before.keys():
                del vars(module)[name]
            for name in ("forward", "training"):
                if name in before:
                    vars(module)[name] = before[name]
        for parent, name, original in fused:
            setattr(parent, name, original)


def _fuse_activations(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Put torch's tanh GELU in the place of every `gelu_new`; returns what was where."""
    unfused = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is NewGELUActivation
    ]
    for parent, name, _ in unfused:
        setattr(parent, name, nn.GELU(approximate="tanh"))
    return unfused


def forward_arguments(traced: Traced, positions: int, *, first: int = 0) -> dict:
    """Arguments of a forward pass over the tokens `first` to `positions` − 1 of prompts of one length.

    For a batch of any size. The causal masks, `(1, 1, positions − first, positions)`, are additive, which every
    attention implementation reads alike. They are given because a mask made by the model has the rows of the prompt it
    was called with, and rows may join later. Models that mix full and sliding attention get one mask of each kind;
    raises ArchitectureError for one that runs remotely.
    """
    model = traced.model
    place = {"device": traced.device}
    query, key = torch.arange(first, positions, **place)[:, None], torch.arange(positions, **place)[None]
    window = getattr(model.config, "sliding_window", None)

    def mask(visible: Tensor) -> Tensor:
        blocked = torch.zeros(visible.shape, dtype=model.dtype, **place)
        return blocked.masked_fill_(~visible, torch.finfo(model.dtype).min)[None, None]

    kinds = set(getattr(model.config, "layer_types", None) or ("sliding_attention" if window else "full_attention",))
    masks = {"full_attention": mask(key <= query)}
    if "sliding_attention" in kinds:
        masks["sliding_attention"] = mask((key <= query) & (query - key < window))
    if len(kinds) > 1 and traced.remote:
        raise ArchitectureError(
            f"{type(model).__name__} mixes full and sliding attention, and nnsight sends no more than one mask to a "
            "remote model: run it on this machine."
        )
    return {
        "attention_mask": masks if len(kinds) > 1 else masks[kinds.pop()],
        "position_ids": torch.arange(first, positions, **place)[None],
        "use_cache": False,
    }


def read(traced: Traced, site: str, layer: int = 0) -> Tensor:
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


def _locate(traced: Traced, site: str, layer: int):
    architecture = traced.architecture
    if site == "embedding":
        return traced.network.get(architecture.embedding), "output"
    block = traced.network.get(architecture.blocks)[layer]
    if site in ("resid_pre", "resid_post"):
        return block, "input" if site == "resid_pre" else "output"
    if site in ("mlp_in", "mlp_out"):
        return block.get(architecture.mlp), "input" if site == "mlp_in" else "output"
    attention = block.get(architecture.attention)
    if site == "head_out":
        return attention.get(architecture.output_projection), "input"
    return attention, "output"
