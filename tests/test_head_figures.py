"""Head figures: what is drawn are the numbers of detection, in its unit, and the drawings take them."""

import pandas as pd

from helpers import gatescores
from helpers.figures import DRAWINGS, preview
from helpers.gates import make_gate
from helpers.head_figures import HEAD_MAP, THRESHOLDS, head_map, threshold_lines


def test_heads_are_mapped_in_the_deviations_they_are_detected_in():
    rows = [("STR", "kl_divergence", 0, 0, 3.0, 1.0, 0.5), ("STR", "kl_divergence", 0, 1, 1.0, 1.0, 0.0)]
    table = pd.DataFrame(rows, columns=["corruption", "metric", "layer", "head", "score", "mean", "deviation"])
    drawn = head_map(table)
    assert drawn["deviations"].tolist()[0] == 4.0 and drawn["deviations"].isna().tolist() == [False, True]
    assert set(drawn["metric"]) == {"KL divergence"}
    assert preview(drawn, plumbing=False, **HEAD_MAP)


def test_positive_and_negative_heads_have_their_own_lines():
    rows = [("GN", "probability", 2.0, 3, 1), ("GN", "probability", 3.0, 1, 0)]
    table = pd.DataFrame(rows, columns=["corruption", "metric", "deviations", "positive", "negative"])
    drawn = threshold_lines(table).set_index(["panel", "deviations"])["heads"]
    assert drawn.to_dict() == {
        ("GN, positive", 2.0): 3, ("GN, positive", 3.0): 1, ("GN, negative", 2.0): 1, ("GN, negative", 3.0): 0
    }  # fmt: skip
    assert preview(threshold_lines(table), plumbing=False, **THRESHOLDS)


def test_the_gates_are_drawn_by_their_own_options():
    scores = gatescores.gate_scores([make_gate("OR")])
    assert preview(gatescores.figure_table(scores), plumbing=False, **gatescores.FIGURE)
    assert gatescores.FIGURE["drawing"] in DRAWINGS
