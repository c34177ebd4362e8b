"""Whole answers: every line against plain hooks and teacher forcing in one pass, and where the answer is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from oracle import answer_log_probability, oracle_answers
from tiny import FAMILIES, LAYERS, random_pair, shared_model

from helpers.answers import ANSWER_LOG_PROBABILITY, continued, measure_answers, sweep_answers
from helpers.noise import GaussianNoise
from helpers.pairs import ANSWER, PairError
from helpers.patching import measure_runs, sweep
from helpers.plans import COMPONENTS, DIRECTIONS, POSITIONS

LINE = ["pair", "component", "layer", "position", "role", "head"]


@pytest.fixture(scope="module")
def pairs():
    """Answers of three tokens, one, and two of which the second begins the foil; lengths that no sorting keeps."""
    long = replace(random_pair("long", 4, seed=1, subject=(1, 2)), answer=(7, 3, 11), foil=(9,))
    short = replace(random_pair("short", 3, seed=2), answer=(5,), foil=(6, 2))
    foil = replace(random_pair("foil", 4, seed=3), answer=(8, 4), foil=(4, 8))
    return [long, short, foil]


def assert_same_lines(table, expected):
    found = [tuple(None if pd.isna(value) else value for value in line) for line in table[LINE].to_numpy()]
    assert found == [tuple(row[name] for name in LINE) for row in expected]
    values = [row[ANSWER_LOG_PROBABILITY] for row in expected]
    np.testing.assert_allclose(table[ANSWER_LOG_PROBABILITY], values, rtol=0, atol=2e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_line_is_the_teacher_forced_answer_behind_a_patched_prompt(pairs, positions, direction):
    model, sites = shared_model("gpt2", 0), {"components": COMPONENTS, "positions": positions, "direction": direction}
    assert_same_lines(sweep_answers(model, pairs, **sites), oracle_answers(model, pairs, **sites))


@pytest.mark.parametrize("number", range(1, len(FAMILIES)), ids=FAMILIES[1:])
def test_every_family_reads_answers_behind_a_patched_prompt(pairs, number):
    """Also with a window of attention that is shorter than the prompt."""
    model = shared_model(FAMILIES[number], 0)
    sites = {"components": COMPONENTS, "positions": POSITIONS[number % 3], "direction": DIRECTIONS[number % 2]}
    assert_same_lines(sweep_answers(model, pairs[:1], **sites), oracle_answers(model, pairs[:1], **sites))


def test_columns_and_lines_are_those_of_a_sweep(pairs):
    model, sites = shared_model("gpt2", 0), {"components": ("mlp_out", "head_out"), "layers": [2, 0], "window": 2}
    answers, plain = (f(model, pairs, **sites) for f in (sweep_answers, sweep))
    keys = plain.columns.drop("logit_difference")
    assert answers.columns.tolist() == [*keys, ANSWER_LOG_PROBABILITY]
    pd.testing.assert_frame_equal(answers[keys], plain[keys])
    assert set(answers["role"]) == {role for pair in pairs for role in pair.roles}


def test_runs_are_the_teacher_forced_answer_behind_each_prompt(pairs):
    for family in ("gpt2", "mistral-sliding"):
        model = shared_model(family, 1)
        runs = measure_answers(model, pairs, row_budget=2)
        assert runs.columns.tolist() == ["pair", "run", ANSWER_LOG_PROBABILITY]
        assert runs[["pair", "run"]].to_numpy().tolist() == [
            [pair.pair_id, run] for pair in pairs for run in ("clean", "corrupted")
        ]
        expected = [
            answer_log_probability(model, p, pair.answer) for pair in pairs for p in (pair.clean, pair.corrupted)
        ]
        np.testing.assert_allclose(runs[ANSWER_LOG_PROBABILITY], expected, rtol=0, atol=2e-5)


def test_an_answer_of_one_token_is_the_log_probability(pairs):
    model, single = shared_model("gpt2", 0), [replace(pair, answer=pair.answer[:1]) for pair in pairs]
    plain = sweep(model, single, components=COMPONENTS, metrics=("log_probability",))
    whole = sweep_answers(model, single, components=COMPONENTS)
    np.testing.assert_allclose(whole[ANSWER_LOG_PROBABILITY], plain["log_probability"], rtol=0, atol=1e-6)
    runs = measure_runs(model, single, metrics=("log_probability",))
    np.testing.assert_allclose(
        measure_answers(model, single)[ANSWER_LOG_PROBABILITY], runs["log_probability"], atol=1e-6
    )


def test_the_first_term_is_the_log_probability_and_the_others_only_take_away(pairs):
    model = shared_model("qwen2", 0)
    first = sweep(model, [continued(pair)[0] for pair in pairs], metrics=("log_probability",))
    plain = sweep(model, pairs, metrics=("log_probability",))
    np.testing.assert_array_equal(first["log_probability"], plain["log_probability"])
    whole = sweep_answers(model, pairs)[ANSWER_LOG_PROBABILITY]
    longer = plain["pair"] != "short"
    assert (whole[longer] < plain["log_probability"][longer]).all()
    np.testing.assert_allclose(whole[~longer], plain["log_probability"][~longer], atol=1e-6)


def test_the_clean_prompt_restored_is_the_clean_answer(pairs):
    """What enters the first block fixes the rest; what enters a later one does not: the answer has read below it."""
    model = shared_model("llama-grouped", 0)
    ends = measure_answers(model, pairs).pivot(index="pair", columns="run", values=ANSWER_LOG_PROBABILITY)
    for direction, other in (("denoising", "clean"), ("noising", "corrupted")):
        table = sweep_answers(model, pairs, components=("resid_pre",), positions="all", direction=direction)
        gap = (table[ANSWER_LOG_PROBABILITY] - table["pair"].map(ends[other])).abs()
        assert gap[(table["layer"] == 0) | (table["pair"] == "short")].max() < 1e-5
        assert gap[(table["layer"] == LAYERS - 1) & (table["pair"] != "short")].min() > 1e-3


def test_a_continued_pair_says_the_clean_answer_in_both_prompts(pairs):
    first, second, third = continued(pairs[0])
    assert [part.pair_id for part in (first, second, third)] == ["long+0", "long+1", "long+2"]
    assert first == replace(pairs[0], pair_id="long+0", answer=(7,))
    assert (third.clean, third.corrupted) == (pairs[0].clean + (7, 3), pairs[0].corrupted + (7, 3))
    assert (second.answer, third.answer) == ((3,), (11,))
    assert third.roles == pairs[0].roles + (ANSWER, ANSWER) and third.first_difference == pairs[0].first_difference
    # A foil must begin with another token than the one that is asked for; the answer's first one always does.
    assert [part.foil for part in continued(pairs[2])] == [(4, 8), (8, 4)]


def test_order_budget_and_company_change_nothing(pairs):
    model, sites = shared_model("gpt2", 1), {"components": ("mlp_out", "resid_post"), "positions": "all"}
    reference = sweep_answers(model, pairs, **sites)
    assert reference["pair"].drop_duplicates().tolist() == ["long", "short", "foil"]
    pd.testing.assert_frame_equal(sweep_answers(model, pairs, row_budget=3, **sites), reference, atol=1e-5, rtol=0)
    back = sweep_answers(model, pairs[::-1], **sites)
    assert back["pair"].drop_duplicates().tolist() == ["foil", "short", "long"]
    for pair in pairs:
        one, other = (table[table["pair"] == pair.pair_id].reset_index(drop=True) for table in (reference, back))
        pd.testing.assert_frame_equal(one, other, atol=1e-5, rtol=0)
    alone = sweep_answers(model, pairs[1:2], **sites)
    pd.testing.assert_frame_equal(alone, reference[reference["pair"] == "short"].reset_index(drop=True), atol=1e-5)


def test_a_name_with_a_plus_stays_whole(pairs):
    named = [replace(pairs[0], pair_id="a"), replace(pairs[2], pair_id="a+0")]
    runs = measure_answers(shared_model("gpt2", 0), named)
    assert runs["pair"].tolist() == ["a", "a", "a+0", "a+0"]


def test_a_noised_prompt_is_refused(pairs):
    with pytest.raises(ValueError, match="not a noised one: leave corruption out"):
        sweep_answers(shared_model("gpt2", 0), pairs, corruption=GaussianNoise(0.5, seed=0))
    sweep_answers(shared_model("gpt2", 0), pairs[1:2], corruption=None)


def test_a_pair_with_several_right_answers_is_refused(pairs):
    with pytest.raises(PairError, match="has 2 right and 1 wrong ones; score it by log_probability"):
        continued(replace(pairs[1], answer_set=(5, 8)))
