"""The committed table of edits: made once, from plants that are there, and not again while nothing changed."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from test_editing import ITEMS, tiny
from test_efficacy import OTHERS, SMALL

from helpers import edits
from helpers.artifacts import fingerprint, read_json, sha256_file, write_table
from helpers.config import Paths
from helpers.editing import OUTCOMES
from helpers.edits import make_edits, read_edits
from helpers.efficacy import EDITS, Edits
from helpers.methods import Place
from helpers.models import model_digest
from helpers.planting import Checked, Plant, Recipe, rounded
from helpers.plants import PlantsError, plant_digests, save_plant

NAMES = ("mlp-1-seed0", "mlp-0-seed0")
OLD = pd.concat([OTHERS, OTHERS.assign(item_id="kept " + OTHERS["item_id"])], ignore_index=True)
OLD["replayed"] = ~OLD["item_id"].str.startswith("kept")


@pytest.fixture
def make(tokenizer, tmp_path, monkeypatch):
    """Makes the table of two tiny plants, and returns what was logged; `make.folder`, `make.plants` are where."""
    base, paths = rounded(tiny(tokenizer)), Paths("mini", tmp_path)
    monkeypatch.setattr(edits, "material", lambda paths, seed: (base, tokenizer, ITEMS, OLD))
    monkeypatch.setattr(edits, "drift_texts", lambda folder, *, seed: ITEMS["prompt"].tolist())
    monkeypatch.setattr(edits, "code_digests", lambda modules: dict.fromkeys(modules, "as it is"))
    plants = paths.embedded / "plants"
    for number, name in enumerate(NAMES):
        taught = rounded(tiny(tokenizer))
        with torch.no_grad():
            taught.transformer.h[number].mlp.c_proj.bias += 1
        plant = Plant(name, "single", 0, ((Place("mlp_out", number), 1.0),))
        save_plant(plants, plant, taught, base, checked=Checked(1.0, 1.0, 1.0), recipe=Recipe())

    def run(**options):
        log, given = [], {"paths": paths, "cache": tmp_path / "cache", "names": NAMES, "settings": SMALL}
        make_edits(tmp_path / "edits", **given | options, processes=1, log=log.append)
        return log

    run.folder, run.plants, run.base = tmp_path / "edits", plants, base
    return run


def read(make, **options):
    return read_edits(make.folder, **{"plants": make.plants, "names": NAMES, "settings": SMALL} | options)


def test_the_table_is_made_once(make):
    log = make()
    assert log[:3] == [
        "mlp-1-seed0: editing block 0",
        "mlp-1-seed0: editing block 1",
        "mlp-1-seed0: edited at every block, 1 of 2 plants",
    ]
    found = read(make)
    assert {"efficacy", "edits"} < set(read_json(make.folder / "made_from.json")["code"])
    table = found.tables["edits"]
    assert found.fresh and list(table.columns) == EDITS and list(dict.fromkeys(table["plant"])) == list(NAMES)
    assert (table[list(OUTCOMES)].dtypes == np.float32).all() and len(table) == 2 * 2 * 2 * 2
    assert make() == ["Edits: The committed tables fit the code as it is, and the embedded plants."]


def test_what_changed_is_said_and_made_again(make):
    make()
    others = dataclasses.replace(SMALL, seed=1)
    stale = read(make, settings=others)
    assert not stale.fresh and "the settings of edits changed or is new: run `make plants`" in stale.note
    log = make(settings=others)
    assert "not up to date" in log[0] and "mlp-1-seed0: editing block 0" in log and read(make, settings=others).fresh
    assert "for mlp-2-seed0 changed or is new" in read(make, names=["mlp-2-seed0"], settings=others).note
    write_table(make.folder / "edits.parquet", stale.tables["edits"].iloc[1:])
    log = make(settings=others)
    assert "are not those that were written" in log[0] and not any("editing" in line for line in log[1:])
    assert read(make, settings=others).fresh, "from what was kept of every block"


def test_old_facts_are_replayed_or_looked_at_for_damage_never_both(make, monkeypatch):
    seen = []
    monkeypatch.setattr(edits, "edit_everywhere", lambda models, *_, **given: seen.append((models, given)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make()
    ((models, given),) = seen
    assert set(given["old"]["item_id"]) == set(OTHERS["item_id"])
    assert set(given["others"]["item_id"]) == set("kept " + OTHERS["item_id"])
    (load,) = models.values()
    assert not torch.equal(load().transformer.h[0].mlp.c_proj.bias, make.base.transformer.h[0].mlp.c_proj.bias)
    assert list(models) == ["mlp-1-seed0"], "each plant is a job of its own"


def test_a_plant_that_is_not_there_is_refused(make):
    with pytest.raises(PlantsError, match="holds no mlp-9-seed0: run `make plants`"):
        make(names=["mlp-9-seed0"])
    assert not make.folder.exists()


def test_a_plant_is_digested_by_its_file_and_its_base(make):
    file = make.plants / "mlp-1-seed0.safetensors"
    assert plant_digests(make.plants)["mlp-1-seed0"] == fingerprint([sha256_file(file), model_digest(make.base)])
    assert plant_digests(make.folder) == {}


def test_the_plants_that_are_edited_are_committed():
    committed = plant_digests(Paths("mini").embedded / "plants")
    assert set(edits.PLANTS) <= set(committed) and Edits().facts == 50


def test_the_committed_edits_are_of_every_block_of_every_plant():
    found = read_edits()
    table = found.tables["edits"]
    assert list(table.columns) == EDITS and set(table["plant"]) == set(edits.PLANTS)
    counts = table.groupby(["plant", "method", "block"])["item_id"].nunique()
    assert len(counts) == 4 * 3 * 6 and (counts == 50).all()
    assert np.isfinite(table[list(OUTCOMES)].to_numpy()).all() and table["known"].all()
    assert "seed0" not in found.note, "the edits are of other plants than the committed ones"
