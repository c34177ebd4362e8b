"""What editing says, on tables small enough to be computed by hand."""

import numpy as np
import pandas as pd
import pytest
from test_efficacy import scores, table, varied

from helpers.edit_readings import FIGURE, by_block, by_kind, figure_table, told_by_scores
from helpers.editing import EditingError
from helpers.figures import DRAWINGS

CHANCE = {"resamples": 400, "confidence": 0.8, "seed": 0}
PLANTED = {"one": (0,), "two": (1, 2), "all-seed0": ()}


def three_plants(**options):
    """Block 0 is the best one in the first plant, block 1 in the others; over plants the means are 0.4, 0.5, 0.2."""
    means = {"one": [0.6, 0.3, 0.1], "two": [0.3, 0.5, 0.2], "all-seed0": [0.3, 0.7, 0.3]}
    return pd.concat([varied(values, plant=plant, **options) for plant, values in means.items()])


def test_the_best_block_by_hand():
    edits = pd.concat([three_plants(), three_plants(method="rank-one at last").query("plant == 'all-seed0'")])
    found = by_block(edits, planted=PLANTED | {"one": (2,)})
    lines = found.table[found.table["edit"] == "fine-tuning"].set_index(["plant", "block"])
    assert lines.loc[("one", 0), ["rewrite", "damage"]].tolist() == pytest.approx([0.6, 0.6])
    assert lines.loc[("two", 2), "facts"] == 2 and lines["planted"].tolist() == [False, False, True] + [
        False, True, True,
    ] + [False] * 3  # fmt: skip
    assert found.sentence == (
        "Fine-tuning edits best at block 1 (rewrite 0.50, damage 0.500, means over 3 plants); the planted block is the "
        "best one in 1 of 2 plants. Rank-one at the last token edits best at block 1 (rewrite 0.70, damage 0.700, "
        "means over 1 plants)."
    )
    assert "in 2 of 2 plants" in by_block(three_plants()[::-1], planted=PLANTED).sentence
    even = by_block(table([[0.5, 0.5, 0.1]]), planted=PLANTED)
    assert "in 0 of 1 plants" in even.sentence, "a block as good as another is not the best one"
    with pytest.raises(EditingError, match="There is no edit to read"):
        by_block(edits[:0], planted=PLANTED)


def test_what_scores_tell_by_hand():
    """Of six orders of three blocks one gives ρ = 1: at 80 % the null reaches ±1, at 60 % ±1/2."""
    edits = varied([0.1, 0.2, 0.3])
    edits.loc[edits["item_id"] == "b", "damage"] = edits.loc[edits["item_id"] == "a", "damage"].to_numpy()
    places = pd.concat(
        [
            scores(1.0, 2.0, 3.0, method="right"),
            scores(3.0, 2.0, 1.0, method="wrong"),
            scores(1.0, 3.0, 2.0, method="half"),
            scores(1.0, 1.0, 1.0, method="flat"),
            scores(1.0, 2.0, np.nan, method="undefined"),
            scores(9.0, 2.0, 1.0, method="right", component="attn_out"),
        ]
    )
    found = told_by_scores(edits, places, published="half", **CHANCE | {"confidence": 0.6})
    lines = found.table.set_index(["outcome", "method"])
    assert lines.loc["rewrite", "correlation"].dropna().to_dict() == pytest.approx(
        {"right": 1, "wrong": -1, "half": 0.5}
    )
    assert lines.loc[("rewrite", "undefined"), "plants"] == 0 and "plant" not in found.table
    assert found.sentence == (
        "Rewrite by fine-tuning: of 3 methods, 2 are beyond what blocks exchanged at random give, and the interval "
        "over facts excludes 0 for 3 (2 above, 1 below); furthest from 0 is 1.00 [1.00, 1.00] (right). "
        "Damage by fine-tuning: of 3 methods, 2 are beyond what blocks exchanged at random give; furthest from 0 is "
        "1.00 (right). 6 correlations were compared, of which 2.4 would be beyond exchanged blocks by chance. "
        "4 more are undefined, since a score or an outcome is the same at every block. half correlates "
        "0.50 [0.50, 0.50] with the rewrite of fine-tuning and 0.50 with the damage of fine-tuning."
    )
    wide = told_by_scores(edits, places, **CHANCE).sentence
    assert wide.startswith("Rewrite by fine-tuning: of 3 methods, 0 are beyond")
    undefined = told_by_scores(edits, places, published="flat", **CHANCE).sentence
    assert undefined.endswith("undefined with the rewrite of fine-tuning and undefined with the damage of fine-tuning.")


def test_scores_of_other_plants_tell_nothing():
    with pytest.raises(EditingError, match="No method scores the MLPs of a plant that was edited"):
        told_by_scores(varied([0.1, 0.2]), scores(1.0, 2.0, plant="two"), **CHANCE)
    with pytest.raises(EditingError, match="'CLAP' scores no MLP of a plant that was edited"):
        told_by_scores(varied([0.1, 0.2]), scores(1.0, 2.0), published="CLAP", **CHANCE)


def test_kinds_by_hand():
    """Definitional facts a, c: 0.7 and 0.8; associative ones b, d: 0.1 and 0.2. Every pair differs by 0.5 at least."""
    one, other = table([[0.7], [0.1], [0.8], [0.2]]), table([[0.5]] * 4, method="rank-one at last")
    found = by_kind(pd.concat([one.assign(damage=0.3), other.assign(damage=[0.02, 0.01, 0.02, 0.01])]), **CHANCE)
    lines = found.table.set_index(["outcome", "edit"])
    assert lines["difference"].to_dict() == pytest.approx(
        {("rewrite", "fine-tuning"): 0.6, ("damage", "rank-one at last"): 0.01}
    )
    assert lines.loc[("rewrite", "fine-tuning"), ["definitional", "associative"]].tolist() == pytest.approx(
        [0.75, 0.15]
    )
    low, high = lines.loc[("rewrite", "fine-tuning"), ["low", "high"]]
    assert 0.5 - 1e-9 <= low < 0.6 < high <= 0.7 + 1e-9
    assert found.sentence == (
        "Rewrite differs between types of fact, by an interval that excludes 0, for 1 of 1 ways of editing, "
        f"definitional less associative: 0.60 [{low:.2f}, {high:.2f}] by fine-tuning. The rewrite of rank-one at the "
        "last token is the same for all facts of a block, and has no type. Damage differs between types of fact, by an "
        "interval that excludes 0, for 1 of 1 ways of editing, definitional less associative: 0.010 [0.010, 0.010] by "
        "rank-one at the last token. The damage of fine-tuning is the same for "
        "all facts of a block, and has no type."
    )
    alike = by_kind(table([[0.1], [0.1], [0.9], [0.9]]), **CHANCE)
    assert "for 0 of 1 ways of editing, definitional less associative: 0.00 [" in alike.sentence


def test_the_figure_is_drawn_from_its_table():
    options = dict(FIGURE)
    drawn = figure_table(three_plants(method="rank-one at subject_last"), planted=PLANTED)
    assert set(drawn["plant"]) == {"facts in MLP 0", "facts in MLP 1 and 2", "facts in no one block"}
    assert set(drawn["edit"]) == {"rank-one at the subject's last token"}
    figure = DRAWINGS[options.pop("drawing")](drawn, **options)
    (line, mark), *_ = (axis.lines for axis in figure.axes)
    assert line.get_ydata().tolist() == pytest.approx([0.6, 0.3, 0.1]) and mark.get_xdata().tolist() == [0]
