"""Lessons: every sentence in each of its branches, on made tables, and its numbers are the tables'."""

import pandas as pd

from helpers import lessons

NAN = float("nan")


def said(text: str) -> str:
    return " ".join(text.split())


def detected_of(*rows) -> pd.DataFrame:
    """Rows of (metric, head, detected, stability)."""
    table = pd.DataFrame(rows, columns=["metric", "head", "detected", "stability"])
    return table.assign(layer=9, score=table["detected"] * 0.5, defined=True)


def test_detection_names_what_all_find_and_what_one_finds():
    table = detected_of(
        ("kl_divergence", 1, 1, 1.0), ("kl_divergence", 2, -1, 0.4), ("kl_divergence", 10, 1, 0.96),
        ("probability", 1, 1, 0.95), ("probability", 2, 1, 0.94), ("probability", 10, 0, 0.1),
    )  # fmt: skip
    text = said(lessons.detection(table, by=["metric"]))
    assert (
        "by all 2 methods: 9.1+; by one alone: 9.2−, 9.10+, 9.2+." in text
    )  # a head of either sign is found by neither
    assert "Of 5 detections, 3 come about again in at least 95 % of resamples" in text
    assert "the least certain is 9.2− by KL divergence (40 %)." in text and "no unit" not in text


def test_detection_of_one_method_of_none_and_of_what_is_undefined():
    one = detected_of(("probability", 1, 1, 1.0), ("probability", 2, 0, 1.0))
    text = said(lessons.detection(one, by=["metric"]))
    assert "by the one method: 9.1+. Of 1 detection, 1 come" in text and "alone" not in text
    nothing = one.assign(detected=0)
    assert lessons.detection(nothing, by=["metric"]) == "No head stands out by the one method."
    two = pd.concat([nothing, nothing.assign(metric="rank")])
    assert lessons.detection(two, by=["metric"]) == "No head stands out by any of the methods."
    undefined = said(lessons.detection(one.assign(defined=False), by=["metric"]))
    assert "includes 0, so that scores have no unit, for probability." in undefined


def test_thresholds_tell_what_is_left():
    rows = [("kl_divergence", 1, 6, 3, 1.0), ("kl_divergence", 2, 3, 1, 1.0), ("kl_divergence", 3.5, 1, 0, 0.25),
            ("probability", 1, 0, 1, NAN), ("probability", 2, 0, 0, NAN), ("probability", 3.5, 0, 0, NAN)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["metric", "deviations", "positive", "negative", "kept"])
    text = said(lessons.thresholds(table, by=["metric"]))
    assert "from 1 to 3.5 standard deviations: KL divergence 9 → 1 (25 % of those at 2); probability 1 → 0." in text


def scores_of(metric, scores, deviations, *, draws=3) -> pd.DataFrame:
    table = pd.DataFrame({"score": scores, "draw_deviation": deviations, "head": range(len(scores))})
    return table.assign(metric=metric, layer=4, draws=draws)


def test_draws_are_in_the_unit_of_detection():
    several = scores_of("probability", [-1.0, 1.0, -1.0, 1.0], [0.1, 0.3, 0.2, 0.2])
    once = scores_of("rank", [1.0, 2.0], [NAN, NAN], draws=1)
    text = said(lessons.draws(pd.concat([several, once]), by=["metric"]))
    assert "probability: median 0.20, most 0.30 (head 4.1), 3 draws. Methods drawn once are left out." in text
    doubled = several.assign(score=2 * several["score"])
    assert "median 0.10, most 0.15" in said(lessons.draws(doubled, by=["metric"]))
    assert "left out" not in lessons.draws(several, by=["metric"])
    assert "cannot say" in lessons.draws(once, by=["metric"])
    assert "all heads alike" in lessons.draws(several.assign(score=1.0), by=["metric"])


def agreements(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["task", "first", "second", "rank_correlation", "jaccard"])


def test_agreement_names_the_ends():
    table = agreements(("IOI", "a", "b", 0.9, NAN), ("IOI", "a", "c", -0.001, 0.25), ("sums", "b", "c", 0.5, 0.75))
    text = said(lessons.agreement(table, by=["task"]))
    assert "Over 3 comparisons of two methods, rank correlation: median 0.50, from 0.00 (a and c, IOI) to 0.90" in text
    assert "index of the detected sets: median 0.50, from 0.25 (a and c, IOI) to 0.75 (b and c, sums)." in text
    assert "In 1 of them neither method detects a head" in text


def test_agreement_of_two_methods_of_one_and_of_sets_that_are_empty():
    text = said(lessons.agreement(agreements(("IOI", "a", "b", 0.9, NAN))))
    assert "Over 1 comparison of two methods, rank correlation: 0.90 (a and b); Jaccard" in text
    assert "sets: undefined for all. In 1 of them" in text and "median" not in text
    assert "In " not in lessons.agreement(agreements(("IOI", "a", "b", 0.9, 0.0)))
    assert "nothing it could agree with" in lessons.agreement(agreements())


def floors_of(*rows) -> pd.DataFrame:
    names = ["corruption", "corrupted_probability", "threshold_low", "lowest", "lowest_head", "missed", "out_of_reach"]
    return pd.DataFrame(rows, columns=names)


def test_the_floor_tells_what_is_out_of_reach():
    low, high = ("STR", 0.02, -0.03, -0.0199, "9.1", "9.1, 9.2", True), ("GN", 0.2, -0.03, -0.1, "9.3", "", False)
    text = said(lessons.floor(floors_of(low, high), by=["corruption"]))
    assert (
        "STR: no effect can be below -0.02, the threshold is -0.03, the lowest head 9.1 has -0.02; missed: 9.1, 9.2."
        in text
    )
    assert "the lowest head 9.3 has -0.1; no negative head of another metric is missed." in text
    assert "In 1 of 2 cases the threshold lies below what is possible" in text
    assert "In 0 of 1 case the" in said(lessons.floor(floors_of(high), by=["corruption"]))


def baselines_of(*rows) -> pd.DataFrame:
    """Rows of (task, run, quantity, estimate, low, high)."""
    return pd.DataFrame(rows, columns=["task", "run", "quantity", "estimate", "low", "high"])


def test_tasks_tell_what_is_done_what_is_left_and_what_was_passed_over():
    quantities = {"preference": (0.75, 0.6, 0.9), "accuracy": (0.5, 0.4, 0.6), "probability": (0.48, 0.4, 0.5)}
    rows = [("IOI", "clean", name, *values) for name, values in quantities.items()]
    rows += [("IOI", "S2", "probability", 0.03, 0.0, 0.1), ("sums", "X3", "probability", 0.2, 0.1, 0.3)]
    rows += [("sums", "clean", name, 0.5, 0.4, 0.6) for name in quantities]
    refused = {"IOI": pd.DataFrame({"reason": ["a", "b"], "count": [2, 3]}), "sums": pd.DataFrame(columns=["count"])}
    text = said(lessons.tasks(baselines_of(*rows), refused))
    assert "IOI: it prefers the right answer in 75 % of prompts [60 %, 90 %] and ranks it first in 50 %" in text
    assert "P(r) is 0.48, and with tokens replaced 0.03 (S2)." in text and "0.2 (X3). Not done" in text
    assert "Not done: IOI, by the bars" in text and text.endswith("of the profile: 5 for IOI.")
    better = [("IOI", "clean", name, 0.95, 0.9, 1.0) for name in quantities]
    assert said(lessons.tasks(baselines_of(*better, rows[3]), {})).endswith("All are done.")
