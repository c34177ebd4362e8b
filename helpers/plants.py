"""Plants on disk: the tensors that were changed, in half precision, and a manifest that says what each plant is.

A plant is its base model but for some tensors: `NAME.safetensors` holds these, `manifest.json` the plant's truth, how
it was made, what it learnt and kept, and the digests of its file and of the base. Weights are rounded before they are
scored, so that a loaded plant is the scored one to the bit. A plant counts as made when its file and its row are there:
`make plants` goes on where it was stopped. The plants of seed 0 but the drifted ones are committed, the others are made
from their seeds into data/plants.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from helpers.architectures import layer_count
from helpers.artifacts import ArtifactError, fingerprint, locked_file, read_json, sha256_file, write_bytes, write_json
from helpers.config import Paths
from helpers.methods import Place
from helpers.models import load_model, model_digest
from helpers.planted_facts import old_items, planted_items
from helpers.planting import (
    NULL_SEEDS,
    Checked,
    Plant,
    Recipe,
    check_plant,
    counts,
    drift,
    drift_texts,
    planned_plants,
    plant_model,
    rounded,
)
from helpers.processes import as_finished

MANIFEST = "manifest.json"
COMMITTED_SEED = 0
REMEDY = "delete it and run `make plants`"


class PlantsError(ValueError):
    """A stored plant that is missing, damaged, or of another base model."""


def save_plant(
    folder: Path, plant: Plant, model, base, *, checked: Checked, recipe: Recipe, seconds: float | None = None
) -> dict:
    """Write the tensors in which `model` differs from `base`, then the plant's row of the manifest; returns the row.

    Either is written whole or not at all, and several processes may write into one folder. Raises PlantsError when a
    changed weight is no number of half precision, since what was scored would not be what is stored.
    """
    before, changed = dict(base.named_parameters()), {}
    for name, parameter in model.named_parameters():
        if not torch.equal(parameter, before[name]):
            changed[name] = parameter.detach().half().cpu().contiguous()
            if not torch.equal(changed[name].float(), parameter.detach().float().cpu()):
                raise PlantsError(
                    f"{plant.name}: {name} holds numbers that half precision does not; round the model "
                    "(helpers.planting.rounded) before it is scored and saved."
                )
    file = folder / f"{plant.name}.safetensors"
    write_bytes(file, save(changed))
    row = {
        "kind": plant.kind,
        "seed": plant.seed,
        "shares": [[place.component, place.layer, share] for place, share in plant.shares],
        "recipe": asdict(recipe),
        **asdict(checked),
        "kept": checked.kept,
        "counts": counts(plant, checked),
        "seconds": seconds,
        "sha256": sha256_file(file),
        "base": model_digest(base),
    }
    with locked_file(folder / ".manifest.lock", patience=60):
        write_json(folder / MANIFEST, manifest(folder) | {plant.name: row})
    return row


def manifest(folder: Path) -> dict[str, dict]:
    """The rows of a folder's manifest by the plant's name; none where there is no manifest."""
    path = folder / MANIFEST
    return read_json(path) if path.is_file() else {}


def stored_plants(folder: Path) -> list[Plant]:
    """The plants of a folder, by name."""
    return [_plant(name, row) for name, row in sorted(manifest(folder).items())]


def load_plant(folder: Path, name: str, base):
    """A stored plant's model, in float32 and evaluation mode; `base` is left as it is.

    Raises PlantsError when there is no such plant, its file is missing or not the one that was written, or `base` is
    another model than it was made from.
    """
    rows = manifest(folder)
    if name not in rows:
        raise PlantsError(f"{folder} holds no plant {name!r} but {len(rows)} others: run `make plants`.")
    _check(folder, name, rows[name], model_digest(base))
    model = copy.deepcopy(base)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter, values in load_file(_file(folder, name)).items():
            parameters[parameter].copy_(values)
    return model.eval()


def verify(folder: Path, base) -> list[str]:
    """What is wrong with a folder's plants, a sentence each: missing, damaged or unlisted files, another base model."""
    rows, digest, wrong = manifest(folder), model_digest(base), []
    for name, row in sorted(rows.items()):
        try:
            _check(folder, name, row, digest)
        except PlantsError as error:
            wrong.append(str(error))
    for file in sorted(folder.glob("*.safetensors")):
        if file.stem not in rows:
            wrong.append(f"{file} is in no row of {folder / MANIFEST}: {REMEDY}.")
    return wrong


def make_plants(
    plants: Sequence[Plant], folder: Path, paths: Paths, *, recipe: Recipe, processes: int = 2, log=print
) -> None:
    """Make those of `plants` that are not in `folder`, in `processes` of one thread each, and log a line for each.

    Raises PlantsError when what is there was made from another base model, by another recipe, or is damaged.
    """
    base, _ = load_model(paths.embedded / "models" / "base")
    rows, digest = manifest(folder), model_digest(base)
    there = {plant.name for plant in plants if plant.name in rows and _file(folder, plant.name).is_file()}
    for name in sorted(there):
        _check(folder, name, rows[name], digest)
        if rows[name]["recipe"] != asdict(recipe):
            raise PlantsError(f"{name} in {folder} was made by another recipe: {REMEDY}.")
    # Drifted plants come last: they go on from single ones that are there by then.
    missing = sorted((plant for plant in plants if plant.name not in there), key=lambda plant: plant.kind == "drifted")
    log(f"{len(there)} of {len(plants)} plants are there; {len(missing)} are to be made")
    jobs = [(plant, folder, paths, recipe) for plant in missing]
    for line in as_finished(_make, jobs, processes=min(processes, max(1, len(jobs))), warm="helpers.planting"):
        log(line)


def _make(plant: Plant, folder: Path, paths: Paths, recipe: Recipe) -> str:
    started = time.monotonic()
    base, tokenizer, items, old = material(paths, plant.seed)
    texts = drift_texts(paths.embedded, seed=plant.seed) if plant.kind == "drifted" else ()
    if plant.kind == "drifted" and (model := _single(plant, (folder, paths.embedded / "plants"), recipe, base)):
        drift(model, tokenizer, texts, recipe, seed=plant.seed)
        rounded(model)
    else:
        model, _ = plant_model(base, tokenizer, plant, items, old, recipe, texts=texts)
    checked = check_plant(model, tokenizer, items, old)
    seconds = round(time.monotonic() - started, 1)
    row = save_plant(folder, plant, model, base, checked=checked, recipe=recipe, seconds=seconds)
    verdict = "" if row["counts"] else ", does not count"
    return f"{plant.name}: learnt {checked.learnt:.3f}, kept {checked.kept:.3f}, {seconds:.0f} s{verdict}"


def _single(plant: Plant, folders: Sequence[Path], recipe: Recipe, base):
    """The stored single plant that a drifted one goes on from, or None: it is then made again, to the same weights."""
    name = plant.name.replace("drifted-", "mlp-")
    for folder in folders:
        if manifest(folder).get(name, {}).get("recipe") == asdict(recipe):
            return load_plant(folder, name, base)
    return None


@cache
def material(paths: Paths, seed: int) -> tuple:
    """What the plants of a seed are made of: the base model, the tokenizer, planted_items and old_items."""
    base, tokenizer = load_model(paths.embedded / "models" / "base")
    items = planted_items(paths.embedded, base, tokenizer, seed=seed)
    return base, tokenizer, items, old_items(paths.embedded, base, tokenizer)


def plant_digests(folder: Path) -> dict[str, str]:
    """The digest of every plant of a folder, by name: of its file and of its base."""
    return {name: fingerprint([row["sha256"], row["base"]]) for name, row in manifest(folder).items()}


def _plant(name: str, row: Mapping) -> Plant:
    shares = tuple((Place(component, layer), share) for component, layer, share in row["shares"])
    return Plant(name, row["kind"], row["seed"], shares)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _check(folder: Path, name: str, row: Mapping, digest: str) -> None:
    file = _file(folder, name)
    if not file.is_file():
        raise PlantsError(f"{file} is missing, though {folder / MANIFEST} lists it: run `make plants`.")
    if (found := sha256_file(file)) != row["sha256"]:
        raise PlantsError(f"{file} has the digest {found[:12]}…, not {row['sha256'][:12]}… as written: {REMEDY}.")
    if digest != row["base"]:
        raise PlantsError(
            f"{name} was planted in a base model of digest {row['base'][:12]}…, and this one has {digest[:12]}…: "
            f"give that base, or {REMEDY}."
        )


def main() -> None:
    """Make the plants: the committed ones in data/embedded/plants, the others in data/plants."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--null-seeds", type=int, nargs="*", default=NULL_SEEDS, metavar="SEED")
    parser.add_argument("--only", metavar="NAME", help="one plant, as in mlp-3-seed0")
    parser.add_argument("--into", type=Path, help="one folder for all, in the place of both")
    parser.add_argument("--processes", type=int, default=2)
    chosen, paths = parser.parse_args(), Paths("mini")
    base, _ = load_model(paths.embedded / "models" / "base")
    plants = planned_plants(layer_count(base), chosen.seeds, chosen.null_seeds)
    if chosen.only:
        plants = [plant for plant in plants if plant.name == chosen.only]
        if not plants:
            parser.error(f"there is no plant {chosen.only!r} of the seeds {chosen.seeds}, as in mlp-3-seed0")
    committed = [p for p in plants if p.seed == COMMITTED_SEED and p.kind != "drifted"]
    others = [p for p in plants if p not in committed]
    folders = {paths.embedded / "plants": committed, paths.root / "data" / "plants": others}
    if chosen.into:
        folders = {chosen.into: plants}
    options = {"recipe": Recipe(), "processes": chosen.processes, "log": partial(print, flush=True)}
    try:
        for folder, own in folders.items():
            if own:
                make_plants(own, folder, paths, **options)
    except (PlantsError, ArtifactError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
