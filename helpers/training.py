"""`python -m helpers.training`: the runs of notebook 02, in one process or, under `torchrun`, in several.

A run is a folder with weights, `metrics.jsonl`, a model card and `history.json`. A finished run made from the same
settings, data and code is read and not trained, so that the notebook finds what was trained here. Several processes
share every step's rows; several nodes also need a shared file system, since one process writes for all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from helpers.artifacts import fingerprint, read_json, read_table, sha256_tree, write_bytes, write_json
from helpers.checkpoints import CheckpointError
from helpers.config import ROOT, Configuration, FineTuning, Model, Paths, load_profile
from helpers.corpus import read_corpus, training_texts
from helpers.examples import Split, split
from helpers.finetune import fine_tune
from helpers.items import taught_items, watched_items
from helpers.modelcard import Provenance, model_card, provenance
from helpers.models import accelerator, base_folder, load_base, load_model, save_model
from helpers.stages import StageError, locked
from helpers.trainer import FineTuningError, precision_used, this_process

RUN_TITLES = {"configuration_1": "I", "configuration_2": "II", "corrected_1": "I′", "corrected_2": "II′"}
ANALYSED = "corrected_2"  # whose models the later notebooks take apart
SOURCES = ("finetune", "trainer", "examples", "packing", "architectures", "checkpoints", "fused", "probe", "models")


@dataclass(frozen=True)
class Run:
    """One run of notebook 02: its folder's name, what it is a run of, and its seed."""

    name: str
    configuration_name: str
    configuration: Configuration
    seed: int


@dataclass(frozen=True)
class Trained:
    """A finished run: its history (see `fine_tune`), the model with its best weights, what it read and was asked."""

    run: Run
    history: pd.DataFrame
    model: object
    texts: Split
    items: pd.DataFrame


def training_inputs(paths: Paths) -> list[Path]:
    """What every run reads: the corpus and the items."""
    return [paths.data / "corpus", paths.data / "items" / "items.parquet"]


def planned_runs(settings: FineTuning) -> list[Run]:
    """Every run of notebook 02, the analysed ones last."""
    return [
        Run(f"{name}-seed{seed}", name, configuration, seed)
        for name in RUN_TITLES
        for configuration in [getattr(settings, name)]
        for seed in configuration.seeds
    ]


def trained_runs(
    settings: FineTuning, model: Model, paths: Paths, *, log: Callable[[str], None] = print
) -> Iterator[Trained]:
    """Train every planned run that is not there yet, in order; all start from the same base and the same texts.

    Seeds of one parity read one variant of the made-up arm, and are asked about it. Raises FineTuningError where the
    corpus or the items are not there.
    """
    inputs = training_inputs(paths)
    for path in inputs:
        if not path.exists():
            raise FineTuningError(f"There is no {path}: run notebook 01 first (`make reproduce ONLY=01`).")
    corpus, items = read_corpus(inputs[0]), read_table(inputs[1])
    made_from = [*inputs, *base_folder(model, paths)]
    origin = provenance(made_from)
    key = runs_key(settings, model, origin)
    for run in planned_runs(settings):
        log(f"{run.name}: up to {run.configuration.epochs} epochs")
        texts, asked = run_texts(corpus, settings, run.seed), taught_items(items, seed=run.seed)
        folder, made = paths.data / "models" / run.name, {"key": key, "provenance": origin, "log": log}
        made["base"] = model.name_or_path if base_folder(model, paths) else f"{model.name_or_path} at {model.revision}"
        training = {"texts": texts, "settings": settings, "probe": watched_items(asked)}
        history, trained = train_run(folder, run, load=partial(load_base, model, paths), **made, **training)
        yield Trained(run, history, trained, texts, asked)


def run_texts(corpus: pd.DataFrame, settings: FineTuning, seed: int) -> Split:
    """The texts of the runs of a seed: the study's split of the corpus with the seed's variant of the made-up arm."""
    texts = training_texts(corpus, variant=seed % 2)
    shares = {"validation_share": settings.validation_share, "test_share": settings.test_share}
    return split(texts, **shares, seed=settings.split_seed)


def common_test_texts(corpus: pd.DataFrame, settings: FineTuning) -> list[str]:
    """The test texts of every seed: those of the made-up arm, which differ between seeds, are left out."""
    others = set(run_texts(corpus, settings, seed=1).test)
    return [text for text in run_texts(corpus, settings, seed=0).test if text in others]


def runs_key(settings: FineTuning, model: Model, provenance: Provenance) -> str:
    """What a finished run depends on: the settings, the base model, the content of its inputs, and the code."""
    sources = [Path(__file__).with_name(f"{module}.py") for module in SOURCES]
    code = [sha256_tree([path], path.parent) for path in sources]
    return fingerprint([asdict(settings), asdict(model), provenance.data, code])


def train_run(folder: Path, run: Run, *, key: str, load: Callable, base: str, provenance: Provenance, log, **training):
    """Fine-tune into `folder` (weights, `metrics.jsonl`, `history.json`, model card), or read the run that is there.

    A finished run made under the same `key` is kept: a rerun after a crash trains only what is missing, and only then
    does `load` give the base model and its tokenizer. Of several processes the first writes. Returns the history, with
    the precision that was used, and the model as it is on disk.
    """
    record, state = folder / "history.json", this_process()
    if not record.is_file() or read_json(record)["key"] != key:
        started, checkpoints = time.monotonic(), folder.with_name(f".{folder.name}.checkpoints")
        made = {"configuration": run.configuration, "seed": run.seed, "checkpoints": checkpoints, "key": key}
        model, tokenizer = load()
        history, metrics = fine_tune(model, tokenizer, **made, **training, log=log)
        minutes, precision = (time.monotonic() - started) / 60, precision_used(run.configuration)
        if state.is_main_process:
            save_model(model, tokenizer, folder)
            lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in metrics)
            write_bytes(folder / "metrics.jsonl", lines.encode())
            facts = {"seed": run.seed, "base": base, "precision": precision, "processes": state.num_processes}
            card = model_card(run.configuration, history=history, provenance=provenance, minutes=minutes, **facts)
            write_bytes(folder / "README.md", card.encode())
            rows = history.assign(precision=precision).to_dict("records")
            write_json(record, {"key": key, "history": rows})  # last: it says that the run is whole
            shutil.rmtree(checkpoints, ignore_errors=True)
            log(f"saved after {minutes:.1f} minutes")
        state.wait_for_everyone()
    return pd.DataFrame(read_json(record)["history"]), load_model(folder)[0].to(accelerator())


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Train what notebook 02 needs and has not; print one sentence and return 1 if something stops it."""
    parser = argparse.ArgumentParser(prog="python -m helpers.training", description=main.__doc__)
    parser.add_argument("--profile", default="mini")
    parser.add_argument(
        "--set", default="", dest="overrides", help='settings, as "section.key=value section.key=value"'
    )
    options = parser.parse_args(arguments)
    first = this_process().is_main_process
    try:
        profile = load_profile(options.profile, options.overrides, folder=root / "profiles")
        paths, log = Paths(profile.name, root), partial(print, flush=True) if first else lambda line: None
        with locked(paths) if first else nullcontext():
            for _ in trained_runs(profile.finetune, profile.model, paths, log=log):
                pass
    except (ValueError, StageError, CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
