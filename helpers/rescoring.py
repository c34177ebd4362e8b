"""Rescoring: one plant planted again and the committed ones scored again, beside what is committed of them.

What a reader can do in minutes, to see that the leaderboard is what this code gives on these weights: training is
checked on one plant, against its embedded twin, and scoring on all embedded plants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from helpers.artifacts import ArtifactError
from helpers.calibration import CalibrationError, load_case, score_case
from helpers.config import Calibration, Paths
from helpers.localisers import METHODS
from helpers.planting import Plant, Recipe, check_plant, counts, plant_model
from helpers.plants import load_plant, manifest, material, stored_plants
from helpers.processes import as_finished
from helpers.report import Answer
from helpers.standings import Standings

FIRST_MLP = ("mlp_out", 0)


@dataclass(frozen=True)
class Rescored:
    """What was found again: the plant beside its twin, and the tables of the leaderboard for some methods and plants.

    `twin` has the columns quantity, here, embedded. `scores` and `places` are as in standings; `first_mlp` has what
    methods that answer by pairs say of MLP 0: method, plant, pair, fact_kind, component, layer, numerator, denominator.
    """

    twin: Answer
    scores: pd.DataFrame
    places: pd.DataFrame
    first_mlp: pd.DataFrame


def rescore(settings: Calibration, paths: Paths, *, resamples: int) -> Rescored:
    """Plant one plant and score the committed ones again, in processes of one thread.

    Raises CalibrationError for a method or a plant that there is not, when the plant is changed elsewhere than its
    twin, and where an answer that holds by construction is not exact.
    """
    plants = {plant.name: plant for plant in stored_plants(paths.embedded / "plants")}
    if settings.planted not in plants:
        raise CalibrationError(f"There is no committed plant {settings.planted!r}, but {', '.join(plants)}.")
    methods = tuple(method.name for method in chosen_methods(settings.methods))
    scored = _spread(list(plants.values()), settings.plants)
    given = {"facts": settings.facts, "resamples": resamples}
    jobs = [(partial(replanted, plants[settings.planted], paths, steps=settings.steps),)]
    jobs += [(partial(_score, plant, methods, paths, **given),) for plant in scored]
    twin, tables = None, {}
    for found in as_finished(_call, jobs, processes=settings.processes, warm="helpers.localisers"):
        if isinstance(found, Answer):
            twin = found
        else:
            tables[found[0]] = found[1:]
    joined = [
        pd.concat(parts, ignore_index=True) for parts in zip(*(tables[name] for name in sorted(tables)), strict=True)
    ]
    return Rescored(twin, *joined)


def chosen_methods(names: Sequence[str]):
    """The methods of helpers.localisers with these names, all for none; raises CalibrationError for an unknown name."""
    known = {method.name: method for method in METHODS}
    if unknown := [name for name in names if name not in known]:
        raise CalibrationError(f"There is no method {unknown[0]!r}; there are {', '.join(known)}.")
    return [known[name] for name in names or known]


def replanted(plant: Plant, paths: Paths, *, steps: int | None = None) -> Answer:
    """Plant a committed plant again, in `steps` (None: those it was made in), and compare it with its embedded twin.

    On the machine that made the twin the weights are the same to the bit; on another one training takes another way to
    the same place. Raises CalibrationError when other tensors have changed than the twin's.
    """
    folder = paths.embedded / "plants"
    row, (base, tokenizer, items, old) = manifest(folder)[plant.name], material(paths, plant.seed)
    recipe = Recipe(**row["recipe"])
    if steps is not None:
        recipe = replace(recipe, steps=steps, least=min(steps, recipe.least))
    model, _ = plant_model(base, tokenizer, plant, items, old, recipe)
    here, there = changes(model, base), changes(load_plant(folder, plant.name, base), base)
    if here.keys() != there.keys():
        raise CalibrationError(
            f"{plant.name}, planted here, differs from its base in {', '.join(sorted(here))}, and its embedded twin in "
            f"{', '.join(sorted(there))}: planting writes elsewhere than it did."
        )
    checked = check_plant(model, tokenizer, items, old)
    together = [torch.cat([part[name].flatten() for name in sorted(part)]) for part in (here, there)]
    alike = float(torch.nn.functional.cosine_similarity(*together, dim=0))
    equal = float((together[0] == together[1]).float().mean())
    lines = {
        "steps": (recipe.steps, row["recipe"]["steps"]),
        "tensors changed": (len(here), len(there)),
        "learnt": (checked.learnt, row["learnt"]),
        "kept, replayed": (checked.kept_replayed, row["kept_replayed"]),
        "kept, not replayed": (checked.kept_held_out, row["kept_held_out"]),
        "length of the change": tuple(float(part.norm()) for part in together),
    }
    table = pd.DataFrame(
        [(name, float(a), float(b)) for name, (a, b) in lines.items()], columns=["quantity", "here", "embedded"]
    )
    verdict = "counts" if counts(plant, checked) else "does not count"
    sentence = (
        f"Planted again in this run, {plant.name} differs from its base in {', '.join(sorted(here))}, as its embedded "
        f"twin does, and nowhere else. The two changes have a cosine of {alike:.3f}, and {equal:.0%} of the changed "
        f"weights are equal to the bit. The one made here {verdict}: it has learnt {checked.learnt:.1%} of its facts, "
        f"and kept {checked.kept:.1%} of the old ones."
    )
    if asdict(recipe) != row["recipe"]:
        sentence += f" It was trained for {recipe.steps} steps, the twin for {row['recipe']['steps']}."
    return Answer(table, sentence)


def changes(model, base) -> dict[str, torch.Tensor]:
    """The parameters in which two models differ, by name: the first model's less the second's."""
    before = dict(base.named_parameters())
    pairs = {name: parameter.detach() - before[name].detach() for name, parameter in model.named_parameters()}
    return {name: change for name, change in pairs.items() if change.any()}


def against_committed(found: Rescored, standings: Standings) -> Answer:
    """How far what was scored again is from the committed leaderboard: method, plants, difference, same_block.

    `difference` is the largest of a place's score, in units of the largest score of that plant; `same_block` the share
    of plants with the same best blocks. Raises ArtifactError when the leaderboard has none of the methods and plants.
    """
    keys = ["method", "plant"]
    both = found.places.merge(standings.places, on=[*keys, "component", "layer"], suffixes=("", "_committed"))
    if both.empty:
        raise ArtifactError("The committed leaderboard has none of the methods and plants that were scored here.")
    largest = both.groupby(keys)["score_committed"].transform(lambda scores: scores.abs().max())
    apart = (both["score"] - both["score_committed"]).abs() / largest.where(largest > 0, 1)
    tops = found.scores.merge(standings.scores, on=keys, suffixes=("", "_committed"))
    table = both.assign(difference=apart).groupby("method", sort=False)["difference"].max().to_frame()
    same = (tops["top_blocks"] == tops["top_blocks_committed"]).groupby(tops["method"]).agg(["mean", "size"])
    table = table.join(same).rename(columns={"mean": "same_block", "size": "plants"}).reset_index()
    shared = np.average(table["same_block"], weights=table["plants"])
    asked, there = int(found.scores["pairs"].max()), int(standings.scores["pairs"].max())
    fewer = f", about {asked} facts in the place of {there}" if asked < there else ""
    sentence = (
        f"{len(table)} methods were run again on {tops['plant'].nunique()} embedded plants{fewer}. They point to the "
        f"same block as in the committed leaderboard in {shared:.1%} of their answers; the largest difference of a "
        f"score is {table['difference'].max():.3%} of the highest one of its plant."
    )
    return Answer(table[["method", "plants", "difference", "same_block"]], sentence)


def _score(plant: Plant, methods: Sequence[str], paths: Paths, *, facts: int | None, resamples: int) -> tuple:
    """A plant's name, and its tables of Rescored."""
    case = load_case(paths.embedded / "plants", plant)
    case = replace(case, pairs=_spread(case.pairs, facts))
    scored = [score_case(method, case, resamples=resamples) for method in chosen_methods(methods)]
    first = [_of_first_mlp(one.found, case).assign(method=one.line["method"], plant=plant.name) for one in scored]
    return (
        plant.name,
        pd.DataFrame([one.line for one in scored]),
        pd.concat([one.places for one in scored]),
        pd.concat(first),
    )


def _of_first_mlp(found: pd.DataFrame, case) -> pd.DataFrame:
    if "pair" not in found:
        return pd.DataFrame()
    rows = found[(found["component"] == FIRST_MLP[0]) & (found["layer"] == FIRST_MLP[1])]
    return rows.assign(fact_kind=rows["pair"].map(case.fact_kinds))


def _spread(rows: Sequence, count: int | None) -> list:
    """So many rows at equal distances, all for None."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[number * len(rows) // count] for number in range(count)]


def _call(function):
    return function()
