"""One change at a time: what each protocol changes, how far numbers move, and where two prompts begin to differ."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from asked import EQUAL, TOKENIZERS, UNEQUAL, real_tokenizer
from conftest import tiny_gpt2
from words import word_tokenizer

from helpers.isolations import (
    ISOLATIONS,
    PROTOCOLS,
    contrast_by_position,
    isolation_profile,
    more_subjects,
    moves,
    moves_table,
    planned,
    protocol_ranges,
    single_moves,
    subject_moves,
)
from helpers.published import PUBLISHED, published_sweep

SITES = ("transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc")


def rows(values: dict[str, tuple[float, float]], *, item="associative", group="fine-tuned", network="a"):
    """Recoveries of both SITES under each protocol of `values`, as a sweep."""
    return [
        {"item": item, "group": group, "network": network, "protocol": protocol, "site": site, "recovery": recovery,
         "direction": "denoising", "by_construction": False}
        for protocol, pair in values.items()
        for site, recovery in zip(SITES, pair, strict=True)
    ]  # fmt: skip


def flat(value: float) -> dict[str, tuple[float, float]]:
    return {protocol.name: (value, value) for protocol in PROTOCOLS}


def changed(one, other) -> set[str]:
    settings = [
        {k: v for k, v in asdict(p).items() if k not in ("name", "differs_from", "change")} for p in (one, other)
    ]
    return {name for name in settings[0] if settings[0][name] != settings[1][name]}


def test_every_isolation_changes_one_thing_and_the_last_changes_all_of_them():
    by_name = {protocol.name: protocol for protocol in PROTOCOLS}
    assert len(by_name) == len(PROTOCOLS) and PROTOCOLS[0] == PUBLISHED
    single = {p.name: changed(p, by_name[p.differs_from]) for p in ISOLATIONS[:-1]}
    assert single == {
        "no full stop": {"read"}, "first token": {"first_only"}, "spaced": {"spaced"}, "own answers": {"own"},
        "other subject": {"corrupted"}, "no answer": {"read"},
    }  # fmt: skip
    assert changed(ISOLATIONS[-1], PUBLISHED) == {"corrupted", "read", "first_only", "spaced", "own"}


def test_moves_are_absolute_differences_from_the_protocol_compared_with():
    values = flat(0.5) | {"published": (0.5, -1.0), "first token": (0.2, 1.0), "spaced": (0.2, 1.5)}
    moved = moves(pd.DataFrame(rows(values))).set_index("protocol")
    assert moved.loc["first token", ["median", "largest", "opposed"]].tolist() == pytest.approx([1.15, 2.0, 0.5])
    assert moved.loc["spaced", ["median", "largest", "opposed"]].tolist() == pytest.approx([0.25, 0.5, 0.0])
    assert moved.loc["spaced", "compared_with"] == "first token"


def test_moves_leave_out_noising_sites_by_construction_and_what_has_no_number():
    table = pd.DataFrame(rows(flat(0.5) | {"first token": (np.nan, 0.7)}))
    other = table.assign(recovery=9.0, site="transformer.h.0")
    fixed, noised = other.assign(by_construction=True), other.assign(direction="noising")
    moved = moves(pd.concat([table, fixed, noised], ignore_index=True)).set_index("protocol")
    assert moved.loc["first token", ["median", "largest"]].tolist() == pytest.approx([0.2, 0.2])
    assert set(moved["largest"].round(9)) == {0.2, 0.0}


def test_the_table_of_moves_has_an_item_in_every_column_and_the_null_beside_it():
    table = rows(flat(0.0) | {"first token": (0.4, 0.2)}) + rows(flat(0.0) | {"first token": (3.0, 3.0)}, item="other")
    table += rows(flat(0.0) | {"first token": (7.0, 7.0)}, group="untrained")
    shown = moves_table(moves(pd.DataFrame(table))).set_index("change")
    assert shown.columns.tolist() == [
        "compared with", "associative, median", "other, median", "largest of all", "untrained, median"
    ]  # fmt: skip
    assert len(shown) == len(ISOLATIONS)
    assert shown.loc[ISOLATIONS[1].change].tolist() == ["published", pytest.approx(0.3), 3.0, 3.0, 7.0]


def test_the_profile_shows_the_modules_a_published_row_may_mean_in_the_order_of_the_protocols():
    table = pd.DataFrame(rows(flat(0.5))).sample(frac=1, random_state=0)
    shown = isolation_profile(table, layers=2, item="associative")
    assert shown["site"].tolist() == ["h.0.mlp.c_fc"] * len(PROTOCOLS) + ["h.1.mlp.c_fc"] * len(PROTOCOLS)
    assert shown["protocol"].tolist() == [protocol.name for protocol in PROTOCOLS] * 2
    assert isolation_profile(table, layers=3, item="associative")["site"].unique().tolist() == ["h.0.mlp.c_fc"]


def test_the_steadiest_module_comes_first():
    tuned = rows(flat(0.5) | {"spaced": (0.9, 0.6)}) + rows(flat(0.5) | {"spaced": (0.9, 0.8)}, network="b")
    base = rows(flat(0.1) | {"published": (0.0, 0.3)}, group="base")
    ranges = protocol_ranges(pd.DataFrame(tuned + base), layers=2, item="associative")
    assert ranges["site"].tolist() == ["h.1.mlp.c_fc", "h.0.mlp.c_fc"]
    assert ranges.iloc[0, 1:].tolist() == pytest.approx([0.5, 0.7, len(PROTOCOLS), 0.1, 0.3])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_definitional_item_or_its_twin_is_asked_under_every_protocol(name):
    asked = {item.name: len(protocols) for item, protocols in planned(real_tokenizer(name))}
    alone = {"embedded": "definitional twin", "gpt2": "definitional"}[name]
    assert asked == {"associative": 8, "associative twin": 1, "definitional": 8, "definitional twin": 8, alone: 1}


def test_the_two_runs_are_equal_to_the_bit_until_the_answer_begins():
    model, tokenizer = tiny_gpt2(3, layers=2, width=16, heads=2), word_tokenizer()
    for item in (EQUAL, UNEQUAL):
        contrast = contrast_by_position(model, tokenizer, item)
        assert contrast["in_question"].tolist() == [True] * 4 + [False] * (len(contrast) - 4)
        assert (contrast["difference"][:4] == 0).all() and (contrast["difference"][4:].abs() > 1e-3).all()
    last = contrast_by_position(model, tokenizer, EQUAL).iloc[-1]
    published = published_sweep(model, tokenizer, EQUAL).iloc[0]
    assert last["difference"] == pytest.approx(published["clean"] - published["corrupted"], abs=1e-5)
    assert (last["clean"], last["corrupted"]) == ("w23", "w33")


def test_the_move_by_another_subject_is_given_for_every_subject():
    more = more_subjects(EQUAL, word_tokenizer())
    assert [(p.name, p.other, p.corrupted, p.read) for p in more] == [("other subject 2", 1, "question", "full stop")]
    values = flat(0.5) | {"other subject": (0.6, 0.8), "other subject 2": (1.5, 0.1), "all of these": (9.0, 9.0)}
    table = pd.DataFrame(rows(values) + rows(flat(0.0) | {"other subject": (7.0, 7.0)}, group="untrained"))
    found = subject_moves(table)
    assert found.values.tolist() == [["associative", 2, pytest.approx(0.2), pytest.approx(0.7)]]
    assert "other subject 2" not in set(isolation_profile(table, layers=2, item="associative")["protocol"])


def test_one_module_of_every_causal_cut_is_drawn():
    table = pd.DataFrame(rows(flat(0.5)))
    both = pd.concat([table, table.assign(site=table["site"].str.replace("c_fc", "c_proj"))])
    assert isolation_profile(both, layers=2, item="associative")["site"].unique().tolist() == [
        "h.0.mlp.c_fc", "h.1.mlp.c_fc"
    ]  # fmt: skip


def test_single_moves_are_of_one_change_that_changes_something_in_one_group():
    values = flat(0.0) | {"first token": (0.4, 0.2), "all of these": (5.0, 5.0)}
    moved = moves(pd.DataFrame(rows(values) + rows(values, group="untrained")))
    assert single_moves(moved)["protocol"].tolist() == ["first token", "spaced"]  # and back to 0 by the next change
