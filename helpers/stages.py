"""Stages: what each notebook reads and writes, and whether what lies on disk is still its result.

A stage is fresh when the record of its last complete run names the same ingredients (sources, settings, inputs) and
every output still has the recorded hash. Records live in `data/<profile>/stages/`, which git ignores: committed figures
and executed notebooks never count as evidence. Nothing heavy is imported here; `make reproduce` with nothing to do
must end in a moment.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from helpers.artifacts import ArtifactError, fingerprint, locked_file, read_json, sha256_file, sha256_tree, write_json
from helpers.config import ROOT, Paths, Profile, section

LOCK = "requirements.lock"
KNOWLEDGE = ("knowledge.csv", "wordings.yaml")
LABELS = ("mined_spans.csv",)
BASE_MODEL = ("models/base",)
TASKS = ("tasks.yaml", "models/task")
PLANTED = ("plants", "leaderboard", "edits")
WITHOUT_FOLDER = ("embedded", "random")  # values of model.name_or_path that name no folder


class StageError(RuntimeError):
    """A stage that cannot be checked or run: its notebook, its inputs, or the profile's lock stands in the way."""


@dataclass(frozen=True)
class Stage:
    """One notebook: the sections of the profile it reads, the stages whose artifacts it reads, the folders it owns.

    `outputs` are folders under `data/<profile>/`; the stage also owns `findings/NAME.json` there, the figures whose
    names begin with its number, and its executed notebook. `embedded` are committed inputs under `data/embedded/`.
    `budget_minutes` is for the default profile on two cores.
    """

    name: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    embedded: tuple[str, ...] = ()
    budget_minutes: float = 1.0

    @property
    def number(self) -> str:
        """The two digits before the name."""
        return self.name.partition("_")[0]


@dataclass(frozen=True)
class Record:
    """The last complete run of a stage: its ingredients by name, its outputs by path, and how long it took."""

    ingredients: dict[str, str]
    outputs: dict[str, str]
    seconds: float


STAGES = (
    Stage(
        "01_data_collection",
        sections=("corpus", "model", "items"),
        outputs=("corpus", "card", "items"),
        embedded=KNOWLEDGE + LABELS + BASE_MODEL,
        budget_minutes=0.5,
    ),
    Stage(
        "02_fine_tuning",
        sections=("model", "finetune"),
        inputs=("01_data_collection",),
        outputs=("models", "training"),
        embedded=BASE_MODEL,
        budget_minutes=7.5,
    ),
    Stage(
        "03_clap_as_published",
        sections=("model", "finetune", "patching"),
        inputs=("02_fine_tuning",),
        outputs=("published",),
        embedded=BASE_MODEL,
        budget_minutes=1.0,
    ),
    Stage(
        "04_clap",
        sections=("model", "finetune", "items", "patching", "statistics"),
        inputs=("01_data_collection", "02_fine_tuning", "03_clap_as_published"),
        outputs=("clap",),
        embedded=BASE_MODEL,
        budget_minutes=4.0,
    ),
    Stage(
        "05_best_practices",
        sections=("model", "finetune", "items", "patching", "tasks", "statistics"),
        inputs=("01_data_collection", "02_fine_tuning"),
        outputs=("tasks",),
        embedded=BASE_MODEL + TASKS,
        budget_minutes=3.0,
    ),
    Stage(
        "06_calibration",
        sections=("model", "calibration", "statistics"),
        outputs=("calibration",),
        embedded=BASE_MODEL + KNOWLEDGE + PLANTED,
        budget_minutes=4.0,
    ),
    Stage(
        "08_statistics",
        sections=("model", "statistics"),
        inputs=("04_clap",),
        outputs=("statistics",),
        budget_minutes=2.0,
    ),
)


def sources(notebook: Path, *, root: Path = ROOT) -> list[Path]:
    """A notebook's source and every `helpers` module it reaches, found in the import statements without importing.

    Raises StageError when the notebook is missing or cannot be parsed.
    """
    if not notebook.is_file():
        raise StageError(f"The notebook {notebook.relative_to(root)} is missing.")
    found, waiting = {notebook}, [notebook]
    while waiting:
        file = waiting.pop()
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except SyntaxError as error:
            raise StageError(f"{file.relative_to(root)} cannot be parsed (line {error.lineno}: {error.msg}).") from None
        for module in _helper_modules(tree):
            path = root.joinpath(*module.split("."))
            for candidate in (path.with_suffix(".py"), path / "__init__.py"):
                if candidate.is_file() and candidate not in found:
                    found.add(candidate)
                    waiting.append(candidate)
    return sorted(found)


def ingredients(stage: Stage, profile: Profile, *, root: Path = ROOT) -> dict[str, str]:
    """The hash of everything a stage depends on, by name; input stages count by their outputs, not by their sources.

    A rerun of an earlier stage that writes the same bytes therefore leaves this one fresh. Raises StageError when an
    input stage has not run.
    """
    paths = Paths(profile.name, root)
    found = {str(p.relative_to(root)): sha256_file(p) for p in sources(notebook_path(stage, root), root=root)}
    found |= {f"setting {name}": fingerprint(section(profile, name)) for name in stage.sections}
    found |= _digests([root / LOCK, *(paths.embedded / name for name in stage.embedded)], root)
    if "model" in stage.sections and profile.model.name_or_path not in WITHOUT_FOLDER:
        folder = root / profile.model.name_or_path  # an absolute path stays itself
        if folder.is_dir():
            found["model folder"] = fingerprint(sha256_tree([folder], folder))
    for name in stage.inputs:
        record = read_record(paths, name)
        if record is None:
            raise StageError(f"{stage.name} reads the artifacts of {name}, which has not run yet.")
        data = str(paths.data.relative_to(root) / "findings")
        found[f"artifacts of {name}"] = fingerprint(
            {p: h for p, h in record.outputs.items() if p.startswith("data/") and not p.startswith(data)}
        )
    return found


def why_stale(stage: Stage, profile: Profile, *, root: Path = ROOT) -> str | None:
    """One clause that says why a stage must run, or None when its outputs stand."""
    paths = Paths(profile.name, root)
    record = read_record(paths, stage.name)
    if record is None:
        return "it has no complete run here"
    now = ingredients(stage, profile, root=root)
    changed = sorted(
        name for name in now.keys() | record.ingredients.keys() if now.get(name) != record.ingredients.get(name)
    )
    if changed:
        return f"changed: {_listed(changed)}"
    damaged = damaged_outputs(record, root)
    return f"its output is missing or changed: {_listed(damaged)}" if damaged else None


def damaged_outputs(record: Record, root: Path) -> list[str]:
    """Recorded outputs that are absent or no longer have the recorded hash."""
    files = {path: root / path for path in record.outputs}
    return [p for p, file in files.items() if not file.is_file() or sha256_file(file) != record.outputs[p]]


def owned_files(stage: Stage, paths: Paths) -> list[Path]:
    """Every file on disk that belongs to a stage: data, findings, figures and the executed notebook."""
    folders = [paths.data / name for name in stage.outputs]
    files = [p for folder in folders if folder.is_dir() for p in folder.rglob("*") if p.is_file()]
    files += [paths.data / "findings" / f"{stage.name}.json", executed_path(stage, paths)]
    files += paths.figures.glob(f"{stage.number}_*")
    inside = [p for p in files if p.is_file() and not _temporary(p.relative_to(paths.root))]
    return sorted(set(inside))


def complete(stage: Stage, profile: Profile, found: dict[str, str], seconds: float, *, root: Path = ROOT) -> None:
    """Record a complete run. Written last of all, so that a run cut short leaves no record that fits its outputs.

    `found` are the ingredients as they were *before* the run: a source edited meanwhile makes the stage stale again.
    """
    paths = Paths(profile.name, root)
    outputs = {str(p.relative_to(root)): sha256_file(p) for p in owned_files(stage, paths)}
    write_record(paths, stage.name, Record(found, outputs, round(seconds, 3)))


def read_record(paths: Paths, name: str) -> Record | None:
    """The record of the last complete run, or None when there is none or it is damaged."""
    try:
        return Record(**read_json(_record_path(paths, name)))
    except (ArtifactError, TypeError):
        return None


def write_record(paths: Paths, name: str, record: Record) -> None:
    """Write a record atomically."""
    write_json(_record_path(paths, name), asdict(record))


def notebook_path(stage: Stage, root: Path = ROOT) -> Path:
    """Where a stage's source is."""
    return root / "notebooks" / f"{stage.name}.py"


def executed_path(stage: Stage, paths: Paths) -> Path:
    """Where a stage's executed notebook is."""
    return paths.appendix / f"{stage.name}.ipynb"


def needed(only: str | None, stages: Sequence[Stage]) -> list[Stage]:
    """The stages to look at, in order: all, or the one given by number or name with those it reads from.

    Raises StageError when no stage has that number or name.
    """
    if only is None:
        return list(stages)
    by_name = {stage.name: stage for stage in stages}
    waiting = [stage.name for stage in stages if only in (stage.number, stage.name)]
    if not waiting:
        raise StageError(f"There is no notebook {only!r}; there are {', '.join(by_name)}.")
    wanted: set[str] = set()
    while waiting:
        name = waiting.pop()
        wanted.add(name)
        waiting.extend(by_name[name].inputs)
    return [stage for stage in stages if stage.name in wanted]


@contextmanager
def locked(paths: Paths, *, patience: float = 5.0) -> Iterator[int]:
    """Hold the profile's lock and yield its file descriptor; raises StageError when another run keeps it.

    The descriptor is handed on to the kernels: a kernel that outlives a killed run by a moment still holds the lock,
    so the next run cannot start writing beside it. Hence the patience, in seconds.
    """
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(locked_file(paths.data / ".lock", patience=patience))
        except BlockingIOError:
            raise StageError(f"Another run of the profile {paths.profile!r} is under way: wait for it.") from None
        yield lock


def sweep_temporaries(paths: Paths) -> None:
    """Remove what a killed run has left half-written; only under the lock."""
    for folder in (paths.data, paths.figures, paths.appendix):
        for path in sorted(folder.rglob(".*.tmp")) if folder.is_dir() else []:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _helper_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.ImportFrom):  # relative: only helpers modules can write it
            names = [f"helpers.{node.module}" if node.module else f"helpers.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "helpers":
                yield from ("helpers", name)  # importing a module runs its package's __init__ first


def _digests(files: Iterable[Path], root: Path) -> dict[str, str]:
    present = [path for path in files if path.exists()]
    return {str(p.relative_to(root)): fingerprint(sha256_tree([p], root)) for p in present}


def _record_path(paths: Paths, name: str) -> Path:
    return paths.data / "stages" / f"{name}.json"


def _temporary(path: Path) -> bool:
    return any(part.endswith(".tmp") for part in path.parts)


def _listed(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
