"""Evidence read off the scores of heads: every key by hand, and the lost overlap beside a literal loop."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from helpers.detection import HeadScores, signs
from helpers.evidence import BY, evidence_table, floor_evidence, head_evidence, method_evidence, missed_evidence
from helpers.verdicts import EVIDENCE, EvidenceError, readings

CONFIDENCE, HEADS = 0.9, 24
STR, GN = ("S2", "STR", "denoising"), ("S2", "GN", "denoising")
LD, KL, PROBABILITY = "logit_difference", "kl_divergence", "probability"
S2 = {"IOI": "S2"}


def heads(*signed: int, height: float = 1.0) -> np.ndarray:
    """Scores of 24 heads: those named are detected, as negative with a minus, and all others score 0."""
    scores = np.zeros(HEADS)
    for head in signed:
        scores[abs(head)] = height * np.sign(head)
    return scores


def scores_of(groups: dict[tuple, list], *, by=BY, undefined=(), task="IOI") -> HeadScores:
    """Scores by group: the estimate, then every resample; a group has as many resamples as any other."""
    parts = [
        pd.DataFrame({"layer": np.arange(len(values[0])) // 12, "head": np.arange(len(values[0])) % 12})
        .assign(score=values[0], defined=key not in undefined)
        .assign(**dict(zip(by, (task, *key), strict=True)))
        for key, values in groups.items()
    ]
    resampled = np.concatenate([np.array(values[1:], float) for values in groups.values()], axis=1)
    halves = np.stack([resampled, np.roll(resampled, -1, axis=0)])  # the next resample stands for the other half
    counts = np.column_stack([(signs(np.array(values, float), 2.0) != 0).sum(-1) for values in groups.values()])
    return HeadScores(pd.concat(parts, ignore_index=True), tuple(by), resampled, halves, counts, CONFIDENCE)


def ends(*values: float) -> list:
    return pytest.approx(np.quantile(values, [0.05, 0.95]).tolist())


def row_of(table: pd.DataFrame, key: str, detail: str | None = None) -> dict:
    found = table[(table["key"] == key) & ((table["detail"] == detail) | (detail is None))]
    (row,) = found.to_dict("records")
    return row | {"ends": [row["low"], row["high"]]}


def test_the_top_is_taken_anew_in_every_resample():
    groups = {
        (*GN, LD): [heads(3, height=0.6), heads(3), heads(9)],
        (*STR, LD): [heads(1, height=0.4), heads(1, height=0.5), heads(2, height=0.25)],
    }
    row = row_of(head_evidence(scores_of(groups), published=S2), "gn_over_str_peak")
    assert row["estimate"] == pytest.approx(1.5) and row["ends"] == ends(2, 4) and row["detail"] == "heads"
    assert row["task"] == "IOI"


def test_a_top_that_does_not_help_divides_nothing():
    groups = {(*GN, LD): [heads(3)] * 3, (*STR, LD): [heads(1), heads(1), heads() - 1]}
    row = row_of(head_evidence(scores_of(groups), published=S2), "gn_over_str_peak")
    assert row["estimate"] == 1 and np.isnan(row["low"]) and np.isnan(row["high"])  # half of the resamples have none


def test_numbers_of_heads_are_of_either_sign():
    groups = {
        (*GN, LD): [heads(3, 4, -5), heads(3, 4), heads(3, 4, -5)],
        (*STR, LD): [heads(-1), heads(1, -2), heads(1)],
    }
    row = row_of(head_evidence(scores_of(groups), published=S2), "gn_less_str_heads")
    assert row["estimate"] == 2 and row["ends"] == ends(0, 2)


def test_negatives_are_missed_where_both_others_see_them():
    groups = {
        (*STR, LD): [heads(-1, -2, -3, 7), heads(-1, -2), heads(-1)],
        (*STR, KL): [heads(-1, -2, 3, 7), heads(-1, -2), heads(-1)],
        (*STR, PROBABILITY): [heads(-2, 9), heads(1), heads(-1)],
        (*GN, LD): [heads(-1)] * 3,
        (*GN, KL): [heads(-2)] * 3,
        (*GN, PROBABILITY): [heads(1)] * 3,
    }
    table = head_evidence(scores_of(groups), published=S2)
    row = row_of(table, "negatives_missed", "STR")
    assert row["estimate"] == 1 and row["ends"] == ends(2, 0)  # head 3 helps by KL; −1 called + is missed too
    none = row_of(table, "negatives_missed", "GN")  # −1 and −2 are not the same head: none could be missed
    assert np.isnan([none["estimate"], *none["ends"]]).all()


def test_logit_difference_and_kl_are_compared_by_their_heads_and_their_ranks():
    rng = np.random.default_rng(0)
    groups = {(*STR, LD): rng.normal(size=(4, HEADS)), (*STR, KL): rng.normal(size=(4, HEADS))}
    row = row_of(head_evidence(scores_of(groups), published=S2), "ld_kl_correlation", "STR")
    found = [spearmanr(one, other).statistic for one, other in zip(*groups.values(), strict=True)]
    assert row["estimate"] == pytest.approx(found[0]) and row["ends"] == ends(*found[1:])
    groups = {
        (*GN, LD): [heads(1, -2), heads(1, 2), heads(1)],
        (*GN, KL): [heads(1, 2), heads(2, 3), heads(1)],
    }
    row = row_of(head_evidence(scores_of(groups), published=S2), "ld_kl_overlap", "GN")
    assert row["estimate"] == pytest.approx(1 / 3) and row["ends"] == ends(1 / 3, 1)  # + and − are two members


FIRST, SECOND = [heads(1), heads(1), heads(2)], [heads(1, 3), heads(1), heads(1)]


@pytest.mark.parametrize(
    ("key", "other", "detail"),
    [
        ("overlap_lost_to_tokens", ("S1+IO", "STR", "denoising"), "S2 and S1+IO"),
        ("overlap_lost_to_direction", ("S2", "STR", "noising"), "STR"),
    ],
)
def test_lost_overlap_by_hand(key, other, detail):
    # Own overlaps between halves: 1, 0, 0 and ½, 1, ½; their means ¾, ½, ¼. Between the two ways, first half of one and
    # second of the other: 1, 1, 0; the reverse: ½, 0, 1; their means ¾, ½, ½.
    groups = {(*STR, LD): [heads(5), *FIRST], (*other, LD): [heads(6), *SECOND]}
    row = row_of(head_evidence(scores_of(groups), published=S2), key)
    assert row["estimate"] == 0 and row["ends"] == ends(0, 0, -0.25) and row["detail"] == detail


def test_lost_overlap_beside_a_literal_loop_and_for_every_two_choices():
    rng = np.random.default_rng(1)
    sets = {name: [{1 + int(head) for head in rng.choice(5, 2, replace=False)} for _ in range(30)] for name in "abc"}
    groups = {(name, "STR", "denoising", LD): [heads(1), *(heads(*of) for of in own)] for name, own in sets.items()}
    table = head_evidence(scores_of(groups), published={"IOI": "a"})
    assert table["detail"].tolist() == ["a and b", "a and c", "b and c"]
    assert set(table["key"]) == {"overlap_lost_to_tokens"}

    def overlap(one, other):
        return len(one & other) / len(one | other)

    first, second = sets["b"], sets["c"]
    lost = []
    for r in range(30):
        s = (r + 1) % 30
        own = (overlap(first[r], first[s]) + overlap(second[r], second[s])) / 2
        lost.append(own - (overlap(first[r], second[s]) + overlap(first[s], second[r])) / 2)
    row = row_of(table, "overlap_lost_to_tokens", "b and c")
    assert row["estimate"] == pytest.approx(np.median(lost)) and row["ends"] == ends(*lost)


def test_ways_that_find_the_same_lose_nothing_and_ways_that_find_others_lose_all():
    same, apart = ("same", "STR", "denoising", LD), ("apart", "STR", "denoising", LD)
    groups = {(*STR, LD): [heads(1)] * 5, same: [heads(1)] * 5, apart: [heads(-1)] * 5}
    table = head_evidence(scores_of(groups), published=S2)
    assert row_of(table, "overlap_lost_to_tokens", "S2 and same")["ends"] == [0, 0]
    assert row_of(table, "overlap_lost_to_tokens", "S2 and apart")["ends"] == [1, 1]


def test_sets_that_are_empty_leave_an_overlap_undefined():
    few = [heads(1)] * 22  # an estimate and 21 resamples: one tenth of them may be empty
    groups = {(*STR, LD): [*few[:-2], heads(), heads()], (*STR, KL): [*few[:-2], heads(), heads()]}
    assert row_of(head_evidence(scores_of(groups), published=S2), "ld_kl_overlap")["ends"] == [1, 1]
    groups = {key: [*few[:-3], heads(), heads(), heads()] for key in groups}
    row = row_of(head_evidence(scores_of(groups), published=S2), "ld_kl_overlap")
    assert row["estimate"] == 1 and np.isnan(row["ends"]).all()
    groups = {("S2", "STR", direction, LD): [heads()] * 3 for direction in ("denoising", "noising")}
    row = row_of(head_evidence(scores_of(groups), published=S2), "overlap_lost_to_direction")
    assert np.isnan([row["estimate"], *row["ends"]]).all()


def test_scores_that_are_not_defined_have_no_interval():
    groups = {(*GN, LD): [heads(3)] * 3, (*STR, LD): [heads(3)] * 3}
    for undefined in groups:
        row = row_of(head_evidence(scores_of(groups, undefined=[undefined]), published=S2), "gn_less_str_heads")
        assert row["estimate"] == 0 and np.isnan(row["ends"]).all()


def test_what_was_not_measured_has_no_row():
    groups = {(*STR, LD): [heads(3)] * 3}
    table = head_evidence(scores_of(groups), published=S2)
    assert table.empty and table.columns.tolist() == EVIDENCE
    groups |= {("S2", "GN", "noising", LD): [heads(3)] * 3, ("S1+IO", "GN", "denoising", LD): [heads(3)] * 3}
    assert head_evidence(scores_of(groups), published=S2).empty  # other directions and choices stand in for nothing
    assert head_evidence(scores_of(groups), published={"facts": "S2"}).empty


FLOORS = pd.DataFrame({"task": "IOI", "tokens": ["S2", "all"], "corruption": "STR", "corrupted_probability": [0.03, 9]})


def test_the_floor_over_the_threshold():
    # Four scores at +1 and four at −1: mean 0, deviation 1, threshold −2. Twice that: −4. Raised by 3: 1.
    steps = np.array([1.0, -1.0] * 4)
    groups = {(tokens, *STR[1:], PROBABILITY): [steps, steps, 2 * steps] for tokens in ("S2", "all")}
    row = row_of(floor_evidence(scores_of(groups), FLOORS, published=S2), "floor_over_threshold")
    assert row["estimate"] == pytest.approx(0.015) and row["ends"] == ends(0.015, 0.0075) and row["detail"] == "STR"
    groups = {(*STR, PROBABILITY): [steps, steps + 3, 2 * steps]}
    row = row_of(floor_evidence(scores_of(groups), FLOORS, published=S2), "floor_over_threshold")
    assert row["estimate"] == pytest.approx(0.015) and np.isnan(row["ends"]).all()
    assert floor_evidence(scores_of({(*STR, LD): [steps] * 3}), FLOORS, published=S2).empty


def test_methods_are_ranked_beside_patching():
    rng = np.random.default_rng(2)
    groups = {(name,): rng.normal(size=(5, 8)) for name in ("patching", "zero ablation", "attribution", "another")}
    table = method_evidence(scores_of(groups, by=("task", "method")))
    assert len(table) == 2
    patched, ablated, attributed = (groups[name,] for name in ("patching", "zero ablation", "attribution"))
    found = [spearmanr(one, other).statistic for one, other in zip(patched, attributed, strict=True)]
    row = row_of(table, "attribution_correlation")
    assert row["estimate"] == pytest.approx(found[0]) and row["ends"] == ends(*found[1:])
    lost = []
    for half, other in ((1, 2), (2, 3), (3, 4), (4, 1)):
        within = [spearmanr(way[half], way[other]).statistic for way in (patched, ablated)]
        across = [
            spearmanr(patched[half], ablated[other]).statistic,
            spearmanr(patched[other], ablated[half]).statistic,
        ]
        lost.append(np.mean(within) - np.mean(across))
    row = row_of(table, "correlation_lost_to_ablation")
    assert row["estimate"] == pytest.approx(np.median(lost)) and row["ends"] == ends(*lost)
    del groups["patching",]
    assert method_evidence(scores_of(groups, by=("task", "method"))).empty


PARTS = pd.DataFrame(
    [(0, 1, "mover"), (0, 2, "negative mover"), (1, 0, "S-inhibition"), (1, 1, "other")],
    columns=["layer", "head", "part"],
)
LATER = pd.DataFrame(
    [("together", 1, 3, 0.1), ("together", 1, 4, 0.1), ("together", 1, 5, 0.04), ("0.1", 1, 6, 0.1)],
    columns=["group", "layer", "head", "low"],
).assign(defined=True)
FOUND = {(*STR, LD): [heads(-1, 15), heads(1, 2, 15), heads(5)]}  # 15 is 1.3


def test_heads_that_act_and_are_not_detected():
    table = missed_evidence(scores_of(FOUND), PARTS, LATER, published=S2)
    direct, backup = row_of(table, "direct_heads_missed"), row_of(table, "backup_heads_missed")
    assert direct["estimate"] == 1 and direct["ends"] == ends(0, 2)  # a mover found as negative is found
    assert backup["estimate"] == 1 and backup["ends"] == ends(1, 2)
    assert direct["detail"] == backup["detail"] == "of 2"


def test_where_no_head_acts_none_can_be_missed():
    others = PARTS[~PARTS["part"].isin(["mover", "negative mover"])]
    for none in (LATER.head(0), LATER.assign(low=0.05), LATER.assign(defined=False)):
        assert missed_evidence(scores_of(FOUND), others, none, published=S2).empty
    assert missed_evidence(scores_of({(*GN, LD): [heads()] * 3}), PARTS, LATER, published=S2).empty
    assert missed_evidence(scores_of(FOUND, task="sums"), PARTS, LATER, published=S2).empty


def test_other_columns_and_other_heads_are_refused():
    groups = {(*GN, LD): [heads(3)] * 3, (*STR, LD): [heads(3)[:9]] * 3}
    with pytest.raises(EvidenceError, match="not the same ones throughout IOI"):
        head_evidence(scores_of(groups), published=S2)
    with pytest.raises(EvidenceError, match="score them by task, method"):
        method_evidence(scores_of(groups))
    with pytest.raises(EvidenceError, match="1 of 2 heads that act were not patched"):
        missed_evidence(scores_of(FOUND), PARTS.assign(head=[1, 12, 0, 1]), LATER, published=S2)


def test_the_verdicts_take_the_rows():
    groups = {(tokens, corruption, direction, metric): [heads(1, -2)] * 4
              for tokens in ("S2", "S1+IO") for corruption in ("STR", "GN") for direction in ("denoising", "noising")
              for metric in (LD, KL, PROBABILITY)}  # fmt: skip
    scores = scores_of(groups)
    table = pd.concat([head_evidence(scores, published=S2), missed_evidence(scores, PARTS, LATER, published=S2)])
    assert len(readings(table)) == len(table) == 12
    assert evidence_table([]).columns.tolist() == EVIDENCE
