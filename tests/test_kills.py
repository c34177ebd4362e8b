"""`kill -9` of a whole run at any moment: nothing half done counts, and a rerun gives the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from toy import ROOT, STAGES, make_toy

from helpers.artifacts import sha256_tree
from helpers.stages import owned_files, why_stale

RUN_TOY = (
    "import sys, pathlib; sys.path[:0] = [sys.argv[1], sys.argv[2]]\nfrom toy import STAGES, Toy\n"
    "from helpers.execution import reproduce\ntoy = Toy(pathlib.Path(sys.argv[3]))\n"
    "reproduce(toy.profile(), root=toy.root, stages=STAGES)"
)


def start(root, *arguments):
    """Start a run in a process group of its own."""
    return subprocess.Popen([sys.executable, *arguments], cwd=root, start_new_session=True, stderr=subprocess.DEVNULL)


def start_toy(toy):
    return start(toy.root, "-c", RUN_TOY, str(ROOT), str(ROOT / "tests"), str(toy.root))


def kill(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def outputs(toy):
    return sha256_tree([path for stage in STAGES for path in owned_files(stage, toy.paths)], toy.root)


def test_a_killed_run_leaves_nothing_that_counts_and_a_rerun_gives_the_same_bytes(tmp_path):
    whole, toy = make_toy(tmp_path / "whole"), make_toy(tmp_path / "toy")
    assert start_toy(whole).wait() == 0
    source = toy.notebook("02_round").read_text()
    toy.add_cell("02_round", "(paths.data / 'here').touch()\nimport time; time.sleep(60)")
    process = start_toy(toy)
    while not (toy.paths.data / "here").exists():
        assert process.poll() is None
        time.sleep(0.05)
    kill(process)
    assert not (toy.paths.appendix / "02_round.ipynb").exists()
    assert why_stale(STAGES[1], toy.profile(), root=toy.root) == "it has no complete run here"
    assert why_stale(STAGES[0], toy.profile(), root=toy.root) is None
    toy.notebook("02_round").write_text(source)
    assert start_toy(toy).wait() == 0
    assert outputs(toy) == outputs(whole)


def copy_tree(root):
    """Copy what git would take into a new folder, so that no earlier run is there."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)


def recorded(root, profile):
    """Output hashes of every notebook's and the site's record."""
    records = sorted((root / "data" / profile / "stages").glob("*.json"))
    return {path.stem: json.loads(path.read_text())["outputs"] for path in records}


@pytest.mark.slow
@pytest.mark.parametrize("profile, rounds, kills", [("smoke", 5, 4), ("mini", 1, 3)])
def test_kills_at_random_moments_do_not_change_a_number(tmp_path, profile, rounds, kills):
    """The whole bundle: every round is killed at random moments, then runs to its end and is compared."""
    command = ["-m", "helpers.execution", "reproduce", "--profile", profile]
    copy_tree(tmp_path)
    began = time.monotonic()
    assert start(tmp_path, *command).wait() == 0
    seconds = time.monotonic() - began
    expected = recorded(tmp_path, profile)
    for seed in range(rounds):
        shutil.rmtree(tmp_path / "data" / profile)
        moments = random.Random(seed)
        for _ in range(kills):
            process = start(tmp_path, *command)
            time.sleep(moments.uniform(0, seconds / 2))
            kill(process)
        assert start(tmp_path, *command).wait() == 0
        assert recorded(tmp_path, profile) == expected, f"round {seed}"
