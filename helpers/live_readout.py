"""Live readout: from the last residual to logits and the logit difference, as functions that can be differentiated.

`helpers.readout` says the same without ever holding all logits, and without a graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from helpers import metrics
from helpers.pairs import PromptPair
from helpers.tracing import Traced


def last_logits(traced: Traced, final: Tensor) -> Tensor:
    """The logits `(rows, vocabulary)` of what leaves the last block, `(rows, width)`, in single precision."""
    normalised = traced.model.get_submodule(traced.architecture.final_norm)(final)
    return traced.model.get_output_embeddings()(normalised).float()


def logit_difference(logits: Tensor, pairs: Sequence[PromptPair]) -> Tensor:
    """The logit difference of every row, `(rows,)`, by the right and wrong tokens of its pair."""
    right, wrong = metrics.right_and_wrong(pairs)
    return metrics.logit_difference(logits, right.to(logits.device), wrong.to(logits.device))
