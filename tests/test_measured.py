"""What is measured, in the form that the comparison with the published cells takes."""

import numpy as np
import pandas as pd
import pytest

from helpers.comparison import HEADS, NUMBERS, comparison
from helpers.detection import HeadScores, detect
from helpers.evidence import BY
from helpers.measured import compared_heads, compared_numbers
from helpers.zhang_nanda import JOINT, LD, PEAKS, POSITIONS, PROBABILITY, RUN, TO_IO, TO_S1, VALUES

OPTIONS = {"resamples": 100, "confidence": 0.9, "seed": 0}
PUBLISHED = {"IOI": "S2", "facts": "subject"}
BASELINES = pd.DataFrame(
    [
        ("IOI", "clean", "probability", 0.481, 0.4, 0.5, 100),
        ("IOI", "S2", "probability", 0.03, 0.02, 0.04, 100),
        ("IOI", "all names", "probability", 0.0005, 0.0004, 0.0006, 100),
        ("docstring", "clean", "accuracy", 0.1, 0.0, 0.2, 100),
    ],
    columns=["task", "run", "quantity", "estimate", "low", "high", "prompts"],
)


def scores_of(groups: dict[tuple, list]) -> HeadScores:
    """Scores of ten heads by group: the estimate, then every resample."""
    table = pd.concat(
        pd.DataFrame({"layer": 9, "head": range(10), "score": values[0], "defined": True}).assign(
            **dict(zip(BY, key, strict=True))
        )
        for key, values in groups.items()
    ).reset_index(drop=True)
    resampled = np.concatenate([np.array(v[1:], float) for v in groups.values()], axis=1)
    return HeadScores(table, BY, resampled, np.stack(2 * [resampled]), np.zeros((2, len(groups))), 0.9)


def one(head: int, sign: int) -> list:
    return [sign * (place == head) for place in range(10)]


def test_heads_have_a_row_for_each_sign_with_the_share_of_resamples():
    key = ("IOI", "S2", "STR", "denoising", LD)
    groups = {
        (*key[:3], "noising", LD): [one(7, 1)] * 5,
        key: [one(2, 1), one(2, 1), one(2, -1), one(3, 1), one(2, 1)],
        (*key[:2], "GN", *key[3:]): [one(4, -1)] * 5,
    }
    scores = scores_of(groups)
    table = compared_heads(scores, detect(scores), model="gpt2", role="all")
    assert table.columns.tolist() == HEADS and len(table) == 40
    assert set(table["model"]) == {"gpt2"} and set(table["role"]) == {"all"}
    said = table.set_index(["corruption", "sign", "head"])[["detected", "stability"]]
    assert said.loc["STR", "positive", 2].tolist() == [True, 0.5]
    assert said.loc["STR", "negative", 2].tolist() == [False, 0.25]
    assert said.loc["STR", "positive", 3].tolist() == [False, 0.25]
    assert said.loc["GN", "negative", 4].tolist() == [True, 1.0]
    assert said["detected"].sum() == 2 and said["stability"].sum() == 2


def numbers(**tables) -> pd.DataFrame:
    table = compared_numbers(model="gpt2", published=PUBLISHED, **{"baselines": BASELINES} | tables, **OPTIONS)
    assert table.columns.tolist() == NUMBERS
    comparison(table, pd.DataFrame(columns=HEADS))  # raises on a quantity that no cell has
    return table


def told(table: pd.DataFrame) -> dict[tuple, tuple]:
    names = ["task", "corruption", "tokens", "metric", "quantity"]
    return {tuple(row[names]): tuple(row[["estimate", "low", "high"]]) for _, row in table.iterrows()}


def test_runs_without_patches():
    assert told(numbers()) == {
        ("IOI", "none", "none", PROBABILITY, RUN): (0.481, 0.4, 0.5),
        ("IOI", "STR", "S2", PROBABILITY, RUN): (0.03, 0.02, 0.04),
        ("IOI", "STR", "all names", PROBABILITY, RUN): (0.0005, 0.0004, 0.0006),
        ("docstring", "none", "none", "accuracy", RUN): (0.1, 0.0, 0.2),
    }
    assert numbers(baselines=BASELINES.head(0)).empty


def test_noise_is_averaged_over_draws_before_prompts():
    rows = [("p0", 0.0), ("p0", 0.1), ("p0", 0.2), ("p1", 0.3)]
    noised = pd.DataFrame(rows, columns=["pair", "probability"]).assign(task="IOI", tokens="S2", run="corrupted")
    clean = noised.assign(run="clean", probability=0.9)
    table = numbers(baselines=BASELINES.head(0), noised=pd.concat([noised, clean]))
    ((place, found),) = told(table).items()
    assert place == ("IOI", "GN", "S2", PROBABILITY, RUN) and found == pytest.approx((0.2, 0.1, 0.3))


def test_attention_and_values():
    attention = pd.DataFrame(
        [(run, role, 0.1 * i) for i, (run, role) in enumerate(
            (run, role) for run in ("clean", "STR", "STR, restored", "GN") for role in ("IO", "S1", "S2", "other"))],
        columns=["run", "role", "share"],
    ).assign(low=0.0, high=1.0)  # fmt: skip
    restored = pd.DataFrame(
        {"corruption": ["STR", "GN"], "recovery": [1.04, 7.0], "low": [1.0, 6.0], "high": [1.1, 8.0]}
    ).assign(defined=[True, False])
    found = told(numbers(baselines=BASELINES.head(0), attention=attention, restored=restored))
    shares = {place: values[0] for place, values in found.items() if place[3] == "attention"}
    assert shares == {
        ("IOI", corruption, tokens, "attention", quantity): pytest.approx(0.1 * number)
        for corruption, tokens, quantity, number in (
            ("none", "none", TO_IO, 0), ("none", "none", TO_S1, 1), ("STR", "S2", TO_IO, 4), ("STR", "S2", TO_S1, 5),
            ("GN", "S2", TO_IO, 12), ("GN", "S2", TO_S1, 13),
        )
    }  # fmt: skip
    assert found["IOI", "STR", "S2", LD, VALUES] == (1.04, 1.0, 1.1)
    assert np.isnan(found["IOI", "GN", "S2", LD, VALUES]).all()
    assert numbers(baselines=BASELINES.head(0), attention=attention.head(0)).empty


def test_windows_are_the_published_ones():
    ratios = pd.DataFrame({"window": [1, 3, 5, 10, 4], "ratio": [1.0, 1.4, 1.75, 1.59, 9.0]}).assign(
        task="facts", corruption="GN", metric=PROBABILITY, low=0.0, high=9.0, defined=True
    )
    noise = ratios.drop(columns="corruption")
    found = told(numbers(baselines=BASELINES.head(0), positions=ratios, tops=ratios, over_noise=noise))
    assert found == {
        ("facts", "GN", "subject", PROBABILITY, POSITIONS): (1.75, 0.0, 9.0),
        ("facts", "GN", "subject", PROBABILITY, JOINT.format(3)): (1.4, 0.0, 9.0),
        ("facts", "GN", "subject", PROBABILITY, JOINT.format(5)): (1.75, 0.0, 9.0),
        ("facts", "GN", "subject", PROBABILITY, JOINT.format(10)): (1.59, 0.0, 9.0),
        ("facts", "GN over STR", "subject", PROBABILITY, PEAKS): (1.75, 0.0, 9.0),
    }
    undefined = told(numbers(baselines=BASELINES.head(0), positions=ratios.assign(defined=False)))
    assert np.isnan(list(undefined.values())).all()


def test_a_comparison_reads_what_was_measured():
    ratios = pd.DataFrame({"window": [5], "ratio": [1.75], "low": [1.7], "high": [1.8], "defined": [True]})
    ratios = ratios.assign(task="facts", corruption="GN", metric=PROBABILITY)
    table = compared_numbers(model="gpt2-xl", published=PUBLISHED, baselines=BASELINES, tops=ratios, **OPTIONS)
    heads = scores_of({("greater-than", "YY", "STR", "denoising", LD): [one(1, 1)] * 3})
    heads = compared_heads(heads, detect(heads), model="gpt2", role="all")
    found = comparison(pd.concat([table, numbers()]), heads)
    cells = found[found["agrees"] != "not run"]
    assert cells["quantity"].str.startswith("peak").sum() == 1 and (cells["quantity"] == RUN).sum() == 3
    assert set(cells["agrees"]) == {"yes"}
