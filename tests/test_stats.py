"""Intervals and models whose unit is the item: against slow loops, hand-made numbers, balanced-design formulas."""

import math

import numpy as np
import pandas as pd
import pytest

from helpers.stats import (
    StatisticsError,
    bootstrap_interval,
    layer_effects,
    layer_formula,
    mixed_model,
    ratio_of_means,
    readable_terms,
    recovery_intervals,
    wald_tests,
)

OPTIONS = {"resamples": 200, "confidence": 0.9, "seed": 3}


def test_ratio_of_means_is_no_mean_of_ratios():
    assert ratio_of_means(np.array([[1.0, 1.0], [3.0, 9.0]])) == pytest.approx(0.4)  # the mean of ratios is 2/3
    stack = np.array([[[1.0, 2.0], [2.0, 2.0]], [[0.0, 1.0], [-3.0, 5.0]]])
    np.testing.assert_allclose(ratio_of_means(stack), [0.75, -0.5])


def slow_quantile(values: list[float], share: float) -> float:
    """Linear interpolation between order statistics, written out."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def test_bootstrap_equals_an_explicit_loop_over_the_same_draws():
    values = np.random.default_rng(0).normal(2, 1, size=(7, 2))
    drawn = np.random.default_rng(3).integers(0, 7, size=(200, 7))
    ratios = []
    for rows in drawn:
        numerator = denominator = 0.0
        for row in rows:
            numerator += values[row, 0] / 7
            denominator += values[row, 1] / 7
        ratios.append(numerator / denominator)
    expected = slow_quantile(ratios, 0.05), slow_quantile(ratios, 0.95)
    assert bootstrap_interval(values, ratio_of_means, **OPTIONS) == pytest.approx(expected)
    assert bootstrap_interval(values, ratio_of_means, **OPTIONS) != bootstrap_interval(
        values, ratio_of_means, **(OPTIONS | {"seed": 4})
    )


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator, covered = np.random.default_rng(1), 0
    for trial in range(300):
        denominator = generator.normal(2, 0.5, 40)
        values = np.stack([0.6 * denominator + generator.normal(0, 0.5, 40), denominator], axis=1)
        low, high = bootstrap_interval(values, ratio_of_means, resamples=200, confidence=0.9, seed=trial)
        covered += low <= 0.6 <= high
    # 0.9 ± 4 standard errors, and the percentile interval's slight undercoverage with 40 items.
    assert 0.81 <= covered / 300 <= 0.97


@pytest.mark.parametrize(
    "values, words",
    [
        (np.empty((0, 2)), "needs items as rows"),
        (np.ones(3), "needs items as rows"),
        (np.array([[1.0, 2.0], [np.nan, 1.0], [1.0, np.inf]]), "2 of 3 items are not finite"),
    ],
)
def test_a_bootstrap_of_nothing_or_of_nan_is_refused(values, words):
    with pytest.raises(StatisticsError, match=words):
        bootstrap_interval(values, ratio_of_means, **OPTIONS)


@pytest.fixture
def effects():
    """Twelve items with one to four rows each: seeds and wordings that must not count as items."""
    generator = np.random.default_rng(5)
    rows = []
    for number in range(12):
        for _ in range(1 + number % 4):
            numerator, denominator = generator.normal([1, 2], 0.5)
            rows.append({"kind": "ab"[number % 2], "item_id": f"i{number}", "numerator": numerator})
            rows[-1]["denominator"] = denominator
    return pd.DataFrame(rows)


def intervals(table: pd.DataFrame, by: list[str], **options) -> pd.DataFrame:
    return recovery_intervals(table, by=by, item="item_id", **(OPTIONS | options))


def test_recovery_by_hand():
    table = pd.DataFrame(
        [("x", 1.0, 2.0), ("x", 3.0, 2.0), ("y", 6.0, 2.0)], columns=["item_id", "numerator", "denominator"]
    ).assign(kind="a")
    (row,) = intervals(table, ["kind"]).to_dict("records")
    # x is (2, 2) and y is (6, 2): 8 / 4. Counting rows would give 10 / 6.
    assert row["recovery"] == pytest.approx(2.0)
    assert (row["kind"], row["items"], row["defined"]) == ("a", 2, True)
    # A resample of two items is xx, xy or yy; a quarter of them each are xx and yy, so the 90 % interval holds all.
    assert (row["low"], row["high"]) == pytest.approx((1.0, 3.0))


def test_the_item_is_the_unit_and_not_the_row(effects):
    once = intervals(effects, ["kind"])
    twice = intervals(pd.concat([effects, effects], ignore_index=True), ["kind"])
    pd.testing.assert_frame_equal(once, twice)
    pd.testing.assert_frame_equal(once, intervals(effects.sample(frac=1, random_state=0), ["kind"]))
    # Twice as many items, on the contrary, is twice the evidence.
    copies = pd.concat([effects, effects.assign(item_id=effects["item_id"] + "'")], ignore_index=True)
    more = intervals(copies, ["kind"])
    assert (more["items"] == 2 * once["items"]).all()
    assert ((more["high"] - more["low"]) < (once["high"] - once["low"])).all()
    np.testing.assert_allclose(more["recovery"], once["recovery"])


def test_groups_are_each_their_own(effects):
    both = intervals(effects, ["kind"]).set_index("kind")
    alone = intervals(effects[effects["kind"] == "b"], ["kind"]).iloc[0]
    assert (both.loc["b", ["recovery", "low", "high"]] == alone[["recovery", "low", "high"]]).all()
    assert list(both.index) == ["a", "b"]


def test_a_denominator_that_may_be_0_leaves_recovery_undefined():
    table = pd.DataFrame({"item_id": list("abcd"), "numerator": 1.0, "denominator": [-1.0, 2.1, -2.0, 2.2]})
    table = table.assign(network="untrained")
    # A constant denominator of -2 is far from 0: negative is not undefined.
    table = pd.concat([table, table.assign(network="tuned", denominator=-2.0)])
    defined = intervals(table, ["network"]).set_index("network")["defined"]
    assert dict(defined) == {"tuned": True, "untrained": False}


@pytest.mark.parametrize("column", ["numerator", "denominator"])
def test_one_nan_row_is_not_averaged_away(effects, column):
    effects.loc[effects["item_id"].eq("i3").idxmax(), column] = np.nan  # i3 has three finite rows besides
    with pytest.raises(StatisticsError, match="1 of 30 rows"):
        intervals(effects, ["kind"])


def test_intervals_of_nothing_are_refused(effects):
    with pytest.raises(StatisticsError, match="no row"):
        intervals(effects.head(0), ["kind"])


def simulated(items: int, layers: int, *, layer: float, kind: float, seed: int) -> pd.DataFrame:
    """Responses with a random intercept per item (SD 0.5) far larger than the noise (SD 0.1)."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(items):
        intercept = generator.normal(0, 0.5)
        for at in range(layers):
            effect = 1 + intercept + layer * at + kind * (number % 2) + generator.normal(0, 0.1)
            rows.append({"item_id": f"i{number}", "layer": at, "kind": "ab"[number % 2], "effect": effect})
    return pd.DataFrame(rows)


def test_mixed_model_equals_the_formulas_of_a_balanced_design():
    table = simulated(40, 2, layer=0.8, kind=-0.6, seed=0)
    found = mixed_model(table, "effect ~ C(layer) + C(kind)", item="item_id").set_index("term")
    assert list(found.index) == ["Intercept", "C(layer)[T.1]", "C(kind)[T.b]"]
    assert found["converged"].all()
    wide = table.pivot(index="item_id", columns="layer", values="effect")
    difference = wide[1] - wide[0]
    layer = found.loc["C(layer)[T.1]"]
    assert layer["estimate"] == pytest.approx(difference.mean(), abs=1e-5)
    # A paired comparison: the items' own levels cancel.
    assert layer["standard_error"] == pytest.approx(difference.std() / math.sqrt(40), rel=1e-2)
    levels = table.groupby(["kind", "item_id"])["effect"].mean()
    a, b = levels["a"], levels["b"]
    kind = found.loc["C(kind)[T.b]"]
    assert kind["estimate"] == pytest.approx(b.mean() - a.mean(), abs=1e-5)
    # A comparison between items: 20 against 20, however many rows each has.
    assert kind["standard_error"] == pytest.approx(math.sqrt((a.var() + b.var()) / 20), rel=1e-2)
    for row in (layer, kind):
        assert row["low"] == pytest.approx(row["estimate"] - 1.959964 * row["standard_error"], abs=1e-5)
        assert row["high"] == pytest.approx(row["estimate"] + 1.959964 * row["standard_error"], abs=1e-5)
        assert row["p_value"] == pytest.approx(
            math.erfc(abs(row["estimate"] / row["standard_error"]) / math.sqrt(2)), abs=1e-8
        )
    # And the truth is near: 0.8 within items, -0.6 between them.
    assert layer["estimate"] == pytest.approx(0.8, abs=0.1) and kind["low"] < -0.6 < kind["high"]


def test_wald_tests_equal_the_analysis_of_variance_and_hold_the_fixed_terms_alone():
    table = simulated(30, 3, layer=0.1, kind=0.0, seed=2)
    found = wald_tests(table, "effect ~ C(layer) * C(kind)", item="item_id").set_index("term")
    assert list(found.index) == ["Intercept", "C(layer)", "C(kind)", "C(layer):C(kind)"]
    assert list(found["df"]) == [1, 2, 1, 2]
    assert found.loc["C(layer)", "p_value"] < 0.001  # 0.2 over three layers, at an SD of 0.1
    assert (found.loc[["C(kind)", "C(layer):C(kind)"], "p_value"] > 0.001).all()  # neither was put in
    # Without an interaction: sum of squares between layers over the mean square of the residuals.
    wide = table.pivot(index="item_id", columns="layer", values="effect").to_numpy()
    residuals = wide - wide.mean(0) - wide.mean(1, keepdims=True) + wide.mean()
    between = 30 * ((wide.mean(0) - wide.mean()) ** 2).sum()
    expected = between / ((residuals**2).sum() / (29 * 2))
    found = wald_tests(table, "effect ~ C(layer)", item="item_id").set_index("term").loc["C(layer)"]
    assert found["chi2"] == pytest.approx(expected, rel=1e-2)
    assert found["p_value"] == pytest.approx(math.exp(-found["chi2"] / 2))  # χ² with 2 degrees of freedom


@pytest.mark.parametrize("fit", [mixed_model, wald_tests])
def test_too_few_items_are_refused(fit):
    table = simulated(2, 3, layer=0.1, kind=0.0, seed=0)
    with pytest.raises(StatisticsError, match="at least 3 items, not 2"):
        fit(table, "effect ~ C(layer)", item="item_id")


@pytest.mark.parametrize("fit", [mixed_model, wald_tests])
def test_a_response_that_is_nan_is_refused(fit):
    table = simulated(5, 2, layer=0.1, kind=0.0, seed=0)
    table.loc[3, "effect"] = np.nan
    with pytest.raises(StatisticsError, match="1 of 10 rows"):
        fit(table, "effect ~ C(layer)", item="item_id")


@pytest.fixture
def two_kinds():
    """Two items of a kind, one of another, at two layers: numerator, and the denominator that both layers share."""
    rows = [("d", "x", 0, 1.0, 2.0), ("d", "x", 1, 2.0, 2.0), ("d", "y", 0, 3.0, 6.0), ("d", "y", 1, -4.0, 6.0)]
    rows += [("a", "z", 0, 5.0, 10.0), ("a", "z", 1, 0.0, 10.0)]
    table = pd.DataFrame(rows, columns=["kind", "item_id", "layer", "numerator", "denominator"])
    return table.assign(arm="real", seed=0)


def test_layer_effects_by_hand(two_kinds):
    found = layer_effects(two_kinds)
    assert list(found.columns) == ["arm", "kind", "seed", "item_id", "layer", "effect"]
    # Items of kind d are divided by (2 + 6) / 2 = 4, not each by its own; those of kind a by 10.
    effect = found.set_index(["item_id", "layer"])["effect"]
    assert dict(effect) == {
        ("x", 0): 0.25, ("x", 1): 0.5, ("y", 0): 0.75, ("y", 1): -1.0, ("z", 0): 0.5, ("z", 1): 0.0
    }  # fmt: skip
    # Another seed has its own unit, and leaves the first alone.
    other = layer_effects(pd.concat([two_kinds, two_kinds.assign(seed=1, denominator=1.0)], ignore_index=True))
    assert list(other[other["seed"] == 0]["effect"]) == list(found["effect"])
    assert list(other[other["seed"] == 1]["effect"]) == list(two_kinds["numerator"])


def test_effects_without_a_unit_are_refused(two_kinds):
    two_kinds.loc[two_kinds["item_id"] == "y", "denominator"] = -2.0
    with pytest.raises(StatisticsError, match="exactly 0"):
        layer_effects(two_kinds)


def test_formula_leaves_out_factors_of_one_level_and_terms_are_readable():
    rng = np.random.default_rng(5)
    rows = [(i, layer, "ab"[i % 2], seed, rng.normal()) for i in range(8) for layer in range(2) for seed in range(2)]
    table = pd.DataFrame(rows, columns=["item_id", "layer", "kind", "seed", "effect"])
    assert layer_formula(table, coding="Sum") == "effect ~ C(layer, Sum) * C(kind, Sum) + C(seed, Sum)"
    one_kind = table[(table["kind"] == "a") & (table["seed"] == 0)]
    assert layer_formula(one_kind) == "effect ~ C(layer, Treatment)"
    with pytest.raises(StatisticsError, match="single level"):
        layer_formula(one_kind[one_kind["layer"] == 0])
    found = readable_terms(wald_tests(table, layer_formula(table, coding="Sum"), item="item_id"))
    assert list(found["term"]) == ["Intercept", "layer", "kind", "seed", "layer × kind"]
    coefficients = readable_terms(mixed_model(table, layer_formula(table), item="item_id"))
    assert list(coefficients["term"]) == ["Intercept", "layer 1", "kind b", "seed 1", "layer 1 × kind b"]


def test_sum_coding_tests_main_effects_as_means_over_the_other_factor():
    """A layer effect that is opposite in the two kinds has no main effect, only an interaction."""
    rng = np.random.default_rng(6)
    rows = [(i, s, "ab"[i % 2], (1 if i % 2 else -1) * s + 0.1 * rng.normal()) for i in range(40) for s in range(2)]
    table = pd.DataFrame(rows, columns=["item_id", "layer", "kind", "effect"]).assign(seed=0)
    tests = readable_terms(wald_tests(table, layer_formula(table, coding="Sum"), item="item_id")).set_index("term")
    assert tests.loc["layer", "chi2"] < 10 < 1000 < tests.loc["layer × kind", "chi2"]
    treated = wald_tests(table, layer_formula(table), item="item_id").set_index("term")
    assert treated.loc["C(layer, Treatment)", "chi2"] > 1000  # the effect in the reference kind alone
