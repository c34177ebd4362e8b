"""Tracing: a model in nnsight's hands, and how its sites are read and written in a forward pass.

`read` and `write` are the only functions of the project that touch nnsight's `.input` and `.output`. The reason is a
trap: since transformers 5 a block returns a tensor where it used to return a tuple, and the `output[0]` of every older
tutorial then silently takes the first prompt of the batch. Here a tuple is opened where there is one, and what comes
out must have three axes. They also know `mlp_in`, the MLP's normalised input, which is no site of the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from nnsight import Envoy, NNsight, save
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from helpers.architectures import Architecture, ArchitectureError, architecture_of


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
            "transformers returns something else there than helpers.tracing expects."
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
