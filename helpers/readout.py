"""Readout: from the residual stream that leaves the last block to every metric, without ever holding all logits.

The logit difference needs the answers' rows of the unembedding. The other metrics need the whole vocabulary, which is
visited in chunks. With r the right tokens (mostly one), x a patched residual after the final normalisation, x_c the
clean run's, W the unembedding and b its bias:

    logit of r           z_r = x·W_r + b_r
    log Σ_r P(r)         logΣ_r exp z_r − logΣ_v exp z_v
    rank                 number of tokens v, none of them right, with z_v > max_r z_r
    D(clean ‖ patched)   (x_c − x)·m_c + logΣ exp z − logΣ exp z_c,  m_c = Σ_v P_clean(v) W_v

The last line holds because logits are linear in x, and turns the divergence of every row into one dot product with a
vector that is computed once per pair. `metrics.score`, on whole logits, is the slow oracle of this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from helpers.metrics import NO_TOKEN, check_metrics
from helpers.tracing import Traced

CHUNK = 4096  # tokens of the vocabulary at a time: at a few hundred rows their logits stay in a processor's cache


@dataclass(frozen=True)
class Reference:
    """What scores are relative to: the right and the wrong tokens of every pair, and its clean run.

    `answer` and `foil` are `(pairs, tokens)`, filled up with metrics.NO_TOKEN, as metrics.right_and_wrong makes them.
    `clean` is the normalised last residual `(pairs, width)`, `expected` the vector m_c `(pairs, width)`, and
    `log_total` logΣ exp of the clean logits `(pairs,)`; these three are None unless the divergence is asked for.
    """

    answer: Tensor
    foil: Tensor
    clean: Tensor | None = None
    expected: Tensor | None = None
    log_total: Tensor | None = None


def reference(traced: Traced, answer: Tensor, foil: Tensor, clean: Tensor | None, metrics: Sequence[str]) -> Reference:
    """The reference of pairs whose clean runs end in `clean`, `(pairs, width)`, which only the divergence needs."""
    if "kl_divergence" not in metrics:
        return Reference(answer, foil)
    with _unembedding(traced) as head:
        x = _normalise(traced, clean)
        log_total = torch.full((len(x),), -torch.inf, device=x.device)
        for _, logits in _by_chunk(head, x):
            log_total = torch.logaddexp(log_total, logits.logsumexp(-1))
        expected = torch.zeros(x.shape, device=x.device)
        for tokens, logits in _by_chunk(head, x):
            expected += (logits - log_total[:, None]).exp() @ head.weight[tokens].float()
    return Reference(answer, foil, x.float(), expected, log_total)


def score(
    traced: Traced, final: Tensor, pair: Tensor, relative_to: Reference, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Every asked metric of rows that leave the last block as `final`, `(rows, width)`: `(rows,)` each.

    Row i belongs to the pair `pair[i]` of the reference. A row that is not a number gives NaN in every metric.
    """
    check_metrics(metrics)
    with _unembedding(traced) as head:
        x = _normalise(traced, final)
        pair = pair.to(x.device)
        answer, foil = relative_to.answer.to(x.device)[pair], relative_to.foil.to(x.device)[pair]
        right, missing = _logits_of(head, x, answer), answer == NO_TOKEN
        at_foil = _logits_of(head, x, foil).masked_fill(foil == NO_TOKEN, 0).sum(-1)
        values = {"logit_difference": right.masked_fill(missing, 0).sum(-1) - at_foil}
        if set(metrics) - {"logit_difference"}:
            right = right.masked_fill(missing, -torch.inf)
            best = right.amax(-1)
            log_total = torch.full((len(x),), -torch.inf, device=x.device)
            above = torch.zeros(len(x), device=x.device)
            for tokens, logits in _by_chunk(head, x):
                log_total = torch.logaddexp(log_total, logits.logsumexp(-1))
                if "rank" in metrics:
                    above += _count_above(logits, best, answer - tokens.start)
            values["log_probability"] = right.logsumexp(-1) - log_total
            values["probability"] = values["log_probability"].exp()
            values["rank"] = above.masked_fill(log_total.isnan(), torch.nan)
            if "kl_divergence" in metrics:
                towards = (relative_to.clean[pair] - x.float()) * relative_to.expected[pair]
                divergence = towards.sum(-1) + log_total - relative_to.log_total[pair]
                values["kl_divergence"] = divergence.clamp(min=0)  # rounding may leave it just below
    return {name: values[name].cpu().double().numpy() for name in metrics}


@contextmanager
def _unembedding(traced: Traced) -> Iterator[nn.Linear]:
    """The unembedding with its weights at hand, also where accelerate keeps them elsewhere between two calls."""
    head = traced.model.get_output_embeddings()
    with align_module_device(head):
        yield head


def _normalise(traced: Traced, final: Tensor) -> Tensor:
    """The final normalisation, called directly: a row is one position, and a trace would run a whole prompt for it."""
    normalised = traced.model.get_submodule(traced.architecture.final_norm)(final)
    return normalised.to(traced.model.get_output_embeddings().weight.device)


def _logits_of(head: nn.Linear, x: Tensor, tokens: Tensor) -> Tensor:
    """The logits of the `tokens` of every row, `(rows, tokens)`, in single precision; of NO_TOKEN it is any number."""
    # Column by column: all rows of the unembedding at once would be as many times larger than x as there are tokens.
    x = x.float()
    logits = torch.stack([(x * head.weight[column].float()).sum(-1) for column in tokens.unbind(-1)], -1)
    return logits if head.bias is None else logits + head.bias[tokens].float()


def _by_chunk(head: nn.Linear, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The logits `(rows, chunk)` of every chunk of the vocabulary, in single precision, and which tokens they are."""
    for start in range(0, len(head.weight), CHUNK):
        tokens = slice(start, start + CHUNK)
        bias = None if head.bias is None else head.bias[tokens]
        yield tokens, nn.functional.linear(x, head.weight[tokens], bias).float()


def _count_above(logits: Tensor, best: Tensor, answer: Tensor) -> Tensor:
    """How many logits of a chunk exceed the best right one; no right one counts, for its two roundings may differ."""
    above = (logits > best[:, None]).sum(-1)
    rows, columns = ((answer >= 0) & (answer < logits.shape[1])).nonzero().unbind(-1)
    return above.index_add(0, rows, -(logits[rows, answer[rows, columns]] > best[rows]).to(above.dtype))
