"""The items that a model knows become tasks: one per kind, with donors of the item's own arm."""

from dataclasses import replace

import pandas as pd
import pytest
from generated import tokenizer_of

from helpers.artifacts import write_table
from helpers.config import Paths, load_profile
from helpers.drafts import DONORS
from helpers.experiment import ExperimentError
from helpers.known_items import item_tasks, known_items
from helpers.models import random_model, save_model
from helpers.patching import measure_runs
from helpers.training import ANALYSED

RULE = replace(load_profile("mini").items, minimum_clean_logit_difference=None)
TOKENIZER = tokenizer_of("task model")
MODEL = random_model(len(TOKENIZER), layers=2, width=16, heads=2, positions=96, seed=0)
PEOPLE = ("Alice", "Linda", "Sean", "Max", "Roger", "Emily")
KINDS = {"museum": "definitional", "bank": "associative"}
ITEMS = pd.DataFrame(
    [
        {
            "item_id": f"{place} {name}", "relation": "r", "wording_id": "w-seen-0", "kind": kind,
            "prompt": f" {name} met him at the", "subject": name, "subject_start": 1, "answer": place,
            "phase": "confirmatory", "arm": "real",
        }
        for name in PEOPLE
        for place, kind in KINDS.items()
    ]
)  # fmt: skip


def item_of(pair) -> str:
    return pair.pair_id.split("/")[0]


def test_a_task_for_each_kind_has_the_same_prompts_with_several_donors():
    tasks = item_tasks(MODEL, TOKENIZER, ITEMS, rule=RULE, count=4)
    assert {task.name for task in tasks} == {"definitional items", "associative items"}
    for task in tasks:
        assert {KINDS[item_of(pair).split()[0]] for pair in task.pairs} == {task.name.removesuffix(" items")}
        (corruption,) = task.corruptions
        assert len(task.pairs) == 4 and len(corruption.draws) == DONORS
        assert all([pair.clean for pair in pairs] == [pair.clean for pair in task.pairs] for pairs in corruption.draws)
        assert len({tuple(pair.donor_id for pair in pairs) for pairs in corruption.draws}) > 1


def test_a_donor_is_of_the_item_s_own_arm():
    items = ITEMS.assign(arm=["real" if name in PEOPLE[:3] else "made up" for name in ITEMS["subject"]])
    arms = items.set_index("item_id")["arm"]
    tasks = item_tasks(MODEL, TOKENIZER, items, rule=RULE, count=6)
    pairs = [pair for task in tasks for draw in task.corruptions[0].draws for pair in draw]
    assert len(pairs) == 12 * DONORS and all(arms[pair.donor_id] == arms[item_of(pair)] for pair in pairs)


def test_what_the_model_does_not_know_is_counted_and_not_asked():
    pairs = [pair for task in item_tasks(MODEL, TOKENIZER, ITEMS, rule=RULE, count=9) for pair in task.pairs]
    clean = measure_runs(MODEL, pairs, metrics=("logit_difference",)).query("run == 'clean'")
    bar = float(clean["logit_difference"].nlargest(3).iat[-1])  # two are above it
    known = item_tasks(MODEL, TOKENIZER, ITEMS, rule=replace(RULE, minimum_clean_logit_difference=bar), count=9)
    left_out = [task.refused["count"].sum() for task in known]
    assert sum(len(task.pairs) for task in known) == 2 and sum(left_out) > 0
    assert all(len(task.pairs) + out == len(PEOPLE) for task, out in zip(known, left_out, strict=True))
    with pytest.raises(ExperimentError, match="no pair is left"):
        item_tasks(MODEL, TOKENIZER, ITEMS, rule=replace(RULE, minimum_clean_logit_difference=1e6), count=9)


def test_the_model_and_its_items_are_those_of_the_seed(tmp_path):
    paths = Paths("mini", tmp_path)
    save_model(MODEL, TOKENIZER, paths.data / "models" / f"{ANALYSED}-seed3")
    write_table(paths.data / "items" / "items.parquet", ITEMS.assign(variant=None))
    model, tasks = known_items(paths, seed=3, rule=RULE, count=2)
    assert model.config.n_layer == 2 and [len(task.pairs) for task in tasks] == [2, 2]
