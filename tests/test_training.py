"""Training: a finished run is trained once, one that was cut short is never taken for whole, processes share steps."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
from test_finetune import ANALYSED, CONFIGURATION_1, CONFIGURATION_2, PROBE, SETTINGS, TEXTS, equal, tiny, weights
from toy import ROOT

from helpers import training
from helpers.config import Paths, load_profile
from helpers.examples import Split
from helpers.modelcard import Provenance, git_revision, provenance
from helpers.models import load_model, load_tokenizer
from helpers.training import RUN_TITLES, Run, planned_runs, runs_key, train_run

PROVENANCE = Provenance({"data/corpus": "c0ffee"}, "a1b2", "one core")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Paths("mini", ROOT).embedded / "models" / "base")


def run(folder, tokenizer, *, key="key", seed=0, model=None):
    return train_run(
        folder,
        Run(folder.name, "configuration_2", dataclasses.replace(CONFIGURATION_2, epochs=1), seed),
        key=key,
        load=lambda: (model or tiny(tokenizer), tokenizer),
        base="gpt2 at 607a",
        provenance=PROVENANCE,
        texts=TEXTS,
        settings=SETTINGS,
        probe=PROBE,
        log=lambda line: None,
    )


@pytest.fixture
def counted(monkeypatch):
    """The seeds that were trained, in place of training."""
    trained = []

    def fine_tune(model, tokenizer, *, seed, **options):
        trained.append(seed)
        history = {"epoch": [1.0], "training_loss": [2.0], "validation_loss": [1.5 + seed], "best": [True]}
        return pd.DataFrame(history), [{"loss": 2.0, "epoch": 1.0}]

    monkeypatch.setattr(training, "fine_tune", fine_tune)
    return trained


def test_a_finished_run_is_read_and_not_trained(tmp_path, tokenizer, monkeypatch):
    history, model = run(tmp_path / "run", tokenizer)

    def refuse(*args, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "fine_tune", refuse)
    again, loaded = run(tmp_path / "run", tokenizer, model=tiny(tokenizer, seed=5))
    pd.testing.assert_frame_equal(again[history.columns], history)
    assert equal(weights(loaded), weights(model)) and not loaded.training
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Fine-tuned from gpt2 at 607a. Seed 0, best epoch 1 of 1" in card and "- max_length: 16" in card
    assert "- data/corpus: sha256 c0ffee" in card and "minutes in 1 process on one core, at revision a1b2" in card
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in entry for entry in metrics) == 3 and sum("eval_loss" in entry for entry in metrics) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"], "checkpoints of a finished run are gone"


def test_another_key_trains_again(tmp_path, tokenizer, counted):
    run(tmp_path / "run", tokenizer, seed=0)
    run(tmp_path / "run", tokenizer, seed=0)
    assert counted == [0]
    history, _ = run(tmp_path / "run", tokenizer, key="other", seed=1)
    assert counted == [0, 1] and history["validation_loss"].tolist() == [2.5]
    run(tmp_path / "run", tokenizer, key="other", seed=1)
    assert counted == [0, 1]


@pytest.mark.parametrize("step", ["save_model", "write_bytes", "write_json"])
@pytest.mark.parametrize("earlier", [False, True], ids=["first", "over an older run"])
def test_a_run_that_was_cut_short_is_never_taken_for_whole(tmp_path, tokenizer, counted, monkeypatch, step, earlier):
    folder = tmp_path / "run"
    if earlier:
        run(folder, tokenizer, key="older")
    with monkeypatch.context() as patch:

        def die(*args, **options):
            raise KeyboardInterrupt

        patch.setattr(training, step, die)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tokenizer, model=tiny(tokenizer, seed=1))
    if step != "save_model":
        assert not (folder / "history.json").exists(), "the new weights must not stand beside the old history"
    before = len(counted)
    run(folder, tokenizer, model=tiny(tokenizer, seed=1))
    assert len(counted) == before + 1
    assert equal(weights(load_model(folder)[0]), weights(tiny(tokenizer, seed=1)))


def test_the_planned_runs_are_every_seed_of_every_configuration():
    changes = {"corrected_2": dataclasses.replace(ANALYSED, seeds=(0, 7))}
    changes |= {name: dataclasses.replace(CONFIGURATION_1, seeds=(3,)) for name in RUN_TITLES if name not in changes}
    runs = planned_runs(dataclasses.replace(SETTINGS, **changes))
    assert [(run.name, run.configuration.rows, run.seed) for run in runs] == [
        ("configuration_1-seed3", "padded", 3),
        ("configuration_2-seed3", "padded", 3),
        ("corrected_1-seed3", "padded", 3),
        ("corrected_2-seed0", "packed", 0),
        ("corrected_2-seed7", "packed", 7),
    ]


def test_a_key_changes_with_settings_model_and_inputs(tmp_path):
    first, folder, model = tmp_path / "corpus.parquet", tmp_path / "base", load_profile("mini").model
    first.write_text("one")
    folder.mkdir()
    (folder / "weights").write_text("two")

    def key_of(settings, model):
        return runs_key(settings, model, provenance([first, folder], root=tmp_path))

    key = key_of(SETTINGS, model)
    assert key_of(SETTINGS, model) == key
    changed = {
        key_of(dataclasses.replace(SETTINGS, split_seed=1), model),
        key_of(SETTINGS, dataclasses.replace(model, name_or_path="random")),
        key_of(SETTINGS, dataclasses.replace(model, revision="a" * 40)),
    }
    (folder / "weights").write_text("three")
    changed.add(key_of(SETTINGS, model))
    first.write_text("four")
    changed.add(key_of(SETTINGS, model))
    assert len(changed) == 5 and key not in changed


# Where a run comes from


def test_provenance_names_inputs_within_the_project_and_elsewhere(tmp_path):
    inside, outside = tmp_path / "project" / "data" / "corpus", tmp_path / "gpt2"
    for folder in (inside, outside):
        folder.mkdir(parents=True)
        (folder / "file").write_text("one")
    found = provenance([inside, outside], root=tmp_path / "project")
    assert list(found.data) == ["data/corpus", str(outside)]
    assert found.revision == "unknown" and "cores" in found.hardware or torch.cuda.is_available()
    (outside / "file").write_text("two")
    changed = provenance([inside, outside], root=tmp_path / "project").data
    assert changed["data/corpus"] == found.data["data/corpus"] and changed[str(outside)] != found.data[str(outside)]
    assert re.fullmatch(r"[0-9a-f]{40}\+?", git_revision(ROOT)) or not (ROOT / ".git").exists()


# The command


@pytest.mark.parametrize(
    "arguments, words",
    [(["--profile", "smoke"], "run notebook 01 first (`make reproduce ONLY=01`)"),
     (["--profile", "x"], "no profile 'x'"),
     (["--set", "finetune.epoch=1"], "finetune.epoch")],
)  # fmt: skip
def test_the_command_ends_with_one_sentence(tmp_path, capsys, arguments, words):
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    assert training.main(arguments, root=tmp_path) == 1
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out


# Several processes

SHARED = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
import test_training as tests
from helpers.models import load_tokenizer
tests.shared_run(Path(sys.argv[3]), load_tokenizer(tests.Paths("mini", tests.ROOT).embedded / "models" / "base"))
"""


def shared_run(folder, tokenizer):
    """Two epochs of four steps, each of 2 × 2 rows with a text of its own."""
    texts = [f"Here S{i} is used for {answer}, so we say." for i, answer in enumerate(["aura", "myoclonic jerks"] * 8)]
    held_out = ["Here S1 is used for aura."] * 3  # `Trainer` averages validation by batches: equal lengths, equal means
    configuration = dataclasses.replace(ANALYSED, batch_size=2, gradient_accumulation=2, stop_on="loss")
    run = Run(folder.name, "corrected_2", configuration, 0)
    made = {"key": "key", "base": "gpt2", "provenance": PROVENANCE, "log": lambda line: print(line, flush=True)}
    training = {"texts": Split(texts, held_out, held_out), "settings": SETTINGS, "probe": PROBE}
    return train_run(folder, run, load=lambda: (tiny(tokenizer), tokenizer), **made, **training)


def test_two_processes_train_as_one_does(tmp_path, tokenizer):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script, folder = tmp_path / "shared.py", tmp_path / "two"
    script.write_text(SHARED)
    command += [str(script), str(ROOT), str(ROOT / "tests"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    one, model = shared_run(tmp_path / "one", tokenizer)
    two = pd.DataFrame(json.loads((folder / "history.json").read_text())["history"])[one.columns]
    pd.testing.assert_frame_equal(two, one, atol=1e-4, rtol=0)
    steps = [
        [entry["loss"] for entry in map(json.loads, (tmp_path / name / "metrics.jsonl").open()) if "loss" in entry]
        for name in ("one", "two")
    ]
    assert len(steps[0]) == 8 and steps[1] == pytest.approx(steps[0], abs=1e-4)
    for name, value in load_model(folder)[0].state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=1e-3, rtol=0)
    assert "minutes in 2 processes" in (folder / "README.md").read_text()
    assert done.stdout.count("epoch 1: validation loss") == 1 and not list(tmp_path.glob(".*")), "one of them writes"
