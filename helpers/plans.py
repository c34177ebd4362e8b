"""Plans: which patches a sweep consists of, which of them need a run at all, and the table they are reported in.

A plan is arithmetic on integers alone: no model runs here. It also holds the checks of a sweep's settings, so that a
wrong name or a layer that does not exist ends in one sentence before the first forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from helpers.architectures import SITES as COMPONENTS
from helpers.architectures import architecture_of, head_count, layer_count
from helpers.pairs import PromptPair

DIRECTIONS = ("denoising", "noising")
ALL = -1  # in a plan's integer arrays: all positions at once, or no single head


class PatchingError(ValueError):
    """A sweep that cannot be run, or a run that gave no number."""


@dataclass(frozen=True)
class Plan:
    """Patches of prompts of one length: `(patches,)` integer arrays, in the order in which they are reported.

    `component` indexes COMPONENTS; `position` and `head` are ALL where they do not apply; `start` and `stop` are the
    first and the last layer of the window around `layer`, both inclusive.
    """

    component: np.ndarray
    layer: np.ndarray
    position: np.ndarray
    head: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.layer)

    def take(self, patches: np.ndarray) -> Plan:
        """The plan of the patches at these indices; an index may stand more than once."""
        return Plan(*(getattr(self, field.name)[patches] for field in fields(self)))


def make_plan(
    model, *, components: Sequence[str], layers: Sequence[int], positions: str, window: int, length: int
) -> Plan:
    """Every patch of prompts of `length` tokens, ordered by component (as given), layer, position, head."""
    rows = []
    for component in components:
        heads = range(head_count(model)) if component == "head_out" else (ALL,)
        for layer in layers:
            reach = window_layers(layer, window=window, layers=layer_count(model))
            for position in range(length) if positions == "each" else (ALL,):
                rows += [(COMPONENTS.index(component), layer, position, head, reach[0], reach[-1]) for head in heads]
    return Plan(*np.array(rows, dtype=np.int64).T)


def window_layers(layer: int, *, window: int, layers: int) -> range:
    """The layers that a window of `window` around `layer` patches together, cut at the ends of a network of `layers`.

    max(0, l − w//2) to min(L, l − w//2 + w) − 1, as in Meng et al. (arXiv 2202.05262).
    """
    first = layer - window // 2
    return range(max(0, first), min(layers, first + window))


def needs_run(plan: Plan, pairs: Sequence[PromptPair], *, layers: int, same_model: bool) -> np.ndarray:
    """Whether a patch can change the base run's answer at all: booleans `(pairs, patches)`.

    It cannot in two cases. Before the first token in which the prompts of a pair differ, a causal model holds the same
    activations in both runs (unless the source is another model). And what the last block writes at a position other
    than the last is read by nothing; what enters that block still is, through keys and values.
    """
    everywhere = plan.position == ALL
    runs = np.ones((len(pairs), len(plan)), dtype=bool)
    if same_model:
        differs = np.array([[a != b for a, b in zip(pair.clean, pair.corrupted, strict=True)] for pair in pairs])
        runs &= everywhere | (plan.position >= differs.argmax(axis=1)[:, None])
    written_last = (plan.start == layers - 1) & (plan.component != COMPONENTS.index("resid_pre"))
    return runs & ~(written_last & ~everywhere & (plan.position != pairs[0].positions - 1))


def tabulate(
    plan: Plan, pairs: Sequence[PromptPair], *, direction: str, window: int, scores: dict[str, np.ndarray]
) -> pd.DataFrame:
    """The public columns of a sweep, pair by pair; `scores` holds `(pairs, patches)` by metric."""

    def each(column: np.ndarray) -> np.ndarray:
        return np.tile(column, len(pairs))

    def nullable(column: np.ndarray) -> pd.Series:
        return pd.Series(each(column), dtype="Int64").mask(each(column) == ALL)

    # "all" stands behind the roles of the positions, where the index ALL, −1, finds it.
    roles = [np.array([*pair.roles, "all"], dtype=object)[plan.position] for pair in pairs]
    return pd.DataFrame(
        {
            "pair": np.repeat([pair.pair_id for pair in pairs], len(plan)),
            "component": each(np.array(COMPONENTS, dtype=object)[plan.component]),
            "layer": each(plan.layer),
            "position": nullable(plan.position),
            "role": np.concatenate(roles),
            "head": nullable(plan.head),
            "direction": direction,
            "window": window,
            **{name: values.ravel() for name, values in scores.items()},
        }
    ).astype({name: "str" for name in ("pair", "component", "role", "direction")})


def check_pairs(model, pairs: Sequence[PromptPair], row_budget: int) -> None:
    """Raise PatchingError unless the pairs are some, told apart by name, and fit the model."""
    if row_budget < 1:
        raise PatchingError(
            f"row_budget is the most rows in one forward pass and must be at least 1, not {row_budget}."
        )
    if not pairs:
        raise PatchingError("There is no pair to patch: check which items were excluded.")
    seen: set[str] = set()
    longest, vocabulary = getattr(model.config, "max_position_embeddings", None), model.config.vocab_size
    for pair in pairs:
        if pair.pair_id in seen:
            raise PatchingError(
                f"The pair {pair.pair_id} is given twice; results are told apart by pair_id, so rename one."
            )
        seen.add(pair.pair_id)
        if longest is not None and pair.positions > longest:
            raise PatchingError(
                f"The pair {pair.pair_id} has {pair.positions} tokens and the model reads {longest} at most."
            )
        if (top := max(*pair.clean, *pair.corrupted, pair.answer[0], pair.foil[0])) >= vocabulary:
            raise PatchingError(
                f"The pair {pair.pair_id} has the token id {top} and the model's vocabulary ends at {vocabulary - 1}: "
                "make the pairs with this model's own tokenizer."
            )


def check_sites(model, *, components, layers, positions, direction, window) -> list[int]:
    """The layers to sweep, ascending; raises PatchingError for a setting outside its range."""
    unknown = [component for component in components if component not in COMPONENTS]
    if unknown or not components or isinstance(components, str) or len(set(components)) < len(components):
        raise PatchingError(f"components must be different names among {', '.join(COMPONENTS)}, not {components!r}.")
    if positions not in ("each", "all"):
        raise PatchingError(f'positions must be "each" or "all", not {positions!r}.')
    if direction not in DIRECTIONS:
        raise PatchingError(f"direction must be {' or '.join(DIRECTIONS)}, not {direction!r}.")
    if window < 1:
        raise PatchingError(f"window is a number of adjacent layers and must be at least 1, not {window}.")
    count = layer_count(model)
    chosen = sorted(set(range(count) if layers is None else layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise PatchingError(f"layers must be some of 0 to {count - 1}, not {chosen}.")
    return chosen


def check_same_shape(model, source_model) -> None:
    """Raise PatchingError unless the activations of one model fit the other; None stands for the model itself."""
    if source_model is None:
        return
    for name, of in (
        ("model type", lambda m: architecture_of(m).model_type),
        ("number of layers", layer_count),
        ("number of heads", head_count),
        ("width", lambda m: m.config.hidden_size),
        ("vocabulary size", lambda m: m.config.vocab_size),
        ("precision", lambda m: m.dtype),
        ("device", lambda m: m.device),
    ):
        if of(model) != of(source_model):
            raise PatchingError(
                f"Cross-model patching needs two models of one {name}; model has {of(model)} and source_model "
                f"{of(source_model)}."
            )
