"""Practices: the sweeps of notebook 05, in which one task is patched in every way that is to be compared.

Every prompt is corrupted by symmetric replacement (STR, a draw is a donor) and by Gaussian noise on the same tokens
(GN, a draw is one of noise), for every choice of tokens. All draws of one choice are patched in one sweep: a pair
stands in it once per draw, under its name and the draw's number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import pandas as pd

from helpers.attribution import attribute
from helpers.config import Model, Paths
from helpers.config import Tasks as Settings
from helpers.drafts import (
    OPERATIONS,
    Words,
    arithmetic_drafts,
    docstring_drafts,
    greater_than_drafts,
    ioi_drafts,
    made_up_people,
)
from helpers.metrics import with_effects
from helpers.models import accelerator, load_base, load_model
from helpers.noise import GaussianNoise, embedding_deviation
from helpers.paired_facts import load_facts_table, paired_facts
from helpers.pairs import PromptPair
from helpers.patching import measure_runs, sweep
from helpers.tasks import Corruption, Task, make_task
from helpers.values import OTHER_RUN, Value, Zero
from helpers.windows import measure_windows

METRICS = ("logit_difference", "probability", "kl_divergence", "log_probability")
EFFECTS = ["task", "tokens", "corruption", "draw", "direction", "pair", "component", "layer", "head", "role", "window"]
EFFECTS += ["metric", "numerator", "denominator"]
FACT_ROLES = ("subject_middle", "subject_last", "last")
DRAW = "#"


def task_model(settings: Settings, model: Model, paths: Paths):
    """The model that does the tasks, where models run, and its tokenizer: the embedded one, or the base model."""
    embedded = settings.model == "task"
    network, tokenizer = load_model(paths.embedded / "models" / "task") if embedded else load_base(model, paths)
    return network.to(accelerator()), tokenizer


def task_list(settings: Settings, words: Words, tokenizer, embedded: Path) -> list[Task]:
    """IOI, greater-than, docstring, and arithmetic by each operation, for one tokenizer; then the paired facts."""
    drafts = {
        "IOI": ioi_drafts(words, seed=settings.seed),
        "greater-than": greater_than_drafts(words, seed=settings.seed),
    }
    drafts["docstring"] = docstring_drafts(words, seed=settings.seed)
    for sign in settings.operations:
        drafts[OPERATIONS[sign]] = arithmetic_drafts(words, operation=sign, seed=settings.seed)
    tasks = [make_task(name, draft, tokenizer, count=settings.prompts) for name, draft in drafts.items()]
    return [*tasks, fact_task(settings, tokenizer, embedded)]


def fact_task(settings: Settings, tokenizer, embedded: Path) -> Task:
    """The paired facts of a profile: "made-up facts" of people, or "facts" of a table read through `datasets`.

    Only the latter are of the kind that was published, and are compared with it.
    """
    made_up = settings.facts == "embedded"
    source, revision = settings.facts, settings.facts_revision
    rows = made_up_people(embedded) if made_up else load_facts_table(source, revision=revision)
    task = paired_facts(rows, tokenizer, count=settings.prompts // 2, seed=settings.seed)
    return replace(task, name="made-up facts") if made_up else task


def noises(model, settings: Settings, roles: Sequence[str], *, draws: int) -> list[GaussianNoise]:
    """Gaussian noise on the tokens with these roles, one for each draw."""
    deviation = settings.noise * embedding_deviation(model)
    return [GaussianNoise(deviation, settings.seed + draw, tuple(roles)) for draw in range(draws)]


def head_effects(
    model, task: Task, *, settings: Settings, row_budget: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every head's output at all positions, under both corruptions of every choice of tokens, by every one of METRICS.

    Denoising throughout, as published, and noising for the published choice. Returns the effects, EFFECTS; and the
    un-patched runs: task, tokens, corruption, draw, pair, run and the metrics.
    """
    effects, runs = [], []
    for corruption in task.corruptions:
        directions = ("denoising", "noising") if corruption is task.corruptions[0] else ("denoising",)
        for name, pairs, noise in corrupted_pairs(model, corruption, settings):
            where = {"task": task.name, "tokens": corruption.tokens, "corruption": name}
            options = {"corruption": noise, "metrics": METRICS, "row_budget": row_budget}
            measured = measure_runs(model, pairs, **options)
            runs.append(_drawn(measured).assign(**where))
            for direction in directions:
                swept = sweep(model, pairs, components=["head_out"], positions="all", direction=direction, **options)
                effects += [
                    _drawn(with_effects(swept, measured, metric=metric)).assign(metric=metric, **where)
                    for metric in METRICS
                ]
    return pd.concat(effects, ignore_index=True)[EFFECTS], pd.concat(runs, ignore_index=True)


def mlp_effects(
    model, task: Task, roles: Sequence[str], *, settings: Settings, row_budget: int | None = None
) -> pd.DataFrame:
    """MLP outputs in sliding windows, and the residual stream, at the tokens of each role: EFFECTS, by two METRICS.

    As in `head_effects`; windows wider than one layer are denoised, for the published choice of tokens. Two prompts
    that are each other's corrupted one have one name: their results mirror one another, and count once.
    """
    tables = []
    for corruption in task.corruptions:
        first = corruption is task.corruptions[0]
        both, (mlp, stream) = ("mlp_out", "resid_pre"), (("mlp_out",), ("resid_pre",))
        sweeps = [(mlp, settings.windows, "denoising"), (stream, (1,), "denoising"), (both, (1,), "noising")]
        for name, pairs, noise in corrupted_pairs(model, corruption, settings):
            for components, windows, direction in sweeps if first else [(both, (1,), "denoising")]:
                measured = measure_windows(
                    model, pairs, components=components, roles=roles, windows=windows, corruptions=[noise],
                    directions=[direction], metrics=METRICS[:2], row_budget=row_budget,
                )  # fmt: skip
                tables.append(_drawn(measured).assign(task=task.name, tokens=corruption.tokens, corruption=name))
    table = pd.concat(tables, ignore_index=True)[EFFECTS]
    return table.assign(pair=table["pair"].map(_units(task.pairs)))


def corrupted_pairs(
    model, corruption: Corruption, settings: Settings
) -> list[tuple[str, list[PromptPair], GaussianNoise | None]]:
    """The pairs of every draw of STR, and of GN with its noise; a pair is named by itself and the draw.

    Noise keeps the foil of a donor, and takes the donors in turn: else its draws would share what those of STR do not.
    """
    (noise,) = noises(model, settings, corruption.roles, draws=1)
    noised = tuple(islice(cycle(corruption.draws), settings.draws))
    ways = (("STR", corruption.draws, None), ("GN", noised, noise))
    return [
        (name, [_named(pair, draw) for draw, own in enumerate(draws) for pair in own], added)
        for name, draws, added in ways
    ]


def stand_ins(model, task: Task, *, row_budget: int | None = None) -> pd.DataFrame:
    """What else ranks heads, beside patching: zero ablation and attribution, by the published choice of tokens.

    EFFECTS with a column method (patching, zero ablation, attribution), by noising and the logit difference.
    """
    pairs, tokens = task.pairs, task.corruptions[0].tokens
    options = {"components": ["head_out"], "positions": "all", "direction": "noising", "row_budget": row_budget}
    runs = measure_runs(model, pairs, metrics=METRICS[:1], row_budget=row_budget)
    values: dict[str, Value] = {"patching": OTHER_RUN, "zero ablation": Zero()}
    swept = {method: sweep(model, pairs, value=value, **options) for method, value in values.items()}
    swept["attribution"] = attribute(model, pairs, **options).assign(window=1)
    tables = [
        with_effects(table, runs).assign(method=method, metric=METRICS[0], task=task.name, tokens=tokens)
        for method, table in swept.items()
    ]
    table = pd.concat(tables, ignore_index=True).assign(corruption="STR", draw=0)
    return table[["method", *EFFECTS]]


def _units(pairs: Sequence[PromptPair]) -> dict[str, str]:
    """The name under which a pair counts: its own, or that of the couple that it makes with its donor."""
    donor = {pair.pair_id: pair.donor_id for pair in pairs}
    return {name: min(name, other) if other and donor.get(other) == name else name for name, other in donor.items()}


def _named(pair: PromptPair, draw: int) -> PromptPair:
    return replace(pair, pair_id=f"{pair.pair_id}{DRAW}{draw}")


def _drawn(table: pd.DataFrame) -> pd.DataFrame:
    """The pair's own name and the draw, of a table whose pairs are named by `_named`."""
    parts = table["pair"].str.rpartition(DRAW)
    return table.assign(pair=parts[0], draw=parts[2].astype(int))
