"""Calibration: every method on every plant, and a leaderboard that takes yours.

    from helpers.calibration import leaderboard
    from helpers.methods import Method
    leaderboard(Method("mine", "storage", informed=False, locate=my_function))

runs a method on the committed plants (seed 0) and puts it where it belongs in the committed leaderboard.
`make leaderboard` makes that anew. A *case* is a plant with its models and the pairs that ask about what it was taught.
Where a method's answer holds by construction it must be exact (`check_given`): an error there is one of the code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.architectures import layer_count
from helpers.artifacts import ArtifactError, fingerprint, read_table, write_table
from helpers.config import ROOT, Paths
from helpers.costs import counted
from helpers.donors import symmetric_replacement
from helpers.methods import COMPONENTS, LAST_BLOCK, PLACE, Method, Models, Place, apply, place_scores
from helpers.models import load_model
from helpers.pairs import PromptPair
from helpers.pointing import chance, claims, point, stability, top_blocks
from helpers.processes import as_finished
from helpers.standings import FOLDER, board, read_standings, scoring_code, write_standings

CACHE = ROOT / "data" / "leaderboard"  # git ignores it
SEEDS = (0, 1, 2)
WORDING = "-seen-0"  # how a pair asks
RESAMPLES = 1000  # of pairs
EXACT = 1e-4  # a recovery that holds by construction differs from 1 by rounding only


class CalibrationError(RuntimeError):
    """A method that is wrong where it cannot be, or a case that cannot be scored."""


@dataclass(frozen=True)
class Case:
    """A plant (helpers.planting.Plant), the models after and before, and pairs about what it was taught.

    A plant that does not count has not learnt its facts, or has lost others: it is listed, and not ranked.
    `fact_kinds` says of which kind the fact is that a pair asks about, by the pair's name.
    """

    plant: object
    taught: object
    base: object
    pairs: Sequence[PromptPair]
    counts: bool = True
    fact_kinds: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """One method on one case: its line of `score_method`, a line per place, and its answer as it was given.

    `places` has the columns method, plant, component, layer, score, share.
    """

    line: dict
    places: pd.DataFrame
    found: pd.DataFrame


def score_case(method: Method, case: Case, *, resamples: int = RESAMPLES) -> Scored:
    """Ask one method about one case; raises CalibrationError for a case without pairs, and as check_given does."""
    plant, layers = case.plant, layer_count(case.taught)
    if not case.pairs:
        raise CalibrationError(f"{plant.name} has no pairs to ask {method.name!r} about.")
    positions = float(np.mean([pair.positions for pair in case.pairs]))
    with counted([case.taught, case.base], positions=positions) as cost:
        found = apply(method, Models(case.taught, case.base), case.pairs)
    scores, given = place_scores(found), is_given(method, plant, layers)
    if given and case.counts:
        check_given(method, plant, found)
    claim = claims(found, resamples=resamples)
    planted = len({place.layer for place, share in plant.shares if share > 0})
    line = {
        "method": method.name,
        "question": method.question,
        "informed": method.informed,
        "plant": plant.name,
        "site": plant.name.removesuffix(f"-seed{plant.seed}"),
        "kind": plant.kind,
        "seed": plant.seed,
        "counts": case.counts,
        "given": given,
        "ranked": case.counts and not given,
        **point(scores, plant.shares),
        **{f"chance_{name}": value for name, value in chance(layers, planted=planted).items()},
        "top_blocks": " ".join(map(str, sorted(top_blocks(scores)))),
        "top_score": claim.score,
        "claims": claim.made,
        "something": claim.something,
        **stability(found, resamples=resamples),
        "pairs": len(case.pairs),
        "passes": cost.passes / len(case.pairs),
        "seconds": cost.seconds,
    }
    truth = {(place.component, place.layer): share for place, share in plant.shares}
    share = [truth.get(place, 0.0) for place in scores[PLACE].itertuples(index=False, name=None)]
    return Scored(line, scores.assign(method=method.name, plant=plant.name, share=share), found)


def score_method(method: Method, cases: Iterable[Case], *, resamples: int = RESAMPLES) -> pd.DataFrame:
    """A method on every case, a line each.

    Columns: method, question, informed; plant, site (the plant but for its seed), kind, seed, counts; given (holds by
    construction), ranked (counts and is not given); pointing.SCORES and chance_NAME of each; top_blocks, top_score,
    claims, something, stable_block and stable_places (pointing.claims, pointing.stability); pairs, passes (forward
    passes of one prompt, per pair), seconds. Raises CalibrationError as check_given does.
    """
    return pd.DataFrame([score_case(method, case, resamples=resamples).line for case in cases])


def is_given(method: Method, plant, layers: int) -> bool:
    """Whether a method's answer about a plant holds by construction, in a model of so many layers."""
    at_the_end = plant.kind == "single" and all(place.layer == layers - 1 for place, _ in plant.shares)
    return plant.kind in method.given or (at_the_end and LAST_BLOCK in method.given)


def check_given(method: Method, plant, found: pd.DataFrame) -> None:
    """Raise CalibrationError when an answer that holds by construction is not exact.

    Lines per pair are recoveries: 0 at every place that comes before the first planted one in a forward pass, and 1 at
    a single planted place, to EXACT. Places after it may recover anything, also more than 1: where they do, the method
    points past what was written, and that is a finding. Without pairs, a planted block must be hit. Into a null nothing
    was written, and no block may be claimed.
    """
    scores = place_scores(found)
    if not plant.shares:
        if claims(found).made:
            raise CalibrationError(f"{method.name!r} claims a block of {plant.name}, into which nothing was written.")
    elif "pair" not in found:
        if (hit := point(scores, plant.shares)["hit_at_1"]) < 1:
            raise CalibrationError(
                f"{method.name!r} must point to what was written in {plant.name} by construction, and hits it with "
                f"probability {hit:.2f} (blocks {sorted(top_blocks(scores))}): the method or the plant is broken."
            )
    else:
        recovery = {Place(row.component, row.layer): row.score for row in scores.itertuples()}
        first = min(_order(place) for place, _ in plant.shares)
        expected = {place: 0.0 for place in recovery if _order(place) < first}
        expected |= {place: 1.0 for place, _ in plant.shares if len(plant.shares) == 1}
        for place, value in expected.items():
            if not abs(recovery[place] - value) <= EXACT:
                raise CalibrationError(
                    f"{method.name!r} recovers {recovery[place]:.6f} at {place.component} {place.layer} of "
                    f"{plant.name}, where it must recover {value:.0f} by construction: the models differ elsewhere, or "
                    "the method is broken."
                )


def leaderboard(
    my_method: Method | None = None,
    *,
    cases: Iterable[Case] | None = None,
    folder: Path = FOLDER,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """The committed leaderboard (standings.board), with your method in its place, marked in the column `mine`.

    Your method is run on `cases`, None for the committed plants (seed 0); the column `seeds` says which seeds a line
    rests on, NAME_low and NAME_high are its 95 % intervals, `left_out` names plants that do not count. Raises
    CalibrationError when the leaderboard has a method of that name, and for a method that points nowhere it must.
    """
    scores = read_standings(folder).scores
    if my_method is not None:
        if my_method.name in set(scores["method"]):
            raise CalibrationError(f"The leaderboard has a method {my_method.name!r} already: give yours another name.")
        mine = score_method(my_method, embedded_cases() if cases is None else cases, resamples=resamples)
        scores = pd.concat([scores, mine], ignore_index=True)
    table = board(scores)
    return table.assign(mine=table["method"] == (my_method.name if my_method else None))


def embedded_cases() -> Iterator[Case]:
    """The cases of the committed plants, loaded one after the other."""
    from helpers.plants import stored_plants

    folder = Paths("mini").embedded / "plants"
    for plant in stored_plants(folder):
        yield load_case(folder, plant)


def load_case(folder: Path, plant) -> Case:
    """One stored plant with its base, asked about every fact of its seed once, in the first wording that is taught.

    Nulls are asked the same, about what they were not taught. Raises plants.PlantsError for a plant that is damaged.
    """
    from helpers.plants import load_plant, manifest

    base, pairs, kinds = _asked(plant.seed)
    taught = load_plant(folder, plant.name, base)
    return Case(plant, taught, base, pairs, counts=manifest(folder)[plant.name]["counts"], fact_kinds=kinds)


@cache
def _asked(seed: int) -> tuple[object, tuple[PromptPair, ...], dict[str, str]]:
    """The base model, the pairs of a seed, and the kind of fact of each.

    Donors are of the fact's own arm, which the model was taught as well.
    """
    from helpers.planted_facts import planted_items

    embedded = Paths("mini").embedded
    base, tokenizer = load_model(embedded / "models" / "base")
    items = planted_items(embedded, base, tokenizer, seed=seed)
    items = items[items["wording_id"].str.endswith(WORDING)]
    pairs = [symmetric_replacement(arm, tokenizer, seed=seed)[0] for _, arm in items.groupby("arm", sort=True)]
    kinds = dict(zip(items["item_id"] + "/" + items["wording_id"], items["kind"], strict=True))
    return base, tuple(pair for arm in pairs for pair in arm), kinds


def score_plant(folder: Path, plant, digest: str, *, code: str, cache: Path = CACHE) -> str:
    """Run every method on one stored plant and keep the tables in `cache`, unless they are there; returns its name.

    A table is kept under the digests of the code and of the plant, so that one made from others is not found.
    """
    files = cached(plant.name, code=code, digest=digest, cache=cache)
    if not all(file.is_file() for file in files):
        from helpers.localisers import METHODS

        case = load_case(folder, plant)
        scored = [score_case(method, case) for method in METHODS]
        write_table(files[0], pd.DataFrame([one.line for one in scored]))
        write_table(files[1], pd.concat([one.places for one in scored], ignore_index=True))
    return plant.name


def cached(name: str, *, code: str, digest: str, cache: Path = CACHE) -> tuple[Path, Path]:
    """Where the scores and the places of a plant are kept."""
    key = fingerprint([code, digest])[:16]
    return cache / f"{name}.{key}.scores.parquet", cache / f"{name}.{key}.places.parquet"


def collect(rows: Mapping[str, dict], digests: Mapping, *, code: dict, cache: Path = CACHE, folder: Path = FOLDER):
    """Join the tables of all plants and write the leaderboard; `rows` are the plants' lines of their manifests by name.

    Raises ArtifactError when a table is missing.
    """
    found = [cached(name, code=fingerprint(code), digest=digests[name], cache=cache) for name in rows]
    scores, places = (
        pd.concat([read_table(file) for file in files], ignore_index=True) for files in zip(*found, strict=True)
    )
    known = ["kind", "seed", "learnt", "kept_replayed", "kept_held_out", "counts"]
    plants = pd.DataFrame([{"plant": name} | {key: row[key] for key in known} for name, row in rows.items()])
    tables = {"scores": scores, "places": places.astype({"score": "float32"}), "plants": plants}
    write_standings(tables, code=code, plants={name: digests[name] for name in rows}, folder=folder)


def _order(place: Place) -> tuple[int, int]:
    """When a forward pass comes to a place."""
    return place.layer, COMPONENTS.index(place.component)


def main() -> int:
    """Score every method on every plant, in two processes of one thread; what is finished is kept."""
    from helpers.planting import NULL_SEEDS, planned_plants
    from helpers.plants import manifest, plant_digests

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, metavar="SEED")
    parser.add_argument("--null-seeds", type=int, nargs="*", default=NULL_SEEDS, metavar="SEED")
    chosen, paths = parser.parse_args(), Paths("mini")
    base, _ = load_model(paths.embedded / "models" / "base")
    folders, rows, digests = {}, {}, {}
    for folder in (paths.embedded / "plants", paths.root / "data" / "plants"):
        folders |= dict.fromkeys(manifest(folder), folder)
        rows |= manifest(folder)
        digests |= plant_digests(folder)
    plants = planned_plants(layer_count(base), chosen.seeds, chosen.null_seeds)
    try:
        if missing := [plant.name for plant in plants if plant.name not in folders]:
            raise CalibrationError(f"{len(missing)} plants are missing, as {missing[0]}: run `make plants` first.")
        code = scoring_code()
        score = partial(score_plant, code=fingerprint(code))
        jobs = [(folders[plant.name], plant, digests[plant.name]) for plant in plants]
        scored = as_finished(score, jobs, processes=chosen.processes, warm="helpers.localisers")
        for number, name in enumerate(scored, start=1):
            print(f"{number} of {len(jobs)}: {name}", flush=True)
        collect({plant.name: rows[plant.name] for plant in plants}, digests, code=code)
    except (CalibrationError, ArtifactError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(read_standings().note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
