"""Windows of layers: measured as a plain sweep does, and compared with their layers by numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from tiny import LAYERS, random_pair, shared_model

from helpers import window_readings as readings
from helpers import windows
from helpers.drawings import curves
from helpers.metrics import with_effects
from helpers.noise import GaussianNoise
from helpers.patching import measure_runs, sweep
from helpers.plans import DIRECTIONS
from helpers.windows import WindowError, joint_and_sum, measure_windows, peak_ratio, peaks, position_ratios

MODEL = shared_model("gpt2", 0)
PAIRS = [random_pair("long", 6, seed=1, subject=(1, 2, 3)), random_pair("short", 3, seed=2)]
NOISES = [GaussianNoise(0.5, seed=seed) for seed in (0, 4)]
METRICS = ("logit_difference", "probability", "kl_divergence")
STATISTICS = {"resamples": 200, "confidence": 0.9, "seed": 3}
BY = ["corruption", "metric"]


@pytest.fixture(scope="module")
def measured():
    return measure_windows(
        MODEL,
        PAIRS,
        components=["mlp_out"],
        roles=["subject_middle", "subject_last", "last", "all"],
        windows=[2, 5],
        corruptions=[None, *NOISES],
        directions=DIRECTIONS,
        metrics=METRICS,
    )


def test_windows_are_those_of_a_sweep(measured):
    keys = ["pair", "layer", "role", "window", "direction", "metric"]
    for noise, directions in ((None, DIRECTIONS), (NOISES[1], DIRECTIONS[1:])):
        own = (
            measured["direction"].isin(directions)
            & measured["corruption"].eq("GN" if noise else "STR")
            & measured["draw"].eq(noise.seed if noise else 0)
        )
        options = {"components": ["mlp_out"], "metrics": METRICS, "corruption": noise}
        swept = pd.concat(
            sweep(MODEL, PAIRS, positions=positions, window=window, direction=direction, **options)
            for positions in ("roles", "all")
            for window in (1, 2, 5)
            for direction in directions
        )
        runs = measure_runs(MODEL, PAIRS, corruption=noise, metrics=METRICS)
        expected = pd.concat(with_effects(swept, runs, metric=name).assign(metric=name) for name in METRICS)
        expected = expected[~expected["role"].isin(["prefix", "subject_first", "relation"])]
        one, other = (
            table.set_index(keys)[["numerator", "denominator"]].sort_index() for table in (measured[own], expected)
        )
        pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=0, atol=2e-5)
        assert one["numerator"].abs().max() > 0.1
    assert set(measured["draw"]) == {0, 4} and measured["head"].isna().all()
    assert "subject_middle" not in set(measured.loc[measured["pair"] == "short", "role"])


def test_windows_cut_to_the_same_layers_are_patched_once(monkeypatch):
    asked = {}

    def stop(model, pairs, sets, **_):
        asked.update(sets)
        raise StopIteration

    monkeypatch.setattr(windows, "sweep_sets", stop)
    with pytest.raises(StopIteration):
        measure_windows(
            MODEL, PAIRS, components=["mlp_out"], roles=["all"], windows=[1, 3, 5, 10], corruptions=[None],
            directions=["denoising"], metrics=METRICS,
        )  # fmt: skip
    held = [tuple(site.layer for site in sites) for sites in asked.values()]
    assert sorted(held) == [(0,), (0, 1), (0, 1, 2), (1,), (1, 2), (2,)]  # a network of three layers has no others


def table(rows: dict, **constant) -> pd.DataFrame:
    """Effects by {(pair, window, layer): numerator or (numerator, denominator)}."""
    filled = [(*key, *(value if isinstance(value, tuple) else (value, 1.0))) for key, value in rows.items()]
    effects = pd.DataFrame(filled, columns=["pair", "window", "layer", "numerator", "denominator"])
    usual = {"corruption": "STR", "draw": 0, "direction": "denoising", "component": "mlp_out", "role": "subject_last"}
    return effects.assign(**usual | {"metric": "logit_difference"} | constant)


def grid(pair: str, single: list[float], joint: list[float], denominator: float = 1.0) -> dict:
    """Numerators of single layers and of windows of 3."""
    both = {1: single, 3: joint}
    return {(pair, window, layer): (n, denominator) for window in both for layer, n in enumerate(both[window])}


TWO = grid("p", [1, 2, 3, 4], [4, 6, 18, 7], 10) | grid("q", [3, 0, 1, 2], [4, 6, 12, 5], 6)


def test_joint_and_sum_by_hand():
    found = joint_and_sum(table(TWO), by=BY, **STATISTICS).set_index(["window", "layer"])
    # Means over pairs: single 2, 1, 2, 3; joint 4, 6, 15, 6; denominator 8. Windows: 0–1, 0–2, 1–3, 2–3.
    np.testing.assert_allclose(found.loc[3, "joint"], [4 / 8, 6 / 8, 15 / 8, 6 / 8])
    np.testing.assert_allclose(found.loc[3, "summed"], [3 / 8, 5 / 8, 6 / 8, 5 / 8])
    np.testing.assert_allclose(found.loc[3, "ratio"], [4 / 3, 6 / 5, 15 / 6, 6 / 5])
    # Two items have three resampled means, and the ends of the interval are those of one pair each.
    np.testing.assert_allclose(found.loc[(3, 2), ["low", "high"]].astype(float), [18 / 9, 12 / 3])
    assert found.loc[3, "layers"].tolist() == [2, 3, 3, 2] and set(found["pairs"]) == {2}
    assert found["defined"].tolist() == [True, False, *[True] * 6]  # single layer 1 does nothing in q
    np.testing.assert_allclose(found.loc[1, "joint"], found.loc[1, "summed"])
    np.testing.assert_allclose(found.loc[1, ["ratio", "low", "high"]], 1)


@pytest.mark.parametrize(("metric", "scale"), [("probability", 8), ("log_probability", 8), ("kl_divergence", -8)])
def test_other_metrics_keep_their_unit_and_divergence_counts_what_it_comes_nearer(metric, scale):
    plain = joint_and_sum(table(TWO), by=BY, **STATISTICS)
    other = joint_and_sum(table(TWO, metric=metric), by=BY, **STATISTICS)
    np.testing.assert_allclose(other[["joint", "summed"]], scale * plain[["joint", "summed"]])
    np.testing.assert_allclose(other[["ratio", "low", "high"]], plain[["ratio", "low", "high"]])


def test_draws_of_one_pair_are_averaged_first():
    many = table(TWO, draw=1)
    apart = pd.concat(
        [table(TWO).assign(numerator=many["numerator"] - 1), many.assign(numerator=many["numerator"] + 1)]
    )
    pd.testing.assert_frame_equal(
        joint_and_sum(apart, by=BY, **STATISTICS), joint_and_sum(many, by=BY, **STATISTICS)
    )  # fmt: skip


def test_a_site_that_does_nothing_has_no_ratio_and_a_denominator_around_zero_none_either():
    idle = {key: (0.0, denominator) for key, (_, denominator) in TWO.items()}
    found = joint_and_sum(table(idle), by=BY, **STATISTICS)
    assert found["ratio"].isna().all() and not found["defined"].any() and (found["joint"] == 0).all()
    around = grid("p", [1, 2, 3, 4], [4, 6, 18, 7], 10) | grid("q", [3, 0, 1, 2], [4, 6, 12, 5], -6)
    assert not joint_and_sum(table(around), by=BY, **STATISTICS)["defined"].any()
    other = joint_and_sum(table(around, metric="probability"), by=BY, **STATISTICS)
    assert other.loc[other["window"] == 3, "defined"].all()
    assert not peaks(table(grid("p", [1, 2], [3, 4])), by=BY, **STATISTICS)["defined"].any()  # a single pair


def test_peaks_by_hand_and_chosen_anew_in_every_resample():
    found = peaks(table(TWO), by=BY, **STATISTICS).set_index("window")
    row = found.loc[3]
    assert (row["joint_layer"], row["summed_layer"], row["layers"]) == (2, 2, 4)
    assert (row["joint"], row["summed"], row["ratio"]) == pytest.approx((15 / 8, 6 / 8, 15 / 6))
    assert (found.loc[1, "joint_layer"], found.loc[1, "joint"], found.loc[1, "ratio"]) == (3, 3 / 8, 1)
    # Of q alone the sum has its top elsewhere (3 + 0 + 1 around layer 1): 12 / 4, and not 12 / 3.
    assert (row["low"], row["high"]) == pytest.approx((18 / 9, 12 / 4))


def test_a_negative_denominator_turns_the_curve_and_is_no_unit():
    turned = {key: (-numerator, -denominator) for key, (numerator, denominator) in TWO.items()}
    one, other = (peaks(table(rows), by=BY, **STATISTICS) for rows in (TWO, turned))
    pd.testing.assert_frame_equal(one.drop(columns="defined"), other.drop(columns="defined"))
    assert one["defined"].all() and not other["defined"].any()


def test_the_tops_of_single_layers_stand_by_place_and_way():
    rows = pd.concat([table(TWO), table(TWO, corruption="GN"), table(TWO).assign(role="last")])
    rows = rows.assign(task="facts", component="mlp_out", direction="denoising")
    tops = peaks(rows, by=[*BY, "task", "component", "direction"], **STATISTICS)
    found = readings.single_layers(tops)
    assert found[["task", "role", "component"]].to_numpy().tolist() == [
        ["facts", "subject_last", "mlp_out"], ["facts", "last", "mlp_out"]
    ]  # fmt: skip
    assert found["STR, denoising"].tolist() == 2 * ["0.38, layer 3"]  # 3 / 8, as in window 1 above
    assert found["GN, denoising"].tolist() == ["0.38, layer 3", ""]


def test_position_ratios_are_of_pairs_that_have_both_roles():
    last = table(TWO | grid("only", [9, 9, 9, 9], [99, 99, 99, 99]))
    middle = table(grid("p", [1, 1, 1, 1], [2, 2, 2, 1], 10) | grid("q", [1, 1, 0, 0], [1, 0, 1, 1], 6))
    effects = pd.concat([last, middle.assign(role="subject_middle")])
    found = position_ratios(effects, by=BY, **STATISTICS).set_index("window")
    # Joint sums over layers: last 35 and 27, middle 7 and 3; their denominators 10 and 6.
    assert found.loc[3, ["last", "middle", "ratio"]].tolist() == pytest.approx([31 / 8, 5 / 8, 31 / 5])
    assert found.loc[3, ["low", "high"]].tolist() == pytest.approx([35 / 7, 27 / 3])
    assert found.loc[1, "ratio"] == pytest.approx(8 / 3) and set(found["pairs"]) == {2}
    with pytest.raises(WindowError, match="too short"):
        position_ratios(last, by=BY, **STATISTICS)


def test_the_ratio_of_two_corruptions_peaks_by_hand():
    noised = table(grid("q", [0, 2, 0], [3, 9, 2], 2) | grid("p", [0, 6, 2], [3, 3, 10], 4), corruption="GN")
    replaced = table(grid("p", [1, 0, 1], [1, 4, 2], 4) | grid("q", [1, 1, 0], [2, 0, 2], 4))
    row = peak_ratio(pd.concat([noised, replaced]), by=["metric"], role="subject_last", **STATISTICS).iloc[1]
    # Means: GN 3, 6, 6 over 3; STR 1.5, 2, 2 over 4. Alone, p has 10/4 over 4/4 and q has 9/2 over 2/4.
    assert (row["window"], row["GN_layer"], row["STR_layer"]) == (3, 1, 1)
    assert (row["GN"], row["STR"], row["ratio"]) == pytest.approx((2, 0.5, 4))
    assert (row["low"], row["high"]) == pytest.approx((2.5, 9)) and row["pairs"] == 2
    with pytest.raises(WindowError, match="STR is missing"):
        peak_ratio(noised, by=["metric"], role="subject_last", **STATISTICS)


def test_what_must_not_be_averaged_or_is_not_there_is_a_sentence():
    effects = table(TWO)
    with pytest.raises(WindowError, match=r"mix direction, .*put them into `by`"):
        peaks(pd.concat([effects, effects.assign(direction="noising")]), by=BY, **STATISTICS)
    for lacking in ("window == 3", "window == 3 or layer != 1", "pair == 'p' or layer != 2 or window != 1"):
        with pytest.raises(WindowError, match="lack a layer"):
            joint_and_sum(effects.query(lacking), by=BY, **STATISTICS)


def test_the_readings_hold_for_the_measured_table_and_for_single_layers(measured):
    denoised = measured[(measured["direction"] == "denoising") & (measured["role"] != "last")]
    at_last = denoised[denoised["role"] == "subject_last"]
    tops = peaks(at_last, by=BY, **STATISTICS)
    said = " ".join(readings.joint(tops).split())
    assert f"The network has {LAYERS} layers: a window of 5 is cut to them" in said and "Of 12 such ratios:" in said
    assert "there is no window" in readings.joint(tops[tops["window"] == 1])
    assert "windows of 5" in readings.single(tops)
    lines = readings.window_lines(joint_and_sum(at_last[at_last["metric"] == "probability"], by=BY, **STATISTICS))
    assert list(dict.fromkeys(lines["panel"])) == ["STR, 2 layers", "STR, 5 layers", "GN, 2 layers", "GN, 5 layers"]
    options = {"x": "layer", "y": "effect", "hue": "series", "facet": "panel", "unit": None, "mark": None}
    figure = curves(lines, ylabel="probability", xlabel="layer", **options)
    assert len(figure.axes) == 4 and all(len(axis.lines) == 2 for axis in figure.axes)
    ratios = position_ratios(denoised[denoised["window"] != 5], by=BY, **STATISTICS)
    assert "among prompts that have both (1)" in readings.positions(ratios[ratios["window"] == 2])
    over = peak_ratio(denoised, by=["metric"], role="subject_last", **STATISTICS)
    assert "at the last subject token" in readings.corruptions(over)


def ratio_rows(*rows) -> pd.DataFrame:
    """(corruption, metric, ratio, low, high) at windows of 3."""
    found = pd.DataFrame(rows, columns=["corruption", "metric", "ratio", "low", "high"])
    extra = {"window": 3, "layers": 6, "role": "all", "joint_layer": 2, "summed_layer": 3, "defined": True, "pairs": 7}
    return found.assign(**extra)


def test_the_readings_say_more_less_alike_or_open():
    rows = [("GN", "probability", 1.4, 1.2, 1.5), ("STR", "probability", 0.5, 0.4, 0.6),
            ("GN", "kl_divergence", 1.0, 0.95, 1.05), ("STR", "kl_divergence", 1.0, 0.5, 1.5)]  # fmt: skip
    said = " ".join(readings.joint(ratio_rows(*rows)).split())
    for words in ("1 clearly more than the sum", "1 clearly less", "1 within a tenth of it", "1 not decided"):
        assert words in said
    assert "GN, probability, window 3: 1.40 [1.20, 1.50], at layer 2 and 3" in said and "cut" not in said
    undefined = " ".join(readings.joint(ratio_rows(rows[0]).assign(defined=False)).split())
    assert "1 not decided" in undefined and "undefined (the interval" in undefined
    assert "at all positions together" in said
    assert "clearly higher top in 1 of 4 and the clearly lower one in 1" in readings.corruptions(ratio_rows(*rows))


@pytest.mark.parametrize(
    ("probability", "logits", "lesson"),
    [
        ((4.3, 4.0, 5.0), (1.2, 1.0, 1.4), "a larger part"),
        ((0.5, 0.4, 0.6), (1.2, 1.0, 1.4), "a smaller part"),
        ((1.3, 1.1, 2.0), (1.2, 1.0, 1.4), "overlap"),
    ],
)
def test_where_probability_leans(probability, logits, lesson):
    rows = ratio_rows(("STR", "probability", *probability), ("STR", "logit_difference", *logits))
    said = readings.positions(rows)
    assert f"{lesson}" in said and "Under symmetric replacement" in said and "(7)" in said
    assert "cannot be compared" in readings.positions(rows.assign(defined=False))
