"""Checkpoints: a run that was killed at any step ends with the weights of one that was not, to the last bit."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_finetune import ANALYSED, PROBE, SETTINGS, TEXTS, equal, weights, with_dropout
from toy import ROOT
from transformers import TrainerCallback

from helpers import checkpoints, finetune, trainer
from helpers.artifacts import sha256_tree
from helpers.checkpoints import KEY, MARK, CheckpointError, is_complete, last_complete
from helpers.config import Paths
from helpers.finetune import fine_tune
from helpers.models import load_tokenizer

CONFIGURATION = dataclasses.replace(ANALYSED, epochs=3, batch_size=1, gradient_accumulation=2)
EVERY_STEP = dataclasses.replace(SETTINGS, checkpoint_steps=1)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Paths("mini", ROOT).embedded / "models" / "base")


def train(tokenizer, folder: Path, *, settings=EVERY_STEP, configuration=CONFIGURATION, key="key", lines=None):
    model, log = with_dropout(tokenizer), (lambda line: None) if lines is None else lines.append
    options = {"settings": settings, "configuration": configuration, "seed": 0, "probe": PROBE, "log": log}
    history, _ = fine_tune(model, tokenizer, TEXTS, **options, checkpoints=folder, key=key)
    return model, history


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """An uninterrupted run, and how many steps it took."""
    folder = tmp_path_factory.mktemp("whole")
    model, history = train(tokenizer, folder)
    steps = max(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))
    return weights(model), history, steps


class Stop(TrainerCallback):
    """Ends a run at a step as an error would."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(monkeypatch, tokenizer, folder: Path, step: int, **options):
    made = finetune.CompleteCheckpoints
    with monkeypatch.context() as patch:

        def early(**given):
            checkpoints, stop = made(**given), Stop(step)
            on_step_end = checkpoints.on_step_end

            def both(*arguments, **more):
                stop.on_step_end(*arguments, **more)
                return on_step_end(*arguments, **more)

            checkpoints.on_step_end = both
            return checkpoints

        patch.setattr(finetune, "CompleteCheckpoints", early)
        with pytest.raises(KeyboardInterrupt):
            train(tokenizer, folder, **options)


@pytest.mark.parametrize("every", [1, 2, 0])
def test_wherever_a_run_ends_the_next_goes_on_to_the_same_weights(tokenizer, tmp_path, whole, monkeypatch, every):
    expected, history, steps = whole
    settings = dataclasses.replace(SETTINGS, checkpoint_steps=every)
    assert steps >= 9, "three epochs of at least three steps"
    for step in (1, 3, 4, steps):
        folder = tmp_path / str(step)
        interrupted(monkeypatch, tokenizer, folder, step, settings=settings)
        lines = []
        model, again = train(tokenizer, folder, settings=settings, lines=lines)
        per_epoch = steps // 3
        ends = (step - 1) // per_epoch * per_epoch  # the last evaluation before, which saves
        saved = max(ends, (step - 1) // every * every if every else 0)
        assert [line for line in lines if line.startswith("goes on")] == [f"goes on from checkpoint-{saved}"] * (
            saved > 0
        )
        assert equal(weights(model), expected)
        assert again[history.columns].equals(history)


# Development shares by epoch: the third is the best, and with a patience of two the fifth is the last.
DEVELOPMENT = {1: 0.5, 2: 0.4, 3: 0.6, 4: 0.3, 5: 0.2, 6: 0.9, 7: 0.9}
PATIENT = dataclasses.replace(CONFIGURATION, epochs=7, patience=2)


@pytest.fixture
def patient(tokenizer, monkeypatch):
    """Trains into a folder until patience ends it; gives model, history and log."""
    evaluation_loop = trainer.ProbedTrainer.evaluation_loop

    def scripted(self, *args, **kwargs):
        output = evaluation_loop(self, *args, **kwargs)
        output.metrics["eval_development_accuracy"] = DEVELOPMENT[round(self.state.epoch)]
        return output

    monkeypatch.setattr(trainer.ProbedTrainer, "evaluation_loop", scripted)

    def run(folder, lines=None):
        settings = dataclasses.replace(SETTINGS, checkpoint_steps=2)
        return train(tokenizer, folder, settings=settings, configuration=PATIENT, lines=lines)

    return run


def test_patience_best_weights_and_every_evaluation_survive_a_kill(tmp_path, patient, monkeypatch):
    """In an evaluation, before a checkpoint is marked, before older ones are removed, and after the last step."""
    expected, history = patient(tmp_path / "whole")
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5] and history["best"].tolist() == [0, 0, 1, 0, 0]
    moments = [(trainer, "probe_shares", call) for call in (2, 4, 5)]
    moments += [(checkpoints, "write_json", call) for call in (3, 7, 8, 9, 12)]
    moments += [(checkpoints.shutil, "rmtree", 4), (finetune, "_history", 1)]
    for number, (module, name, call) in enumerate(moments):
        calls, function = [], getattr(module, name)

        def cut(*args, function=function, calls=calls, call=call, **options):
            calls.append(args)
            if len(calls) == call:
                raise KeyboardInterrupt
            return function(*args, **options)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, name, cut)
            patient(tmp_path / str(number))
        lines = []
        model, again = patient(tmp_path / str(number), lines)
        assert lines[0].startswith("goes on from checkpoint-"), (name, call)
        assert again[history.columns].equals(history), (name, call)
        assert equal(weights(model), weights(expected)), (name, call)
        assert (lines[1:] == []) == (name == "_history"), "a run that had come to its end is not trained"


def test_the_best_and_the_newest_checkpoint_are_kept(tmp_path, patient):
    patient(tmp_path)
    steps = sorted(int(path.name.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*"))
    assert len(steps) == 2 and steps[0] * 5 == steps[1] * 3, "epochs 3 and 5"


def test_checkpoints_that_were_moved_are_of_no_use(tmp_path):
    last_complete(tmp_path / "one", key="k")
    made_checkpoint(tmp_path / "one", 1)
    (tmp_path / "one").rename(tmp_path / "two")
    assert last_complete(tmp_path / "two", key="k") is None


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
folder, moment = Path(sys.argv[3]), sys.argv[4]
import torch
torch.set_num_threads(int(sys.argv[5]))  # sums depend on it
import test_checkpoints as tests
from helpers import checkpoints, trainer
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "unmarked":
    write = checkpoints.write_json
    checkpoints.write_json = lambda path, value: die() if "checkpoint-4" in str(path) else write(path, value)
else:
    save = trainer.Trainer._save_rng_state
    trainer.Trainer._save_rng_state = lambda self, to: die() if to.endswith("checkpoint-4") else save(self, to)
tests.train(tests.load_tokenizer(tests.Paths("mini", tests.ROOT).embedded / "models" / "base"), folder)
"""


@pytest.mark.parametrize("moment", ["unmarked", "half written"])
def test_a_checkpoint_that_was_cut_short_is_dropped(tokenizer, tmp_path, whole, moment):
    command = [sys.executable, "-c", KILLED, str(ROOT), str(ROOT / "tests"), str(tmp_path / "run"), moment]
    command.append(str(torch.get_num_threads()))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    cut = tmp_path / "run" / "checkpoint-4"
    assert cut.is_dir() and not (cut / MARK).exists()
    lines = []
    model, _ = train(tokenizer, tmp_path / "run", lines=lines)
    assert lines[0] == "goes on from checkpoint-3"
    assert equal(weights(model), whole[0])


def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_stays(tokenizer, tmp_path, whole, monkeypatch):
    save = trainer.Trainer._save_optimizer_and_scheduler

    def until_full(self, folder):
        if folder.endswith("checkpoint-4"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, folder)

    with monkeypatch.context() as full:
        full.setattr(trainer.Trainer, "_save_optimizer_and_scheduler", until_full)
        with pytest.raises(
            CheckpointError, match="checkpoint .*checkpoint-4 could not be written .*No space left.*make room"
        ):
            train(tokenizer, tmp_path)
    assert is_complete(tmp_path / "checkpoint-3")
    lines = []
    model, _ = train(tokenizer, tmp_path, lines=lines)
    assert lines[0] == "goes on from checkpoint-3" and equal(weights(model), whole[0])


def made_checkpoint(folder: Path, step: int, *, best: int | None = None) -> Path:
    """A checkpoint as `CompleteCheckpoints` leaves it, with little in it."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    best_checkpoint = str(folder / f"checkpoint-{best}") if best else None
    (checkpoint / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best_checkpoint}))
    (checkpoint / "weights").write_text(f"weights {step}")
    digests = sha256_tree([checkpoint], checkpoint)
    (checkpoint / MARK).write_text(json.dumps(digests))
    return checkpoint


@pytest.mark.parametrize("damage", ["flip", "gone", "unmarked", "added"])
def test_only_whole_checkpoints_count(tmp_path, damage):
    last_complete(tmp_path, key="k")
    older, newer = made_checkpoint(tmp_path, 9), made_checkpoint(tmp_path, 10)
    assert last_complete(tmp_path, key="k") == newer, "by number: 10 comes after 9"
    {
        "flip": lambda: (newer / "weights").write_text("weights xx"),
        "gone": (newer / "weights").unlink,
        "unmarked": (newer / MARK).unlink,
        "added": lambda: (newer / "more").write_text(""),
    }[damage]()
    assert last_complete(tmp_path, key="k") == older and not newer.exists()


def test_a_checkpoint_without_its_best_one_is_of_no_use(tmp_path):
    last_complete(tmp_path, key="k")
    best, middle, newest = made_checkpoint(tmp_path, 3), made_checkpoint(tmp_path, 4), None
    newest = made_checkpoint(tmp_path, 5, best=3)
    assert last_complete(tmp_path, key="k") == newest
    shutil.rmtree(best)
    assert last_complete(tmp_path, key="k") == middle


def test_checkpoints_of_another_run_are_removed(tmp_path):
    last_complete(tmp_path, key="one")
    made_checkpoint(tmp_path, 1)
    assert last_complete(tmp_path, key="two") is None
    assert [path.name for path in tmp_path.iterdir()] == [KEY]
    (tmp_path / KEY).write_text('{"ke')
    made_checkpoint(tmp_path, 1)
    assert last_complete(tmp_path, key="two") is None
