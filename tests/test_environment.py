"""The environment: one set of pins in every file, found or made, and half-made environments made again."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from toy import ROOT

from helpers import environment
from helpers.environment import DIRECT, STAMP, SetupError, interpreter, is_complete, make, normalised, pins, unmet

LOCK = ROOT / "requirements.lock"


def locked() -> dict[str, str]:
    """Every pin of the lock, direct or not."""
    lines = [line.partition(";")[0] for line in LOCK.read_text().splitlines() if "==" in line and line[0] != "#"]
    return {normalised(name): version.strip() for name, _, version in (line.partition("==") for line in lines)}


def test_conda_users_get_the_same_pins():
    tree = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda, pip = tree["dependencies"][:-1], tree["dependencies"][-1]["pip"]
    assert "pip" in conda and f"python={'.'.join(map(str, environment.OLDEST))}" in conda
    assert {normalised(name): version for name, version in (pin.split("==") for pin in pip)} == pins(LOCK)


def test_the_project_file_names_what_the_lock_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["test"]]
    ranges = {normalised(r.name): r.specifier for r in map(Requirement, wanted)}
    assert ranges.keys() == pins(LOCK).keys()
    for name, version in pins(LOCK).items():
        assert ranges[name].contains(version), f"{name} {version} is outside {ranges[name]}"
    assert str(ranges["torch"]) == "==2.13.0" and str(ranges["transformers"]) == "==5.23.*"
    assert ranges["nnsight"] == Requirement("nnsight>=0.8.1,<0.9").specifier
    assert project["project"]["requires-python"] == ">=" + ".".join(map(str, environment.OLDEST))


def test_the_lock_holds_names_and_versions_only():
    for line in LOCK.read_text().splitlines():
        assert not line or line[0] == "#" or re.fullmatch(r"[\w.-]+==[\w.]+( ; [^@:/]+)?", line), line
    assert pins(LOCK).items() <= locked().items() and len(pins(LOCK)) < len(locked())


def test_nothing_imported_is_unpinned():
    modules = {"yaml": "pyyaml", "Bio": "biopython", "IPython": "ipython", "PIL": "pillow"}
    local = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"helpers", "benchmarks"}
    for path in [*ROOT.glob("helpers/*.py"), *ROOT.glob("tests/*.py"), *ROOT.glob("notebooks/*.py")]:
        for name in imported(path) - local - sys.stdlib_module_names:
            assert normalised(modules.get(name, name)) in locked(), f"{path.name} imports {name}"


def imported(path) -> set[str]:
    """Top-level names of the modules a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_this_file_finds_the_environment_with_nothing_installed():
    assert imported(ROOT / "helpers" / "environment.py") <= sys.stdlib_module_names
    command = [sys.executable, "-I", "-S", "helpers/environment.py", "nonsense"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, "usage: python3 helpers/environment.py (python | setup)\n")


def test_no_file_names_a_package_index():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    # Written in pieces, so that this file does not find itself.
    hosts = [
        "pypi" + ".org",
        "python" + "hosted",
        "pytorch" + ".org/whl",
        "ana" + "conda.org",
        "npm" + "js",
        "crates" + ".io",
    ]
    options = ["index" + "-url", "find" + "-links", "trusted" + "-host"]
    found = re.compile("|".join(map(re.escape, hosts + options)).encode())
    files = [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    assert len(files) > 10
    assert [str(path) for path in files if found.search(path.read_bytes())] == []


def test_pins_are_read_from_the_direct_part_alone(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text(f"# made\n\n{DIRECT}: these\nA_b.c==1.0 ; python_version > '3'\n\n# Indirect\nother==2\n")
    assert pins(lock) == {"a-b-c": "1.0"}


def test_what_an_interpreter_lacks(monkeypatch):
    installed = {"torch": "2.13.0+cpu", "pandas": "1.0"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: installed.get(name) or missing(name))
    assert unmet({"torch": "2.13.0"}) == []
    assert unmet({"torch": "2.13.1", "pandas": "3.1.1", "scipy": "1.0"}) == [
        "torch is 2.13.0+cpu, not 2.13.1",
        "pandas is 1.0, not 3.1.1",
        "scipy 1.0 is absent",
    ]


def missing(name):
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A root whose lock nothing satisfies, with an installer that only leaves an interpreter behind."""
    (tmp_path / "requirements.lock").write_text(f"{DIRECT}\nno-such-distribution==1\n")
    calls = []

    def call(command, what):
        calls.append(what)
        python = tmp_path / ".venv" / "bin" / "python"
        python.parent.mkdir(exist_ok=True)
        python.touch()

    monkeypatch.setattr(environment, "_call", call)
    return tmp_path, calls


def test_an_active_environment_that_fits_is_used(tmp_path):
    (tmp_path / "requirements.lock").write_text(f"{DIRECT}\n")
    assert str(interpreter(tmp_path)) == sys.executable
    assert [path.name for path in tmp_path.iterdir()] == ["requirements.lock"]


def test_an_environment_is_made_once_and_again_when_the_lock_changes(place):
    root, calls = place
    assert interpreter(root) == root / ".venv" / "bin" / "python"
    assert calls == ["making the virtual environment", "installing the packages"]
    interpreter(root)
    assert len(calls) == 2
    (root / "requirements.lock").write_text(f"{DIRECT}\nno-such-distribution==2\n")
    interpreter(root)
    assert len(calls) == 4


@pytest.mark.parametrize("lost", [STAMP, "bin/python"])
def test_a_half_made_environment_is_made_again(place, lost):
    root, calls = place
    interpreter(root)
    (root / ".venv" / lost).unlink()
    (root / ".venv" / "rest").touch()
    interpreter(root)
    assert len(calls) == 4 and not (root / ".venv" / "rest").exists()


def test_a_failed_installation_leaves_no_stamp(place, monkeypatch):
    root, _ = place
    monkeypatch.undo()
    (root / "requirements.lock").write_text(f"{DIRECT}\nno-such-distribution==1\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1))
    with pytest.raises(SetupError, match="making the virtual environment failed"):
        interpreter(root)
    assert not is_complete(root / ".venv", root / "requirements.lock")


def test_somebody_elses_environment_is_left_alone(place):
    root, calls = place
    (root / ".venv").mkdir()
    (root / ".venv" / "pyvenv.cfg").write_text("mine")
    with pytest.raises(SetupError, match="not made by this project"):
        interpreter(root)
    assert calls == [] and (root / ".venv" / "pyvenv.cfg").read_text() == "mine"


def test_an_old_python_is_told_so(place, monkeypatch):
    root, calls = place
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    with pytest.raises(SetupError, match="Python 3.11 or later is needed"):
        make(root / ".venv", root / "requirements.lock")
    assert calls == []


def run_make(*arguments):
    command = ["make", "--no-print-directory", *arguments, f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_make_alone_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (\S+)$", text, re.M)) - {"FORCE"} | {"figures/%.pdf"}
    assert targets >= {"help", "setup", "reproduce", "test", "test-slow", "figures", "lab", "base-model", "clean"}
    result = run_make()
    assert result.returncode == 0
    assert set(re.findall(r"^  make (\S+) +\w", result.stdout, re.M)) == targets


def test_make_says_what_is_wrong_in_one_sentence():
    result = run_make("reproduce", "PROFILE=mnii")
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert result.stderr.startswith("There is no profile 'mnii'")
    result = run_make("reproduce", "SET=corpus.sede=1")
    assert result.returncode != 0 and result.stderr.startswith("There is no setting 'corpus.sede'")


def test_make_clean_keeps_what_cannot_be_made_again(tmp_path):
    kept = ["data/embedded/knowledge.csv", "data/paper/raw/batch.xml.gz", "figures/mini/a.png", "appendix/a.ipynb"]
    kept += ["data/explore/items.parquet", "figures/explore/a.png"]
    gone = ["data/paper/corpus/a", "data/mini/.lock", "figures/smoke/a.png", "appendix/smoke/a.ipynb", "build/log"]
    for name in kept + gone:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    command = ["make", "-f", str(ROOT / "Makefile"), "clean"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(kept)
