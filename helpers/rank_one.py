"""Rank-one edits: one fact's answer exchanged by a rank-one change of one MLP's output projection (ROME).

With k the projection's input at the key token, averaged over wordings, v* the output there that makes the new answer
likely, found by gradient descent, and C the uncentred second moment of inputs over other texts (Meng et al., arXiv
2202.05262),

    W ← W + (v* − Wk) (C⁻¹k)ᵀ / (kᵀ C⁻¹ k)

gives k the value v* and moves the values of other keys as little as it can. ROME takes the subject's last token for its
key. A model whose recall runs through the last position cannot be edited there, so the token is a choice, one of KEYS.
Other deviations: the wordings are those given rather than random prefixes, the whole answer with its full stop is made
likely, no divergence from what is said of the subject otherwise is held down, and C gets a ridge, as the inputs in a
small corpus do not span all directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from helpers.architectures import architecture_of, layer_count
from helpers.editing import KEYS, EditingError, Grading, Question, Request, evaluating, padded, restored, scored


@dataclass(frozen=True)
class RankOne:
    """How a rank-one edit finds its value; `steps`, `learning_rate`, `decay` and `clamp` are ROME's for GPT-2.

    `clamp` is the longest change of the value in units of the value's own length, and `ridge` is in units of the mean
    of C's diagonal.
    """

    key: str = "subject_last"
    steps: int = 20
    learning_rate: float = 0.5
    decay: float = 0.5
    clamp: float = 4.0
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if self.key not in KEYS:
            raise EditingError(f"The key token is {' or '.join(KEYS)}, not {self.key!r}.")


def rank_one_outcomes(
    model, requests: Sequence[Request], others: Sequence[Question], *, block: int, moment: Tensor, settings: RankOne
) -> pd.DataFrame:
    """Edit each fact alone by a rank-one update of the block's MLP, grade it, and put the old weights back.

    `moment` is `second_moment` at this block. One row per request, in their order: item_id, kind, OUTCOMES. Raises
    EditingError for a block that the model has not, a model whose MLP does not end in GPT-2's projection, or NaN.
    """
    weight, bias = _projection(model, block).weight, _projection(model, block).bias
    before = Grading.of(model, requests, others)
    keys = find_keys(model, requests, block=block, key=settings.key)
    values = find_values(model, requests, block=block, settings=settings)
    rows = []
    for number, update in enumerate(rank_one_updates(weight, bias, keys, values, moment, ridge=settings.ridge)):
        with restored([weight]), torch.no_grad():
            weight += update
            rows += before.outcomes(model, [number])
    return pd.DataFrame(rows)


def rank_one_updates(
    weight: Tensor, bias: Tensor, keys: Tensor, values: Tensor, moment: Tensor, *, ridge: float
) -> Iterator[Tensor]:
    """For every key, `(inner,)`, the change of `weight`, `(inner, width)`, that makes its output the value, `(width,)`.

    C = `moment` + ridge · mean(diagonal). Raises EditingError where C has no inverse or a key is 0.
    """
    regular = moment + ridge * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    for key, value in zip(keys.double().cpu(), values.double().cpu(), strict=True):
        try:
            direction = torch.linalg.solve(regular, key)
        except torch.linalg.LinAlgError:
            raise EditingError("The second moment of the keys has no inverse: give more texts or a ridge.") from None
        if not float(size := key @ direction) > 0:
            raise EditingError(f"A key has the length {key.norm():.3g} in C⁻¹: no unit of this block is active there.")
        missing = value - (key @ weight.detach().double().cpu() + bias.detach().double().cpu())
        yield torch.outer(direction / size, missing).to(weight)


def second_moment(model, texts: Iterable[Sequence[int]], *, block: int, batch_size: int = 32) -> Tensor:
    """C, the mean of k kᵀ over all tokens of `texts` (token ids), `(inner, inner)`, in double precision on the CPU."""
    texts = sorted((tuple(text) for text in texts), key=lambda text: (len(text), text))
    if not texts:
        raise EditingError("The second moment of the keys needs texts, and there is none.")
    total, count = 0, 0
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(texts), batch_size):
            rows = texts[start : start + batch_size]
            keys = _inputs(model, block, rows)
            real = torch.tensor([[i < len(text) for i in range(keys.shape[1])] for text in rows], device=keys.device)
            chosen = keys[real].double().cpu()
            total, count = total + chosen.T @ chosen, count + len(chosen)
    return total / count


def find_keys(model, requests: Sequence[Request], *, block: int, key: str) -> Tensor:
    """The input of the block's MLP projection at the key token, a mean over wordings: `(requests, inner)`."""
    rows, owner = _rows(requests)
    positions = torch.tensor([question.position(key) for question in rows])
    with torch.no_grad(), evaluating(model):
        keys = _inputs(model, block, [question.prompt for question in rows])[torch.arange(len(rows)), positions]
    return _means(keys, owner, len(requests))


def find_values(model, requests: Sequence[Request], *, block: int, settings: RankOne) -> Tensor:
    """The output of the block's MLP at the key token that makes the new answer likely, `(requests, width)`.

    Adam moves a change of the output, added in every wording, down the mean negative log-probability of the answer,
    plus decay · ‖change‖ / ‖output‖²; requests share a batch and nothing else. Raises EditingError for NaN.
    """
    rows, owner = _rows(requests)
    owner, lines = owner.to(model.device), torch.arange(len(rows))
    positions = torch.tensor([question.position(settings.key) for question in rows])
    projection = _projection(model, block)
    keys = find_keys(model, requests, block=block, key=settings.key)
    start = (keys @ projection.weight + projection.bias).detach()
    length = start.norm(dim=1, keepdim=True)
    if not (length > 0).all():
        raise EditingError(f"The MLP of block {block} writes nothing at {settings.key}, so a change has no unit.")
    change = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=settings.learning_rate)

    def add(module, inputs, output):
        return output.index_put((lines, positions), change[owner], accumulate=True)

    hook = projection.register_forward_hook(add)
    try:
        with evaluating(model):
            for _ in range(settings.steps):
                nll = _means(-scored(model, rows)[0], owner, len(requests))
                # The length of a change of 0 has no slope, and none is wanted.
                loss = nll.sum() + settings.decay * ((change**2).sum(1) + 1e-12).sqrt().div(length[:, 0] ** 2).sum()
                (change.grad,) = torch.autograd.grad(loss, [change])
                optimizer.step()
                with torch.no_grad():
                    longest = settings.clamp * length
                    change *= (longest / change.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    finally:
        hook.remove()
    if not change.isfinite().all():
        raise EditingError(f"The value sought at block {block} became NaN: lower learning_rate.")
    return start + change.detach()


def _projection(model, block: int) -> Conv1D:
    row = architecture_of(model)
    if block not in range(layer_count(model)):
        raise EditingError(f"There is no block {block!r}: the model has 0 to {layer_count(model) - 1}.")
    mlp = model.get_submodule(f"{row.blocks}.{block}.{row.mlp}")
    if not isinstance(getattr(mlp, "c_proj", None), Conv1D):
        raise EditingError(
            f"Rank-one edits know GPT-2's MLP, which ends in c_proj, not that of {type(model).__name__}."
        )
    return mlp.c_proj


def _rows(requests: Sequence[Request]) -> tuple[list[Question], Tensor]:
    """All questions that requests are edited with, and the number of each one's request."""
    rows = [(question, number) for number, request in enumerate(requests) for question in request.questions]
    return [question for question, _ in rows], torch.tensor([number for _, number in rows])


def _means(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """The mean of the rows of `values` that each owner has, `(count, …)`."""
    owner = owner.to(values.device)
    totals = torch.zeros(count, *values.shape[1:], dtype=values.dtype, device=values.device)
    times = torch.bincount(owner, minlength=count).to(values.dtype)
    return totals.index_add(0, owner, values) / times.reshape(-1, *[1] * (values.ndim - 1))


def _inputs(model, block: int, texts: Sequence[Sequence[int]]) -> Tensor:
    seen: list[Tensor] = []
    hook = _projection(model, block).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        model.base_model(**padded(model, texts))
    finally:
        hook.remove()
    return seen[0]
