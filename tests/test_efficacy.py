"""Efficacy: hand-computed correlations and differences, and a run over tiny plants that goes on where it stopped."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from test_editing import ITEMS, tiny, weights

from helpers import efficacy
from helpers.editing import OUTCOMES, EditingError
from helpers.efficacy import EDITS, Edits, correlation_with_scores, edit_everywhere, kind_contrasts, summary
from helpers.finetune import Writing
from helpers.rank_one import RankOne

CHANCE = {"resamples": 200, "confidence": 0.95, "seed": 0}
OTHERS = ITEMS.assign(item_id="old " + ITEMS["item_id"], prompt="Later. " + ITEMS["prompt"])
OTHERS["subject_start"] += len("Later. ")
SMALL = Edits(
    facts=2,
    others=1,
    writing=Writing("mlp", 0, steps=3, batch_size=4, learning_rate=1e-2, warmup_steps=1),
    rank_one=(RankOne(key="last", steps=2),),
)


def table(rewrites, *, plant="one", method="fine-tuning"):
    """Edits of facts a, b, … (every other one definitional), by the rewrite scores of each at the blocks."""
    return pd.DataFrame(
        {
            "plant": plant,
            "method": method,
            "block": block,
            "item_id": item,
            "kind": "associative" if number % 2 else "definitional",
            "known": True,
            **dict.fromkeys(OUTCOMES, value),
        }
        for number, (item, values) in enumerate(zip("abcdefgh", rewrites, strict=False))
        for block, value in enumerate(values)
    )


def scores(*values, plant="one", method="norm", component="mlp_out"):
    lines = {"component": component, "layer": range(len(values)), "score": values}
    return pd.DataFrame(lines).assign(plant=plant, method=method)


def varied(means, **options):
    """Edits of two facts with these mean outcomes, which the second fact exceeds by as much everywhere."""
    return table([[mean - 0.05 for mean in means], [mean + 0.05 for mean in means]], **options)


def one_line(edits, places, **options):
    found = correlation_with_scores(edits, places, **CHANCE, **options)
    return found.set_index("plant")


def test_a_correlation_by_hand():
    """Means 0.2, 0.6, 0.4 have the ranks 1, 3, 2, the scores 1, 2, 3: ρ = 1 − 6 · (0 + 1 + 1) / (3 · 8) = 1/2."""
    edits = table([[0.1, 0.8, 0.4], [0.3, 0.4, 0.4]])
    places = pd.concat([scores(1.0, 5.0, 7.0), scores(9.0, 1.0, 0.0, component="attn_out")])
    found = one_line(edits[::-1], places[::-1])
    assert found["correlation"].to_dict() == pytest.approx({"one": 0.5, "all": 0.5})
    assert (found["low"] <= 0.5).all() and (found["high"] >= 0.5).all()
    assert found.loc["one", ["plants", "blocks", "facts"]].tolist() == [1, 3, 2]


def test_plants_are_pooled_by_their_ranks():
    """ρ = 1 in one plant and −1 in the other, both of three blocks: 0 together, whatever the size of the scores."""
    edits = pd.concat([table([[0.1, 0.2, 0.3]] * 2), table([[0.9, 0.8, 0.1]] * 2, plant="two")])
    places = pd.concat([scores(1.0, 2.0, 3.0), scores(100.0, 200.0, 300.0, plant="two")])
    found = one_line(edits, places)
    assert found["correlation"].to_dict() == pytest.approx({"one": 1.0, "two": -1.0, "all": 0.0})
    assert found.loc["all", ["plants", "blocks", "facts"]].tolist() == [2, 6, 2]
    alone = one_line(edits, places[places["plant"] == "two"])
    assert alone["correlation"].to_dict() == pytest.approx({"two": -1.0, "all": -1.0})


def test_the_interval_is_over_facts():
    """One fact says ρ = 1, the other −1; the first moves most: half the resamples draw both, and give 1."""
    found = one_line(table([[0.0, 0.9], [0.2, 0.1]]), scores(0.0, 1.0))
    assert found.loc["one", ["correlation", "low", "high"]].tolist() == [1.0, -1.0, 1.0]
    sure = one_line(table([[0.0, 0.9], [0.1, 0.2]]), scores(0.0, 1.0))
    assert sure.loc["one", ["correlation", "low", "high"]].tolist() == [1.0, 1.0, 1.0]


def test_what_is_the_same_everywhere_has_no_correlation():
    found = one_line(table([[0.1, 0.2], [0.2, 0.1]]), scores(1.0, 2.0))
    assert found[["correlation", "low", "high"]].isna().all(axis=None)


def test_blocks_are_exchanged_alike_in_all_plants():
    """Three blocks have six orders: ρ is 1 and −1 in one of them each, ±1/2 in two. Alike in two plants, it stays so;
    exchanged apart, both would be 1 in one of 36."""
    wide = {"resamples": 600, "confidence": 0.8, "seed": 0}
    edits = pd.concat([varied([0.1, 0.2, 0.3]), varied([0.2, 0.4, 0.6], plant="two")])
    places = pd.concat([scores(1.0, 2.0, 3.0), scores(1.0, 3.0, 9.0, plant="two")])
    found = correlation_with_scores(edits, places, **wide).set_index("plant")
    assert (found["null_low"] == -1.0).all() and (found["null_high"] == 1.0).all()
    narrow = correlation_with_scores(edits, places, **wide | {"confidence": 0.6}).set_index("plant")
    assert narrow[["null_low", "null_high"]].to_numpy() == pytest.approx(np.tile([-0.5, 0.5], (3, 1)))
    (pooled,) = correlation_with_scores(edits, places, pooled=True, **wide).itertuples()
    assert pooled.plant == "all" and pooled.correlation == found.loc["all", "correlation"] == 1.0


def test_facts_that_do_not_differ_have_no_interval():
    found = one_line(table([[0.1, 0.3, 0.2]] * 3), scores(1.0, 3.0, 2.0)).loc["one"]
    assert found["correlation"] == 1.0 and found["null_high"] == 1.0 and found[["low", "high"]].isna().all()


def test_outcomes_in_single_precision_tie_as_they_did():
    """The means of 0 and 15/106, and of 1/106 and 14/106, are equal, and rounding must not order them."""
    edits = table([[0.0, 1 / 106, 0.5], [15 / 106, 14 / 106, 0.6]])
    rounded = edits.astype(dict.fromkeys(OUTCOMES, "float32"))
    exact = one_line(edits, scores(1.0, 2.0, 3.0))
    assert exact.loc["one", "correlation"] == pytest.approx(0.75**0.5)
    pd.testing.assert_frame_equal(one_line(rounded, scores(1.0, 2.0, 3.0)), exact)


def test_a_plant_whose_scores_are_undefined_is_left_out_for_that_method():
    edits = pd.concat([varied([0.1, 0.2, 0.3]), varied([0.1, 0.2, 0.3], plant="two")])
    places = pd.concat([scores(3.0, 2.0, 1.0), scores(1.0, np.nan, 3.0, plant="two")])
    found = one_line(edits, places)
    assert (
        found["correlation"].to_dict() == pytest.approx({"one": -1.0, "all": -1.0}) and found.loc["all", "plants"] == 1
    )
    none = one_line(edits, places[places["plant"] == "two"])
    assert none.index.tolist() == ["all"] and none.loc["all", ["plants", "blocks", "facts"]].tolist() == [0, 0, 0]
    assert none[["correlation", "low", "high", "null_low", "null_high"]].isna().all(axis=None)


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(EditingError, match=r"'norm' scores the blocks \[0, 1\] of one, and \[0, 1, 2\] were edited"):
        one_line(table([[0.1, 0.2, 0.3]]), scores(1.0, 2.0))
    for function in (lambda: one_line(table([[1, 2]]), scores(1.0, 2.0), outcome="speed"),
                     lambda: kind_contrasts(table([[1, 2]]), outcome="speed", **CHANCE)):  # fmt: skip
        with pytest.raises(
            EditingError, match="An outcome is one of rewrite, success, paraphrase, damage, not 'speed'"
        ):
            function()


def test_kinds_are_compared_by_hand():
    """Definitional facts a, c: 0.5 and 0.7 at block 0; associative b, d: 0.1 and 0.3. The difference is 0.4 there."""
    edits = table([[0.5, 0.0], [0.1, 0.0], [0.7, 0.0], [0.3, 0.0]])
    found = kind_contrasts(pd.concat([edits, edits.assign(plant="two")]), **CHANCE)
    assert found["block"].isna().tolist() == [True, False, False] and found["block"].tolist()[1:] == [0, 1]
    assert found["difference"].tolist() == pytest.approx([0.2, 0.4, 0.0])
    assert found["definitional"].tolist() == pytest.approx([0.3, 0.6, 0.0]) and (found["items"] == 4).all()
    assert found.loc[1, "low"] == pytest.approx(0.2) and found.loc[1, "high"] == pytest.approx(0.6)


def test_a_summary_by_hand():
    found = summary(table([[0.5, 0.0], [0.1, 0.0], [0.7, 0.2]])).set_index(["kind", "block"])
    assert found["rewrite"].to_dict() == pytest.approx(
        {("definitional", 0): 0.6, ("definitional", 1): 0.1, ("associative", 0): 0.1, ("associative", 1): 0.0}
    )
    assert found["n"].tolist() == [1, 2, 1, 2]


def test_edits_go_on_where_they_stopped_and_leave_the_plants_as_they_were(tokenizer, tmp_path, monkeypatch):
    model, log = tiny(tokenizer), []
    before = weights(model)
    texts = tokenizer(ITEMS["prompt"].tolist())["input_ids"]
    given = {"old": ITEMS[["prompt", "answer"]], "others": OTHERS, "texts": texts}
    given |= {"folder": tmp_path, "log": log.append}
    found = edit_everywhere({"p": lambda: model}, ITEMS, tokenizer, settings=SMALL, **given)
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())
    assert list(found.columns) == EDITS and len(found) == 2 * 2 * 2
    assert log == ["p: editing block 0", "p: editing block 1"]
    assert set(found["method"]) == {"fine-tuning", "rank-one at last"} and not found["known"].any()
    assert set(found["kind"]) == {"definitional", "associative"}, "half of the edited facts are of each kind"
    assert np.isfinite(found[list(OUTCOMES)].to_numpy()).all()

    with monkeypatch.context() as patch:
        patch.setattr(efficacy, "_edit_block", None)  # nothing is computed again
        shuffled = given | {"others": OTHERS[::-1]}
        again = edit_everywhere({"p": lambda: model}, ITEMS[::-1], tokenizer, settings=SMALL, **shuffled)
        pd.testing.assert_frame_equal(again, found)
    next(tmp_path.glob("p/block-1-*")).unlink()
    edit_everywhere({"p": lambda: model}, ITEMS, tokenizer, settings=SMALL, **given)
    assert log[2:] == ["p: editing block 1"]
    with torch.no_grad():
        model.transformer.wpe.weight[0, 0] += 1
    edit_everywhere({"p": lambda: model}, ITEMS, tokenizer, settings=SMALL, **given)
    assert log[3:] == ["p: editing block 0", "p: editing block 1"], "other weights are another plant"
    other = given | {"others": OTHERS.assign(answer="tremor")}
    edit_everywhere({"p": lambda: model}, ITEMS, tokenizer, settings=SMALL, **other)
    assert log[5:] == log[3:5], "damage to other facts is another outcome"


def test_damage_is_to_planted_facts_that_are_not_edited_and_to_others(tokenizer, tmp_path, monkeypatch):
    """Three planted facts, two of which are edited, and all of three others: four questions, each in one wording; then
    two of these others."""
    asked = []
    monkeypatch.setattr(efficacy, "questions_of", lambda rest, _: asked.append(rest))
    monkeypatch.setattr(efficacy, "layer_count", lambda model: 0)
    settings, model = dataclasses.replace(SMALL, others=5), tiny(tokenizer)
    given = {"old": ITEMS, "texts": [], "folder": tmp_path, "settings": settings}
    for order in (1, -1):
        with pytest.raises(ValueError, match="No objects to concatenate"):  # no block was edited
            edit_everywhere({"p": lambda: model}, ITEMS[::order], tokenizer, others=OTHERS[::order], **given)
    pd.testing.assert_frame_equal(*asked)
    (planted, *others), wordings = asked[0]["item_id"], asked[0]["wording_id"]
    assert planted in set(ITEMS["item_id"]) and wordings.iloc[0] == "definition-seen-0"
    assert len(others) == 3 and set(others) == set(OTHERS["item_id"])
    given["settings"] = dataclasses.replace(SMALL, others=2)
    with pytest.raises(ValueError, match="No objects to concatenate"):
        edit_everywhere({"p": lambda: model}, ITEMS, tokenizer, others=OTHERS, **given)
    pd.testing.assert_frame_equal(asked[2], asked[0].iloc[:3])
    given["settings"] = dataclasses.replace(SMALL, facts=3)
    with pytest.raises(EditingError, match="All 3 facts are edited and there are no others"):
        edit_everywhere({}, ITEMS, tokenizer, others=OTHERS[:0], **given)
