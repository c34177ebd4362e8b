"""Calibration: every method on every plant, and a leaderboard that takes yours.

    from helpers.calibration import leaderboard
    from helpers.methods import Method
    leaderboard(Method("mine", "storage", informed=False, locate=my_function))

runs a method on the embedded plants of one seed and puts it where it belongs in the committed leaderboard.
`make leaderboard` makes that anew. A *case* is a plant with its models and the pairs that ask about what it was taught.
Where a method's answer holds by construction it must be exact (`check_given`): an error there is one of the code.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from helpers.architectures import layer_count
from helpers.artifacts import ArtifactError, fingerprint, read_table, write_table
from helpers.config import ROOT
from helpers.costs import counted
from helpers.methods import COMPONENTS, PLACE, Method, Models, Place, apply, place_scores
from helpers.pairs import PromptPair
from helpers.pointing import chance, claims, point, stability, top_blocks
from helpers.standings import FOLDER, board, code_digests, read_standings, write_standings

CACHE = ROOT / "data" / "leaderboard"  # git ignores it
SEEDS = (0, 1, 2)
RESAMPLES = 1000  # of pairs
EXACT = 1e-4  # a recovery that holds by construction differs from 1 by rounding only


class CalibrationError(RuntimeError):
    """A method that is wrong where it cannot be, or a case that cannot be scored."""


@dataclass(frozen=True)
class Case:
    """A plant (helpers.planting.Plant), the models after and before, and pairs about what it was taught.

    A plant that does not count has not learnt its facts, or has lost others: it is listed, and not ranked.
    """

    plant: object
    taught: object
    base: object
    pairs: Sequence[PromptPair]
    counts: bool = True


def score_case(method: Method, case: Case, *, resamples: int = RESAMPLES) -> tuple[dict, pd.DataFrame]:
    """One method on one case: its line of `score_method`, and a line per place (method, plant, place, score, share)."""
    plant, layers = case.plant, layer_count(case.taught)
    if not case.pairs:
        raise CalibrationError(f"{plant.name} has no pairs to ask {method.name!r} about.")
    positions = float(np.mean([pair.positions for pair in case.pairs]))
    with counted([case.taught, case.base], positions=positions) as cost:
        found = apply(method, Models(case.taught, case.base), case.pairs)
    scores, given = place_scores(found), plant.kind in method.given
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
    return line, scores.assign(method=method.name, plant=plant.name, share=share)


def score_method(method: Method, cases: Iterable[Case], *, resamples: int = RESAMPLES) -> pd.DataFrame:
    """A method on every case, a line each.

    Columns: method, question, informed; plant, site (the plant but for its seed), kind, seed, counts; given (holds by
    construction), ranked (counts and is not given); pointing.SCORES and chance_NAME of each; top_blocks, top_score,
    claims, something, stable_block and stable_places (pointing.claims, pointing.stability); pairs, passes (forward
    passes of one prompt, per pair), seconds. Raises CalibrationError as check_given does.
    """
    return pd.DataFrame([score_case(method, case, resamples=resamples)[0] for case in cases])


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

    Your method is run on `cases`, None for the embedded plants of seed 0; the column `seeds` says which seeds a line
    rests on, NAME_low and NAME_high are its 95 % intervals, `left_out` names plants that do not count. Raises
    CalibrationError when the leaderboard has a method of that name, and for a method that points nowhere it must.
    """
    scores = read_standings(folder).scores
    if my_method is not None:
        if my_method.name in set(scores["method"]):
            raise CalibrationError(f"The leaderboard has a method {my_method.name!r} already: give yours another name.")
        mine = score_method(my_method, embedded_cases((0,)) if cases is None else cases, resamples=resamples)
        scores = pd.concat([scores, mine], ignore_index=True)
    table = board(scores)
    return table.assign(mine=table["method"] == (my_method.name if my_method else None))


def embedded_cases(seeds: Sequence[int] = SEEDS) -> Iterable[Case]:
    """The cases of the embedded plants of these seeds, loaded one after the other."""
    from helpers import plants  # here, because reading a leaderboard needs no model

    for name in plants.plant_names(seeds):
        yield plants.load_case(name)


def score_plant(name: str, *, code: str, digest: str, cache: Path = CACHE) -> str:
    """Run every method on one embedded plant and keep the tables in `cache`, unless they are there; returns the name.

    A table is kept under the digests of the code and of the plant, so that one made from others is not found.
    """
    files = cached(name, code=code, digest=digest, cache=cache)
    if not all(file.is_file() for file in files):
        from helpers import plants
        from helpers.localisers import METHODS

        case = plants.load_case(name)
        scored = [score_case(method, case) for method in METHODS]
        write_table(files[0], pd.DataFrame([line for line, _ in scored]))
        write_table(files[1], pd.concat([places for _, places in scored], ignore_index=True))
    return name


def cached(name: str, *, code: str, digest: str, cache: Path = CACHE) -> tuple[Path, Path]:
    """Where the scores and the places of a plant are kept."""
    key = fingerprint([code, digest])[:16]
    return cache / f"{name}.{key}.scores.parquet", cache / f"{name}.{key}.places.parquet"


def collect(names: Sequence[str], digests: dict[str, str], *, code: dict, cache: Path = CACHE, folder: Path = FOLDER):
    """Join the tables of all plants and write the leaderboard; raises ArtifactError when one is missing."""
    found = [cached(name, code=fingerprint(code), digest=digests[name], cache=cache) for name in names]
    scores, places = (
        pd.concat([read_table(file) for file in files], ignore_index=True) for files in zip(*found, strict=True)
    )
    write_standings(scores, places.astype({"score": "float32"}), code=code, plants=digests, folder=folder)


def _order(place: Place) -> tuple[int, int]:
    """When a forward pass comes to a place."""
    return place.layer, COMPONENTS.index(place.component)


def main() -> int:
    """Score every method on every embedded plant, in two processes of one thread; what is finished is kept."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--processes", type=int, default=2)
    processes = parser.parse_args().processes
    from helpers import plants

    code, names = code_digests(), list(plants.plant_names(SEEDS))
    digests = {name: plants.plant_digest(name) for name in names}
    spawned = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, spawned, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            jobs = [pool.submit(score_plant, name, code=fingerprint(code), digest=digests[name]) for name in names]
            try:
                for number, job in enumerate(as_completed(jobs), start=1):
                    print(f"{number} of {len(jobs)}: {job.result()}", flush=True)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        collect(names, digests, code=code)
    except (CalibrationError, ArtifactError) as error:
        print(error, file=sys.stderr)
        return 1
    print(read_standings().note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
