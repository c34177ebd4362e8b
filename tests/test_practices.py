"""Practices: the sweeps of notebook 05 are those of helpers.patching, by task, tokens, corruption and draw."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from generated import tokenizer_of

from helpers.config import Paths, load_profile
from helpers.drafts import DONORS, load_words
from helpers.metrics import with_effects
from helpers.models import random_model
from helpers.noise import embedding_deviation
from helpers.patching import measure_runs, sweep
from helpers.practices import (
    EFFECTS,
    FACT_ROLES,
    METRICS,
    head_effects,
    mlp_effects,
    noises,
    stand_ins,
    task_list,
    task_model,
)
from helpers.tasks import baseline, does

EMBEDDED = Paths("mini").embedded
SETTINGS = replace(load_profile("mini").tasks, prompts=3, draws=2, windows=(1, 3))
TOKENIZER = tokenizer_of("task model")
MODEL = random_model(len(TOKENIZER), layers=2, width=16, heads=2, positions=96, seed=0)
IOI, GREATER, *_, FACTS = TASKS = task_list(SETTINGS, load_words(EMBEDDED, lists=("unseen",)), TOKENIZER, EMBEDDED)


def test_the_tasks_are_those_of_the_paper_with_the_asked_number_of_prompts():
    assert [task.name for task in TASKS] == ["IOI", "greater-than", "docstring", "addition", "made-up facts"]
    assert [len(task.pairs) for task in TASKS] == [3, 3, 3, 3, 2]  # an odd number of facts has no partner for the last
    assert {len(corruption.draws) for corruption in IOI.corruptions} == {1, DONORS}


@pytest.fixture(scope="module")
def measured():
    return head_effects(MODEL, IOI, settings=SETTINGS)


def test_heads_are_swept_for_every_choice_corruption_draw_direction_and_metric(measured):
    effects, runs = measured
    assert list(effects.columns) == EFFECTS
    draws = effects.groupby(["tokens", "corruption"])["draw"].nunique()
    assert draws["S2"].to_dict() == {"GN": 2, "STR": 1} and draws["S1+IO"].to_dict() == {"GN": 2, "STR": DONORS}
    each = effects.groupby(["tokens", "corruption", "draw", "direction", "metric"]).size()
    assert set(each) == {3 * 2 * 2}  # pairs, layers, heads
    directions = effects.groupby("tokens")["direction"].nunique().to_dict()
    assert directions == {"S2": 2, "S1+IO": 1, "all names": 1}
    assert set(effects["metric"]) == set(METRICS)
    assert len(runs) == 2 * 3 * (3 * 2 + 1 + DONORS + DONORS)


@pytest.mark.parametrize("corruption, draw", [("STR", 2), ("GN", 1)])
def test_one_draw_of_all_is_the_sweep_of_that_draw_alone(measured, corruption, draw):
    choice = IOI.corruption("S1+IO")
    pairs = choice.draws[draw % len(choice.draws)]  # noise keeps the foils of the donors, in turn
    (noise,) = noises(MODEL, SETTINGS, choice.roles, draws=1)
    renamed = [replace(pair, pair_id=f"{pair.pair_id}#{draw}") for pair in pairs]  # the name decides the noise
    added = noise if corruption == "GN" else None
    runs = measure_runs(MODEL, renamed, corruption=added)
    swept = sweep(MODEL, renamed, components=["head_out"], positions="all", corruption=added)
    expected = with_effects(swept, runs)
    own = measured[0].query(
        "tokens == 'S1+IO' and corruption == @corruption and draw == @draw and direction == 'denoising' "
        "and metric == 'logit_difference'"
    )
    np.testing.assert_allclose(own["numerator"], expected["numerator"], atol=1e-5)
    np.testing.assert_allclose(own["denominator"], expected["denominator"], atol=1e-5)


def test_draws_of_noise_differ_from_one_another_and_have_the_published_deviation(measured):
    own = measured[0].query("tokens == 'S2' and corruption == 'GN' and metric == 'logit_difference'")
    assert own.groupby(["pair", "direction", "layer", "head"])["numerator"].nunique().eq(2).all()
    assert noises(MODEL, SETTINGS, ("S2",), draws=2)[1].standard_deviation == 3 * embedding_deviation(MODEL)


def test_layers_are_swept_in_windows_for_the_published_tokens_and_alone_for_the_others():
    effects = mlp_effects(MODEL, FACTS, FACT_ROLES, settings=SETTINGS)
    windows = effects.groupby(["tokens", "component"])["window"].unique().map(sorted)
    assert windows["subject", "mlp_out"] == [1, 3] and windows["last subject token", "mlp_out"] == [1]
    assert set(windows.xs("resid_pre", level="component").map(tuple)) == {(1,)}
    assert set(effects["role"]) == set(FACT_ROLES)
    noised = effects[effects["direction"] == "noising"]
    assert set(noised["tokens"]) == {"subject"} and set(noised["window"]) == {1}
    assert effects[effects["corruption"] == "GN"].groupby("tokens")["draw"].nunique().eq(2).all()


def test_what_stands_in_for_patching_is_ranked_on_the_same_prompts():
    table = stand_ins(MODEL, IOI)
    assert table.groupby("method").size().to_dict() == dict.fromkeys(("patching", "zero ablation", "attribution"), 12)
    assert set(table["direction"]) == {"noising"}


def test_the_task_model_is_the_embedded_one_or_the_profile_s_own():
    if (EMBEDDED / "models" / "task").is_dir():
        assert task_model(SETTINGS, load_profile("mini").model, Paths("mini"))[0].config.n_positions == 96
    base, _ = task_model(replace(SETTINGS, model="base"), load_profile("smoke").model, Paths("smoke"))
    assert base.config.n_layer == load_profile("smoke").model.random_layers


def test_preference_compares_all_right_years_with_all_wrong_ones():
    table = baseline(MODEL, GREATER, resamples=50, confidence=0.95, seed=0).set_index(["run", "quantity"])
    wins = []
    for pair in GREATER.pairs:
        (clean,) = [MODEL(torch.tensor([pair.clean])).logits[0, -1].softmax(-1)]
        wins.append(float(clean[list(pair.right)].sum() > clean[list(pair.wrong)].sum()))
    assert table.loc[("clean", "preference"), "estimate"] == np.mean(wins)


@pytest.mark.parametrize(
    "task, quantity, bar", [("IOI", "preference", 0.9), ("greater-than", "probability", 0.8), ("sums", "accuracy", 0.5)]
)
def test_a_task_is_done_where_the_clean_run_reaches_its_bar(task, quantity, bar):
    rows = [(task, "clean", name, 0.1) for name in ("preference", "probability", "accuracy") if name != quantity]
    for estimate, done in ((bar, [task]), (bar - 0.01, [])):
        told = [*rows, (task, "clean", quantity, estimate), (task, "S2", quantity, 1.0)]
        assert does(pd.DataFrame(told, columns=["task", "run", "quantity", "estimate"])) == done
