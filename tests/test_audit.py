"""The audit of the published protocol, each number against one worked out by hand, and its words on a small run."""

import pandas as pd
import pytest
import torch
from asked import TOKENIZERS, real_tokenizer
from conftest import tiny_gpt2
from torch import nn

from helpers.audit import (
    BOTH_DIRECTIONS,
    EVERY_MODULE,
    EVERYTHING,
    LEVEL,
    ONE_PER_CUT,
    alarm_table,
    answer_ranks,
    audit,
    colliding_keys,
    copied_tokens,
    deviation,
    distance_from_linear,
    examine,
    false_alarms,
    null_intervals,
    rank_table,
    same_cut,
    shares_in_null,
    studied_networks,
    twin_move,
)
from helpers.claimed import published_in_null
from helpers.config import load_profile
from helpers.flaws import alarm_statement, flaw_table, null_statement, shown_statement, subject_statement, survivors
from helpers.models import random_model, save_model, untrained_twin
from helpers.published import PUBLISHED_ITEMS

FC, ATTN = "transformer.h.0.mlp.c_fc", "transformer.h.0.attn.c_attn"


def sweep(values, *, group="untrained", item="associative", direction="denoising", site=FC, **columns) -> pd.DataFrame:
    """One row per recovery, each in a network of its own."""
    named = {"group": group, "item": item, "direction": direction, "site": site, "by_construction": False}
    networks = [f"{group}-{number}" for number in range(len(values))]
    table = pd.DataFrame({"recovery": values, "effect": values, "network": networks})
    return table.assign(**(named | columns))


@pytest.fixture(scope="module")
def small():
    """An audit of one base, two "fine-tuned" and three untrained networks that are all untrained."""
    tokenizer = real_tokenizer("embedded")
    base = random_model(len(tokenizer), layers=2, width=16, heads=2, positions=32, seed=0)
    networks = [("base", "base", base)]
    networks += [("fine-tuned", f"run-{n}", untrained_twin(base, seed=50 + n)) for n in range(2)]
    networks += [("untrained", f"untrained-{n}", untrained_twin(base, seed=n)) for n in range(3)]
    examined = [examine(network, tokenizer, group=group, network=name) for group, name, network in networks]
    settings = load_profile("mini", "").model
    return audit(examined, base, tokenizer, pd.DataFrame({"share": [0.4, 0.6]}), settings=settings)


def test_modules_that_print_alike_overwrite_one_another():
    keys = colliding_keys(tiny_gpt2(0, layers=3, width=8, heads=2)).set_index("key")
    assert keys.loc["Conv1D(nf=24, nx=8)"].tolist() == [3, "transformer.h.2.attn.c_attn", 2]
    assert len(keys) == 5 and keys["modules"].sum() == 4 * 3 + 1 and keys["lost"].sum() == 8
    model = tiny_gpt2(0, layers=3, width=8, heads=2)
    kept = {str(module): name for name, module in model.named_modules() if str(module) in keys.index}
    assert kept == keys["survives"].to_dict()


def test_a_conv1d_is_a_linear_layer_and_one_that_were_not_would_show():
    model = tiny_gpt2(0, layers=1, width=8, heads=2)
    assert distance_from_linear(model) < 1e-5
    model.transformer.h[0].mlp.c_fc.register_forward_hook(lambda module, inputs, output: output + 1)
    assert distance_from_linear(model) > 0.01


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_question_holds_tokens_of_the_right_phrase_alone(name):
    copied = copied_tokens(real_tokenizer(name)).set_index(["item", "phrase"])
    right, wrong = copied.loc["associative", "clean"], copied.loc["associative", "corrupted"]
    assert (right["in_question"], right["tokens"]) == {"embedded": (2, 3), "gpt2": (7, 8)}[name]
    assert wrong["in_question"] == 0 and wrong["copied"] == ""
    assert copied.loc["definitional", "clean"]["in_question"] == 0
    assert copied.loc["definitional", "clean"]["in_prompt"] == right["in_question"]


def test_ranks_begin_at_one_and_probabilities_are_those_after_the_question():
    tokenizer, item = real_tokenizer("embedded"), PUBLISHED_ITEMS[0]
    model = random_model(len(tokenizer), layers=1, width=8, heads=2, positions=32, seed=0)
    right, wrong = (tokenizer(f" {a}")["input_ids"][0] for a in (item.clean_answer, item.corrupted_answer))
    bias = torch.zeros(len(tokenizer))
    bias[right], bias[wrong], bias[7] = 90.0, 70.0, 80.0
    model.lm_head = nn.Linear(8, len(tokenizer))
    model.lm_head.weight.data.zero_()
    model.lm_head.bias.data = bias
    found = answer_ranks(model, tokenizer, item)
    assert (found["right_rank"], found["wrong_rank"]) == (1, 3)
    assert found["right_probability"] == pytest.approx(1 / (1 + 2.718281828**-10), rel=1e-6)
    assert found["wrong_probability"] == pytest.approx(2.718281828**-20, rel=1e-3)


def test_ranks_are_medians_in_whole_numbers():
    ranks = [("a", 3, 10, 0.001), ("b", 5, 30, 0.003), ("c", 100, 20, 0.002)]
    columns = ["network", "right_rank", "wrong_rank", "right_probability"]
    shown = rank_table(pd.DataFrame(ranks, columns=columns).assign(item="associative", group="base"))
    assert shown.iloc[0].tolist() == ["associative", "base", 5, 20, "2.0e-03"]


def test_an_alarm_is_a_layer_effect_over_modules_taken_for_independent():
    layers = [f"transformer.h.{layer}.{part}" for layer in (0, 1) for part in ("attn.c_attn", "mlp.c_fc")]
    far, near = [0.0, 0.001, 1.0, 1.001], [0.0, 1.0, 0.001, 1.001]  # by layer, and not by layer
    tables = [sweep([v], site=s, network="far") for v, s in zip(far, layers, strict=True)]
    tables += [sweep([v], site=s, network="near") for v, s in zip(near, layers, strict=True)]
    alarms = false_alarms(pd.concat(tables))
    assert alarms["share"].tolist() == [0.5] * 4 and alarms["networks"].tolist() == [2] * 4
    assert alarms["values"].tolist() == [4] * 4
    assert alarms["units"].tolist() == [ONE_PER_CUT, BOTH_DIRECTIONS, EVERY_MODULE, EVERYTHING]
    assert alarm_table(alarms)["untrained (2)"].tolist() == [0.5] * 4 and LEVEL == 0.01


def test_independent_values_alarm_as_often_as_the_level_says_until_each_is_counted_twice():
    """The same value at both modules of a cut, and in both directions, as in networks whose layers do not differ."""
    generator = torch.Generator().manual_seed(0)
    cuts = {f"transformer.h.{n}.{part}": both for n in range(6) for part, both in (("attn", "c_attn"), ("mlp", "c_fc"))}
    values = torch.randn(400, len(cuts), generator=generator).tolist()
    rows = [
        (f"n{n}", f"{cut}.{module}", direction, value)
        for n, line in enumerate(values)
        for (cut, reads), value in zip(cuts.items(), line, strict=True)
        for module in (reads, "c_proj")
        for direction in ("denoising", "noising")
    ]
    table = pd.DataFrame(rows, columns=["network", "site", "direction", "recovery"])
    alarms = false_alarms(table.assign(item="associative", group="untrained", by_construction=False)).set_index("units")
    assert alarms["values"].to_dict() == {ONE_PER_CUT: 12, BOTH_DIRECTIONS: 24, EVERY_MODULE: 24, EVERYTHING: 48}
    share = alarms["share"]
    assert share[ONE_PER_CUT] < 0.03 and share[EVERYTHING] > share[EVERY_MODULE] > 0.2
    assert share[EVERY_MODULE] == share[BOTH_DIRECTIONS]


def test_the_null_is_that_of_the_same_item_direction_and_module():
    null = sweep([float(n) for n in range(41)])  # central 95 %: 1 to 39
    other = sweep([100.0] * 41, site=ATTN)
    tuned = pd.concat([sweep([0.5, 1.0, 39.0, 39.5], group="fine-tuned"), sweep([5.0], group="base", site=ATTN)])
    found = null_intervals(pd.concat([null, other, tuned], ignore_index=True))
    assert found["inside"].tolist() == [False, True, True, False, False]
    assert found[["low", "high"]].iloc[0].tolist() == [1.0, 39.0]
    shown = published_in_null(found, layers=1)
    assert shown[["figure", "site", "inside", "runs", "runs_outside"]].values.tolist() == [
        ["first feedforward layer", FC, False, 4, 2], ["convolutional layer", FC, False, 4, 2]
    ]  # fmt: skip


def test_an_effect_can_leave_the_null_that_its_ratio_stays_in():
    """The same ratios in both groups, of differences that are a hundred times as large in one of them."""
    ratios = [float(n) for n in range(41)]
    null = sweep(ratios, effect=[0.01 * r for r in ratios], clean=0.02, corrupted=0.01)
    tuned = sweep([2.0, 38.0], group="fine-tuned", effect=[2.0, 0.3], clean=[0.0, 0.5], corrupted=[1.0, -1.5])
    both = pd.concat([null, tuned], ignore_index=True)
    found = null_intervals(both)
    assert found["inside"].tolist() == [True, True] and found["effect_inside"].tolist() == [False, True]
    assert found[["effect_low", "effect_high"]].iloc[0].tolist() == pytest.approx([0.01, 0.39])
    shares = shares_in_null(both, found).set_index("group")
    assert shares.loc["fine-tuned"].tolist() == [2, 1.5, 1.0, 0.5]
    assert shares.loc["untrained", "difference"] == pytest.approx(0.01)
    assert shares.loc["untrained", ["recovery_inside", "effect_inside"]].isna().all()
    shown = published_in_null(found, layers=1)
    assert shown[["runs_outside", "effects_outside"]].values.tolist()[0] == [0, 1]


def test_the_twin_moves_by_the_wrong_answer_alone():
    one = sweep([0.2, 0.5], group="fine-tuned", item="definitional")
    two = sweep([0.5, 0.1], group="fine-tuned", item="definitional twin")
    assert twin_move(pd.concat([one, two]), "definitional").tolist() == pytest.approx([0.3, 0.4])
    assert twin_move(pd.concat([one.assign(recovery=float("nan")), two]), "definitional").empty
    assert twin_move(two, "definitional").empty and twin_move(pd.concat([one, two]), "associative").empty


def test_distances_are_in_logits():
    rows = [("denoising", 2.0, 1.0, 2.25), ("noising", 2.0, 1.0, 1.5)]
    table = pd.DataFrame(rows, columns=["direction", "clean", "corrupted", "patched"])
    assert deviation(table) == 0.5 and deviation(table[:1]) == 0.25
    pair = pd.concat([sweep([1.0], site=f"transformer.h.0.mlp.{part}") for part in ("c_fc", "c_proj")])
    far = sweep([1.0], site=ATTN, patched=9.0)
    assert same_cut(pd.concat([pair.assign(patched=[1.0, 1.25]), far])) == 0.25


def test_every_flaw_has_a_row_with_what_this_run_shows(small):
    table = flaw_table(small)
    assert table["no."].tolist() == list(range(1, 17)) and table.notna().all(axis=None)
    shown = table.set_index("no.")["this run"]
    assert shown[1] == "1 nn.Linear, 8 Conv1D"
    assert shown[3].startswith("6 of 14 sites;")
    assert shown[5].endswith("; 0 convolutions")
    assert shown[6] == "9 modules, 5 keys, 4 results lost"
    assert shown[10].endswith("2 of 3 tokens copied")
    assert "associative 22 / 22; associative twin 22 / 22; definitional 10 / 10" in shown[11] and shown[11].endswith(
        "differ by exactly 0"
    )
    assert shown[14] == "50 % of the scored tokens are padding"
    assert not table.drop(index=15)["this run"].eq("–").any() and not table["this run"].str.contains("nan").any()


def test_what_survives_is_said_with_the_counts_of_this_run(small):
    text = "\n".join(survivors(small))
    assert "6 sites recover 1 in all 6 networks, 3 of them untrained" in text
    assert "nan" not in text and f"p < {LEVEL}" in text
    tuned = small.intervals[small.intervals["group"] == "fine-tuned"]
    assert f"{100 * tuned['inside'].mean():.0f} % of the fine-tuned models' recoveries" in text
    assert f"in logits) {100 * tuned['effect_inside'].mean():.0f} % do" in text
    assert text.startswith(
        "**Scope: gpt2 of 2 blocks × 16, the embedded model, fine-tuned (GPT-2 itself: not tested).**"
    )
    for row in small.figures.groupby("figure").agg(low=("low", "min"), high=("high", "max")).itertuples():
        assert f"{row.low:.2f} to {row.high:.2f} over its modules" in text
    assert "do not exclude" in text or "exclude 56 %" in text


def test_the_ratio_is_said_to_lose_what_it_loses_and_no_more(small):
    def said(ratio, effect):
        shares = small.shares.assign(recovery_inside=ratio, effect_inside=effect)
        return null_statement(type(small)(**(vars(small) | {"shares": shares})))

    assert "throws away what separates" in said(0.95, 0.05) and "95 % of the" in said(0.95, 0.05)
    assert "throws away nothing" in said(0.5, 0.5)
    for group, difference in zip(small.shares["group"], small.shares["difference"], strict=True):
        assert f"{difference:.3f} ({group})" in said(0.95, 0.05)


def test_alarms_are_laid_to_the_way_of_counting_that_raises_them(small):
    def said(**shares):
        table = small.alarms.assign(share=[shares.get(units, 0.0) for units in small.alarms["units"]])
        return alarm_statement(type(small)(**(vars(small) | {"alarms": table})))

    assert "What raises alarms is counting the same cut twice." in said(**{EVERY_MODULE: 0.4})
    assert "twice and counting both directions of one prompt" in said(**{EVERY_MODULE: 0.4, BOTH_DIRECTIONS: 0.6})
    assert "Neither way" in said() and "is not made by counting" in said()


def test_a_shape_error_of_one_item_leaves_the_other_items_twin(small):
    lost = small.published["recovery"].mask(small.published["item"] == "definitional")
    changed = type(small)(**(vars(small) | {"published": small.published.assign(recovery=lost)}))
    shown = flaw_table(changed).set_index("no.")["this run"]
    assert "(definitional: shape error)" in shown[12] and shown[12].startswith("median move ")
    assert f"{twin_move(small.published, 'associative').median():.2f} (associative)" in shown[12]


def test_what_is_not_shown_is_named_with_where_it_is(small):
    table = flaw_table(small)
    said = shown_statement(table)
    assert said == "15 of the 16 are shown by a computation; not shown here: no. 16 (notebook 06)."
    assert "4 subjects (associative)" in subject_statement(small)


def test_a_verdict_follows_its_numbers(small):
    """What is said of the null and of the choices changes when the numbers do."""
    far = small.figures.assign(inside=False, runs_outside=small.figures["runs"])
    still = small.moves.assign(median=0.01)
    changed = "\n".join(survivors(type(small)(**(vars(small) | {"figures": far, "moves": still}))))
    assert "exclude 56 % and 13.6 % at every module listed" in changed and "by recovery none" not in changed
    assert "weighs less than its finding" in changed


def test_the_networks_studied_are_the_base_every_run_and_the_untrained_twins(tmp_path):
    tokenizer = real_tokenizer("embedded")
    base, run = (random_model(len(tokenizer), layers=1, width=8, heads=2, positions=32, seed=s) for s in (5, 7))
    save_model(run, tokenizer, tmp_path / "one-seed0")
    found = list(studied_networks(base, ["one-seed0"], tmp_path, untrained=2))
    assert [(group, name) for group, name, _ in found] == [
        ("base", "base"), ("fine-tuned", "one-seed0"), ("untrained", "untrained-0"), ("untrained", "untrained-1")
    ]  # fmt: skip
    weights = [network.transformer.wte.weight for *_, network in found]
    assert torch.equal(weights[0], base.transformer.wte.weight) and torch.equal(weights[1], run.transformer.wte.weight)
    assert not torch.equal(weights[2], weights[3]) and not torch.equal(weights[2], weights[0])
