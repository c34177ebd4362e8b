"""Calibration: a case scored by hand, answers by construction held to it, and the leaderboard with a method of ours."""

import copy
import sys
from dataclasses import dataclass
from math import isnan
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from tiny import LAYERS, random_pair, tiny_model

from helpers import calibration
from helpers.artifacts import ArtifactError, fingerprint, read_table
from helpers.calibration import (
    CalibrationError,
    Case,
    cached,
    check_given,
    collect,
    is_given,
    leaderboard,
    score_case,
    score_method,
    score_plant,
)
from helpers.crossmodel import cross_model_effects
from helpers.methods import COMPONENTS, LAST_BLOCK, PER_PAIR, PLACE, Method, Place, places_of
from helpers.standings import read_standings, write_standings

FEW = {"resamples": 50}


@dataclass(frozen=True)
class Plant:
    """As helpers.planting.Plant."""

    name: str
    kind: str
    seed: int
    shares: tuple


def single(layer, seed=0, kind="single"):
    return Plant(f"{kind}-{layer}-seed{seed}", kind, seed, ((Place("mlp_out", layer), 1.0),))


@pytest.fixture(scope="module")
def base():
    return tiny_model("gpt2", 0)


def case_of(base, plant, **changes):
    """The base model with other weights at the planted places."""
    taught = copy.deepcopy(base)
    with torch.no_grad():
        for place, _ in plant.shares:
            block = taught.transformer.h[place.layer]
            weights = (block.mlp if place.component == "mlp_out" else block.attn).c_proj.weight
            weights += 0.3 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(place.layer))
    pairs = tuple(random_pair(f"p{number}", 5, seed=number) for number in range(4))
    return Case(plant, taught, base, pairs, **changes)


def points_to(layer, name="pointer", **settings):
    """A method that says 0.9 of one MLP and 0.1 of all else, without running a model."""

    def locate(models, pairs):
        rows = [(p.component, p.layer, 0.9 if p == Place("mlp_out", layer) else 0.1) for p in places_of(models.taught)]
        return pd.DataFrame(rows, columns=[*PLACE, "score"])

    return Method(name, "storage", settings.pop("informed", False), locate, **settings)


def cross_model(given=("single",)):
    """Taught activations in the base model's run, at all positions."""

    def locate(models, pairs):
        effects = cross_model_effects(models.taught, models.base, pairs)
        return effects[(effects["direction"] == "denoising") & effects["component"].isin(COMPONENTS)][PER_PAIR]

    return Method("cross", "storage", True, locate, frozenset(given))


def test_a_case_scored_by_hand(base):
    scored = score_case(points_to(1), case_of(base, single(1)), **FEW)
    line, places = scored.line, scored.places
    assert set(scored.found.columns) == {*PLACE, "score"}
    assert {name: line[name] for name in ("method", "plant", "site", "kind", "seed")} == {
        "method": "pointer", "plant": "single-1-seed0", "site": "single-1", "kind": "single", "seed": 0,
    }  # fmt: skip
    assert line["hit_at_1"] == line["reciprocal_rank"] == line["auroc"] == 1 and isnan(line["recall_at_2"])
    assert line["chance_hit_at_1"] == pytest.approx(1 / 3) and line["chance_auroc"] == 0.5
    assert line["ranked"] and not line["given"] and line["claims"] and line["top_blocks"] == "1"
    assert line["passes"] == 0 and line["seconds"] > 0 and line["pairs"] == 4
    assert len(places) == 2 * LAYERS and places["share"].sum() == 1
    assert places.loc[places["share"] == 1, PLACE].to_numpy().tolist() == [["mlp_out", 1]]
    wrong = score_case(points_to(2), case_of(base, single(1)), **FEW).line
    assert wrong["hit_at_1"] == 0 and wrong["reciprocal_rank"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_by_construction_cross_model_patching_is_exact_and_not_ranked(base):
    cases = [case_of(base, single(layer)) for layer in range(LAYERS)]
    table = score_method(cross_model(), cases, **FEW)
    assert table["given"].all() and not table["ranked"].any()
    assert table["hit_at_1"].iloc[-1] == 1  # nothing comes after the last MLP; elsewhere later places may recover more
    assert (table["passes"] > 2).all() and (table["something"] <= 1).all()


def test_an_answer_by_construction_that_is_wrong_is_an_error(base):
    with pytest.raises(CalibrationError, match="hits it with probability 0.00"):
        score_case(points_to(2, given=frozenset({"single"})), case_of(base, single(1)), **FEW)
    assert score_case(points_to(2), case_of(base, single(1)), **FEW).line["hit_at_1"] == 0  # a finding, where not given
    # Another weight moved as well: cross-model patching no longer recovers all of the difference, or some before it.
    for block, value in ((2, 1), (0, 0)):
        case = case_of(base, single(1))
        with torch.no_grad():
            case.taught.transformer.h[block].mlp.c_proj.weight[0, 0] += 0.05
        with pytest.raises(CalibrationError, match=f"must recover {value} by construction"):
            score_case(cross_model(), case, **FEW)
    uncounted = Case(case.plant, case.taught, case.base, case.pairs, counts=False)
    line = score_case(cross_model(), uncounted, **FEW).line
    assert not line["ranked"] and not line["counts"]


def test_in_the_last_block_the_last_token_cannot_miss():
    method = points_to(1, given=frozenset({LAST_BLOCK}))
    assert is_given(method, single(2), 3) and not is_given(method, single(1), 3)
    assert not is_given(method, single(2, kind="drifted"), 3) and not is_given(points_to(1), single(2), 3)
    assert is_given(cross_model(), single(1), 3)


def test_nothing_may_be_claimed_of_a_null_by_construction(base):
    null = case_of(base, Plant("null-1-seed0", "null", 0, ()))
    assert score_case(points_to(1), null, **FEW).line["claims"]
    with pytest.raises(CalibrationError, match="nothing was written"):
        score_case(points_to(1, given=frozenset({"null"})), null, **FEW)


def test_a_given_recovery_is_checked_to_rounding():
    rows = [("p", c, layer, float(c == "mlp_out" and layer == 1), 1.0) for layer in range(3) for c in COMPONENTS]
    found = pd.DataFrame(rows, columns=PER_PAIR)
    check_given(cross_model(), single(1), found)
    check_given(cross_model(), single(1), found.assign(numerator=found["numerator"] * (1 + 5e-5)))
    later = (found["component"] == "attn_out") & (found["layer"] == 2)
    check_given(cross_model(), single(1), found.assign(numerator=found["numerator"] + 1.5 * later))
    earlier = (found["component"] == "attn_out") & (found["layer"] == 1)
    with pytest.raises(CalibrationError, match="0.010000 at attn_out 1 of single-1-seed0, where it must recover 0"):
        check_given(cross_model(), single(1), found.assign(numerator=found["numerator"] + 0.01 * earlier))
    with pytest.raises(CalibrationError, match="recovers 1.000200"):
        check_given(cross_model(), single(1), found.assign(numerator=found["numerator"] * 1.0002))


@pytest.fixture
def committed(base, tmp_path):
    """A leaderboard of a good method, a bad one, and random, on two plants of each of two seeds."""
    cases = [case_of(base, single(layer, seed)) for seed in (0, 1) for layer in (0, 1)]
    cases.append(case_of(base, single(2), counts=False))
    methods = [points_to(1, "half"), points_to(2, "never"), cross_model()]
    scored = [score_case(method, case, **FEW) for method in methods for case in cases]
    lines, places = pd.DataFrame([one.line for one in scored]), pd.concat([one.places for one in scored])
    tables = {"scores": lines, "places": places, "plants": pd.DataFrame({"plant": [case.plant.name for case in cases]})}
    write_standings(tables, code={}, plants={}, folder=tmp_path)
    return tmp_path, cases


def test_a_method_of_ours_stands_in_its_place(committed, base):
    folder, cases = committed
    table = leaderboard(
        points_to(0, "mine"), cases=[case_of(base, single(0)), case_of(base, single(0, 0))], folder=folder
    )
    assert list(table["method"]) == ["mine", "half", "never", "cross"]  # cross is ranked nowhere
    mine, half = table.iloc[0], table.iloc[1]
    assert mine["mine"] and not half["mine"] and not leaderboard(folder=folder)["mine"].any()
    assert mine["seeds"] == "0" and half["seeds"] == "0, 1" and half["left_out"] == "single-2-seed0"
    assert half["hit_at_1"] == 0.5 and half["skill"] == pytest.approx(0.25) and half["plants"] == 4
    assert 0 <= half["hit_at_1_low"] < 0.5 < half["hit_at_1_high"] <= 1
    with pytest.raises(CalibrationError, match="another name"):
        leaderboard(points_to(0, "half"), cases=cases, folder=folder)


def test_three_lines_run_on_the_committed_plants(committed, base, monkeypatch):
    folder, _ = committed
    plants = SimpleNamespace(
        stored_plants=lambda folder: [single(0), single(1)] if folder.parts[-2:] == ("embedded", "plants") else [],
        load_plant=lambda folder, name, base: case_of(base, single(int(name.split("-")[1]))).taught,
        manifest=lambda folder: {"single-0-seed0": {"counts": True}, "single-1-seed0": {"counts": False}},
    )
    monkeypatch.setitem(sys.modules, "helpers.plants", plants)
    pairs = case_of(base, single(0)).pairs
    monkeypatch.setattr(calibration, "_asked", lambda seed: (base, pairs, {}))
    mine = leaderboard(points_to(0, "mine"), folder=folder).iloc[0]
    assert (mine["method"], mine["hit_at_1"], mine["plants"], mine["left_out"]) == ("mine", 1, 1, "single-1-seed0")


def test_what_is_scored_is_kept_until_code_or_plant_change(base, monkeypatch, tmp_path):
    runs = []

    def load_case(folder, plant):
        runs.append(plant.shares[0][0].layer)
        return case_of(base, plant)

    monkeypatch.setattr(calibration, "load_case", load_case)
    methods = (points_to(1, "one"), points_to(2, "two"))
    monkeypatch.setitem(sys.modules, "helpers.localisers", SimpleNamespace(METHODS=methods))
    plants, code, cache, folder = [single(0), single(1)], {"helpers/a.py": "x"}, tmp_path / "cache", tmp_path / "board"
    digests = {plant.name: f"digest of {plant.name}" for plant in plants}

    def score(plant, code=code, **changes):
        settings = {"code": fingerprint(code), "digest": digests[plant.name]} | changes
        assert score_plant(tmp_path, plant, cache=cache, **settings) == plant.name

    for plant in plants * 2:
        score(plant)
    assert runs == [0, 1]
    checked = {"learnt": 1.0, "kept_replayed": 1.0, "kept_held_out": 0.96, "counts": True, "recipe": {}}
    rows = {plant.name: {"kind": "single", "seed": 0} | checked for plant in plants}
    collect(rows, digests | {"other": "o"}, code=code, cache=cache, folder=folder)
    standings = read_standings(folder, code=code, plants=digests)
    assert standings.fresh and len(standings.scores) == 4 and len(standings.places) == 4 * 2 * LAYERS
    assert standings.plants.iloc[1].to_dict() == {"plant": plants[1].name, "kind": "single", "seed": 0} | {
        name: value for name, value in checked.items() if name != "recipe"
    }
    kept = cached(plants[0].name, code=fingerprint(code), digest=digests[plants[0].name], cache=cache)
    kept[1].unlink()  # as when killed between the two files
    with pytest.raises(ArtifactError, match="is missing"):
        collect(rows, digests, code=code, cache=cache, folder=folder)
    score(plants[0])
    score(plants[1], digest="another plant")
    score(plants[1], code={"helpers/a.py": "y"})
    assert runs == [0, 1, 0, 1, 1]
    assert list(read_table(kept[0])["method"]) == ["one", "two"]


def test_a_case_without_pairs_is_refused(base):
    with pytest.raises(CalibrationError, match="no pairs"):
        score_case(points_to(1), Case(single(1), base, base, ()))
    assert calibration.CACHE.name == "leaderboard"
