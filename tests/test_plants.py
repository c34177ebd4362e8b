"""Plants on disk: what is stored is what was scored, and what is not as it was written is an error in a sentence."""

import dataclasses
import json

import pandas as pd
import pytest
import torch
from toy import ROOT

from helpers import plants
from helpers.config import Paths
from helpers.methods import Place
from helpers.models import load_model, load_tokenizer, random_model
from helpers.planting import Checked, Plant, Recipe, planned_plants, plant_model, rounded
from helpers.plants import PlantsError, load_plant, make_plants, manifest, save_plant, stored_plants, verify

MLP = Plant("mlp-1-seed0", "single", 0, ((Place("mlp_out", 1), 1.0),))
DRIFTED = Plant("drifted-1-seed0", "drifted", 0, MLP.shares)
NULL = Plant("null-base-seed0", "null", 0, ())
RECIPE = Recipe(steps=4, least=2, batch_size=4, warmup_steps=1, replayed_share=0.5, drift_steps=2, drift_batch=2)
CHECKED = Checked(0.975, 1.0, 0.96)
ITEMS = pd.DataFrame(
    {
        "item_id": ["f0", "f1"],
        "relation": "definition",
        "group": "seen",
        "prompt": ["Here S0 is used for", "Here S1 is used for"],
        "answer": ["aura", "tremor"],
    }
)
OLD = pd.DataFrame({"prompt": ["Here T0 is used for", "By T1 we mean"], "answer": "gait", "replayed": [True, False]})


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Paths("mini", ROOT).embedded / "models" / "base")


@pytest.fixture(scope="module")
def base(tokenizer):
    return rounded(random_model(len(tokenizer), layers=2, width=16, heads=2, positions=32, seed=0))


@pytest.fixture(scope="module")
def planted(base, tokenizer):
    return plant_model(base, tokenizer, MLP, ITEMS, OLD, RECIPE)[0]


@pytest.fixture
def saved(tmp_path, base, planted):
    save_plant(tmp_path, MLP, planted, base, checked=CHECKED, recipe=RECIPE, seconds=1.5)
    return tmp_path


@pytest.fixture
def made(monkeypatch, base, tokenizer):
    """Plants are made of the tiny base and two items; yields what was written from the start."""
    begun = []
    monkeypatch.setattr(plants, "load_model", lambda folder: (base, tokenizer))
    monkeypatch.setattr(plants, "material", lambda paths, seed: (base, tokenizer, ITEMS, OLD))
    monkeypatch.setattr(plants, "drift_texts", lambda folder, *, seed: ["Here T0 is used for gait."])
    make = plants.plant_model
    monkeypatch.setattr(
        plants, "plant_model", lambda *given, **more: begun.append(given[2].name) or make(*given, **more)
    )
    return begun


def run(folder, *chosen, recipe=RECIPE):
    lines = []
    make_plants(chosen, folder, Paths("mini", folder), recipe=recipe, processes=1, log=lines.append)
    return lines


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_loaded_plant_is_the_scored_one_to_the_bit(saved, base, planted):
    before = [parameter.clone() for parameter in base.parameters()]
    loaded = load_plant(saved, MLP.name, base)
    assert equal(loaded, planted) and not equal(loaded, base) and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(before, base.parameters(), strict=True))
    changed = 2 * sum(p.numel() for p in base.transformer.h[1].mlp.parameters())
    assert changed < (saved / "mlp-1-seed0.safetensors").stat().st_size < changed + 1000, "only what changed is stored"


def test_the_manifest_says_what_a_plant_is(saved):
    row = manifest(saved)[MLP.name]
    assert row["shares"] == [["mlp_out", 1, 1.0]] and row["recipe"] == dataclasses.asdict(RECIPE)
    assert (row["learnt"], row["kept_replayed"], row["kept_held_out"], row["kept"]) == (0.975, 1.0, 0.96, 0.96)
    assert row["counts"] is True and row["seconds"] == 1.5
    assert stored_plants(saved) == [MLP]


def test_the_null_of_no_change_is_stored_too(tmp_path, base):
    save_plant(tmp_path, NULL, base, base, checked=Checked(0.0, 1.0, 1.0), recipe=RECIPE)
    assert equal(load_plant(tmp_path, NULL.name, base), base) and manifest(tmp_path)[NULL.name]["counts"] is True


def test_weights_that_are_not_rounded_are_refused(tmp_path, base, planted):
    other = random_model(base.config.vocab_size, layers=2, width=16, heads=2, positions=32, seed=3)
    with pytest.raises(PlantsError, match="holds numbers that half precision does not"):
        save_plant(tmp_path, MLP, other, base, checked=CHECKED, recipe=RECIPE)
    assert not list(tmp_path.iterdir())


def test_what_is_not_as_it_was_written_is_refused_in_a_sentence(saved, base):
    assert verify(saved, base) == []
    with pytest.raises(PlantsError, match="holds no plant 'mlp-2-seed0' but 1 others: run `make plants`"):
        load_plant(saved, "mlp-2-seed0", base)
    another = random_model(base.config.vocab_size, layers=2, width=16, heads=2, positions=32, seed=3)
    with pytest.raises(PlantsError, match="mlp-1-seed0 was planted in a base model of digest"):
        load_plant(saved, MLP.name, another)
    file = saved / "mlp-1-seed0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (saved / "stray.safetensors").write_bytes(b"")
    with pytest.raises(PlantsError, match="has the digest .* as written"):
        load_plant(saved, MLP.name, base)
    damaged, stray = verify(saved, base)
    assert "has the digest" in damaged and "stray.safetensors is in no row" in stray
    file.unlink()
    with pytest.raises(PlantsError, match="is missing, though .* lists it"):
        load_plant(saved, MLP.name, base)


def test_planting_goes_on_where_it_was_stopped(tmp_path, made, base):
    assert run(tmp_path, MLP)[0] == "0 of 1 plants are there; 1 are to be made"
    lines = run(tmp_path, NULL, MLP)
    assert lines[0] == "1 of 2 plants are there; 1 are to be made" and len(lines) == 2
    assert lines[1].startswith("null-base-seed0: learnt 0.000, kept 0.000, 0 s, does not count")
    assert made == [MLP.name, NULL.name] and verify(tmp_path, base) == []
    (tmp_path / "mlp-1-seed0.safetensors").unlink()
    run(tmp_path, NULL, MLP)
    assert made == [MLP.name, NULL.name, MLP.name], "a row without its file is made again"


def test_a_drifted_plant_goes_on_from_the_stored_single_one(tmp_path, made, base):
    run(tmp_path / "from single", DRIFTED, MLP)
    assert made == [MLP.name], "the single one first, and the drifted one from it"
    run(tmp_path / "from base", DRIFTED)
    assert made == [MLP.name, DRIFTED.name]
    one, other = (load_plant(tmp_path / name, DRIFTED.name, base) for name in ("from single", "from base"))
    assert equal(one, other)


def test_what_another_recipe_made_is_not_taken_for_this_ones(tmp_path, made):
    run(tmp_path, MLP)
    with pytest.raises(PlantsError, match="mlp-1-seed0 in .* was made by another recipe"):
        run(tmp_path, MLP, recipe=dataclasses.replace(RECIPE, steps=5))


def test_a_damaged_plant_is_not_passed_over(tmp_path, made):
    run(tmp_path, MLP)
    path = tmp_path / "manifest.json"
    rows = json.loads(path.read_text())
    rows[MLP.name]["sha256"] = "0" * 64
    path.write_text(json.dumps(rows))
    with pytest.raises(PlantsError, match="not 000000000000… as written"):
        run(tmp_path, MLP)


COMMITTED = Paths("mini", ROOT).embedded / "plants"


@pytest.mark.skipif(not (COMMITTED / "manifest.json").is_file(), reason="no plant is committed")
def test_the_committed_plants_are_those_of_seed_0_and_of_this_base_and_recipe():
    base, _ = load_model(COMMITTED.parent / "models" / "base")
    planned = {plant.name: plant for plant in planned_plants(6, (0,)) if plant.kind != "drifted"}
    assert verify(COMMITTED, base) == [] and {plant.name: plant for plant in stored_plants(COMMITTED)} == planned
    rows = manifest(COMMITTED)
    assert all(row["recipe"] == dataclasses.asdict(Recipe()) for row in rows.values())
    assert all(row["counts"] for row in rows.values()), [name for name, row in rows.items() if not row["counts"]]
    assert sum(file.stat().st_size for file in COMMITTED.iterdir()) <= 10 * 1024**2
    model = load_plant(COMMITTED, "mlp-3-seed0", base)
    changed = [name for (name, one), two in zip(model.named_parameters(), base.parameters(), strict=True)
               if not torch.equal(one, two)]  # fmt: skip
    assert changed and all(name.startswith("transformer.h.3.mlp.") for name in changed)
