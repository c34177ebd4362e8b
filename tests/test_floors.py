"""The floor of the probability: by hand, on tables of two corruptions."""

import pandas as pd
import pytest

from helpers.detection import DetectionError
from helpers.floors import floor_dots, probability_floor

BY = ["tokens", "corruption"]


def detected_of(metric, corruption, detected, scores, low, *, direction="denoising", draws=2) -> pd.DataFrame:
    table = pd.DataFrame({"score": scores, "detected": detected, "head": range(len(scores))})
    return table.assign(
        metric=metric, corruption=corruption, tokens="S2", direction=direction, layer=3, pairs=2, draws=draws,
        mean=0.01, deviation=0.02, threshold_low=low, threshold_high=0.05,
    )  # fmt: skip


def tables() -> list[pd.DataFrame]:
    return [
        detected_of("probability", "STR", [0, 0, 1], [-0.02, 0.0, 0.3], -0.03),
        detected_of("logit_difference", "STR", [-1, 0, 1], [-0.4, 0.1, 0.5], -0.2),
        detected_of("kl_divergence", "STR", [0, -1, 1], [-0.1, -0.5, 0.9], -0.3),
        detected_of("probability", "GN", [-1, 0, 1], [-0.2, 0.0, 0.3], -0.03),
        detected_of("logit_difference", "GN", [-1, 0, 1], [-0.4, 0.1, 0.5], -0.2),
        detected_of("kl_divergence", "GN", [-1, 0, 1], [-0.4, -0.1, 0.5], -0.2),
        detected_of("logit_difference", "STR", [0, -1, -1], [0.0, -5, -9.0], -0.2, direction="noising"),
    ]


def runs_of(levels: dict[str, list]) -> pd.DataFrame:
    """Two pairs in two draws each: corrupted runs at the given levels, clean runs far above."""
    rows = [
        ("S2", corruption, f"p{number // 2}", number % 2, run, level if run == "corrupted" else 0.9)
        for corruption, values in levels.items()
        for number, level in enumerate(values)
        for run in ("clean", "corrupted")
    ]
    return pd.DataFrame(rows, columns=[*BY, "pair", "draw", "run", "probability"])


RUNS = runs_of({"STR": [0.01, 0.02, 0.02, 0.03], "GN": [0.1, 0.3, 0.2, 0.4]})


def test_the_floor_is_the_mean_corrupted_probability_and_tells_what_it_hides():
    found = probability_floor(pd.concat(tables()), RUNS, by=BY).set_index("corruption")
    assert found["corrupted_probability"].tolist() == pytest.approx([0.02, 0.25])
    assert found["out_of_reach"].tolist() == [True, False]  # −0.03 lies below −0.02, and not below −0.25
    assert found["lowest"].tolist() == [-0.02, -0.2] and found["lowest_head"].tolist() == ["3.0", "3.0"]
    assert found["threshold_low"].tolist() == [-0.03, -0.03] and found["deviation"].tolist() == [0.02, 0.02]
    assert found["negative"].tolist() == ["", "3.0"]
    assert found["negative_logit_difference"].tolist() == ["3.0", "3.0"]
    assert found["negative_kl_divergence"].tolist() == ["3.1", "3.0"]
    assert found["missed"].tolist() == ["3.0, 3.1", ""]


def test_a_metric_that_was_not_measured_is_absent():
    found = probability_floor(pd.concat([tables()[0], tables()[1]]), RUNS, by=BY)
    assert "negative_kl_divergence" not in found and found["missed"].tolist() == ["3.0"]
    alone = probability_floor(tables()[3], RUNS, by=BY)
    assert alone["missed"].tolist() == [""] and alone["negative"].tolist() == ["3.0"]


@pytest.mark.parametrize(
    ("detected", "runs", "message"),
    [
        (tables()[1], RUNS, "no denoising effect by probability"),
        (tables()[0].assign(direction="noising"), RUNS, "no denoising effect by probability"),
        (pd.concat([tables()[0], tables()[4]]), RUNS, "S2, GN has no effect by probability"),
        (tables()[0], RUNS[RUNS["corruption"] == "GN"], "the runs have 0 pairs with 0 corrupted runs"),
        (tables()[0], RUNS[RUNS["draw"] == 0], "the runs have 2 pairs with 2 corrupted runs"),
        (tables()[0], RUNS[RUNS["pair"] == "p1"], "the runs have 1 pairs with 2 corrupted runs"),
    ],
)
def test_tables_without_a_floor(detected, runs, message):
    with pytest.raises(DetectionError, match=message):
        probability_floor(detected, runs, by=BY)


def test_the_dots_are_the_heads_of_both_metrics_with_the_floor_of_one():
    detected = pd.concat(tables())
    dots = floor_dots(detected, probability_floor(detected, RUNS, by=BY), by=BY)
    assert len(dots) == 12  # no KL, no noising
    probability = dots[dots["metric"] == "probability"]
    assert dots["metric"].iat[0] == "probability" and dots["method"].unique().tolist() == ["S2 · STR", "S2 · GN"]
    assert probability.groupby("method")["floor"].first().to_dict() == pytest.approx(
        {"S2 · STR": -0.02, "S2 · GN": -0.25}
    )
    assert dots.loc[dots["metric"] != "probability", "floor"].isna().all()
    # Head 3.0 is the one that logit difference detects as negative when denoising, and so it is in all four panels.
    assert dots.loc[dots["marked"], ["layer", "head"]].to_numpy().tolist() == [[3, 0]] * 4
