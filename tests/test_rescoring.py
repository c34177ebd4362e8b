"""Rescoring: a plant that is made again is its twin, and what is scored again is held against what is committed."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from test_plants import CHECKED, ITEMS, MLP, NULL, OLD, RECIPE, base, planted, tokenizer  # noqa: F401 - fixtures
from tiny import random_pair

from helpers import calibration, rescoring
from helpers.artifacts import ArtifactError
from helpers.calibration import CalibrationError
from helpers.config import Calibration, Paths
from helpers.methods import COMPONENTS
from helpers.plants import save_plant
from helpers.rescoring import _spread, against_committed, changes, chosen_methods, replanted, rescore
from helpers.standings import Standings

METHODS = ("cross-model denoising, all positions", "weight change", "random")
SETTINGS = Calibration(planted=MLP.name, steps=None, plants=None, methods=METHODS, facts=None, processes=1)


@pytest.fixture
def paths(tmp_path, monkeypatch, base, planted, tokenizer):  # noqa: F811
    """A folder with one plant and one null of the tiny base, asked about four pairs."""
    paths = Paths("mini", tmp_path)
    folder = paths.embedded / "plants"
    save_plant(folder, MLP, planted, base, checked=CHECKED, recipe=RECIPE)
    save_plant(folder, NULL, base, base, checked=CHECKED, recipe=RECIPE)
    pairs = tuple(random_pair(f"p{number}", 5, seed=number) for number in range(4))
    kinds = {pair.pair_id: "definitional" for pair in pairs}
    monkeypatch.setattr(rescoring, "material", lambda paths, seed: (base, tokenizer, ITEMS, OLD))
    monkeypatch.setattr(calibration, "_asked", lambda seed: (base, pairs, kinds))
    return paths


def test_a_plant_made_again_is_its_twin(paths):
    twin = replanted(MLP, paths)
    rows = twin.table.set_index("quantity")
    assert rows.loc["length of the change", "here"] == rows.loc["length of the change", "embedded"] > 0
    assert rows.loc["tensors changed"].tolist() == [4, 4] and rows.loc["learnt", "embedded"] == 0.975
    assert "cosine of 1.000, and 100% of the changed weights are equal to the bit" in twin.sentence
    assert (
        "The one made here does not count: it has learnt 0.0%" in twin.sentence and "trained for" not in twin.sentence
    )
    fewer = replanted(MLP, paths, steps=3)
    assert "It was trained for 3 steps, the twin for 4." in fewer.sentence
    assert fewer.table.set_index("quantity").loc["steps"].tolist() == [3, 4]


def test_a_plant_that_is_changed_elsewhere_is_refused(paths, monkeypatch, planted):  # noqa: F811
    stray = copy.deepcopy(planted)
    with torch.no_grad():
        stray.transformer.wpe.weight[0, 0] += 1
    monkeypatch.setattr(rescoring, "plant_model", lambda *given: (stray, []))
    with pytest.raises(CalibrationError, match="transformer.wpe.weight, and its embedded twin in .*writes elsewhere"):
        replanted(MLP, paths)


def test_what_differs_by_hand(base):  # noqa: F811
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.transformer.h[1].mlp.c_proj.bias[0] -= 2
    (change,) = changes(other, base).items()
    assert change[0] == "transformer.h.1.mlp.c_proj.bias" and change[1][0] == -2 and change[1].abs().sum() == 2
    assert changes(base, base) == {}


def test_committed_plants_are_scored_again(paths):
    found = rescore(SETTINGS, paths, resamples=20)
    assert found.twin.sentence.startswith("Planted again")
    keys = ["plant", "method"]
    assert found.scores[keys].to_numpy().tolist() == [[plant, m] for plant in (MLP.name, NULL.name) for m in METHODS]
    assert len(found.places) == 2 * 3 * 4 and (found.scores["pairs"] == 4).all()
    assert set(found.first_mlp["method"]) == {METHODS[0], "random"}  # the weights are not asked by pairs
    assert len(found.first_mlp) == 2 * 2 * 4 and set(found.first_mlp["layer"]) == {0}
    assert set(found.first_mlp["component"]) == {"mlp_out"} and set(found.first_mlp["fact_kind"]) == {"definitional"}
    fewer = rescore(replace(SETTINGS, plants=1, facts=2, methods=("random",)), paths, resamples=20)
    assert fewer.scores["plant"].tolist() == [MLP.name] and fewer.scores["pairs"].tolist() == [2]
    with pytest.raises(CalibrationError, match="no committed plant 'mlp-9-seed0', but mlp-1-seed0"):
        rescore(replace(SETTINGS, planted="mlp-9-seed0"), paths, resamples=20)


def test_a_method_that_there_is_not_is_refused():
    assert len(chosen_methods(())) > 40 and [m.name for m in chosen_methods(("random",))] == ["random"]
    with pytest.raises(CalibrationError, match="no method 'guess'; there are CLAP as published"):
        chosen_methods(("random", "guess"))


def test_rows_at_equal_distances():
    assert _spread(range(7), 3) == [0, 2, 4] and _spread(range(7), None) == _spread(range(7), 9) == list(range(7))


def tables(best, *scores, pairs=4):
    """One method's tables for one plant of two layers."""
    places = [(component, layer) for layer in range(2) for component in COMPONENTS]
    lines = pd.DataFrame(places, columns=["component", "layer"]).assign(method="m", plant="p", score=scores)
    return pd.DataFrame([{"method": "m", "plant": "p", "top_blocks": best, "pairs": pairs}]), lines


def test_against_what_is_committed_by_hand():
    scores, places = tables("1", 0.0, 0.1, 0.5, 2.0)
    committed = Standings(scores, places, None, True, "")
    same = against_committed(rescoring.Rescored(None, scores, places, None), committed)
    assert same.table.to_dict("records") == [{"method": "m", "plants": 1, "difference": 0, "same_block": 1}]
    assert "in 100.0% of their answers" in same.sentence and "in the place of" not in same.sentence
    other = rescoring.Rescored(None, *tables("0", 0.0, 2.1, 0.5, 2.0, pairs=2), None)
    apart = against_committed(other, committed)
    assert apart.table.loc[0, ["difference", "same_block"]].tolist() == [1.0, 0.0]  # 2 of 2.0
    assert "on 1 embedded plants, about 2 facts in the place of 4." in apart.sentence
    assert apart.sentence.endswith("the largest difference of a score is 100.000% of the highest one of its plant.")
    with pytest.raises(ArtifactError, match="none of the methods and plants"):
        against_committed(rescoring.Rescored(None, scores, places.assign(plant="q"), None), committed)
