"""Weight change: how far the parameters of a place have moved from the model before, and how large they are.

    absolute   ‖W_after − W_before‖_F over all parameters of the attention, or of the MLP, its biases among them
    relative   that over ‖W_before‖_F
    norm       ‖W‖_F over the median of its component's blocks: what one model alone shows

No prompt is run. Where facts are written into one place only, every other one has not changed, by construction. The
norm knows nothing of any fact: who does not find more than it may have found what was trained, and not what it knows.
"""

from __future__ import annotations

import math

import pandas as pd
from torch import nn

from helpers.architectures import architecture_of
from helpers.methods import PLACE, places_of
from helpers.plans import check_same_shape


def weight_changes(taught, base, *, relative: bool) -> pd.DataFrame:
    """The Frobenius norm of what has changed at each place, in units of the norm before if `relative`: PLACE, score.

    A place without change has 0, also where there was nothing before. Raises PatchingError for models of two shapes.
    """
    check_same_shape(taught, base)
    rows = []
    for place in places_of(taught):
        after, before = (_parameters(model, place) for model in (taught, base))
        change = _norm(one.detach() - other.detach() for one, other in zip(after, before, strict=True))
        size = _norm(parameter.detach() for parameter in before) if relative and change else 1.0
        rows.append((place.component, place.layer, change / size))
    return pd.DataFrame(rows, columns=[*PLACE, "score"])


def weight_norms(model) -> pd.DataFrame:
    """The Frobenius norm of each place over the median of its component's, less 1: PLACE, score."""
    rows = [(p.component, p.layer, _norm(part.detach() for part in _parameters(model, p))) for p in places_of(model)]
    table = pd.DataFrame(rows, columns=[*PLACE, "score"])
    median = table.groupby("component")["score"].transform("median")
    return table.assign(score=(table["score"] / median.where(median > 0) - 1).fillna(0.0))


def _parameters(model, place) -> list[nn.Parameter]:
    row = architecture_of(model)
    path = row.attention if place.component == "attn_out" else row.mlp
    return list(model.get_submodule(f"{row.blocks}.{place.layer}.{path}").parameters())


def _norm(tensors) -> float:
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))
