"""Larger models: the paired facts of Zhang & Nanda, on models that not every machine holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pandas as pd

from helpers.comparison import published_name
from helpers.config import Model, Paths, Tasks
from helpers.measured import compared_numbers
from helpers.models import accelerator, load_base, memory_holds
from helpers.practices import FACT_ROLES, fact_task, mlp_effects
from helpers.progress import step
from helpers.tasks import baseline
from helpers.windows import peak_ratio, peaks, position_ratios

BY = ("task", "tokens", "direction", "component", "corruption", "metric")


def larger_models(settings: Tasks, model: Model) -> Iterator[Model]:
    """The models NAME@REVISION that the profile names, one after another, but for those that memory does not hold."""
    for pinned in settings.larger_models:
        name, _, revision = pinned.partition("@")
        larger = replace(model, name_or_path=name, revision=revision)
        if memory_holds(larger):
            yield larger
        else:
            step(f"{name} is left out: there is not enough free memory for its weights")


def fact_numbers(
    settings: Tasks, model: Model, paths: Paths, *, resamples: int, confidence: float, seed: int,
    row_budget: int | None = None,
) -> list[pd.DataFrame]:  # fmt: skip
    """measured.compared_numbers of the facts, a table for every larger model that memory holds."""
    statistics = {"resamples": resamples, "confidence": confidence, "seed": seed}

    def numbers_of(larger: Model) -> pd.DataFrame:
        """Of one model, whose weights are given back before the next one is asked for."""
        step(f"facts: {larger.name_or_path}")
        network, tokenizer = load_base(larger, paths)
        network.to(accelerator())
        task = fact_task(settings, tokenizer, paths.embedded)
        effects = mlp_effects(network, task, FACT_ROLES, settings=settings, row_budget=row_budget)
        published = {task.name: task.corruptions[0].tokens}
        return compared_numbers(
            model=published_name(larger),
            published=published,
            baselines=baseline(network, task, **statistics, row_budget=row_budget),
            **window_numbers(published_effects(effects, published), **statistics),
            **statistics,
        )

    return [numbers_of(larger) for larger in larger_models(settings, model)]


def published_effects(effects: pd.DataFrame, published: Mapping[str, str]) -> pd.DataFrame:
    """Of the effects of practices.mlp_effects what the paper has: MLPs denoised, by each task's published tokens."""
    kept = (effects["component"] == "mlp_out") & (effects["direction"] == "denoising")
    return effects[kept & (effects["tokens"] == effects["task"].map(published))]


def window_numbers(effects: pd.DataFrame, **statistics: float) -> dict[str, pd.DataFrame]:
    """positions, tops and over_noise of measured.compared_numbers; no positions where subjects have two tokens."""
    at_last = effects[effects["role"] == "subject_last"]
    without = [name for name in BY if name != "corruption"]
    found = {"tops": peaks(at_last, by=BY, **statistics)}
    found["over_noise"] = peak_ratio(effects, by=without, role="subject_last", **statistics)
    if (effects["role"] == "subject_middle").any():
        found["positions"] = position_ratios(effects, by=BY, **statistics)
    return found
