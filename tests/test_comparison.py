"""The published cells, entered twice, and their comparison with measurements made up by hand."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from helpers import comparison as module
from helpers.comparison import COLUMNS, HEADS, KEYS, NUMBERS, ComparisonError, agreement, comparison, published_name
from helpers.config import Model
from helpers.zhang_nanda import (
    CELLS,
    CLASSES,
    DOCSTRING_MODEL,
    JOINT,
    KL,
    LD,
    PEAKS,
    POSITIONS,
    PROBABILITY,
    RUN,
    TO_IO,
    TO_S1,
    VALUES,
    Found,
    Heads,
    Number,
)

NOTHING, NO_HEADS = pd.DataFrame(columns=NUMBERS), pd.DataFrame(columns=HEADS)
METRICS = {"prob": PROBABILITY, "LD": LD, "KL": KL}
TABLES_1_AND_5 = """
| STR | prob | 1/3 | 0/2 | 3/4 | 1/2 | 1/2 | 5.5 7.9 8.6 8.10 9.9 | 10.7 |
| GN | prob | 0/3 | 1/2 | 2/4 | 2/2 | 1/2 | 3.0 5.5 7.9 8.6 | 0.10 10.7 11.10 |
| STR | LD | 1/3 | 0/2 | 3/4 | 2/2 | 1/2 | 5.5 7.9 8.6 8.10 9.9 | 10.7 11.10 |
| GN | LD | 1/3 | 1/2 | 3/4 | 2/2 | 1/2 | 3.0 5.5 7.9 8.6 8.10 9.9 | 10.7 11.10 |
| STR | KL | 1/3 | 0/2 | 3/4 | 2/2 | 1/2 | 5.5 7.9 8.6 8.10 9.9 | 10.7 11.10 |
| GN | KL | 0/3 | 0/2 | 2/4 | 2/2 | 1/2 | 5.5 7.9 8.6 | 0.10 10.7 11.10 |
"""
TABLE_3 = """
STR LD + 6.9 7.10 8.11 9.1 10.4 - ; STR prob + 7.10 8.11 9.1 - ; STR KL + 6.9 7.10 8.11 9.1 - 10.7;
GN LD + 0.9 7.10 8.10 9.1 10.4 - 6.1 8.6 9.5; GN prob + 5.5 6.1 6.9 7.10 7.11 8.8 9.1 - ;
GN KL + 5.5 6.1 6.9 7.10 7.11 8.8 9.1 - 5.9 7.6
"""
TABLE_4 = "; ".join(
    [f"{how} + 9.6 9.9 10.0 - 10.7 11.10" for how in ("STR LD", "STR KL", "GN LD", "GN KL")]
    + ["STR prob + 9.9 -", "GN prob + 9.6 9.9 10.0 -"]
)
TABLE_2 = """
STR LD + 0.0 0.1 0.5 - 2.3 3.0 3.5 3.6; STR prob + - 3.0 3.6; STR KL + 0.0 0.1 0.5 2.2 - 2.3 3.0 3.6;
GN LD + 0.5 - 1.4 1.5 2.2 2.3 3.0 3.6 3.7; GN prob + - 3.0 3.6; GN KL + - 2.2 2.3 3.0 3.5 3.6
"""


def listed(table: str) -> set[tuple]:
    """(corruption, metric, which of the two lists, heads) of a table in the form `STR LD + heads - heads; …`."""
    found = set()
    for part in table.replace("\n", " ").split(";"):
        corruption, metric, *rest = part.split()
        first, second = " ".join(rest).removeprefix("+").split("-")
        found |= {(corruption, METRICS[metric], 0, first.strip()), (corruption, METRICS[metric], 1, second.strip())}
    return found


def cells(source: str) -> list:
    return [cell for cell in CELLS if cell.source.startswith(source)]


@pytest.mark.parametrize(
    "source, text, second",
    [("Table 2", TABLE_2, "last"), ("Table 3", TABLE_3, "negative"), ("Table 4", TABLE_4, "negative")],
)
def test_tables_of_heads_are_the_published_ones(source, text, second):
    ours = {
        (c.corruption, c.metric, int(second in (c.published.sign, c.published.role)), " ".join(c.published.names))
        for c in cells(source)
    }
    assert ours == listed(text) and len(cells(source)) == 12


def test_tables_1_and_5_are_the_published_ones_and_each_follows_from_the_other():
    heads = {(c.corruption, c.metric, c.published.sign): str(c.published) for c in cells("Table 5")}
    found = {(c.corruption, c.metric, c.published.group): c.published for c in cells("Table 1")}
    for line in TABLES_1_AND_5.strip().splitlines():
        corruption, metric, *counts, positive, negative = (part.strip() for part in line.strip("| ").split("|"))
        how = corruption, METRICS[metric]
        assert heads.pop((*how, "positive")) == positive and heads.pop((*how, "negative")) == negative
        names = {"positive": positive.split(), "negative": negative.split()}
        for (group, known), printed in zip(CLASSES.items(), counts, strict=True):
            cell = found.pop((*how, group))
            assert str(cell) == printed
            assert cell.count == len(set(known.names) & set(names[known.sign]))
    assert not heads and not found


def test_every_number_of_the_paper_is_there_once():
    numbers = {
        (c.model, c.corruption, c.tokens, c.metric, c.quantity): str(c.published)
        for c in CELLS
        if not isinstance(c.published, Heads | Found)
    }
    facts = {model: ("facts", "none", "none") for model in ("gpt2-xl", "gpt2-large", "gptj")}
    assert numbers == {
        ("gpt2", "none", "none", PROBABILITY, RUN): "0.481",
        ("gpt2", "GN", "S2", PROBABILITY, RUN): "0.129",
        ("gpt2", "STR", "S2", PROBABILITY, RUN): "0.03",
        ("gpt2", "STR", "all names", PROBABILITY, RUN): "0.0005",
        ("gpt2", "none", "none", "attention", TO_IO): "0.58",
        ("gpt2", "GN", "S2", "attention", TO_IO): "0.26",
        ("gpt2", "GN", "S2", "attention", TO_S1): "0.21",
        ("gpt2", "STR", "S2", LD, VALUES): "1.04",
        ("gpt2", "GN", "S2", LD, VALUES): "0.49",
        **{
            (model, "none", "none", metric, RUN): printed
            for model, both in zip(facts, (("0.490", "6.85"), ("0.411", "5.88"), ("0.501", "7.36")), strict=True)
            for metric, printed in zip((PROBABILITY, LD), both, strict=True)
        },
        ("gpt2-xl", "GN over STR", "subject", PROBABILITY, PEAKS): "2 to 5",
        ("gpt2-xl", "GN over STR", "subject", LD, PEAKS): "2 to 5",
        ("gpt2-xl", "STR", "subject", PROBABILITY, POSITIONS): "4.33",
        ("gpt2-xl", "STR", "subject", LD, POSITIONS): "1.22",
        ("gpt2-xl", "GN", "subject", PROBABILITY, POSITIONS): "1.74",
        ("gpt2-xl", "GN", "subject", LD, POSITIONS): "0.77",
        ("gpt2-xl", "GN", "subject", PROBABILITY, JOINT.format(3)): "1.40",
        ("gpt2-xl", "GN", "subject", PROBABILITY, JOINT.format(5)): "1.75",
        ("gpt2-xl", "GN", "subject", PROBABILITY, JOINT.format(10)): "1.59",
        (DOCSTRING_MODEL, "none", "none", "accuracy", RUN): "0.56",
        (DOCSTRING_MODEL, "none", "none", LD, RUN): "0.5",
    }
    where = [tuple(getattr(cell, name) for name in (*KEYS, "quantity")) for cell in CELLS]
    assert max(Counter(where).values()) == 1
    assert Counter(cell.source.split(" (")[0] for cell in CELLS if "Table" in cell.source) == {
        "Table 1": 30, "Table 2": 12, "Table 3": 12, "Table 4": 12, "Table 5": 12,
    }  # fmt: skip


def number(estimate, low, high, *, model="gpt2", task="IOI", what=("STR", "S2", PROBABILITY), quantity=RUN):
    return pd.DataFrame([[model, task, *what, quantity, estimate, low, high]], columns=NUMBERS)


def head_rows(stability, *, model="gpt2", task="IOI", what=("STR", "S2", LD), sign="positive", role="all"):
    """Twelve by twelve heads of which those of `stability` are detected in that share of resamples, if in half."""
    grid = [(layer, head, stability.get(f"{layer}.{head}", 0.0)) for layer in range(12) for head in range(12)]
    rows = [[model, task, *what, role, sign, layer, head, share >= 0.5, share] for layer, head, share in grid]
    return pd.DataFrame(rows, columns=HEADS)


def row(table, *, quantity, what=("STR", "S2", PROBABILITY), task="IOI", model="gpt2"):
    (found,) = table[
        (table[[*KEYS, "quantity"]] == pd.Series([model, task, *what, quantity], [*KEYS, "quantity"])).all(axis=1)
    ].to_dict("records")
    return found


@pytest.mark.parametrize(
    "measured, agrees, why",
    [  # P(IO) under STR is printed as 0.03
        ((0.04, 0.03, 0.05), "yes", "in our interval"),  # ends belong to it
        ((0.04, 0.0301, 0.05), "no", "our interval lies above it"),
        ((0.02, 0.015, 0.0299), "no", "our interval lies below it"),
        ((0.0349, 0.0348, 0.035), "yes", "our estimate rounds to it"),
        ((0.0351, 0.0349, 0.0352), "no", "our interval lies above it"),
        ((0.026, math.nan, math.nan), "yes", "our estimate rounds to it"),
        ((0.024, math.nan, math.nan), "no", "our estimate lies below it, no interval"),
        ((0.04, 0.0, 0.08), "yes", "in our interval, which is wider than the number itself: that says little"),
        ((math.nan, 0.0, 0.08), "undefined", "what was measured gives no number"),
    ],
)
def test_a_number_agrees_in_our_interval_or_to_its_digits(measured, agrees, why):
    found = row(comparison(number(*measured), NO_HEADS), quantity=RUN)
    assert (found["agrees"], found["why"], found["published"]) == (agrees, why, "0.03")
    assert found["ours"] == ("–" if math.isnan(measured[0]) else f"{measured[0]:.3f}")


@pytest.mark.parametrize(
    "measured, agrees",
    [((1.5, 1.0, 2.0), "yes"), ((1.5, 1.0, 1.99), "no"), ((6.0, 5.01, 7.0), "no"), ((3.0, 2.9, 3.1), "yes"),
     ((5.5, 5.0, 6.0), "yes"), ((4.0, math.nan, math.nan), "yes"), ((5.1, math.nan, math.nan), "no")],
)  # fmt: skip
def test_a_range_agrees_where_our_interval_meets_it(measured, agrees):
    what = "GN over STR", "subject", LD
    found = row(
        comparison(number(*measured, model="gpt2-xl", task="facts", what=what, quantity=PEAKS), NO_HEADS),
        quantity=PEAKS, what=what, task="facts", model="gpt2-xl",
    )  # fmt: skip
    assert found["agrees"] == agrees


PUBLISHED = {"5.5": 1.0, "7.9": 1.0, "8.6": 1.0, "8.10": 0.99, "9.9": 0.976}


@pytest.mark.parametrize(
    "change, agrees, why",
    [
        ({}, "yes", "the same heads"),
        ({"9.9": 0.4}, "no", "missing: 9.9 (borderline, in 40.0 % of resamples)"),
        ({"9.9": 0.025}, "no", "missing: 9.9 (borderline, in 2.5 % of resamples)"),
        ({"9.9": 0.024}, "no", "missing: 9.9 (not borderline, in 2.4 % of resamples)"),
        ({"10.0": 0.98}, "no", "extra: 10.0 (not borderline, in 98.0 % of resamples)"),
        (
            {"5.5": 0.0, "10.0": 0.6, "2.11": 0.975},
            "no",
            "missing: 5.5 (not borderline, in 0.0 % of resamples); extra: 2.11 (borderline, in 97.5 % of resamples), "
            "10.0 (borderline, in 60.0 % of resamples)",
        ),
    ],
)
def test_head_sets_agree_only_if_equal_and_name_what_differs(change, agrees, why):
    found = row(comparison(NOTHING, head_rows(PUBLISHED | change)), quantity="positive heads", what=("STR", "S2", LD))
    assert (found["agrees"], found["why"]) == (agrees, why)


def test_the_interval_of_a_head_set_is_from_the_sure_heads_to_the_possible_ones():
    table = comparison(NOTHING, head_rows({"9.9": 0.975, "8.6": 0.976, "0.1": 0.025, "0.2": 0.024}))
    found = row(table, quantity="positive heads", what=("STR", "S2", LD))
    assert (found["ours"], found["low"], found["high"]) == ("8.6 9.9", "8.6", "0.1 8.6 9.9")
    nothing = row(comparison(NOTHING, head_rows({})), quantity="positive heads", what=("STR", "S2", LD))
    assert (nothing["ours"], nothing["low"], nothing["high"], nothing["agrees"]) == ("none", "none", "none", "no")


def test_classes_are_counted_with_their_sign_and_borderline_heads_widen_the_count():
    positive = head_rows({"7.3": 1.0, "7.9": 0.6, "8.6": 0.1, "8.10": 0.0, "10.7": 1.0})
    table = comparison(NOTHING, pd.concat([positive, head_rows({"11.10": 1.0}, sign="negative")]))
    found = row(table, quantity="S-inhibition heads found", what=("STR", "S2", LD))
    assert [found[name] for name in ("published", "ours", "low", "high", "agrees")] == [
        "3/4",
        "2/4",
        "1/4",
        "3/4",
        "yes",
    ]
    assert found["why"] == "in our interval (ours: 7.3 7.9)"
    negative = row(table, quantity="negative name movers found", what=("STR", "S2", LD))  # 10.7 has the other sign
    assert [negative[name] for name in ("published", "ours", "high", "agrees")] == ["2/2", "1/2", "1/2", "no"]
    assert negative["why"] == "outside our interval (ours: 11.10)"


def test_heads_that_the_paper_leaves_out_of_print_are_no_disagreement_but_more_of_them_are():
    what = ("GN", "C_def", LD)
    given = {"model": DOCSTRING_MODEL, "task": "docstring", "what": what}
    said = []
    for extra in ({}, {"1.1": 1.0, "1.2": 1.0}, {"1.1": 1.0, "1.2": 1.0, "1.3": 1.0}):
        table = comparison(NOTHING, head_rows({"0.5": 1.0} | extra, role="C_def", **given))
        said.append(row(table, quantity="positive heads at the corrupted token", **given)["agrees"])
    assert said == ["yes", "yes", "no"]


def full_run() -> tuple[pd.DataFrame, pd.DataFrame]:
    """A measurement for every cell, of values that nobody publishes."""
    numbers, heads = [], []
    for place, cell in enumerate(CELLS):
        what, said = (cell.corruption, cell.tokens, cell.metric), cell.published
        given = {"model": cell.model, "task": cell.task, "what": what}
        if isinstance(said, Heads):
            heads.append(head_rows({"1.1": 1.0}, sign=said.sign, role=said.role, **given))
        elif not isinstance(said, Found):
            numbers.append(number(70.0 + place, 60.0 + place, 80.0 + place, quantity=cell.quantity, **given))
    return pd.concat(numbers, ignore_index=True), pd.concat(heads, ignore_index=True)


def test_nothing_published_is_ever_shown_as_ours(monkeypatch):
    numbers, heads = full_run()
    table = comparison(numbers, heads)
    assert list(table.columns) == COLUMNS and set(table["agrees"]) <= {"yes", "no"}

    def other(said):
        if isinstance(said, Heads):
            return dataclasses.replace(said, names=("2.2",))
        if isinstance(said, Number):
            return Number(f"{said.value + 1:.{said.decimals}f}")
        fields = {"count": said.count + 1} if isinstance(said, Found) else {"low": said.low + 1, "high": said.high + 1}
        return dataclasses.replace(said, **fields)

    changed = tuple(dataclasses.replace(cell, published=other(cell.published)) for cell in CELLS)
    monkeypatch.setattr(module, "CELLS", changed)
    again = comparison(numbers, heads)
    assert (again["published"] != table["published"]).all()
    own = ["ours", "low", "high"]
    pd.testing.assert_frame_equal(again[own], table[own])
    nothing = comparison(NOTHING, NO_HEADS)
    assert (nothing[["ours", "agrees"]] == "not run").all(axis=None) and (nothing[["low", "high"]] == "–").all(
        axis=None
    )


def test_the_order_of_what_was_measured_does_not_matter():
    numbers, heads = full_run()
    shuffled = comparison(numbers.sample(frac=1, random_state=1), heads.sample(frac=1, random_state=2))
    pd.testing.assert_frame_equal(shuffled, comparison(numbers, heads))


def test_what_was_measured_on_another_model_is_not_run_and_says_so():
    numbers, heads = full_run()
    table = comparison(numbers.assign(model="embedded").drop_duplicates([*KEYS, "quantity"]), NO_HEADS)
    measured = table[~table["quantity"].str.contains("heads|movers found|token heads")]
    assert (table["agrees"] == "not run").all() and (table["ours"] == "not run").all()
    reasons = set(measured["why"])
    assert {f"measured on embedded, published of {model}" for model in ("gpt2", "gpt2-xl", DOCSTRING_MODEL)} <= reasons
    ours = heads[heads["model"] == "gpt2"].assign(model="embedded")
    of_heads = comparison(NOTHING, ours)
    assert set(of_heads.loc[of_heads["source"] == "Table 5", "why"]) == {"measured on embedded, published of gpt2"}
    assert set(of_heads.loc[of_heads["source"] == "Table 2", "why"]) == {f"not measured on {DOCSTRING_MODEL}"}


def test_heads_that_were_not_patched_are_not_called_missing():
    some = head_rows(PUBLISHED)
    some = some[some["layer"] < 9]
    found = row(comparison(NOTHING, some), quantity="positive heads", what=("STR", "S2", LD))
    assert (found["agrees"], found["why"]) == ("not run", "not patched here: 9.9")


def test_the_summary_counts_what_the_table_says():
    assert agreement(comparison(NOTHING, NO_HEADS)).startswith(f"None of the {len(CELLS)} published cells was run: 14 ")
    numbers = pd.concat(
        [
            number(0.03, 0.02, 0.04),
            number(0.6, 0.5, 0.7, what=("none", "none", PROBABILITY)),
            number(np.nan, np.nan, np.nan, what=("GN", "S2", PROBABILITY)),
        ]
    )
    text = agreement(comparison(numbers, head_rows(PUBLISHED | {"9.9": 0.4})))
    # Yes: P(IO), and five classes of which four are of positive heads. No: P(IO) when clean, and the heads but for 9.9.
    assert text.startswith(
        f"Of {len(CELLS)} published cells 8 were run: 5 agree and 2 do not, and 1 are undefined here. Of those that "
        f"disagree, 1 do so by nothing but heads that are borderline here. {len(CELLS) - 8} were not run: "
    )
    sure = agreement(comparison(NOTHING, head_rows(PUBLISHED | {"9.9": 0.4, "1.1": 1.0})))
    assert "1 do not. Of those that disagree, 0 do so by nothing but" in sure


@pytest.mark.parametrize(
    "numbers, heads, message",
    [
        (number(1, 0, 2).drop(columns="low"), NO_HEADS, "lacks low"),
        (number(1, 0, 2, quantity="means over prompts"), NO_HEADS, "'means over prompts'"),
        (pd.concat([number(1, 0, 2), number(2, 0, 3)]), NO_HEADS, "more than once"),
        (NOTHING, head_rows({}, sign="plus"), "'plus'"),
        (NOTHING, head_rows({"1.1": 1.5}), "from 0 to 1"),
        (NOTHING, head_rows({"1.1": math.nan}), "from 0 to 1"),
        (NOTHING, pd.concat([head_rows({}), head_rows({"1.1": 1.0})]), "more than once"),
    ],
)
def test_measurements_that_cannot_be_compared_are_refused(numbers, heads, message):
    with pytest.raises(ComparisonError, match=message):
        comparison(numbers, heads)


def test_only_pretrained_weights_of_a_hub_name_are_a_published_model():
    def named(name, plumbing=False):
        return published_name(Model(name, None, 2, 32, 2, plumbing))

    assert named("gpt2") == named("openai-community/gpt2") == "gpt2"
    assert named("EleutherAI/gpt-j-6b") == "gptj"
    assert named("/models/gpt2") == "/models/gpt2" and named("embedded") == "embedded"
    assert named("gpt2", plumbing=True) == "random weights"
