"""The six choices in words, and the spread of prompts against numbers computed by hand."""

import numpy as np
import pandas as pd
import pytest
from tiny import random_pair, shared_model

from helpers.choices import CHOICES, Choices, ChoicesError, caption, spread, with_choices
from helpers.metrics import MetricError, with_effects
from helpers.patching import measure_runs, sweep, sweep_sets
from helpers.plans import Site
from helpers.values import Zero

LINE = {
    "pair": "a", "direction": "denoising", "component": "head_out", "layer": 1, "head": 0, "role": "all",
    "window": 1, "tokens": "S2", "corruption": "STR", "metric": "logit_difference",
}  # fmt: skip


def rows(*lines, **changes):
    """An effects table of (pair, numerator, denominator)."""
    table = [LINE | {"pair": pair, "numerator": n, "denominator": d} | changes for pair, n, d in lines]
    return pd.DataFrame(table).astype({"head": "Int64"})


def written(**changes) -> str:
    return with_choices(pd.DataFrame([LINE | changes])).loc[0, "written"]


def test_the_six_choices_as_columns():
    table = with_choices(pd.DataFrame([LINE, LINE | {"component": "mlp_out", "role": "subject_last", "window": 5}]))
    assert table[list(CHOICES)].to_numpy().tolist() == [
        ["node", "head_out", "clean activation into the run corrupted by STR of S2", "all", "denoising",
         "the site alone"],
        ["window of 5 layers", "mlp_out", "clean activation into the run corrupted by STR of S2", "subject last",
         "denoising", "the site alone"],
    ]  # fmt: skip
    assert table["layer"].tolist() == [1, 1], "other columns stay"


def test_what_is_written_follows_the_direction_the_corruption_and_the_value():
    assert written(direction="noising") == "activation of the run corrupted by STR of S2 into the clean run"
    assert written(corruption="GN", tokens="S1+IO") == "clean activation into the run corrupted by GN of S1+IO"
    assert written(value="other run") == written()
    assert written(value="zero", direction="noising") == "zeros into the clean run"
    assert written(value="resample") == "activation of another prompt into the run corrupted by STR of S2"


def test_a_caption_is_one_line_that_names_every_way_once():
    table = pd.DataFrame([LINE, LINE | {"role": "S2"}, LINE | {"direction": "noising", "complement": True}])
    assert caption(table.assign(complement=table["complement"].eq(True))) == (
        "granularity: node · component: head_out · written: clean activation into the run corrupted by STR of S2; "
        "activation of the run corrupted by STR of S2 into the clean run · positions: all; S2 · "
        "direction: denoising; noising · patched: the site alone; all but the site"
    )
    assert str(Choices("a", "b", "c", "d", "e", "f")) == (
        "granularity: a · component: b · written: c · positions: d · direction: e · patched: f"
    )


def test_spread_by_hand():
    """Numerators 1, 2, 9, −2 over a mean denominator of 4: 0.25, 0.5, 2.25 and −0.5; the score is 2.5 / 4."""
    table = spread(rows(("a", 1, 4), ("b", 2, 8), ("c", 9, 1), ("d", -2, 3)), by=["layer", "head"])
    assert table.columns.tolist() == [
        "layer", "head", *CHOICES, "quantity", "score", "denominator",
        "median", "low_quartile", "high_quartile", "worst", "worst_pair", "pairs",
    ]  # fmt: skip
    found = table.loc[0].to_dict()
    assert (found["score"], found["denominator"], found["median"]) == (0.625, 4.0, 0.375)
    # Sorted −0.5, 0.25, 0.5, 2.25: the quartiles lie a quarter of the way between two of them.
    assert (found["low_quartile"], found["high_quartile"]) == (0.0625, 0.9375)
    assert (found["worst"], found["worst_pair"], found["pairs"]) == (2.25, "c", 4), "a mean of ratios would have 9"
    assert (found["quantity"], found["direction"]) == ("recovered", "denoising")


def test_the_worst_prompt_may_lie_below_the_score():
    table = spread(rows(("a", 4, 4), ("b", 4, 4), ("c", -1, 4)), by=["layer"])
    assert table.loc[0, ["worst", "worst_pair"]].tolist() == [-0.25, "c"]


def test_draws_of_one_pair_are_averaged_first():
    table = spread(rows(("a", 1, 2), ("a", 3, 2), ("b", 4, 6)), by=["layer"])
    assert table.loc[0, ["score", "median", "pairs"]].tolist() == [3 / 4, 3 / 4, 2]
    assert table.loc[0, ["worst", "worst_pair"]].tolist() == [0.5, "a"]


def test_groups_have_their_own_unit_also_where_a_head_is_missing():
    table = pd.concat([rows(("a", 1, 2), ("b", 3, 2)), rows(("a", 1, 1), ("b", 0, 1), head=pd.NA, component="mlp_out")])
    found = spread(table, by=["component", "head"]).set_index("component")
    assert found.loc[["head_out", "mlp_out"], "score"].tolist() == [1.0, 0.5]
    assert found.loc[["head_out", "mlp_out"], "denominator"].tolist() == [2.0, 1.0]
    assert found["worst_pair"].tolist() == ["a", "a"], "the first of two that are as far"


def test_a_mean_denominator_of_nothing_gives_no_score_and_no_worst_prompt():
    found = spread(rows(("a", 1, 1), ("b", 3, -1)), by=["layer"]).loc[0]
    assert found[["score", "median", "low_quartile", "worst", "worst_pair"]].isna().all()
    assert (found["denominator"], found["pairs"]) == (0, 2)


def test_the_mean_prompt_is_the_score_and_the_worst_is_the_furthest():
    """Random groups of three prompts and more (two are always as far), each against numpy."""
    generator = np.random.default_rng(0)
    drawn = [generator.normal([0.5, 1], 1, size=(3 + layer, 2)) for layer in range(20)]
    lines = [rows(*((f"p{i:02}", *pair) for i, pair in enumerate(values)), layer=n) for n, values in enumerate(drawn)]
    table = spread(pd.concat(lines), by=["layer"])
    for values, found in zip(drawn, table.to_dict("records"), strict=True):
        shares = values[:, 0] / values[:, 1].mean()
        assert found["score"] == pytest.approx(shares.mean())
        quartiles = [found[name] for name in ("low_quartile", "median", "high_quartile")]
        assert quartiles == pytest.approx(np.quantile(shares, [0.25, 0.5, 0.75]).tolist())
        assert found["worst"] == pytest.approx(max(shares, key=lambda share: abs(share - shares.mean())))
        assert found["worst"] == pytest.approx(shares[int(found["worst_pair"][1:])])


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"direction": "noising"}, "written, direction"),
        ({"corruption": "GN"}, "written"),
        ({"tokens": "S1+IO"}, "written"),
        ({"role": "S2"}, "positions"),
        ({"window": 3}, "granularity"),
        ({"component": "mlp_out"}, "component"),
        ({"metric": "probability"}, "metric"),
        ({"complement": True}, "patched"),
    ],
)
def test_a_group_that_mixes_choices_is_refused_and_told_apart_by_them(changes, named):
    table = pd.concat([rows(("a", 1, 2)), rows(("a", 1, 2), **changes)])
    table = table.assign(complement=table["complement"].eq(True)) if "complement" in table else table
    with pytest.raises(ChoicesError, match=f"a group by layer holds several of {named}: put"):
        spread(table, by=["layer"])
    assert len(spread(table, by=["layer", *changes])) == 2


def test_what_is_missing_or_unknown_is_one_sentence():
    with pytest.raises(ChoicesError, match="have no column tokens, corruption, without which"):
        caption(rows(("a", 1, 2)).drop(columns=["tokens", "corruption"]))
    with pytest.raises(ChoicesError, match="There is no effect"):
        caption(rows(("a", 1, 2)).iloc[:0])
    with pytest.raises(ChoicesError, match="No patch writes 'noise'; the values are other run, zero"):
        written(value="noise")
    with pytest.raises(MetricError, match="NaN"):
        spread(rows(("a", float("nan"), 2)), by=["layer"])


def test_tables_of_sweeps_tell_their_choices():
    model, pairs = shared_model("gpt2", 0), [random_pair(name, 3, seed=seed) for seed, name in enumerate("abc")]
    runs, named = measure_runs(model, pairs, metrics=("logit_difference",)), {"tokens": "subject", "corruption": "STR"}
    swept = sweep(model, pairs, components=("mlp_out",), positions="roles", direction="noising", value=Zero())
    effects = with_effects(swept, runs).assign(**named)
    assert caption(effects) == (
        "granularity: node · component: mlp_out · written: zeros into the clean run · "
        "positions: prefix; subject last; last · direction: noising · patched: the site alone"
    )
    table = spread(effects, by=["layer", "role"])
    assert len(table) == 3 * 3 and set(table["pairs"]) == {3} and set(table["quantity"]) == {"destroyed"}
    sets = {"early": [Site("mlp_out", 0, "all")], "late": [Site("mlp_out", 2, "all")]}
    effects = with_effects(sweep_sets(model, pairs, sets), runs).assign(**named)
    assert spread(effects, by=["sites"])["component"].tolist() == ["early", "late"]
    assert caption(effects).startswith("granularity: set · component: early; late · written: clean activation into")
