"""Activation patching: an exact sweep over components, layers, positions and heads, many patches per forward pass.

Context
-------
A pair has a clean and a corrupted prompt, and the model answers them differently. Patching runs the model on one of
them (the *base*) while one activation is replaced by what the same site held in the run on the other (the *source*),
and asks how the answer moves. The direction is part of every result:

    denoising   clean activation into the corrupted run: is this site *sufficient* to bring the clean answer back?
    noising     corrupted activation into the clean run: is this site *necessary* to keep it?

The two are not mirror images: two redundant sites are each sufficient, and neither is necessary. A window of adjacent
layers is patched jointly, as ROME does; a set of sites is any collection of them, patched together. What is written
need not be the other run's activation: `helpers.values` has another model's, zeros, a mean, and a resampled prompt's.
The corrupted run need not be the corrupted prompt's: `helpers.noise` adds Gaussian noise to the clean one's embeddings.

A patch of resid_pre or resid_post at all positions determines everything after it: it reproduces the source run in any
network, trained or not. Such rows are a unit test of this module and never a finding.

The staircase
-------------
The tutorial form runs one forward pass per patch. Of the blocks it computes, those below the patch repeat the base
run, and so do, in every block, the tokens before the patched one; of the last block's outputs all but one are thrown
away. None of this needs computing. The base run is recorded once, with the keys and values of its tokens, and a patch
becomes a *row* that exists only where it differs:

          token 0    1    2    3    4
    block 3     .    .    #    #    #      #  what the row of a patch at block 1, token 2 computes
    block 2     .    .    #    #    #      .  what it takes from the base run
    block 1     .    .    P    .    .      P  where it is patched

All rows that start at one token share a forward pass, whatever their layer, component and pair: they are appended to
its batch at the block whose input they change, so that early blocks see few rows and late blocks see all of them:

    live rows = [rows that joined below l | the base run's stream at block l, once for each patch that arrives here]

The rows are written on the live tensors of nnsight's trace. Patches inside a block (heads, attention, MLP) join at the
next one, because at the patched token alone it is cheap to say what leaves their own. At the end only the last
position is read: the logit difference needs the answers' rows of the unembedding, and the other metrics see the
vocabulary in chunks. Two kinds of patch are not run at all, because they provably change nothing: see
`rows.effective_writes`. Pairs of one length form a bucket, so nothing is ever padded.

In a network of L blocks and T tokens S patches cost about S / 4 forward passes of arithmetic instead of S, in as many
calls as memory asks for rather than S. The slow oracle, one plain forward hook per patch, is in tests/oracle.py; the
two agree to rounding on every site of every family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from helpers import metrics as measures
from helpers import readout
from helpers.memory import in_chunks
from helpers.noise import GaussianNoise
from helpers.pairs import PromptPair
from helpers.plans import (
    PatchingError,
    Plan,
    Site,
    check_direction,
    check_pairs,
    check_same_shape,
    check_sets,
    check_sites,
    plan_sets,
    plan_sweep,
    tabulate,
)
from helpers.rows import base_sites, effective_writes, patched_sites, rows_to_run
from helpers.runs import Run, prompt_tokens, record
from helpers.staircase import run_rows
from helpers.tracing import Traced, module_of, traceable
from helpers.values import OTHER_RUN, OtherModel, OtherRun, Value, stand_in

OTHER_PROMPT = {"clean": "corrupted", "corrupted": "clean"}
ROWS_PER_PAIR = 8  # a chunk has so many times fewer pairs than a pass has rows: enough to fill it


@dataclass(frozen=True)
class _Settings:
    """What all kinds of sweep share."""

    direction: str
    value: Value
    corruption: GaussianNoise | None
    metrics: Sequence[str]
    row_budget: int | None
    remote: bool | str
    progress: bool


def sweep(
    model,
    pairs: Sequence[PromptPair],
    *,
    components: Sequence[str] = ("resid_pre", "attn_out", "mlp_out"),
    layers: Sequence[int] | None = None,
    positions: str = "each",
    direction: str = "denoising",
    window: int = 1,
    value: Value = OTHER_RUN,
    corruption: GaussianNoise | None = None,
    metrics: Sequence[str] = ("logit_difference",),
    row_budget: int | None = None,
    remote: bool | str = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Patch every asked site of every pair, exactly: clean into corrupted (denoising), or corrupted into clean.

    One line per patch of one pair, in the order of the pairs, then of `components`, layers, positions, heads. Columns:
    pair, component, layer, position (<NA> when several), role (of the token, or "all"), head (<NA> but for head_out),
    direction, window, value, then the metrics, un-normalised (metrics.recovery_table normalises).

    `components` are COMPONENTS of helpers.plans; embeddings have layer 0 only. `positions` is "each" (one line per
    position), "roles" (one line per token role, its tokens together) or "all" (all together). A `window` of w patches
    the layers max(0, l − w//2) to min(L, l − w//2 + w) − 1 together (Meng et al., arXiv 2202.05262), for head_out the
    same head number in each. `value` says what is written (helpers.values), `corruption` makes the corrupted run a
    noised clean one; kl_divergence is always from `model`'s own clean run.

    `row_budget`, the most rows in one forward pass, follows from the free memory when it is None, and is halved when
    that was too much; neither it nor the order of the pairs changes a result beyond rounding. `remote` runs nnsight's
    TransformersModel on NDIF. The model is left as it was found. Raises PatchingError for a setting that is not one of
    these, models or pairs that do not fit one another, and NaN, naming the pair.
    """
    module = module_of(model)
    layers = check_sites(module, components=components, layers=layers, positions=positions, window=window)
    sites = {"components": components, "layers": layers, "positions": positions, "window": window}
    settings = _Settings(direction, value, corruption, metrics, row_budget, remote, progress)
    constant = {"direction": direction, "window": window, "value": value.name}
    return _sweep(model, pairs, lambda chunk: plan_sweep(module, chunk, **sites), settings, constant)


def sweep_sets(
    model,
    pairs: Sequence[PromptPair],
    sets: Mapping[str, Sequence[Site]],
    *,
    direction: str = "denoising",
    value: Value = OTHER_RUN,
    corruption: GaussianNoise | None = None,
    metrics: Sequence[str] = ("logit_difference",),
    row_budget: int | None = None,
    remote: bool | str = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Patch arbitrary sets of sites, each set jointly: clean into corrupted (denoising), or corrupted into clean.

    One line per pair and named set, in the order given. Columns: pair, sites (the set's name), direction, value, then
    the metrics. A role adds every token that has it; of a pair that has none, it adds nothing. All else is as in
    `sweep`; a set with a site that does not exist raises PatchingError too.
    """
    module = module_of(model)
    check_pairs(module, pairs, row_budget)
    check_sets(module, pairs, sets)
    settings = _Settings(direction, value, corruption, metrics, row_budget, remote, progress)
    constant = {"direction": direction, "value": value.name}
    return _sweep(model, pairs, lambda chunk: plan_sets(module, chunk, sets), settings, constant)


def measure_runs(
    model,
    pairs: Sequence[PromptPair],
    *,
    corruption: GaussianNoise | None = None,
    metrics: Sequence[str] = measures.METRICS,
    row_budget: int | None = None,
    remote: bool | str = False,
) -> pd.DataFrame:
    """The un-patched runs of every pair, two lines each: columns pair, run ("clean" or "corrupted"), then the metrics.

    Right and wrong answers are the pair's in both runs, and kl_divergence is from the clean run, so 0 there.
    `row_budget` is the most prompts in one forward pass. Raises PatchingError as `sweep` does.
    """
    measures.check_metrics(metrics)
    check_pairs(module_of(model), pairs, row_budget)

    def measure(traced: Traced, chunk: list[PromptPair], budget: int) -> pd.DataFrame:
        runs = {name: _record(traced, chunk, name, corruption) for name in ("clean", "corrupted")}
        score = _scorer(traced, chunk, runs["clean"].final, metrics)
        name_of, own = [pair.pair_id for pair in chunk], np.arange(len(chunk))
        return pd.concat(
            pd.DataFrame({"pair": name_of, "run": name, **score(run.final, own)}) for name, run in runs.items()
        )

    with torch.no_grad(), traceable(model, remote=remote) as traced:
        tables = list(in_chunks(traced, pairs, measure, row_budget=row_budget, rows_per_pair=1))
    # Stable: within a pair the clean run was appended first.
    return _in_order(pd.concat(tables), pairs)


def _sweep(
    model,
    pairs: Sequence[PromptPair],
    plan_of: Callable[[list[PromptPair]], Plan],
    settings: _Settings,
    constant: Mapping[str, object],
) -> pd.DataFrame:
    measures.check_metrics(settings.metrics)
    check_direction(settings.direction)
    check_pairs(module_of(model), pairs, settings.row_budget)
    if isinstance(settings.value, OtherModel):
        check_same_shape(module_of(model), module_of(settings.value.model))

    def patch(traced: Traced, chunk: list[PromptPair], budget: int) -> pd.DataFrame:
        plan = plan_of(chunk)
        return tabulate(plan, chunk, constant=constant, scores=_patch_chunk(traced, chunk, plan, settings, budget))

    with torch.no_grad(), traceable(model, remote=settings.remote) as traced:
        size = {"row_budget": settings.row_budget, "rows_per_pair": ROWS_PER_PAIR}
        label = f"patching, {settings.direction}" if settings.progress else None
        tables = list(in_chunks(traced, pairs, patch, **size, label=label))
    return _in_order(pd.concat(tables), pairs)


def _patch_chunk(
    traced: Traced, chunk: list[PromptPair], plan: Plan, settings: _Settings, row_budget: int
) -> dict[str, np.ndarray]:
    """Every patch of a plan for pairs of one length: `(patches,)` by metric."""
    prompt = "corrupted" if settings.direction == "denoising" else "clean"
    corruption, value, sites = settings.corruption, settings.value, patched_sites(plan.writes)
    tokens, noise = _prompt(traced, chunk, prompt, corruption)
    base = record(traced, tokens, base_sites(traced, plan.writes), noise=noise)
    clean = base if prompt == "clean" else None
    if isinstance(value, OtherRun):
        other = _record(traced, chunk, OTHER_PROMPT[prompt], corruption, sites)
        given, clean = other.sites, clean or other
        differ = [corruption.first_position(pair) if corruption else pair.first_difference for pair in chunk]
        shared = np.array(differ)
    else:
        given = stand_in(value, traced, chunk, tokens, base, sites, noise=noise)
        shared = np.zeros(len(chunk), dtype=np.int64)
    if clean is None and "kl_divergence" in settings.metrics:
        clean = _record(traced, chunk, "clean", corruption)

    score = _scorer(traced, chunk, None if clean is None else clean.final, settings.metrics)
    scores = {name: of_pairs[plan.pair] for name, of_pairs in score(base.final, np.arange(len(chunk))).items()}
    writes = effective_writes(traced, plan, base.sites, given, shared=shared)
    rows = rows_to_run(traced, writes, plan.pair)
    for batch, final in run_rows(traced, tokens[:1], base, given, writes, rows, row_budget=row_budget):
        for name, of_rows in score(final, batch.pair).items():
            scores[name][batch.patch] = of_rows
    return scores


def _scorer(
    traced: Traced, chunk: Sequence[PromptPair], clean: Tensor | None, metrics: Sequence[str]
) -> Callable[[Tensor, np.ndarray], dict[str, np.ndarray]]:
    """A function of last residuals `(rows, width)` and the pair of each row: metrics, `(rows,)` each."""
    reference = traced.compute(readout.reference, *measures.right_and_wrong(chunk), clean, tuple(metrics))

    def score(final: Tensor, pair: np.ndarray) -> dict[str, np.ndarray]:
        scores = traced.compute(readout.score, final, torch.as_tensor(pair), reference, tuple(metrics))
        broken = np.isnan(np.stack(list(scores.values()))).any(0).nonzero()[0]
        if len(broken):
            raise PatchingError(
                f"The logits of a run of the pair {chunk[pair[broken[0]]].pair_id} are NaN: the model's weights or its "
                "precision are damaged; try it on that prompt alone."
            )
        return scores

    return score


def _record(
    traced: Traced,
    chunk: Sequence[PromptPair],
    prompt: str,
    corruption: GaussianNoise | None,
    sites: Iterable[tuple[str, int]] = (),
) -> Run:
    """Record the clean or the corrupted run of pairs of one length."""
    tokens, noise = _prompt(traced, chunk, prompt, corruption)
    return record(traced, tokens, sites, noise=noise)


def _prompt(
    traced: Traced, chunk: Sequence[PromptPair], prompt: str, corruption: GaussianNoise | None
) -> tuple[Tensor, Tensor | None]:
    """Tokens `(pairs, positions)` of a run, and the noise on their embeddings."""
    if prompt == "corrupted" and corruption is not None:
        noise = corruption.draw(chunk, width=traced.model.config.hidden_size)
        return prompt_tokens(chunk, "clean", traced.device), noise.to(traced.device, traced.model.dtype)
    return prompt_tokens(chunk, prompt, traced.device), None


def _in_order(table: pd.DataFrame, pairs: Sequence[PromptPair]) -> pd.DataFrame:
    """Lines by the order in which the pairs were given; within a pair as they are."""
    order = {pair.pair_id: rank for rank, pair in enumerate(pairs)}
    return table.sort_values("pair", key=lambda column: column.map(order), kind="stable", ignore_index=True)
