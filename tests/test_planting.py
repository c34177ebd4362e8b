"""Planting: what is planted where, what is told apart, and that nothing but the place changes."""

import dataclasses
from collections import Counter

import pandas as pd
import pytest
import torch
from toy import ROOT

from helpers import planted_facts, planting
from helpers.config import Paths
from helpers.donors import symmetric_replacement
from helpers.finetune import FineTuningError, Writing, write_knowledge
from helpers.methods import Place
from helpers.models import load_model, load_tokenizer, random_model
from helpers.planted_facts import old_items, planted_items, taught
from helpers.planting import (
    Checked,
    Plant,
    PlantingError,
    Recipe,
    counts,
    drift,
    planned_plants,
    plant_model,
    rounded,
    written_at,
)
from helpers.probe import probe_accuracy

FOLDER = Paths("mini", ROOT).embedded
RECIPE = Recipe(steps=6, least=3, batch_size=4, warmup_steps=1, replayed_share=0.5, drift_steps=2, drift_batch=2)
MLP = [Place("mlp_out", layer) for layer in range(6)]
ITEMS = pd.DataFrame(
    [
        {
            "item_id": f"f{i}",
            "relation": "definition",
            "group": group,
            "prompt": f"{start} S{i} {end}",
            "answer": answer,
        }
        for i, answer in enumerate(["temporal lobe", "aura", "tremor", "burst"])
        for group, start, end in (("seen", "Here", "is used for"), ("test", "We take", "to be"))
    ]
)
OLD = pd.DataFrame(
    {"prompt": [f"Here T{i} is used for" for i in range(4)], "answer": "gait", "replayed": [True, True, True, False]}
)
TEXTS = ["Here T0 is used for gait.", "By T1 we mean gait."]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(FOLDER / "models" / "base")


@pytest.fixture(scope="module")
def embedded():
    return load_model(FOLDER / "models" / "base")


@pytest.fixture(scope="module")
def planted(embedded):
    return {seed: planted_items(FOLDER, *embedded, seed=seed) for seed in (0, 1)}


@pytest.fixture(scope="module")
def base(tokenizer):
    return rounded(random_model(len(tokenizer), layers=6, width=16, heads=2, positions=32, seed=0))


def changed(before, after):
    after = dict(after.named_parameters())
    return {name for name, parameter in before.named_parameters() if not torch.equal(parameter, after[name])}


def in_(*paths):
    return lambda name: name.startswith(tuple(f"transformer.h.{path}." for path in paths))


# What is planned


def test_a_seed_has_26_plants_of_every_kind():
    plants = planned_plants(6, [0, 1])
    assert len(plants) == len({plant.name for plant in plants}) == 52
    kinds = Counter(plant.kind for plant in plants if plant.seed == 1)
    assert kinds == {"single": 12, "two": 3, "spread": 1, "all": 1, "null": 3, "drifted": 6}
    by_name = {plant.name: plant for plant in plants}
    assert by_name["attn-2-seed1"].shares == ((Place("attn_out", 2), 1.0),)
    assert by_name["two-1-4-seed0"].shares == ((MLP[1], 0.7), (MLP[4], pytest.approx(0.3)))
    assert {"two-2-3-seed0", "two-0-5-seed0", "null-base-seed0", "null-1-seed0", "null-4-seed0"} <= set(by_name)
    assert by_name["drifted-3-seed0"].shares == by_name["mlp-3-seed0"].shares
    more = planned_plants(6, [0, 1], [1, 5])
    assert set(plants) < set(more) and len(more) == 55
    assert sorted(plant.name for plant in more if plant.seed == 5) == [
        "null-1-seed5",
        "null-4-seed5",
        "null-base-seed5",
    ]


def test_plants_that_cannot_be_are_refused():
    with pytest.raises(PlantingError, match="need at least 6 blocks; this model has 5"):
        planned_plants(5, [0])
    with pytest.raises(PlantingError, match="no kind 'pair' of plant"):
        Plant("x", "pair", 0, ())
    with pytest.raises(PlantingError, match="add up to 1; these do not"):
        Plant("x", "two", 0, ((MLP[0], 0.5), (MLP[1], 0.4)))
    with pytest.raises(PlantingError, match="of kind 'all' has no shares"):
        Plant("x", "all", 0, ((MLP[0], 1.0),))


@pytest.mark.parametrize("share, first", [(0.5, 28), (0.7, 39), (0.3, 17)])
def test_facts_are_divided_by_share_whatever_the_order_of_the_rows(planted, share, first):
    plant = Plant("two", "two", 0, ((MLP[1], share), (MLP[4], 1 - share)))
    where = written_at(plant, planted[0])
    assert len(where) == 56 and abs(list(where.values()).count(MLP[1]) - first) <= 1
    assert written_at(plant, planted[0].sample(frac=1, random_state=1)) == where
    assert written_at(dataclasses.replace(plant, seed=1), planted[0]) != where
    relation = planted[0].drop_duplicates("item_id").set_index("item_id")["relation"]
    definitions = [place for item, place in where.items() if relation[item] == "definition"]
    assert abs(definitions.count(MLP[1]) - share * len(definitions)) <= 1, "every relation is divided alike"


def test_a_null_is_written_nowhere():
    assert written_at(Plant("null-1-seed0", "null", 0, ()), ITEMS) == {}


# What is planted


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_facts_are_unknown_told_apart_and_paired(planted, embedded, seed):
    model, tokenizer = embedded
    items = planted[seed]
    facts = items.drop_duplicates("item_id")
    assert len(facts) == 56 and Counter(facts["arm"]) == {"real": 24, "made-up": 32}
    assert Counter(facts.loc[facts["arm"] == "real", "kind"]) == {"definitional": 12, "associative": 12}
    assert set(items["variant"].dropna()) == {seed % 2}
    assert len(taught(items)) == 280 and len(items) == 448 and not items["prompt"].duplicated().any()
    assert not probe_accuracy(model, tokenizer, items, batch_size=64).any()
    asked = items[items["wording_id"].str.endswith("-seen-0")]
    pairs, _ = symmetric_replacement(asked, tokenizer, seed=0)
    assert len(pairs) == 56, "every fact has a donor"
    embeddings = torch.nn.functional.normalize(model.transformer.wte.weight.detach(), dim=1)
    for text in {*facts["subject"], *facts["answer"]}:
        ids = tokenizer(f" {text}")["input_ids"]
        assert (embeddings[ids] @ embeddings.T > planted_facts.ALIKE).sum() == len(ids), (
            f"{text}: a token is like another"
        )


def test_seeds_draw_other_real_facts_and_turn_the_made_up_ones_round(planted):
    real = [set(items.loc[items["arm"] == "real", "item_id"]) for items in planted.values()]
    assert real[0] != real[1]
    arms = [
        items[items["arm"] == "made-up"].drop_duplicates("item_id").set_index("item_id") for items in planted.values()
    ]
    assert arms[0]["subject"].equals(arms[1]["subject"]) and arms[0]["answer"].equals(arms[1]["answer"])
    assert (arms[0]["kind"] != arms[1]["kind"]).all()


def test_old_items_are_known_and_no_entity_is_both_replayed_and_held_out(embedded):
    old = old_items(FOLDER, *embedded)
    assert probe_accuracy(*embedded, old.iloc[::40], batch_size=64).all()
    replayed, held_out = (set(old.loc[old["replayed"] == side, "subject"]) for side in (True, False))
    assert not replayed & held_out and (len(replayed), len(held_out)) == (210, 30)


# What a plant changes


@pytest.mark.parametrize(
    "name, kind, shares, where",
    [
        ("mlp-3-seed0", "single", ((MLP[3], 1.0),), in_("3.mlp")),
        ("attn-2-seed0", "single", ((Place("attn_out", 2), 1.0),), in_("2.attn")),
        ("two-0-5-seed0", "two", ((MLP[0], 0.5), (MLP[5], 0.5)), in_("0.mlp", "5.mlp")),
        ("null-base-seed0", "null", (), lambda name: False),
        ("null-4-seed0", "null", (), in_("4.mlp")),
        ("all-seed0", "all", (), lambda name: True),
        ("drifted-3-seed0", "drifted", ((MLP[3], 1.0),), lambda name: True),
    ],
)
def test_a_plant_differs_from_its_base_where_it_was_written_and_nowhere_else(
    base, tokenizer, name, kind, shares, where
):
    before = {key: value.clone() for key, value in base.state_dict().items()}
    recipe = dataclasses.replace(RECIPE, drift_learning_rate=1e-2)
    model, losses = plant_model(base, tokenizer, Plant(name, kind, 0, shares), ITEMS, OLD, recipe, texts=TEXTS)
    assert changed(base, model) == {key for key, _ in base.named_parameters() if where(key)}
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    assert all(torch.equal(p, p.half().float()) for p in model.parameters()) and not model.training
    steps = {"two": [3, 3], "drifted": [6, 2]}.get(kind, [] if name.startswith("null-base") else [6])
    assert list(map(len, losses)) == steps


def test_later_places_replay_what_was_written_before(base, tokenizer, monkeypatch):
    calls = []

    def write(model, tokenizer, new, old, writing, *, cached):
        calls.append((writing.block, set(new["prompt"]), set(old["prompt"]), cached))
        return [0.0]

    monkeypatch.setattr(planting, "write_knowledge", write)
    plant = Plant("two", "two", 0, ((MLP[4], 0.5), (MLP[1], 0.5)))
    plant_model(base, tokenizer, plant, ITEMS, OLD, RECIPE)
    (first, new_1, old_1, cached), (second, new_2, old_2, _) = calls
    assert (first, second, cached) == (1, 4, True), "from the lowest block to the highest"
    assert not new_1 & new_2 and new_1 | new_2 == set(taught(ITEMS)["prompt"]), "no wording that is not taught"
    known = set(OLD.loc[OLD["replayed"], "prompt"])
    assert old_1 == known and old_2 == known | new_1


def test_drift_goes_on_from_the_rounded_single_plant(base, tokenizer):
    single, _ = plant_model(base, tokenizer, Plant("mlp-3-seed0", "single", 0, ((MLP[3], 1.0),)), ITEMS, OLD, RECIPE)
    plant = Plant("drifted-3-seed0", "drifted", 0, ((MLP[3], 1.0),))
    model, _ = plant_model(base, tokenizer, plant, ITEMS, OLD, RECIPE, texts=TEXTS)
    drift(single, tokenizer, TEXTS, RECIPE, seed=0)
    assert not changed(rounded(single), model)
    with pytest.raises(PlantingError, match="trained on unrelated texts, and there are none"):
        plant_model(base, tokenizer, plant, ITEMS, OLD, RECIPE)


def test_a_plant_counts_when_it_learnt_and_kept_enough():
    single, null = Plant("mlp-3-seed0", "single", 0, ((MLP[3], 1.0),)), Plant("null-1-seed0", "null", 0, ())
    assert counts(single, Checked(0.95, 0.95, 0.96)) and counts(null, Checked(0.0, 0.95, 0.95))
    assert not counts(single, Checked(0.94, 1.0, 1.0)) and not counts(null, Checked(0.0, 1.0, 0.94))
    assert Checked(1.0, 0.9, 0.8).kept == 0.8


def test_what_a_plant_knows_is_asked_in_the_taught_wordings_alone(base, tokenizer, monkeypatch):
    def right(model, tokenizer, items, *, batch_size):
        return ~items["prompt"].str.contains("S3|T1|T3|We take")

    monkeypatch.setattr(planting, "probe_accuracy", right)
    checked = planting.check_plant(base, tokenizer, ITEMS, OLD)
    assert checked == Checked(learnt=0.75, kept_replayed=pytest.approx(2 / 3), kept_held_out=0.0)


# Writing fast


@pytest.mark.parametrize("part, block", [("mlp", 0), ("mlp", 3), ("mlp", 5), ("attention", 0), ("attention", 4)])
def test_the_fast_way_of_writing_has_the_losses_and_the_weights_of_the_slow_one(tokenizer, part, block):
    """Where nothing but a cached prefix and unscored logits is left out."""
    models = [random_model(len(tokenizer), layers=6, width=16, heads=2, positions=32, seed=0) for _ in range(2)]
    writing = Writing(part, block, steps=8, batch_size=5, learning_rate=1e-2, warmup_steps=1, replayed_share=0.4)
    slow, fast = (
        write_knowledge(model, tokenizer, taught(ITEMS), OLD, writing, cached=cached)
        for model, cached in zip(models, (False, True), strict=True)
    )
    assert fast == pytest.approx(slow, abs=1e-5) and slow[-1] < slow[0] - 0.02
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)
    assert changed(*models) <= changed(
        random_model(len(tokenizer), layers=6, width=16, heads=2, positions=32, seed=0), models[0]
    )


def test_dropout_is_no_constant_to_cache(tokenizer):
    model = random_model(len(tokenizer), layers=6, width=16, heads=2, positions=32, seed=0)
    model.config.resid_pdrop = 0.1
    with pytest.raises(FineTuningError, match="What enters block 1 of this gpt2 is no constant"):
        write_knowledge(model, tokenizer, taught(ITEMS), OLD, Writing("mlp", 1, steps=1), cached=True)
