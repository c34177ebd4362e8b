"""Intervals and models whose unit is the item: against slow loops, hand-made numbers, balanced-design formulas."""

import math

import numpy as np
import pandas as pd
import pytest

from helpers.stats import (
    StatisticsError,
    _exchange,
    bootstrap_interval,
    contrasts,
    layer_effects,
    layer_formula,
    layer_range,
    mixed_model,
    ratio,
    readable_terms,
    recovery_intervals,
    wald_tests,
)

OPTIONS = {"resamples": 200, "confidence": 0.9, "seed": 3}


def test_recovery_is_a_ratio_and_no_mean_of_ratios():
    assert ratio(np.array([[1.0, 1.0], [3.0, 9.0]]).mean(0)) == pytest.approx(0.4)  # the mean of ratios is 2/3
    np.testing.assert_allclose(ratio(np.array([[1.5, 2.0], [-1.5, 3.0]])), [0.75, -0.5])


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
    assert bootstrap_interval(values, ratio, **OPTIONS) == pytest.approx(expected)
    assert bootstrap_interval(values, ratio, **OPTIONS) != bootstrap_interval(values, ratio, **(OPTIONS | {"seed": 4}))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator, covered = np.random.default_rng(1), 0
    for trial in range(300):
        denominator = generator.normal(2, 0.5, 40)
        values = np.stack([0.6 * denominator + generator.normal(0, 0.5, 40), denominator], axis=1)
        low, high = bootstrap_interval(values, ratio, resamples=200, confidence=0.9, seed=trial)
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
        bootstrap_interval(values, ratio, **OPTIONS)


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


def made_up_kinds(*rows) -> pd.DataFrame:
    """Rows (item, kind, numerator, denominator)."""
    return pd.DataFrame(rows, columns=["item_id", "kind", "numerator", "denominator"]).assign(group="g")


def contrast(table: pd.DataFrame, kinds=("d", "a"), **options) -> dict:
    (row,) = contrasts(table, by=["group"], item="item_id", kinds=kinds, **(OPTIONS | options)).to_dict("records")
    return row


SINGLE = made_up_kinds(
    ("x", "d", 1.0, 2.0), ("x", "d", 3.0, 2.0),  # one item: (2, 2)
    ("y", "d", 6.0, 8.0),
    ("z", "a", 1.0, 4.0), ("w", "a", 2.0, 2.0),
)  # fmt: skip


def test_a_contrast_by_hand():
    found = contrast(SINGLE)
    # (2 + 6) / (2 + 8) less (1 + 2) / (4 + 2): a ratio of means of items in each kind.
    assert (found["d"], found["a"], found["difference"]) == pytest.approx((0.8, 0.5, 0.3))
    assert found["items"] == 4 and found["group"] == "g"
    other = contrast(SINGLE, kinds=("a", "d"))
    mirrored = (-found["difference"], -found["high"], -found["low"])
    assert (other["difference"], other["low"], other["high"]) == pytest.approx(mirrored, abs=1e-12)
    assert contrast(pd.concat([SINGLE, SINGLE]).sample(frac=1, random_state=0)) == pytest.approx(found)


def test_the_interval_of_a_contrast_equals_an_explicit_loop_over_the_same_draws():
    items = {"w": ("a", 2.0, 2.0), "x": ("d", 2.0, 2.0), "y": ("d", 6.0, 8.0), "z": ("a", 1.0, 4.0)}
    differences = []
    for drawn in np.random.default_rng(3).integers(0, 4, size=(200, 4)):
        rows = [list(items.values())[number] for number in drawn]
        sums = {kind: [sum(row[part] for row in rows if row[0] == kind) for part in (1, 2)] for kind in "da"}
        if sums["d"][1] and sums["a"][1]:  # a draw that lacks a kind tells no difference
            differences.append(sums["d"][0] / sums["d"][1] - sums["a"][0] / sums["a"][1])
    expected = slow_quantile(differences, 0.05), slow_quantile(differences, 0.95)
    found = contrast(SINGLE)
    assert (found["low"], found["high"]) == pytest.approx(expected)


def paired_kinds(items: int, *, effect: float, seed: int) -> pd.DataFrame:
    """Items of both kinds, whose levels differ far more than the kinds do."""
    generator, rows = np.random.default_rng(seed), []
    for number in range(items):
        level = generator.normal(0, 3)
        rows.append((f"i{number}", "d", level + effect + generator.normal(0, 0.1), 1.0))
        rows.append((f"i{number}", "a", level + generator.normal(0, 0.1), 1.0))
    return made_up_kinds(*rows)


def test_an_item_of_both_kinds_is_drawn_with_both():
    paired = paired_kinds(30, effect=0.5, seed=0)
    found = contrast(paired)
    wide = paired.pivot(index="item_id", columns="kind", values="numerator")
    assert found["difference"] == pytest.approx((wide["d"] - wide["a"]).mean())
    assert found["items"] == 30 and found["high"] - found["low"] < 0.2  # the levels cancel
    # The same rows as items of one kind each: the levels do not cancel.
    apart = contrast(paired.assign(item_id=paired["item_id"] + paired["kind"]))
    assert apart["difference"] == pytest.approx(found["difference"]) and apart["items"] == 60
    assert apart["high"] - apart["low"] > 1
    assert found["null_low"] < 0 < found["null_high"] < 0.3 < 0.5 < apart["null_high"]


def test_intervals_of_contrasts_cover_the_truth_about_as_often_as_they_say():
    generator, covered, seen = np.random.default_rng(2), 0, 0
    for trial in range(80):
        rows = []
        for number in range(60):
            kind, denominator = "da"[number % 2], generator.normal(2, 0.4)
            share = 0.6 if kind == "d" else 0.3
            rows.append((f"i{number}", kind, share * denominator + generator.normal(0, 0.4), denominator))
        found = contrast(made_up_kinds(*rows), resamples=60, seed=trial)
        covered += found["low"] <= 0.3 <= found["high"]
        seen += found["difference"] > found["null_high"]
    assert 0.76 <= covered / 80 < 1  # 0.9 ± 4 standard errors, and the percentile interval's slight undercoverage
    assert seen > 76  # a difference of six standard errors


def test_chance_leaves_the_null_of_a_contrast_as_often_as_it_should():
    generator, outside = np.random.default_rng(4), 0
    for trial in range(80):
        rows = [(f"i{n}", "da"[n % 2], generator.normal(5, 1), 1.0) for n in range(40)]
        found = contrast(made_up_kinds(*rows), resamples=60, seed=trial)
        outside += not found["null_low"] <= found["difference"] <= found["null_high"]
    assert 0 < outside / 80 <= 0.23  # 0.1 ± 4 standard errors


def test_the_null_of_a_contrast_is_centred_on_0_however_large_the_contrast():
    values = np.random.default_rng(0).normal(5, 1, 40)
    found = contrast(made_up_kinds(*((f"i{n}", "da"[n % 2], v + 9 * (n % 2), 1.0) for n, v in enumerate(values))),
                     resamples=1500)  # fmt: skip
    assert found["null_low"] == pytest.approx(-found["null_high"], abs=0.5)
    assert found["null_high"] < 4 < 8 < -found["difference"]


def test_exchange_keeps_the_numbers_of_each_kind_and_swaps_within_items_of_both():
    single = np.array([[1, 1, 0, 0], [2, 1, 0, 0], [3, 1, 0, 0], [0, 0, 4, 1], [0, 0, 5, 1]], dtype=float)
    both = np.array([[6, 1, 60, 10], [7, 1, 70, 10], [8, 1, 80, 10]], dtype=float)
    items, chooser, seen, flips = np.concatenate([single, both]), np.random.default_rng(0), set(), []
    for _ in range(300):
        found = _exchange(items, chooser)
        first, second = found[:5, 1] != 0, found[:5, 3] != 0
        assert first.sum() == 3 and (first != second).all()
        assert (found[:5, [0, 2]].sum(1) == [1, 2, 3, 4, 5]).all()  # an item keeps its own value
        for row, before in zip(found[5:], both, strict=True):
            assert row.tolist() in (before.tolist(), before[[2, 3, 0, 1]].tolist())
        seen.add(tuple(first))
        flips.append((found[5:] != both).any(1))
    assert len(seen) == 10  # all ways to choose 3 of 5
    assert (np.abs(np.mean(flips, axis=0) - 0.5) < 0.12).all() and np.all(flips, axis=1).mean() < 0.25
    assert (items == np.concatenate([single, both])).all()


def test_groups_of_a_contrast_are_each_their_own():
    table = pd.concat([SINGLE.assign(group="b"), SINGLE.assign(group="a", numerator=2 * SINGLE["numerator"])])
    found = contrasts(table, by=["group"], item="item_id", kinds=("d", "a"), **OPTIONS)
    assert found["group"].tolist() == ["a", "b"] and found["difference"].tolist() == pytest.approx([0.6, 0.3])
    assert found["low"].iloc[0] == pytest.approx(2 * found["low"].iloc[1])


def test_a_contrast_without_one_of_the_kinds_or_with_nan_is_refused():
    with pytest.raises(StatisticsError, match="none that is a"):
        contrast(SINGLE[SINGLE["kind"] == "d"])
    with pytest.raises(StatisticsError, match="1 of 5 rows are NaN"):
        contrast(SINGLE.assign(numerator=SINGLE["numerator"].where(SINGLE["item_id"] != "y")))


def by_layer(values: np.ndarray, scale: np.ndarray) -> pd.DataFrame:
    """One row per item and layer."""
    rows = [
        {"item_id": f"i{item:02}", "layer": layer, "numerator": value, "denominator": scale[item]}
        for (item, layer), value in np.ndenumerate(values)
    ]
    return pd.DataFrame(rows)


def test_layer_range_by_hand():
    table = by_layer(np.array([[1.0, 4.0, 1.0], [3.0, 0.0, 1.0]]), np.array([2.0, 6.0]))
    found = layer_range(table, item="item_id", **OPTIONS)
    # Means 2, 2 and 1 over a mean denominator of 4; the mean of the items' own ranges would be 3 / 4.
    assert found["estimate"] == pytest.approx(0.25)
    # One item alone gives (4 − 1) / 2 or (3 − 0) / 6, both together 0.25.
    assert (found["low"], found["high"]) == pytest.approx((0.25, 1.5))
    seeds = pd.concat([table.assign(numerator=table["numerator"] + 1), table.assign(numerator=table["numerator"] - 1)])
    assert layer_range(seeds, item="item_id", **OPTIONS) == pytest.approx(found)


def test_layers_exchanged_within_items_are_the_null_of_their_range():
    generator, outside = np.random.default_rng(6), 0
    for trial in range(80):
        values = generator.normal(1, 1, size=(25, 4)) + generator.normal(0, 5, size=(25, 1))
        found = layer_range(
            by_layer(values, np.full(25, 2.0)), item="item_id", **(OPTIONS | {"resamples": 80, "seed": trial})
        )
        outside += not found["null_low"] <= found["estimate"] <= found["null_high"]
    assert outside / 80 <= 0.23  # 0.1 + 4 standard errors
    values = generator.normal(1, 1, size=(25, 4)) + 3 * np.arange(4)
    found = layer_range(by_layer(values, np.full(25, 2.0)), item="item_id", **OPTIONS)
    assert found["estimate"] == pytest.approx(4.5, abs=0.6) and found["null_high"] < 2
    # Items that are alike at all layers have no range, however far they are apart.
    levels = np.repeat(generator.normal(0, 9, size=(25, 1)), 4, axis=1)
    flat = layer_range(by_layer(levels, np.full(25, 2.0)), item="item_id", **OPTIONS)
    assert list(flat.values()) == pytest.approx([0.0] * 5, abs=1e-9)


def test_a_layer_range_of_nan_or_of_items_without_a_layer_is_refused():
    table = by_layer(np.array([[1.0, 4.0], [3.0, 0.0]]), np.array([2.0, 6.0]))
    with pytest.raises(StatisticsError, match="1 of 4 rows are NaN"):
        layer_range(table.assign(numerator=[1.0, np.nan, 3.0, 0.0]), item="item_id", **OPTIONS)
    with pytest.raises(StatisticsError, match="1 of 2 items are not finite"):
        layer_range(table.iloc[:3], item="item_id", **OPTIONS)
