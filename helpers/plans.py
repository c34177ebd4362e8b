"""Plans: which patches a sweep consists of, which vectors each of them overwrites, and the table they are reported in.

A *patch* is one line of the result: one pair, and a set of sites that are overwritten together. A *write* is the
smallest piece of it: one vector, at one component, layer, position and head. Single sites, windows of layers, token
roles, all positions at once and arbitrary sets differ only in their writes, so everything after this module knows
nothing but writes. Plans are arithmetic on integers alone: no model runs here, and the checks of a sweep's settings
end in one sentence before the first forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from helpers.architectures import SITES as COMPONENTS
from helpers.architectures import architecture_of, head_count, layer_count
from helpers.pairs import ANSWER, ROLES, TASK_ROLES, PromptPair

DIRECTIONS = ("denoising", "noising")
POSITIONS = ("each", "all", "roles")
ALL = -1  # in integer arrays: every head, which is the site's whole width
RESID_PRE, RESID_POST = COMPONENTS.index("resid_pre"), COMPONENTS.index("resid_post")


class PatchingError(ValueError):
    """A sweep that cannot be run, or a run that gave no number."""


@dataclass(frozen=True)
class Site:
    """One place to patch: `position` is a token index, a role of helpers.pairs (every token that has it), or "all"."""

    component: str
    layer: int
    position: int | str
    head: int | None = None


@dataclass(frozen=True)
class Writes:
    """Vectors to overwrite, `(writes,)` integer arrays in forward order within each patch.

    `patch` indexes the lines of the plan, `component` COMPONENTS; `head` is ALL for a whole site.
    """

    patch: np.ndarray
    component: np.ndarray
    layer: np.ndarray
    position: np.ndarray
    head: np.ndarray

    def __len__(self) -> int:
        return len(self.patch)

    def take(self, chosen: np.ndarray) -> Writes:
        """The writes at these indices, or where this mask is true."""
        return Writes(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True)
class Plan:
    """Patches of pairs of one length: their lines in the result, their pairs, `(patches,)`, and their writes."""

    lines: pd.DataFrame
    pair: np.ndarray
    writes: Writes


def plan_sweep(
    model,
    pairs: Sequence[PromptPair],
    *,
    components: Sequence[str],
    layers: Sequence[int],
    positions: str,
    window: int,
) -> Plan:
    """Every patch of a sweep over pairs of one length: by pair, component (as given), layer, position, head.

    The lines have the columns component, layer, position, role, head. A window of a head is that head in each layer.
    Token embeddings have the layer 0 only, and no window.
    """
    count = layer_count(model)

    def patches_of(pair: PromptPair) -> list[tuple[tuple, list[tuple]]]:
        patches = []
        for component in components:
            heads = range(head_count(model)) if component == "head_out" else (None,)
            for layer in (0,) if component == "embedding" else layers:
                reach = (0,) if component == "embedding" else window_layers(layer, window=window, layers=count)
                for position, role, tokens in _targets(pair, positions):
                    for head in heads:
                        sites = [(component, other, token, head) for other in reach for token in tokens]
                        patches.append(((component, layer, position, role, head), sites))
        return patches

    return _plan(pairs, patches_of, columns=("component", "layer", "position", "role", "head"), layers=count)


def plan_sets(model, pairs: Sequence[PromptPair], sets: Mapping[str, Sequence[Site]]) -> Plan:
    """One patch per pair and named set of sites, all of them overwritten together; the lines have the column sites.

    A role that a pair does not have adds nothing to its set; a set that is empty for a pair leaves its run as it is.
    """

    def patches_of(pair: PromptPair) -> list[tuple[tuple, list[tuple]]]:
        return [
            (
                (name,),
                [
                    (site.component, site.layer, token, site.head)
                    for site in sites
                    for token in _tokens_of(pair, site.position)
                ],
            )
            for name, sites in sets.items()
        ]

    return _plan(pairs, patches_of, columns=("sites",), layers=layer_count(model))


def window_layers(layer: int, *, window: int, layers: int) -> range:
    """The layers that a window of `window` around `layer` patches together, cut at the ends of a network of `layers`.

    max(0, l − w//2) to min(L, l − w//2 + w) − 1, as in Meng et al. (arXiv 2202.05262).
    """
    first = layer - window // 2
    return range(max(0, first), min(layers, first + window))


def tabulate(
    plan: Plan, pairs: Sequence[PromptPair], *, constant: Mapping[str, object], scores: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """The public table: pair, the plan's lines, the `constant` columns, and `scores`, `(patches,)` by metric."""
    table = plan.lines.assign(**constant, **scores)
    table.insert(0, "pair", np.array([pair.pair_id for pair in pairs], dtype=object)[plan.pair])
    text = {name: "str" for name in table.columns if table[name].dtype == object}
    return table.astype(text | {name: "Int64" for name in ("position", "head") if name in table})


def _targets(pair: PromptPair, positions: str) -> list[tuple[int | None, str, Sequence[int]]]:
    """What is patched at a time: (position or None, role, tokens); never a token of a continued pair's answer."""
    if positions == "all":
        return [(None, "all", _tokens_of(pair, "all"))]
    if positions == "roles":
        present = [role for role in ROLES + TASK_ROLES if role in pair.roles]
        return [(None, role, _tokens_of(pair, role)) for role in present]
    return [(position, pair.roles[position], (position,)) for position in _tokens_of(pair, "all")]


def _tokens_of(pair: PromptPair, position: int | str) -> Sequence[int]:
    if position == "all":
        return [token for token, role in enumerate(pair.roles) if role != ANSWER]
    if isinstance(position, str):
        return [token for token, role in enumerate(pair.roles) if role == position]
    return (position,)


def _plan(pairs: Sequence[PromptPair], patches_of: Callable, *, columns: Sequence[str], layers: int) -> Plan:
    """Lay out the patches of every pair; pairs whose tokens have the same roles share one template."""
    templates: dict[tuple[str, ...], tuple[pd.DataFrame, np.ndarray]] = {}
    lines, writes, owner, offset = [], [], [], 0
    for number, pair in enumerate(pairs):
        if pair.roles not in templates:
            patches = patches_of(pair)
            frame = pd.DataFrame([line for line, _ in patches], columns=list(columns))
            vectors = [_vector(i, site, layers) for i, (_, sites) in enumerate(patches) for site in sites]
            array = np.array(sorted(set(vectors)), dtype=np.int64).reshape(-1, 5)
            templates[pair.roles] = (frame, array)
        frame, array = templates[pair.roles]
        lines.append(frame)
        writes.append(array + np.array([offset, 0, 0, 0, 0]))
        owner.append(np.full(len(frame), number))
        offset += len(frame)
    patch, layer, component, position, head = np.concatenate(writes).T
    writes = Writes(patch, component, layer, position, head)
    return Plan(pd.concat(lines, ignore_index=True), np.concatenate(owner), writes)


def _vector(patch: int, site: tuple, layers: int) -> tuple[int, int, int, int, int]:
    """(patch, layer, component, position, head): sorted, it stands in forward order.

    What leaves a block enters the next one: resid_post is the next block's resid_pre wherever there is one.
    """
    component, layer, position, head = site
    if component == "resid_post" and layer < layers - 1:
        component, layer = "resid_pre", layer + 1
    return patch, layer, COMPONENTS.index(component), position, ALL if head is None else head


def check_pairs(model, pairs: Sequence[PromptPair], row_budget: int | None) -> None:
    """Raise PatchingError unless the pairs are some, told apart by name, and fit the model."""
    if row_budget is not None and row_budget < 1:
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
        if (top := max(*pair.clean, *pair.corrupted, *pair.right, *pair.wrong)) >= vocabulary:
            raise PatchingError(
                f"The pair {pair.pair_id} has the token id {top} and the model's vocabulary ends at {vocabulary - 1}: "
                "make the pairs with this model's own tokenizer."
            )


def check_direction(direction: str) -> None:
    """Raise PatchingError unless the direction is one of DIRECTIONS."""
    if direction not in DIRECTIONS:
        raise PatchingError(f"direction must be {' or '.join(DIRECTIONS)}, not {direction!r}.")


def check_sites(model, *, components, layers, positions, window) -> list[int]:
    """The layers to sweep, ascending; raises PatchingError for a setting outside its range."""
    unknown = [component for component in components if component not in COMPONENTS]
    if unknown or not components or isinstance(components, str) or len(set(components)) < len(components):
        raise PatchingError(f"components must be different names among {', '.join(COMPONENTS)}, not {components!r}.")
    if positions not in POSITIONS:
        raise PatchingError(f"positions must be one of {', '.join(POSITIONS)}, not {positions!r}.")
    if window < 1:
        raise PatchingError(f"window is a number of adjacent layers and must be at least 1, not {window}.")
    count = layer_count(model)
    chosen = sorted(set(range(count) if layers is None else layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise PatchingError(f"layers must be some of 0 to {count - 1}, not {chosen}.")
    return chosen


def check_sets(model, pairs: Sequence[PromptPair], sets: Mapping[str, Sequence[Site]]) -> None:
    """Raise PatchingError for a set with a site that does not exist in the model or in one of the pairs."""
    if not sets:
        raise PatchingError("There is no set of sites to patch: give at least one, as {name: [Site(…), …]}.")
    shortest = min(pairs, key=lambda pair: pair.positions)
    for name, site in ((name, site) for name, sites in sets.items() for site in sites):
        layers = 1 if site.component == "embedding" else layer_count(model)
        token, head = site.position, site.head
        if site.component not in COMPONENTS:
            problem = f"a component is one of {', '.join(COMPONENTS)}"
        elif not 0 <= site.layer < layers:
            problem = f"its layer must be 0 to {layers - 1}"
        elif isinstance(token, str) and token not in (*ROLES, *TASK_ROLES, "all"):
            problem = f'a position is a token\'s index, "all", or one of {", ".join(ROLES + TASK_ROLES)}'
        elif not isinstance(token, str) and not 0 <= token < shortest.positions:
            problem = f"the pair {shortest.pair_id} has the positions 0 to {shortest.positions - 1}"
        elif (head is not None) != (site.component == "head_out"):
            problem = "head_out needs a head, and no other component has one"
        elif head is not None and not 0 <= head < head_count(model):
            problem = f"its head must be 0 to {head_count(model) - 1}"
        else:
            continue
        raise PatchingError(f"The set {name!r} has {site}: {problem}.")


def check_same_shape(model, source_model) -> None:
    """Raise PatchingError unless the activations of one model fit the other."""
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
