"""Evidence resampled over prompts: by hand where every prompt is alike, else beside the functions it restates."""

import numpy as np
import pandas as pd
import pytest

from helpers import windows
from helpers.prompt_evidence import attention_evidence, restoration_evidence, window_evidence
from helpers.stats import bootstrap_interval, contrasts
from helpers.verdicts import EVIDENCE, readings

OPTIONS = {"resamples": 200, "confidence": 0.9, "seed": 3}
LD, PROBABILITY = "logit_difference", "probability"


def shares_of(levels: dict[tuple, list]) -> pd.DataFrame:
    """Shares by {(corruption, role): one value per prompt}, of two heads and two draws around each value."""
    rows = [
        (f"p{number}", corruption, draw, False, 9, head, role, value + 0.01 * (-1) ** draw + 0.02 * (-1) ** head)
        for (corruption, role), values in levels.items()
        for number, value in enumerate(values)
        for draw in (0, 1)
        for head in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["pair", "corruption", "draw", "restored", "layer", "head", "role", "share"])


SHARES = {
    ("clean", "IO"): [0.9] * 3,
    ("STR", "IO"): [0.1, 0.1, 0.1],
    ("STR", "S1"): [0.5, 0.6, 0.7],
    ("GN", "IO"): [0.3, 0.3, 0.3],
    ("GN", "S1"): [0.3, 0.2, 0.1],
    ("GN", "S2"): [0.8] * 3,
}


def test_attention_is_that_to_the_name_which_has_most():
    shares = shares_of(SHARES)
    restored = shares[shares["corruption"] == "STR"].assign(restored=True, share=0.99)
    (row,) = attention_evidence(pd.concat([shares, restored]), **OPTIONS).to_dict("records")
    assert (row["key"], row["task"], row["estimate"]) == ("attention_lost_to_gn", "IOI", pytest.approx(0.6 - 0.3))
    items = np.array([[SHARES[place][n] for place in list(SHARES)[1:5]] for n in range(3)])
    interval = bootstrap_interval(items, lambda m: m[..., :2].max(-1) - m[..., 2:].max(-1), **OPTIONS)
    assert (row["low"], row["high"]) == pytest.approx(interval) and row["low"] < 0.28 < 0.32 < row["high"]


def test_a_name_is_chosen_for_all_prompts_together():
    levels = {("clean", "IO"): [1, 1], ("STR", "IO"): [1, 0], ("STR", "S1"): [0, 1]}
    levels |= {("GN", "IO"): [0, 0], ("GN", "S1"): [0, 0]}
    (row,) = attention_evidence(shares_of(levels), **OPTIONS).to_dict("records")
    assert row["estimate"] == pytest.approx(0.5)  # and not 1, the mean of each prompt's larger share


def test_no_movers_and_no_noise_have_no_attention():
    shares = shares_of(SHARES)
    idle = shares_of(SHARES | {("clean", "S1"): [0.85] * 3})  # they hardly prefer IO to S1
    for none in (shares.head(0), shares[shares["corruption"] != "GN"], idle):
        table = attention_evidence(none, **OPTIONS)
        assert table.empty and table.columns.tolist() == EVIDENCE


def restored_of(**numerators) -> pd.DataFrame:
    rows = [
        (f"p{number}", corruption, draw, value + draw, 2.0 + number)
        for corruption, values in numerators.items()
        for number, value in enumerate(values)
        for draw in ((0,) if corruption == "STR" else (-1, 1))
    ]
    return pd.DataFrame(rows, columns=["pair", "corruption", "draw", "numerator", "denominator"])


def test_values_are_ratios_of_means_of_the_same_prompts():
    restored = restored_of(STR=[2.0, 5.0, 4.0], GN=[1.0, 2.0, 0.0])
    (row,) = restoration_evidence(restored, 4, **OPTIONS).to_dict("records")
    assert row["key"] == "values_lost_to_gn" and row["detail"] == "values of 4 heads"
    assert row["estimate"] == pytest.approx(11 / 9 - 3 / 9)
    table = restored.assign(task="IOI", kind=restored["corruption"])
    (found,) = contrasts(table, by=["task"], item="pair", kinds=("STR", "GN"), **OPTIONS).to_dict("records")
    assert (row["low"], row["high"]) == pytest.approx((found["low"], found["high"])) and row["low"] < row["high"]


def test_values_without_heads_noise_or_a_difference_have_no_interval():
    restored = restored_of(STR=[2.0, 5.0, 4.0], GN=[1.0, 2.0, 0.0])
    assert restoration_evidence(restored, 0, **OPTIONS).empty
    assert restoration_evidence(restored[restored["corruption"] == "STR"], 4, **OPTIONS).empty
    for corruption in ("STR", "GN"):
        lost = restored["denominator"].where(restored["corruption"] != corruption, [1, -1, 1] + [1, 1, -1, -1, 1, 1])
        (row,) = restoration_evidence(restored.assign(denominator=lost), 4, **OPTIONS).to_dict("records")
        assert np.isnan([row["low"], row["high"]]).all()
    (row,) = restoration_evidence(restored[restored["pair"] == "p0"], 4, **OPTIONS).to_dict("records")
    assert np.isnan(row["low"]) and row["estimate"] == pytest.approx(0.5)


def effects_of(values: dict[tuple, list], *, unit=4.0, spread=0.0, **constant) -> pd.DataFrame:
    """Effects by {(corruption, metric, role, window): value per layer}, of three prompts around it, in two draws."""
    rows = [
        (f"p{number}", draw, *place, layer, value * (1 + spread * (number - 1)) + 0.1 * (-1) ** draw, unit)
        for place, layers in values.items()
        for layer, value in enumerate(layers)
        for number in range(3)
        for draw in (0, 1)
    ]
    names = ["pair", "draw", "corruption", "metric", "role", "window", "layer", "numerator", "denominator"]
    usual = {"task": "facts", "component": "mlp_out", "direction": "denoising"}
    return pd.DataFrame(rows, columns=names).assign(**usual | constant)


LAST, MIDDLE, ROLES = "subject_last", "subject_middle", {"facts": "subject_last"}
VALUES = {
    ("STR", LD, LAST, 1): [1, 2, 1],
    ("STR", LD, LAST, 3): [6, 5, 4],
    ("STR", PROBABILITY, LAST, 1): [0.5, 0.25, 0.5],
    ("STR", PROBABILITY, LAST, 3): [1.0, 2.5, 1.0],
    ("GN", LD, LAST, 1): [5, 2, 1],
    ("STR", LD, MIDDLE, 1): [9, 9, 9],
    ("STR", LD, MIDDLE, 3): [5, 3, 2],
    ("STR", PROBABILITY, MIDDLE, 1): [9, 9, 9],
    ("STR", PROBABILITY, MIDDLE, 3): [0.25, 0.5, 0.25],
}
VALUES = {place: [*of_layers, 0, 0, 0] for place, of_layers in VALUES.items()}  # a window is half of them at most


def found_in(effects: pd.DataFrame, *, focus_window=3, roles=ROLES) -> dict[tuple, dict]:
    table = window_evidence(effects, roles=roles, focus_window=focus_window, **OPTIONS)
    assert len(readings(table)) >= len(table)  # its columns and keys are those that verdicts read
    return {(row["key"], row["detail"]): row for row in table.to_dict("records")}


def test_windows_by_hand():
    found = found_in(effects_of(VALUES))
    assert {place: pytest.approx(row["estimate"]) for place, row in found.items()} == {
        ("joint_over_sum", "STR, 3 layers"): 6 / 4,
        ("gn_over_str_peak", "MLPs, subject last"): 5 / 2,
        ("single_layer_peak", "STR, MLPs, subject last"): 2 / 4,
        ("single_layer_peak", "GN, MLPs, subject last"): 5 / 4,
        ("probability_over_ld_focus", "STR, 3 layers"): (4.5 / 1) / (15 / 10),
    }
    assert all(row["low"] == pytest.approx(row["estimate"]) == pytest.approx(row["high"]) for row in found.values())
    assert ("probability_over_ld_focus", "STR, 1 layers") in found_in(effects_of(VALUES), focus_window=1)


def test_only_what_is_asked_is_read():
    noise = [effects_of(VALUES, **other) for other in ({"component": "attn_out"}, {"direction": "noising"})]
    noise = pd.concat([*noise, effects_of({("STR", "kl_divergence", LAST, 3): [7] * 6})])
    extra = noise.assign(numerator=77.0)
    assert found_in(pd.concat([effects_of(VALUES), extra])) == found_in(effects_of(VALUES))
    assert (
        found_in(effects_of(VALUES), roles={"IOI": "S2"}) == {} == found_in(effects_of(VALUES), roles={"facts": "YY"})
    )


def test_what_is_missing_has_no_row():
    keys = {key for key, _ in found_in(effects_of(VALUES))}
    for place, gone in {
        ("STR", PROBABILITY, MIDDLE, 3): "probability_over_ld_focus",
        ("STR", LD, MIDDLE, 3): "probability_over_ld_focus",
        ("GN", LD, LAST, 1): "gn_over_str_peak",
    }.items():
        kept = {other: value for other, value in VALUES.items() if other != place}
        assert keys - {key for key, _ in found_in(effects_of(kept))} == {gone}
    single = {place: value for place, value in VALUES.items() if place[-1] == 1}
    assert "joint_over_sum" not in {key for key, _ in found_in(effects_of(single))}


def test_a_window_that_is_most_of_the_network_has_no_row():
    cut = {place: of_layers[:5] for place, of_layers in VALUES.items()}
    assert "joint_over_sum" not in {key for key, _ in found_in(effects_of(cut))}


def test_a_single_layers_top_is_taken_anew_in_every_resample():
    effects = effects_of({("STR", LD, LAST, 1): [1, 1, 0]})
    first, own = effects["layer"] == 0, effects["pair"] == "p0"
    effects.loc[first & own, "numerator"] += 3
    effects.loc[~first & ~own, "numerator"] += 1
    row = found_in(effects)["single_layer_peak", "STR, MLPs, subject last"]
    items = np.array([[4, 1, 0, 4], [1, 2, 1, 4], [1, 2, 1, 4]])
    assert row["estimate"] == pytest.approx(2 / 4)
    interval = bootstrap_interval(items, lambda m: m[..., :3].max(-1) / m[..., 3], **OPTIONS)
    assert (row["low"], row["high"]) == pytest.approx(interval) and row["low"] >= 2 / 4 - 1e-9 < row["high"]


def test_the_focus_is_of_the_prompts_that_have_middle_tokens_and_drawn_together():
    effects = effects_of(VALUES, spread=0.5)
    short = effects["pair"] == "p2"
    effects.loc[short & (effects["metric"] == PROBABILITY), "numerator"] *= 3
    effects = effects[~(short & (effects["role"] == MIDDLE))]
    row = found_in(effects)["probability_over_ld_focus", "STR, 3 layers"]
    two = windows.position_ratios(effects[effects["corruption"] == "STR"], by=["metric"], **OPTIONS)
    by = two[two["window"] == 3].set_index("metric")["ratio"]
    assert row["estimate"] == pytest.approx(by[PROBABILITY] / by[LD])
    assert row["low"] == pytest.approx(row["estimate"]) == pytest.approx(row["high"])  # the spread is common to all


@pytest.mark.parametrize("place", [(PROBABILITY, MIDDLE), (LD, LAST), (LD, MIDDLE)])
def test_a_focus_over_what_is_not_told_from_nothing_has_no_interval(place):
    effects = effects_of(VALUES)
    metric, role = place
    at = (effects["metric"] == metric) & (effects["role"] == role) & (effects["window"] == 3)
    effects.loc[at & (effects["pair"] == "p1"), "numerator"] *= -1.5
    row = found_in(effects)["probability_over_ld_focus", "STR, 3 layers"]
    assert np.isnan([row["low"], row["high"]]).all()


def test_effects_without_a_unit_have_no_interval():
    effects = effects_of(VALUES)
    effects.loc[effects["pair"] == "p1", "denominator"] *= -1.5
    found = found_in(effects)
    for key in ("single_layer_peak", "gn_over_str_peak", "joint_over_sum"):
        rows = [row for (name, detail), row in found.items() if name == key and "probability" not in detail]
        assert rows and all(np.isnan(row["low"]) and np.isnan(row["high"]) for row in rows)
