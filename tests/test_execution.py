"""Runs of the toy bundle through real kernels: complete or not at all, one sentence for an error, same bytes again."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy import ROOT, STAGES, Toy, make_toy

from helpers.artifacts import sha256_tree
from helpers.config import load_profile
from helpers.execution import ExecutionError, main, own_errors, reproduce
from helpers.kernel import wants_network
from helpers.notebooks import NotebookError, check_parameters, cleaned, parameter_names, read_source
from helpers.progress import Display, follow, step, track
from helpers.stages import owned_files, why_stale

ONE = STAGES[:1]


def go(toy, overrides="", *, stages=STAGES, only=None):
    """Run the toy bundle and return (names of what ran, what was said)."""
    said = io.StringIO()
    ran = reproduce(toy.profile(overrides), overrides, only=only, root=toy.root, stages=stages, stream=said)
    return ran, said.getvalue()


def outputs(toy):
    return sha256_tree([path for stage in STAGES for path in owned_files(stage, toy.paths)], toy.root)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    toy = make_toy(tmp_path_factory.mktemp("done") / "toy")
    return toy, *go(toy)


@pytest.fixture
def done(first_run, tmp_path):
    """A finished toy run, in a folder of its own."""
    shutil.copytree(first_run[0].root, tmp_path / "toy")
    return Toy(tmp_path / "toy")


@pytest.fixture
def toy(tmp_path):
    return make_toy(tmp_path / "toy")


def test_everything_runs_in_order_and_says_so(first_run):
    toy, ran, said = first_run
    assert ran == ["01_draw", "02_round", "03_show"]
    for position, name in enumerate(ran, 1):
        assert f"[{position}/3] {name}: it has no complete run here" in said
    assert "cell 1/4" in said and "drawing" in said
    assert re.search(r"notebook +minutes +budget\n01_draw +\d", said)
    assert "Read the results in appendix/toy/index.html." in said
    report = json.loads((toy.paths.data / "report.json").read_text())
    assert [(row["notebook"], row["ran"]) for row in report["notebooks"]] == [(name, True) for name in ran]
    assert all(stage.name in (toy.paths.appendix / "index.html").read_text() for stage in STAGES)


def test_an_executed_notebook_holds_results_and_nothing_of_the_machine(first_run):
    toy, _, _ = first_run
    text = (toy.paths.appendix / "03_show.ipynb").read_text()
    notebook = json.loads(text)
    assert "shown in .\\n" in text and "stderr" not in text.replace("sys.stderr", "")
    assert str(toy.root) not in text and sys.prefix not in text and "papermill" not in text.replace("injected", "")
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}
    assert [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"] == [1, 2, 3, 4]
    assert "a warning" in (toy.root / "build" / "logs" / "toy" / "03_show.log").read_text()


def test_a_second_run_does_nothing_and_imports_nothing_heavy(done):
    code = (
        "import sys, pathlib; sys.path[:0] = [sys.argv[1], sys.argv[2]]\nfrom toy import STAGES, Toy\n"
        "from helpers.execution import reproduce\ntoy = Toy(pathlib.Path(sys.argv[3]))\n"
        "assert reproduce(toy.profile(), root=toy.root, stages=STAGES) == []\n"
        "print(sorted(set(sys.argv[4:]) & set(sys.modules)))"
    )
    heavy = ["torch", "transformers", "pandas", "numpy", "papermill", "jupytext", "nbconvert", "matplotlib", "jinja2"]
    command = [sys.executable, "-c", code, str(ROOT), str(ROOT / "tests"), str(done.root), *heavy]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
    assert "Nothing to do: the 3 notebooks of the profile 'toy' are up to date." in result.stderr


def test_only_what_depends_on_a_setting_reruns_and_equal_results_stop_it(done):
    before = outputs(done)
    ran, said = go(done, "corpus.seed=2")
    assert ran == ["01_draw", "02_round"]  # 10.2 is rounded to 10 as 10.0 was: the third notebook need not run
    assert "[2/3] 02_round: changed: artifacts of 01_draw" in said
    after = outputs(done)
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {
        "data/toy/draw/value.json",
        "appendix/toy/01_draw.ipynb",
        "appendix/toy/02_round.ipynb",  # the given parameters stand in it
    }


def test_one_notebook_alone_runs_with_what_it_reads_and_the_site_waits_for_the_rest(done):
    done.add_cell("01_draw", "1")
    done.add_cell("03_show", "1")
    page = done.paths.appendix / "03_show.html"
    before = page.read_bytes()
    ran, said = go(done, only="02")
    assert ran == ["01_draw"]  # its rerun gave the same artifacts
    assert "The site waits for 03_show." in said and page.read_bytes() == before
    assert "03_show" not in re.sub(r"waits for 03_show|03_show +\d.*kept", "", said)


def test_an_error_of_ours_is_its_message_alone(toy, capsys):
    toy.add_cell("01_draw", "load_profile('nowhere')")
    with pytest.raises(ExecutionError) as caught:
        go(toy, stages=ONE)
    assert str(caught.value) == "01_draw: There is no profile 'nowhere'; the profiles are toy."
    assert not (toy.paths.appendix / "01_draw.ipynb").exists()
    assert why_stale(ONE[0], toy.profile(), root=toy.root) == "it has no complete run here"


def test_any_other_error_is_one_sentence_and_a_log(toy):
    toy.add_cell("01_draw", "{}['absent']")
    with pytest.raises(ExecutionError) as caught:
        go(toy, stages=ONE)
    log = "build/logs/toy/01_draw.log"
    assert str(caught.value) == f"01_draw stopped with KeyError: 'absent' The traceback is in {log}."
    text = (toy.root / log).read_text()
    assert "{}['absent']" in text and "\x1b" not in text


def test_a_dead_kernel_is_one_sentence(toy):
    toy.add_cell("01_draw", "import os; os._exit(1)")
    with pytest.raises(ExecutionError, match="01_draw: the kernel died .*memory is the usual cause.*01_draw.log"):
        go(toy, stages=ONE)


def test_a_failing_rerun_keeps_what_was_and_a_good_one_removes_figures_no_longer_drawn(done):
    before = (done.paths.appendix / "03_show.ipynb").read_bytes()
    (done.paths.figures / "03_old.png").write_bytes(b"old")
    (done.paths.figures / "01_of_another.png").write_bytes(b"kept")
    source = done.notebook("03_show").read_text()
    done.add_cell("03_show", "1 / 0")
    with pytest.raises(ExecutionError, match="ZeroDivisionError"):
        go(done)
    assert (done.paths.appendix / "03_show.ipynb").read_bytes() == before
    assert "notebooks/03_show.py" in why_stale(STAGES[2], done.profile(), root=done.root)
    done.notebook("03_show").write_text(f"{source}\n# %%\n1\n")
    assert go(done)[0] == ["03_show"]
    assert sorted(path.name for path in done.paths.figures.iterdir()) == ["01_of_another.png", "03_value.json"]


def test_a_notebook_without_the_parameters_is_refused_before_it_runs(toy):
    text = toy.notebook("01_draw").read_text()
    toy.notebook("01_draw").write_text(text.replace('overrides = ""\n', "override = 1\n"))
    with pytest.raises(NotebookError, match="01_draw has no parameter 'overrides'.*nearest is 'override'"):
        go(toy, stages=ONE)


def test_a_notebook_has_one_parameters_cell_and_a_kernelspec(toy):
    path = toy.notebook("01_draw")
    notebook = read_source(path)
    assert parameter_names(notebook) == ["profile_name", "overrides"]
    check_parameters("01_draw", notebook, ["overrides"])
    notebook.cells = [cell for cell in notebook.cells if "tags" not in cell.metadata]
    with pytest.raises(NotebookError, match="exactly one cell tagged `parameters`; this one has 0"):
        parameter_names(notebook)
    path.write_text(path.read_text().partition("# # 01")[2])
    with pytest.raises(NotebookError, match="no kernelspec"):
        read_source(path)


def test_the_command_ends_in_one_line_and_exit_code_1(toy, capsys):
    assert main(["reproduce", "--profile", "tyo"], root=toy.root) == 1
    assert capsys.readouterr().err == "There is no profile 'tyo'; the profiles are toy; the nearest is 'toy'.\n"
    assert main(["reproduce", "--profile", "toy", "--set", "corpus.sede=1"], root=toy.root) == 1
    assert "the nearest is 'seed'" in capsys.readouterr().err
    assert main(["reproduce", "--profile", "toy", "--only", "77"], root=toy.root) == 1
    assert capsys.readouterr().err.startswith("There is no notebook '77'")


def test_the_kernel_is_this_interpreter_offline_and_without_the_users_settings(toy, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    names = ["HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "GOMP_SPINCOUNT", "PYTHONHASHSEED", "IPYTHONDIR"]
    values = f"[sys.executable, os.getcwd(), *map(os.environ.get, {names})]"
    toy.add_cell("01_draw", f"import os, sys\nwrite_json(paths.data / 'draw' / 'here.json', {values})")
    toy.add_cell("01_draw", HOLDS_LOCK)
    go(toy, stages=ONE)
    found = json.loads((toy.paths.data / "draw" / "here.json").read_text())
    assert found == [sys.executable, str(toy.root), "1", "false", "20000", "0", str(toy.root / "build" / "ipython")]
    assert json.loads((toy.paths.data / "draw" / "holds_lock.json").read_text())
    assert "HF_HUB_OFFLINE" not in os.environ


# A kernel that outlives a killed run must keep the next run waiting: it holds the lock's descriptor.
HOLDS_LOCK = """
def inode(descriptor):
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return None

lock = (paths.data / ".lock").stat().st_ino
write_json(paths.data / "draw" / "holds_lock.json", lock in map(inode, range(256)))
"""


@pytest.mark.parametrize(
    "name, network",
    [
        ("embedded", False),
        ("random", False),
        ("gpt2", True),
        ("openai-community/gpt2", True),
        ("/no/such/folder", False),
    ],
)
def test_only_a_hub_name_wants_the_network(name, network, tmp_path):
    assert wants_network(load_profile("mini", f"model.name_or_path={name}"), tmp_path) is network


def test_a_folder_is_no_hub_name(tmp_path):
    (tmp_path / "gpt2").mkdir()
    assert not wants_network(load_profile("mini", "model.name_or_path=gpt2"), tmp_path)


def test_our_errors_are_those_that_helpers_define():
    assert {"SettingsError", "ArtifactError", "StageError", "ExecutionError"} <= own_errors()
    assert not {"ValueError", "KeyError", "RuntimeError"} & own_errors()


def test_cleaning_leaves_no_path_address_or_timing():
    import nbformat.v4 as v4

    outputs = [
        v4.new_output("stream", text="in /some/root/data, not in /some/rootless"),
        v4.new_output("execute_result", data={"text/plain": "<Axes at 0x7f00a1>"}),
    ]
    cell = v4.new_code_cell(
        "1", outputs=outputs, metadata={"papermill": {"duration": 1}, "tags": ["a"]}, execution_count=3
    )
    notebook = v4.new_notebook(cells=[cell], metadata={"papermill": {}, "widgets": {}})
    clean = cleaned(notebook, root=Path("/some/root"))
    assert clean.cells[0].outputs[0].text == "in ./data, not in /some/rootless"
    assert clean.cells[0].outputs[1].data["text/plain"] == "<Axes>"
    assert (clean.cells[0].metadata, clean.cells[0].execution_count) == ({"tags": ["a"]}, 3)
    assert "papermill" not in clean.metadata


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_steps_and_loops_reach_the_terminal_and_not_the_notebook(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLAP_PROGRESS", str(tmp_path / "progress"))
    stream = io.StringIO()
    display = Display(stream)
    display.prefix = "04_clap"
    with follow(tmp_path / "progress", display):
        step("reading\n the pairs")
        assert list(track(range(3), "patching")) == [0, 1, 2]
    said = stream.getvalue()
    assert said.startswith("04_clap · reading the pairs\n")
    assert re.search(r"04_clap · patching: 100%.*3/3", said)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_passing_lines_in_place():
    stream = Terminal()
    display = Display(stream)
    display.passing("one")
    display.passing("two")
    display.line("three")
    assert stream.getvalue() == "one\r   \rtwo\r   \rthree\n"
