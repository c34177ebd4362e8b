"""Plain forward hooks: one forward pass per patch, through the whole Hugging Face model.

This is what one writes without any library. As everywhere in the field, the model returns its logits at every
position, and the metric takes the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from benchmarks.cases import Prompts

Site = tuple[str, int]


@torch.no_grad()
def blocks(model, prompts: Prompts) -> Tensor:
    """Denoising effects of resid_pre, attn_out, mlp_out: `(3, layers, positions, pairs)`."""
    layers, positions = model.config.n_layer, prompts.clean.shape[1]
    sites = [(component, layer) for component in ("resid_pre", "attn_out", "mlp_out") for layer in range(layers)]
    clean = _record(model, prompts, sites)
    effects = [
        _patch(model, prompts, site, (slice(None), position), clean[site])
        for site in sites
        for position in range(positions)
    ]
    return torch.stack(effects).unflatten(0, (3, layers, positions))


@torch.no_grad()
def heads(model, prompts: Prompts) -> Tensor:
    """Denoising effects of head_out at all positions: `(layers, heads, pairs)`."""
    layers, count = model.config.n_layer, model.config.n_head
    width = model.config.n_embd // count
    sites = [("head_out", layer) for layer in range(layers)]
    clean = _record(model, prompts, sites)
    effects = [
        _patch(model, prompts, site, (..., slice(head * width, (head + 1) * width)), clean[site])
        for site in sites
        for head in range(count)
    ]
    return torch.stack(effects).unflatten(0, (layers, count))


def _record(model, prompts: Prompts, sites: list[Site]) -> dict[Site, Tensor]:
    """The activations of the clean run at some sites."""
    found = {}
    with ExitStack() as hooks:
        for site in sites:

            def keep(value: Tensor, site=site) -> Tensor:
                found[site] = value.clone()
                return value

            hooks.enter_context(_hook(model, site, keep))
        model(prompts.clean, use_cache=False)
    return found


def _patch(model, prompts: Prompts, site: Site, where: tuple, clean: Tensor) -> Tensor:
    """The logit difference `(pairs,)` of the corrupted run with one slice of one activation from the clean one."""

    def overwrite(value: Tensor) -> Tensor:
        value = value.clone()
        value[where] = clean[where]
        return value

    with _hook(model, site, overwrite):
        return prompts.logit_difference(model(prompts.corrupted, use_cache=False).logits)


@contextmanager
def _hook(model, site: Site, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While the block lasts, the tensor at a site is what `change` makes of it."""
    component, layer = site
    block = model.transformer.h[layer]
    module = {"resid_pre": block, "head_out": block.attn.c_proj, "attn_out": block.attn, "mlp_out": block.mlp}[
        component
    ]

    def change_input(module, arguments):
        return change(arguments[0]), *arguments[1:]

    def change_output(module, arguments, output):
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    if component in ("resid_pre", "head_out"):
        handle = module.register_forward_pre_hook(change_input)
    else:
        handle = module.register_forward_hook(change_output)
    try:
        yield
    finally:
        handle.remove()
