"""Plans: which vectors each patch overwrites, by hand and by the literal sums of the oracle."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import rome_window, tokens_of
from tiny import LAYERS, random_pair, shared_model

from helpers.pairs import ANSWER, ROLES
from helpers.plans import ALL, COMPONENTS, Site, plan_sets, plan_sweep, tabulate, window_layers

MODEL = shared_model("gpt2", 0)
PAIR = random_pair("p", 6, seed=0, subject=(1, 2, 3))  # prefix, first, middle, last of the subject, relation, last
SAME_ROLES = random_pair("q", 6, seed=1, subject=(1, 2, 3))
OTHER_ROLES = random_pair("r", 6, seed=2, subject=(4,))


def writes_by_patch(plan) -> list[set[tuple]]:
    """For every patch its writes (component, layer, position, head), and that none is there twice."""
    fields = (plan.writes.component, plan.writes.layer, plan.writes.position, plan.writes.head)
    lines = [(COMPONENTS[c], layer, p, None if h == ALL else h) for c, layer, p, h in zip(*fields, strict=True)]
    patches = [[line for line, patch in zip(lines, plan.writes.patch, strict=True) if patch == number]
               for number in range(len(plan.pair))]  # fmt: skip
    assert all(len(set(patch)) == len(patch) for patch in patches)
    return [set(patch) for patch in patches]


def entering(component, layer, token, head):
    """What leaves a block is what enters the next."""
    if component == "resid_post" and layer < LAYERS - 1:
        return "resid_pre", layer + 1, token, head
    return component, layer, token, head


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_windows_are_those_of_rome(window, layers, data):
    layer = data.draw(st.integers(0, layers - 1))
    assert list(window_layers(layer, window=window, layers=layers)) == rome_window(layer, window, layers)


def test_even_windows_by_hand():
    assert list(window_layers(5, window=10, layers=12)) == list(range(0, 10))
    assert list(window_layers(0, window=2, layers=12)) == [0]
    assert list(window_layers(11, window=5, layers=12)) == [9, 10, 11]


@pytest.mark.parametrize("window", range(1, 11))
@pytest.mark.parametrize("positions", ["each", "all", "roles"])
def test_a_sweep_writes_every_site_of_its_window(positions, window):
    pairs, layers = [PAIR, OTHER_ROLES], [0, 2]
    plan = plan_sweep(MODEL, pairs, components=COMPONENTS, layers=layers, positions=positions, window=window)
    lines, expected, owners = [], [], []
    for pair, component in itertools.product(pairs, COMPONENTS):
        targets = {"each": range(6), "all": ["all"], "roles": [role for role in ROLES if role in pair.roles]}[positions]
        for layer in [0] if component == "embedding" else layers:
            reach = [0] if component == "embedding" else rome_window(layer, window, LAYERS)
            for target, head in itertools.product(targets, range(2) if component == "head_out" else [None]):
                role = pair.roles[target] if positions == "each" else target
                lines.append((component, layer, target if positions == "each" else None, role, head))
                sites = itertools.product([component], reach, tokens_of(pair, target), [head])
                expected.append({entering(*site) for site in sites})
                owners.append(pairs.index(pair))
    assert plan.lines.astype(object).where(plan.lines.notna(), None).to_numpy().tolist() == [list(x) for x in lines]
    assert writes_by_patch(plan) == expected
    assert plan.pair.tolist() == owners


@pytest.mark.parametrize("positions", ["each", "all", "roles"])
def test_tokens_of_an_answer_are_never_patched_and_have_no_line(positions):
    """A pair with an answer behind it has the lines, and writes at the places, that it has without."""
    longer = replace(
        PAIR, clean=(*PAIR.clean, 3, 4), corrupted=(*PAIR.corrupted, 3, 4), roles=(*PAIR.roles, ANSWER, ANSWER)
    )
    settings = {"components": COMPONENTS, "layers": [0, 2], "positions": positions, "window": 2}
    plain, continued = (plan_sweep(MODEL, [pair], **settings) for pair in (PAIR, longer))
    pd.testing.assert_frame_equal(continued.lines, plain.lines)
    assert writes_by_patch(continued) == writes_by_patch(plain)
    assert continued.writes.position.max() == len(PAIR.roles) - 1
    everywhere = plan_sets(MODEL, [longer], {"all": [Site("mlp_out", 1, "all")]})
    assert everywhere.writes.position.tolist() == list(range(6))


def test_writes_stand_in_forward_order_within_each_patch():
    sites = [Site("resid_post", 0, 1), Site("mlp_out", 2, 0), Site("embedding", 0, "last"), Site("attn_out", 1, "all")]
    plan = plan_sets(MODEL, [PAIR, SAME_ROLES], {"s": sites, "t": sites[::-1]})
    order = np.stack([plan.writes.patch, plan.writes.layer, plan.writes.component])
    assert (np.lexsort(order[::-1]) == np.arange(len(plan.writes))).all()
    assert writes_by_patch(plan) == [writes_by_patch(plan)[0]] * 4


def test_sets_by_hand():
    sets = {
        "roles": [Site("mlp_out", 1, "subject_middle"), Site("head_out", 0, "last", 1)],
        "same": [Site("resid_post", 0, 2), Site("resid_pre", 1, 2), Site("resid_pre", 1, "all")],
        "end": [Site("resid_post", LAYERS - 1, 5)],
        "empty": [],
    }
    plan = plan_sets(MODEL, [PAIR, OTHER_ROLES], sets)
    everywhere = {("resid_pre", 1, token, None) for token in range(6)}
    assert writes_by_patch(plan) == [
        {("mlp_out", 1, 2, None), ("head_out", 0, 5, 1)}, everywhere, {("resid_post", 2, 5, None)}, set(),
        {("head_out", 0, 5, 1)}, everywhere, {("resid_post", 2, 5, None)}, set(),
    ]  # fmt: skip
    assert plan.lines["sites"].tolist() == [*sets] * 2
    assert len(plan_sets(MODEL, [PAIR], {"empty": []}).writes) == 0


def test_tables_hold_lines_constants_and_scores_in_that_order():
    plan = plan_sweep(MODEL, [PAIR], components=["head_out"], layers=[1], positions="roles", window=1)
    scores = {"rank": np.arange(12.0)}
    table = tabulate(plan, [PAIR], constant={"direction": "noising"}, scores=scores)
    assert table.columns.tolist() == ["pair", "component", "layer", "position", "role", "head", "direction", "rank"]
    assert table["head"].tolist() == [0, 1] * 6 and table["position"].isna().all()
    assert {str(table[name].dtype) for name in ("position", "head")} == {"Int64"}
    assert {table[name].dtype for name in ("pair", "component", "role", "direction")} == {
        pd.StringDtype(na_value=np.nan)
    }
    assert table["rank"].tolist() == scores["rank"].tolist() and set(table["pair"]) == {"p"}
