"""Planting: facts written into a place of our choice, so that where they are stored is known.

A *plant* is the base model, taught facts that it did not know by training one block's MLP or attention alone, with old
facts replayed. Every weight that changed lies there, which makes the place the truth that methods are scored on. Facts
are divided among several places by their shares, one place written after the other; nulls are taught nothing new;
drifted plants are trained on in every parameter, on texts that say nothing of the facts.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from helpers.draws import draw_rank
from helpers.finetune import Writing, write_knowledge
from helpers.knowledge import base_facts, load_facts, load_wordings
from helpers.methods import Place
from helpers.planted_facts import taught
from helpers.pretraining import Recipe as BaseRecipe
from helpers.pretraining import base_texts, train_step
from helpers.probe import probe_accuracy

KINDS = ("single", "two", "spread", "null", "drifted", "all")
PARTS = {"mlp_out": "mlp", "attn_out": "attention"}
LEARNT = KEPT = 0.95
NULL_SEEDS = tuple(range(3, 13))  # of more nulls: 9 of three seeds could not show that false alarms are rare


class PlantingError(ValueError):
    """A plant that cannot be made, or facts that cannot be planted."""


@dataclass(frozen=True)
class Plant:
    """One taught model with its truth: `shares` of its facts by the place they were written at; none for null and all.

    `kind` is one of KINDS. Raises PlantingError for another kind, and for shares that do not add up to 1.
    """

    name: str
    kind: str
    seed: int
    shares: tuple[tuple[Place, float], ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PlantingError(f"{self.name}: there is no kind {self.kind!r} of plant; the kinds are {KINDS}.")
        if self.kind in ("null", "all") and self.shares:
            raise PlantingError(f"{self.name}: a plant of kind {self.kind!r} has no shares, not {self.shares}.")
        if self.kind not in ("null", "all") and abs(sum(share for _, share in self.shares) - 1) > 1e-9:
            raise PlantingError(
                f"{self.name}: the shares of a plant's places add up to 1; these do not: {self.shares}."
            )


@dataclass(frozen=True)
class Recipe:
    """How facts are written. `steps` are for one place that all facts are written at, and never fewer than `least`."""

    steps: int = 700
    least: int = 400
    batch_size: int = 64
    learning_rate: float = 1.5e-3
    learning_rate_of_all: float = 1e-3
    warmup_steps: int = 20
    replayed_share: float = 0.75
    drift_steps: int = 200
    drift_batch: int = 4
    drift_learning_rate: float = 1e-5


@dataclass(frozen=True)
class Checked:
    """Shares answered right: of the taught questions, and of the old ones that were replayed and that were not."""

    learnt: float
    kept_replayed: float
    kept_held_out: float

    @property
    def kept(self) -> float:
        """The lesser share of the two kinds of old questions."""
        return min(self.kept_replayed, self.kept_held_out)


def planned_plants(layers: int, seeds: Sequence[int], null_seeds: Sequence[int] = ()) -> list[Plant]:
    """The plants of every seed: each MLP, each attention, two MLPs, all MLPs, everything, drifted MLPs, and nulls.

    Nulls are the base as it is, and after training on old facts in an early and in a late MLP; there are more of them,
    of `null_seeds`. Raises PlantingError for fewer than 6 layers, where the three pairs of MLPs would not be three.
    """
    if layers < 6:
        raise PlantingError(f"Pairs of blocks, near and far, need at least 6 blocks; this model has {layers}.")
    mlps = [Place("mlp_out", layer) for layer in range(layers)]
    two = [(layers // 2 - 1, layers // 2, 0.5), (1, layers - 2, 0.7), (0, layers - 1, 0.3)]
    plants = []
    for seed in seeds:
        planned = [(f"mlp-{place.layer}", "single", ((place, 1.0),)) for place in mlps]
        planned += [(f"attn-{layer}", "single", ((Place("attn_out", layer), 1.0),)) for layer in range(layers)]
        planned += [(f"two-{i}-{j}", "two", ((mlps[i], share), (mlps[j], 1 - share))) for i, j, share in two]
        planned += [("spread", "spread", tuple((place, 1 / layers) for place in mlps)), ("all", "all", ())]
        planned += [(f"drifted-{place.layer}", "drifted", ((place, 1.0),)) for place in mlps]
        plants += [Plant(f"{name}-seed{seed}", kind, seed, shares) for name, kind, shares in planned]
    nulls = ("null-base", "null-1", f"null-{layers - 2}")
    named = [(name, seed) for seed in sorted({*seeds, *null_seeds}) for name in nulls]
    return plants + [Plant(f"{name}-seed{seed}", "null", seed, ()) for name, seed in named]


def written_at(plant: Plant, items: pd.DataFrame) -> dict[str, Place]:
    """The place at which each fact (item_id) of a plant is written; empty for null and all.

    Every relation is divided by the shares, in an order that the seed decides, whatever the order of the rows.
    """
    if not plant.shares:
        return {}
    facts = items.drop_duplicates("item_id")[["relation", "item_id"]].itertuples(index=False)
    given, where = dict.fromkeys((place for place, _ in plant.shares), 0), {}
    ordered = sorted(facts, key=lambda fact: (fact.relation, draw_rank(plant.seed, fact.item_id)))
    for number, fact in enumerate(ordered, start=1):
        place = max(plant.shares, key=lambda shared: shared[1] * number - given[shared[0]])[0]
        given[place] += 1
        where[fact.item_id] = place
    return where


def plant_model(base, tokenizer, plant: Plant, items: pd.DataFrame, old: pd.DataFrame, recipe: Recipe, *, texts=()):
    """A plant's model, its weights rounded to half precision as they are stored, and the losses of every writing.

    `items` are of planted_items, `old` of old_items; drifted plants need `texts` for `drift`. Losses are in nats per
    scored token, a list of steps for each place in turn. Raises PlantingError when a drifted plant has no texts.
    """
    model, new, known, losses = copy.deepcopy(base), taught(items), old[old["replayed"]], []
    if plant.kind == "null":
        if block := re.match(r"null-(\d+)-", plant.name):
            losses.append(_write(model, tokenizer, known, known, Place("mlp_out", int(block[1])), plant, recipe))
    elif plant.kind == "all":
        losses.append(_write(model, tokenizer, new, known, None, plant, recipe))
    where, written = written_at(plant, items), new[:0]
    for place in sorted(set(where.values()), key=lambda place: place.layer):
        here = new[new["item_id"].map(where) == place]
        losses.append(_write(model, tokenizer, here, _replayed(written, known), place, plant, recipe, of=len(new)))
        written = pd.concat([written, here])
    rounded(model)
    if plant.kind == "drifted":
        losses.append(drift(model, tokenizer, texts, recipe, seed=plant.seed))
    return rounded(model), losses


def drift_texts(folder: Path, *, seed: int) -> list[str]:
    """Unrelated text: records about the base's own entities, in an order that it has not read them in."""
    real = load_facts(folder)
    facts, wordings = base_facts(real, entities=240), load_wordings(folder)
    return base_texts(facts, wordings, real, recipe=BaseRecipe(), repeats=1, seed=1_000_000 + seed)


def drift(model, tokenizer, texts: Sequence[str], recipe: Recipe, *, seed: int) -> list[float]:
    """Train every parameter, in place, to model `texts`; returns the loss of every step in nats per token."""
    needed = recipe.drift_steps * recipe.drift_batch
    if not texts:
        raise PlantingError("A drifted plant is trained on unrelated texts, and there are none: see drift_texts.")
    order = sorted(range(needed), key=lambda number: draw_rank("drift", seed, number))
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.drift_learning_rate, weight_decay=0.0)
    model.train()
    losses = []
    for start in range(0, needed, recipe.drift_batch):
        read = [texts[number % len(texts)] for number in order[start : start + recipe.drift_batch]]
        limits = {"truncation": True, "max_length": model.config.n_positions, "padding": True}
        batch = tokenizer(read, **limits, return_tensors="pt")["input_ids"]
        losses.append(train_step(model, optimiser, batch.to(model.device), padding=tokenizer.pad_token_id))
    model.eval()
    return losses


def check_plant(model, tokenizer, items: pd.DataFrame, old: pd.DataFrame) -> Checked:
    """What a model answers right of what plants are taught, in the taught wordings, and of what the base knew."""
    new = probe_accuracy(model, tokenizer, taught(items), batch_size=64).mean()
    kept = probe_accuracy(model, tokenizer, old, batch_size=64).groupby(old["replayed"].to_numpy()).mean()
    return Checked(float(new), float(kept[True]), float(kept[False]))


def counts(plant: Plant, checked: Checked) -> bool:
    """Whether a plant enters the benchmark: it has learnt what it was taught, if anything, and kept what was known."""
    return checked.kept >= KEPT and (plant.kind == "null" or checked.learnt >= LEARNT)


def rounded(model):
    """The model, its weights rounded in place to numbers of half precision: what a file holds is what is scored."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return model


def _write(model, tokenizer, new, old, place, plant: Plant, recipe: Recipe, *, of: int = 0) -> list[float]:
    part, block = (PARTS[place.component], place.layer) if place else ("all", None)
    share = len(new) / of if of else 1.0
    writing = Writing(
        part,
        block,
        steps=max(recipe.least, round(share * recipe.steps)) if share < 1 else recipe.steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate if place else recipe.learning_rate_of_all,
        warmup_steps=recipe.warmup_steps,
        replayed_share=1 - share * (1 - recipe.replayed_share),  # few new facts are few rows of a batch, too
        seed=plant.seed,
    )
    return write_knowledge(model, tokenizer, new, old, writing, cached=place is not None)


def _replayed(written: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """What is replayed beside new facts: two parts of old ones and one of those written before, if there are any."""
    if written.empty:
        return known
    return pd.concat([known, *[written] * max(1, len(known) // (2 * len(written)))], ignore_index=True)
