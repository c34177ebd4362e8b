"""Activation patching: an exact sweep over components, layers, positions and heads, many patches per forward pass.

Context
-------
A pair has a clean and a corrupted prompt, and the model answers them differently. Patching runs the
model on one of them (the *base*) while one activation is replaced by what the same site held in the run on the other
(the *source*), and asks how the answer moves. The direction is part of every result:

    denoising   clean activation into the corrupted run: is this site *sufficient* to bring the clean answer back?
    noising     corrupted activation into the clean run: is this site *necessary* to keep it?

The two are not mirror images: two redundant sites are each sufficient, and neither is necessary. A window of adjacent
layers is patched jointly, as ROME does. In *cross-model* patching the source is another model's run of the *same*
prompt: both models read the base prompt of the direction (corrupted for denoising, clean for noising), and the
activations of `source_model` go into `model`.

A patch of resid_pre or resid_post at all positions determines everything after it: it reproduces the source run in any
network, trained or not. Such rows are a unit test of this module and never a finding.

Rows that join
--------------
The tutorial form runs one forward pass per patch, and in each of them the blocks below
the patch only recompute the base run. Here every patch of every pair is one *row* of a large batch, and joins it at
the first block that it changes: until then its residual stream *is* the base run's, which was recorded once. In one
trace, at the input of block l,

    live rows = [rows that joined below l | the base run's resid_pre l, once for each patch that begins at l]

and then, at each site of the block, the rows whose patch is there receive the source run's activation. Early blocks see
few rows and late blocks see all of them. Rows are written on the live tensors of nnsight's trace; a head is a slice of
the input of attention's output projection. Pairs of one length form a bucket, so nothing is ever padded, and only the
last position meets the unembedding.

Cost
----
In a network of L blocks a patch at block l costs L − l block passes instead of L, half on average, and S
patches take S / row_budget forward calls instead of S; small models gain most from the second. Two kinds of patch are
not run at all, because their result is known to be the base run's: see `plans.needs_run`. Memory: the recorded
activations of row_budget / 8 pairs, and row_budget rows of one block.

The slow oracle, one plain forward hook per patch, is in tests/oracle.py; the two agree to rounding on every site.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from helpers import metrics as measures
from helpers.architectures import (
    Traced,
    forward_arguments,
    head_count,
    last_logits,
    layer_count,
    read,
    traceable,
    write,
)
from helpers.pairs import PromptPair, bucket_by_length
from helpers.plans import (
    ALL,
    COMPONENTS,
    PatchingError,
    Plan,
    check_pairs,
    check_same_shape,
    check_sites,
    make_plan,
    needs_run,
    tabulate,
)
from helpers.progress import track


@dataclass(frozen=True)
class _Run:
    """A recorded run: `(pairs, positions, width)` by (site, layer), and the last logits, `(pairs, vocabulary)`."""

    sites: dict[tuple[str, int], Tensor]
    logits: Tensor


def measure_runs(
    model, pairs: Sequence[PromptPair], *, metrics: Sequence[str] = measures.METRICS, row_budget: int = 512
) -> pd.DataFrame:
    """The un-patched runs of every pair, two rows each: columns pair, run ("clean" or "corrupted"), then the metrics.

    Answer and foil are the pair's in both runs, and kl_divergence is from the clean run, so 0 there. `row_budget` is
    the most prompts in one forward pass. Raises PatchingError as `sweep` does.
    """
    measures.check_metrics(metrics)
    check_pairs(model, pairs, row_budget)
    tables = []
    with torch.no_grad(), traceable(model) as traced:
        for chunk in _chunks(pairs, row_budget):
            clean = _record(traced, chunk, "clean")
            corrupted = _record(traced, chunk, "corrupted")
            for name, run in (("clean", clean), ("corrupted", corrupted)):
                scores = _score(run.logits, chunk, np.arange(len(chunk)), clean.logits, metrics)
                tables.append(pd.DataFrame({"pair": [pair.pair_id for pair in chunk], "run": name, **scores}))
    # Stable: within a pair the clean run was appended first.
    return _in_order(pd.concat(tables), pairs)


def sweep(
    model,
    pairs: Sequence[PromptPair],
    *,
    components: Sequence[str] = ("resid_pre", "attn_out", "mlp_out"),
    layers: Sequence[int] | None = None,
    positions: str = "each",
    direction: str = "denoising",
    window: int = 1,
    source_model=None,
    metrics: Sequence[str] = ("logit_difference",),
    row_budget: int = 512,
    progress: bool = False,
) -> pd.DataFrame:
    """Patch every asked site of every pair, exactly: clean into corrupted (denoising), or corrupted into clean.

    One row per patch of one pair, in the order of the pairs, then of `components`, layers, positions, heads. Columns:
    pair, component, layer, position (<NA> when all), role (of the token, or "all"), head (<NA> but for head_out),
    direction, window, then the metrics, un-normalised (metrics.recovery_table normalises). Components are COMPONENTS;
    `positions` is "each" (one row per position) or "all" (patched together). A `window` of w patches the layers
    max(0, l − w//2) to min(L, l − w//2 + w) − 1 together (Meng et al., arXiv 2202.05262), for head_out the same head
    number in each. With `source_model` the activations come from that model's run of the base prompt (see above);
    kl_divergence is always from `model`'s own clean run. Neither `row_budget`, the most rows in one forward pass, nor
    the order of the pairs changes a result beyond rounding. The model is left as it was found. Raises PatchingError
    for a setting that is not one of these, models or pairs that do not fit one another, and NaN logits, naming the
    pair.
    """
    measures.check_metrics(metrics)
    check_pairs(model, pairs, row_budget)
    layers = check_sites(
        model, components=components, layers=layers, positions=positions, direction=direction, window=window
    )
    check_same_shape(model, source_model)
    tables = []
    with torch.no_grad(), ExitStack() as stack:
        traced = stack.enter_context(traceable(model))
        source = traced if source_model is None else stack.enter_context(traceable(source_model))
        # Eight times as many patched rows as pairs: the pairs' recorded runs stay small beside the batch they feed.
        for chunk in _track(_chunks(pairs, max(1, row_budget // 8)), f"patching, {direction}", progress):
            plan = make_plan(
                model,
                components=components,
                layers=layers,
                positions=positions,
                window=window,
                length=chunk[0].positions,
            )
            scores = _sweep_chunk(traced, source, chunk, plan, direction, metrics, row_budget)
            tables.append(tabulate(plan, chunk, direction=direction, window=window, scores=scores))
    return _in_order(pd.concat(tables), pairs)


def _sweep_chunk(
    traced: Traced, source: Traced, chunk, plan: Plan, direction: str, metrics, row_budget: int
) -> dict[str, np.ndarray]:
    """Every patch of a plan for pairs of one length: `(pairs, patches)` by metric."""
    base_prompt, other_prompt = ("corrupted", "clean") if direction == "denoising" else ("clean", "corrupted")
    same_model = source is traced
    base = _record(traced, chunk, base_prompt, {("resid_pre", layer) for layer in plan.start.tolist()})
    given = _record(source, chunk, other_prompt if same_model else base_prompt, _patched_sites(plan))
    if direction == "noising":
        clean_logits = base.logits
    elif same_model:
        clean_logits = given.logits
    else:
        clean_logits = _record(traced, chunk, "clean").logits

    values = {name: np.empty((len(chunk), len(plan))) for name in metrics}
    for name, scores in _score(base.logits, chunk, np.arange(len(chunk)), clean_logits, metrics).items():
        values[name][:] = scores[:, None]  # what stays where no run is needed
    pair, patch = np.nonzero(needs_run(plan, chunk, layers=layer_count(traced.model), same_model=same_model))
    by_start = np.argsort(plan.start[patch], kind="stable")  # so that one batch spans few layers and grows late
    for begin in range(0, len(by_start), row_budget):
        rows = by_start[begin : begin + row_budget]
        who, what = pair[rows], patch[rows]
        logits = _patched_logits(traced, chunk[0], base, given, who, plan.take(what))
        _check_numbers(logits, [chunk[i] for i in who], "a patched run")
        for name, scores in _score(logits, chunk, who, clean_logits, metrics).items():
            values[name][who, what] = scores
    return values


def _patched_logits(
    traced: Traced, opening: PromptPair, base: _Run, given: _Run, who: np.ndarray, plan: Plan
) -> Tensor:
    """One trace of many patches: logits `(rows, vocabulary)`.

    Row i is the base run of pair `who[i]` with the i-th patch of `plan`; rows are sorted by the first layer they patch.
    The `opening` pair's prompt, one row, only brings the pass to the layer where the first rows take its place.
    """
    model = traced.model
    tokens, first = _tokens([opening], "clean", model), int(plan.start[0])
    with traced.network.trace(tokens, **forward_arguments(traced, opening.positions)):
        for layer in range(first, layer_count(model)):
            before, joined = (
                np.searchsorted(plan.start, layer, side="left"),
                np.searchsorted(plan.start, layer, side="right"),
            )
            if joined > before:
                live = base.sites["resid_pre", layer][torch.as_tensor(who[before:joined], device=model.device)]
                if layer > first:
                    live = torch.cat([read(traced, "resid_pre", layer), live])
                write(traced, "resid_pre", layer, live)
            for number, component in enumerate(COMPONENTS):
                rows = np.nonzero((plan.component == number) & (plan.start <= layer) & (layer <= plan.stop))[0]
                if len(rows):
                    live = read(traced, component, layer)
                    heads = head_count(model) if component == "head_out" else 1
                    _copy_patches(live, given.sites[component, layer], rows, who[rows], plan.take(rows), heads)
                    write(traced, component, layer, live)
        logits = last_logits(traced).save()
    return logits


def _copy_patches(live: Tensor, given: Tensor, rows: np.ndarray, who: np.ndarray, plan: Plan, heads: int) -> None:
    """Write in place `live[row, position, head] = given[who, position, head]` for every patch of `plan`.

    Both are `(rows or pairs, positions, width)`; the width is split evenly among `heads`, 1 for whole sites.
    """
    position, head, rows, who = (
        torch.as_tensor(index, device=live.device) for index in (plan.position, plan.head, rows, who)
    )
    where = (slice(None) if plan.position[0] == ALL else position, torch.zeros_like(head) if heads == 1 else head)
    live.unflatten(-1, (heads, -1))[(rows, *where)] = given.unflatten(-1, (heads, -1))[(who, *where)]


def _patched_sites(plan: Plan) -> set[tuple[str, int]]:
    """Every (component, layer) that some patch writes."""
    windows = set(zip(plan.component.tolist(), plan.start.tolist(), plan.stop.tolist(), strict=True))
    return {(COMPONENTS[number], layer) for number, start, stop in windows for layer in range(start, stop + 1)}


def _record(traced: Traced, chunk: Sequence[PromptPair], prompt: str, sites: Iterable[tuple[str, int]] = ()) -> _Run:
    """Run the clean or corrupted prompts, keeping the asked (site, layer) tensors and the last logits."""
    recorded: dict[tuple[str, int], Tensor] = {}
    # Forward order: a trace cannot go back to a site that the pass has left.
    ordered = sorted(sites, key=lambda site: (site[1], COMPONENTS.index(site[0])))
    tokens = _tokens(chunk, prompt, traced.model)
    with traced.network.trace(tokens, **forward_arguments(traced, tokens.shape[1])):
        for site, layer in ordered:
            recorded[site, layer] = read(traced, site, layer).clone()
        logits = last_logits(traced).save()
    _check_numbers(logits, chunk, f"the {prompt} run")
    return _Run(recorded, logits)


def _score(logits: Tensor, chunk, who: np.ndarray, clean_logits: Tensor, metrics) -> dict[str, np.ndarray]:
    """Metrics of rows that belong to the pairs `chunk[who]`, `(rows,)` each."""
    who = torch.as_tensor(who, device=logits.device)
    answer, foil = (
        torch.tensor([getattr(pair, name)[0] for pair in chunk], device=logits.device)[who]
        for name in ("answer", "foil")
    )
    clean = clean_logits[who] if "kl_divergence" in metrics else None
    scores = measures.score(logits, answer=answer, foil=foil, clean_logits=clean, metrics=metrics)
    return {name: values.cpu().numpy() for name, values in scores.items()}


def _chunks(pairs: Sequence[PromptPair], size: int) -> list[list[PromptPair]]:
    """Pairs of one length each, at most `size` together."""
    buckets = bucket_by_length(pairs).values()
    return [bucket[i : i + size] for bucket in buckets for i in range(0, len(bucket), size)]


def _tokens(chunk: Sequence[PromptPair], prompt: str, model) -> Tensor:
    """The clean or the corrupted prompts, `(pairs, positions)`."""
    return torch.tensor([getattr(pair, prompt) for pair in chunk], device=model.device)


def _in_order(table: pd.DataFrame, pairs: Sequence[PromptPair]) -> pd.DataFrame:
    """Rows by the order in which the pairs were given; within a pair as they are."""
    order = {pair.pair_id: rank for rank, pair in enumerate(pairs)}
    return table.sort_values("pair", key=lambda column: column.map(order), kind="stable", ignore_index=True)


def _track(chunks: list, description: str, progress: bool) -> Iterable:
    return track(chunks, description) if progress else chunks


def _check_numbers(logits: Tensor, rows: Sequence[PromptPair], run: str) -> None:
    broken = logits.isnan().any(-1).nonzero()[:, 0]
    if len(broken):
        raise PatchingError(
            f"The logits of {run} of the pair {rows[int(broken[0])].pair_id} are NaN: the model's weights "
            "or its precision are damaged; try it on that prompt alone."
        )
