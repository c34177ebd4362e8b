"""Edits: the committed table of what editing does at every block of three plants and of the all-block model.

`make plants` edits the facts of PLANTS at every block, as `helpers.efficacy` does, into `data/embedded/edits/`, kept as
`helpers.committed` does. Fine-tuning replays the old facts that the plants replayed; damage is looked for in those that
nothing replayed. Rank-one edits shall not disturb what a plant computes on texts about the base's own entities. Plants
are edited beside each other, and what one block of one plant gave is kept in data/edits until all are there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd

from helpers.artifacts import ArtifactError, fingerprint
from helpers.committed import RECORD, Committed, code_digests, read_committed, write_committed
from helpers.config import ROOT, Paths
from helpers.editing import OUTCOMES, EditingError
from helpers.efficacy import Edits, edit_everywhere
from helpers.finetune import FineTuningError
from helpers.planting import drift_texts
from helpers.plants import PlantsError, load_plant, manifest, material, plant_digests, stored_plants
from helpers.processes import as_finished

PLANTS = ("mlp-0-seed0", "mlp-3-seed0", "mlp-5-seed0", "all-seed0")
FOLDER = ROOT / "data" / "embedded" / "edits"
CACHE = ROOT / "data" / "edits"  # git ignores it
EDITED_BY = ("efficacy", "edits")  # with every module that these import
TEXTS = 400  # of about 66 tokens: 26,000 keys for the 512 inputs of an MLP's projection
AGAIN = "make plants"


def make_edits(
    folder: Path = FOLDER,
    *,
    paths: Paths = Paths("mini"),  # noqa: B008 - frozen
    cache: Path = CACHE,
    names: Sequence[str] = PLANTS,
    settings: Edits = Edits(),  # noqa: B008 - frozen
    processes: int = 2,
    log: Callable[[str], None] = print,
) -> None:
    """Edit the committed plants `names`, each in a process of one thread, and write the table, unless it is fresh.

    Raises PlantsError for a plant that is missing or damaged, and EditingError as `edit_everywhere` does.
    """
    plants = paths.embedded / "plants"
    given = {"code": _code(settings), "plants": _digests(plants, names)}
    if missing := [name for name in names if name not in manifest(plants)]:
        raise PlantsError(f"{plants} holds no {' and no '.join(missing)}: run `make plants`.")
    if (folder / RECORD).is_file():
        try:
            found = read_committed(folder, **given)
        except ArtifactError as error:  # a table is missing or damaged
            log(str(error))
        else:
            log(f"Edits: {found.note}")
            if found.fresh:
                return
    jobs = [(name, paths, cache, settings, log) for name in names]
    tables = {}
    for name, table in as_finished(_edit, jobs, processes=min(processes, len(jobs)), warm="helpers.edits"):
        tables[name] = table
        log(f"{name}: edited at every block, {len(tables)} of {len(jobs)} plants")
    table = pd.concat([tables[name] for name in names], ignore_index=True)
    write_committed(folder, {"edits": table.astype(dict.fromkeys(OUTCOMES, "float32"))}, **given, again=AGAIN)


def read_edits(
    folder: Path = FOLDER,
    *,
    plants: Path | None = None,
    names: Sequence[str] = PLANTS,
    settings: Edits = Edits(),  # noqa: B008 - frozen
) -> Committed:
    """The table `edits` (columns as `edit_everywhere` gives), and whether code, settings and `plants` are still those.

    `plants` is their folder, None for the committed one. Raises ArtifactError when a file is missing or not the one
    that was written.
    """
    plants = Paths("mini").embedded / "plants" if plants is None else plants
    return read_committed(folder, code=_code(settings), plants=_digests(plants, names))


def planted_blocks(plants: Path) -> dict[str, list[int]]:
    """The blocks that each plant of a folder has its facts in, by its name; none for null and all."""
    return {plant.name: sorted({place.layer for place, _ in plant.shares}) for plant in stored_plants(plants)}


def _code(settings: Edits) -> dict[str, str]:
    return code_digests(EDITED_BY) | {"the settings of edits": fingerprint(asdict(settings))}


def _digests(plants: Path, names: Sequence[str]) -> dict[str, str]:
    found = plant_digests(plants)
    return {name: found.get(name, "missing") for name in names}


def _edit(name: str, paths: Paths, cache: Path, settings: Edits, log: Callable) -> tuple[str, pd.DataFrame]:
    """One plant, edited at every block."""
    plants = paths.embedded / "plants"
    seed = manifest(plants)[name]["seed"]
    base, tokenizer, items, old = material(paths, seed)
    limits = {"truncation": True, "max_length": base.config.n_positions}
    texts = tokenizer(drift_texts(paths.embedded, seed=seed)[:TEXTS], **limits)["input_ids"]
    models = {name: lambda: load_plant(plants, name, base)}
    replayed, held_out = old[old["replayed"]], old[~old["replayed"]]
    given = {"old": replayed, "others": held_out, "texts": texts, "folder": cache, "settings": settings, "log": log}
    return name, edit_everywhere(models, items, tokenizer, **given)


def main() -> None:
    """Edit facts at every block of the committed plants and write the table, unless it is up to date."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    try:
        make_edits(processes=chosen.processes, log=partial(print, flush=True))
    except (PlantsError, EditingError, FineTuningError, ArtifactError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
