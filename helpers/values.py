"""Values: what a patch writes, which is another run's activation or a stand-in for having none.

    OtherRun       the same model's run of the pair's other prompt: activation patching proper
    OtherModel     another model's run of the *same* prompt: what does the difference between two models do?
    Zero           zeros: ablation by removal
    Mean           the mean over reference prompts, position by position: ablation to what is usual there
    Resample       the run of one randomly drawn reference prompt: ablation to something that can occur

Ablations overwrite parts of the base run, which the direction names: noising starts from the clean run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from helpers.draws import draw_rank
from helpers.pairs import PromptPair
from helpers.plans import PatchingError
from helpers.runs import Run, record
from helpers.tracing import Traced, module_of, traceable

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class OtherRun:
    """The activation of the pair's other prompt: clean into corrupted in denoising, the reverse in noising."""

    name: ClassVar[str] = "other run"


@dataclass(frozen=True)
class OtherModel:
    """The activation of `model` on the base prompt; it must have the shape of the model that is patched."""

    model: nn.Module
    name: ClassVar[str] = "other model"


@dataclass(frozen=True)
class Zero:
    """Zeros."""

    name: ClassVar[str] = "zero"


@dataclass(frozen=True)
class Mean:
    """The mean activation over the prompts (token ids) that are as long as the pair's, position by position."""

    prompts: Prompts
    name: ClassVar[str] = "mean"


@dataclass(frozen=True)
class Resample:
    """The activation of one of the prompts (token ids) that are as long as the pair's and not its own, drawn by `seed`.

    The draw depends on the seed, the pair and the candidates only, never on their order or on other pairs.
    """

    prompts: Prompts
    seed: int
    name: ClassVar[str] = "resample"


Value = OtherRun | OtherModel | Zero | Mean | Resample
OTHER_RUN = OtherRun()


def stand_in(
    value: OtherModel | Zero | Mean | Resample,
    traced: Traced,
    chunk: Sequence[PromptPair],
    tokens: Tensor,
    base: Run,
    sites: Collection[tuple[str, int]],
    *,
    noise: Tensor | None,
) -> dict[tuple[str, int], Tensor]:
    """What a value other than OtherRun writes: `(pairs, positions, width)` by (site, layer), for pairs of one length.

    `base` is the run of the base prompts `tokens`, `(pairs, positions)`, with `noise` added to their embeddings. Raises
    PatchingError when no reference prompt is as long as the pairs' prompts.
    """
    if isinstance(value, OtherModel):
        same = module_of(value.model) is traced.model
        with nullcontext(traced) if same else traceable(value.model, remote=traced.remote) as other:
            return record(other, tokens, sites, noise=noise).sites
    if isinstance(value, Zero):
        return {site: torch.zeros_like(base.sites[site]) for site in sites}
    prompts = [tuple(prompt) for prompt in value.prompts if len(prompt) == tokens.shape[1]]
    if isinstance(value, Mean):
        _need(prompts, chunk[0], value)
        means = _mean(traced, prompts, sites, batch=len(chunk))
        return {site: mean.expand(len(chunk), -1, -1) for site, mean in means.items()}
    own = [tuple(prompt) for prompt in tokens.tolist()]
    drawn = [_draw(value, pair, [p for p in prompts if p != mine]) for pair, mine in zip(chunk, own, strict=True)]
    return record(traced, torch.tensor(drawn, device=tokens.device), sites).sites


def _mean(traced: Traced, prompts: list, sites: Collection, *, batch: int) -> dict[tuple[str, int], Tensor]:
    """The mean of every site over prompts of one length, `(1, positions, width)`, summed in single precision."""
    total: dict[tuple[str, int], Tensor] = {}
    for first in range(0, len(prompts), batch):
        tokens = torch.tensor(prompts[first : first + batch], device=traced.device)
        for site, seen in record(traced, tokens, sites).sites.items():
            total[site] = total.get(site, 0) + seen.float().sum(0, keepdim=True)
    return {site: (value / len(prompts)).to(traced.model.dtype) for site, value in total.items()}


def _draw(value: Resample, pair: PromptPair, candidates: list) -> tuple[int, ...]:
    _need(candidates, pair, value)
    return min(candidates, key=lambda prompt: draw_rank(value.seed, pair.pair_id, prompt))


def _need(prompts: list, pair: PromptPair, value: Mean | Resample) -> None:
    if not prompts:
        differ = " and not be its own" if isinstance(value, Resample) else ""
        raise PatchingError(
            f"The value {value.name!r} needs a reference prompt of {pair.positions} tokens for the pair {pair.pair_id}"
            f"{differ}; none of the {len(value.prompts)} it was given serves: add some, or leave the pair out."
        )
