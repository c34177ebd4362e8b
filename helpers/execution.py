"""Execution: run the stale notebooks of a profile in order, show progress, and keep nothing that is half done.

`python -m helpers.execution reproduce --profile mini --set "section.key=value …" [--only NN]`, and `collect` for the
corpus of notebook 01 alone, which needs no model. Each source becomes a notebook, is executed by papermill in a kernel
of this very interpreter with the network switched off, and is kept only when its last cell has ended well. Every error
ends in one sentence and exit code 1; the full traceback is in a log.
"""

from __future__ import annotations

import argparse
import ast
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from helpers.artifacts import write_bytes, write_json
from helpers.config import ROOT, Paths, Profile, load_profile
from helpers.kernel import BUILD, CellError, KernelError, execute, uncoloured, wants_network
from helpers.progress import Display
from helpers.stages import (
    STAGES,
    Stage,
    StageError,
    complete,
    executed_path,
    ingredients,
    locked,
    needed,
    notebook_path,
    owned_files,
    read_record,
    sweep_temporaries,
    why_stale,
)


class ExecutionError(RuntimeError):
    """A notebook that did not end well; the message is the one sentence the user reads."""


@dataclass(frozen=True)
class Run:
    """One call of `reproduce`: what it runs, and where it says so."""

    profile: Profile
    overrides: str
    root: Path
    display: Display

    @property
    def paths(self) -> Paths:
        """Where this run reads and writes."""
        return Paths(self.profile.name, self.root)

    def log(self, name: str) -> Path:
        """Where the log of one notebook goes."""
        return self.root / BUILD / "logs" / self.profile.name / f"{name}.log"


def reproduce(
    profile: Profile,
    overrides: str = "",
    *,
    only: str | None = None,
    root: Path = ROOT,
    stages: Sequence[Stage] = STAGES,
    stream: TextIO = sys.stderr,
) -> list[str]:
    """Run every stale stage in order, then the site, and return the names of the stages that ran.

    `overrides` is handed to the notebooks as it was given; `profile` is what it leads to. Raises ExecutionError,
    StageError or NotebookError, each with one sentence; stages that were complete by then stay complete.
    """
    run = Run(profile, overrides, root, Display(stream))
    chosen = needed(only, stages)
    began = time.monotonic()
    with locked(run.paths) as lock:
        sweep_temporaries(run.paths)
        ran = []
        for position, stage in enumerate(chosen, 1):
            reason = why_stale(stage, profile, root=root)
            if reason is None:
                continue
            left = _minutes_left(run, chosen[position - 1 :])
            run.display.line(f"[{position}/{len(chosen)}] {stage.name}: {reason}{left}")
            run.display.prefix = f"[{position}/{len(chosen)}] {stage.name}"
            run_stage(run, stage, lock)
            ran.append(stage.name)
        run.display.prefix = ""
        built = _site(run, stages, fresh=chosen)
        if ran or built:
            report(run, stages, ran, time.monotonic() - began)
    if not ran:
        run.display.line(f"Nothing to do: the {len(chosen)} notebooks of the profile {profile.name!r} are up to date.")
    # A site that waits for other notebooks shows nothing of what has just run.
    page = run.paths.appendix / "index.html" if built or not ran else executed_path(chosen[-1], run.paths)
    if page.is_file():
        run.display.line(f"Read the results in {page.relative_to(root)}.")
    return ran


def collect(profile: Profile, *, root: Path = ROOT, stream: TextIO = sys.stderr) -> None:
    """Build the corpus of a profile alone, and say what came of it; notebook 01 finds everything there.

    Raises StageError, CorpusError or PubmedError, each with one sentence; what was fetched by then is kept.
    """
    from helpers import corpus
    from helpers.datacard import rule_table

    display, paths = Display(stream), Paths(profile.name, root)
    target = paths.data / "corpus"
    with locked(paths):
        sweep_temporaries(paths)
        counts = corpus.collect(profile.corpus, paths, target, progress=display.line)
    for row in rule_table(counts).itertuples():
        display.line(f"  {row.records:>9,} {row.rule:<17} {row.treatment}")
    display.line(
        f"The corpus is in {target.relative_to(root)}; notebook 01 is its data card (with the same SET, ONLY=01)."
    )


def run_stage(run: Run, stage: Stage, lock: int) -> None:
    """Execute one notebook; write its executed form and then its record, both only when it is complete."""
    from helpers.notebooks import check_parameters, cleaned, read_source, write_notebook

    found = ingredients(stage, run.profile, root=run.root)
    notebook = read_source(notebook_path(stage, run.root))
    parameters = {"profile_name": run.profile.name, "overrides": run.overrides}
    check_parameters(stage.name, notebook, parameters)
    began = time.monotonic()
    mark = run.log(stage.name)
    write_bytes(mark, b"")
    mark_time = mark.stat().st_mtime_ns
    try:
        executed = execute(
            notebook,
            parameters,
            root=run.root,
            log=mark,
            display=run.display,
            online=wants_network(run.profile, run.root),
            descriptors=[lock],
        )
    except CellError as error:
        raise ExecutionError(_sentence(run, stage.name, error)) from None
    except KernelError as error:
        raise ExecutionError(
            f"{stage.name}: the kernel died ({one_line(str(error))}); too little memory is the usual cause. "
            f"The log is {mark.relative_to(run.root)}."
        ) from None
    for path in owned_files(stage, run.paths):
        # A figure that this run did not draw is a figure of an earlier source.
        if path.is_relative_to(run.paths.figures) and path.stat().st_mtime_ns < mark_time:
            path.unlink()
    write_notebook(executed_path(stage, run.paths), cleaned(executed, root=run.root))
    complete(stage, run.profile, found, time.monotonic() - began, root=run.root)


def own_errors(root: Path = ROOT) -> frozenset[str]:
    """Names of the exception classes that `helpers` defines: their messages are written for the user."""
    names = set()
    for path in (root / "helpers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                names.add(node.name)
    return frozenset(names)


def one_line(text: str, most: int = 600) -> str:
    """A message on one line and without colours, cut when it is longer than `most` characters."""
    text = " ".join(uncoloured(text).split())
    return text if len(text) <= most else f"{text[:most]} …"


def _sentence(run: Run, name: str, error: CellError) -> str:
    if error.kind in own_errors(run.root):
        return f"{name}: {one_line(error.message)}"
    log = run.log(name).relative_to(run.root)
    return f"{name} stopped with {error.kind}: {one_line(error.message)} The traceback is in {log}."


def _minutes_left(run: Run, stages: Sequence[Stage]) -> str:
    """How long the given stages took last time, or their budget in the default profile; empty when nothing is known."""
    seconds = []
    for stage in stages:
        record = read_record(run.paths, stage.name)
        if record is None and run.profile.name != "mini":
            return ""
        seconds.append(record.seconds if record else 60 * stage.budget_minutes)
    return f" (at most {max(1, round(sum(seconds) / 60))} min left in all)"


def _site(run: Run, stages: Sequence[Stage], *, fresh: Sequence[Stage]) -> bool:
    """Build the site when every stage stands and the site does not; a site of two different runs would mislead.

    `fresh` are stages known to stand.
    """
    from helpers.site import build_site, site_is_fresh

    waiting = [stage.name for stage in stages if stage not in fresh and not _stands(run, stage)]
    if waiting:
        run.display.line(f"The site waits for {', '.join(waiting)}.")
        return False
    if site_is_fresh(run.profile, stages, overrides=run.overrides, root=run.root):
        return False
    run.display.passing("site")
    build_site(run.profile, stages, overrides=run.overrides, root=run.root)
    return True


def _stands(run: Run, stage: Stage) -> bool:
    try:
        return why_stale(stage, run.profile, root=run.root) is None
    except StageError:
        return False  # what it reads from has never run


def report(run: Run, stages: Sequence[Stage], ran: Sequence[str], seconds: float) -> None:
    """Show and keep the minutes of each notebook beside its budget; notebooks that did not run show their last time."""
    rows = []
    for stage in stages:
        record = read_record(run.paths, stage.name)
        if record:
            budget = stage.budget_minutes if run.profile.name == "mini" else None
            row = {"notebook": stage.name, "minutes": round(record.seconds / 60, 2), "budget_minutes": budget}
            rows.append({**row, "ran": stage.name in ran})
    write_json(run.paths.data / "report.json", {"notebooks": rows, "minutes": round(seconds / 60, 2)})
    run.display.line(f"\n{'notebook':<24}{'minutes':>9}{'budget':>9}")
    for row in rows:
        budget = "–" if row["budget_minutes"] is None else f"{row['budget_minutes']:.1f}"
        earlier = "" if row["ran"] else "  (kept from an earlier run)"
        run.display.line(f"{row['notebook']:<24}{row['minutes']:>9.1f}{budget:>9}{earlier}")
    run.display.line(f"{'this run, site included':<24}{seconds / 60:>9.1f}\n")


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Run a profile's notebooks, or collect its corpus; print one sentence and return 1 if something stops it."""
    parser = argparse.ArgumentParser(prog="python -m helpers.execution", description=main.__doc__)
    parser.add_argument("command", choices=["reproduce", "collect"])
    parser.add_argument("--profile", default="mini")
    parser.add_argument(
        "--set", default="", dest="overrides", help='settings, as "section.key=value section.key=value"'
    )
    parser.add_argument("--only", help="the number of one notebook; those it reads from are run first when stale")
    options = parser.parse_args(arguments)
    try:
        profile = load_profile(options.profile, options.overrides, folder=root / "profiles")
        if options.command == "collect":
            collect(profile, root=root)
        else:
            reproduce(profile, options.overrides, only=options.only or None, root=root)
    except KeyboardInterrupt:
        print("\nInterrupted. What is complete is kept; run the same command to go on.", file=sys.stderr)
        return 130
    except Exception as error:
        text = one_line(str(error))
        if type(error).__module__.partition(".")[0] not in ("helpers", "__main__"):
            log = root / BUILD / "logs" / f"{options.command}.log"
            text = f"The run stopped with {type(error).__name__}: {text}"
            try:
                write_bytes(log, traceback.format_exc().encode())
                text += f" The traceback is in {log.relative_to(root)}."
            except OSError:
                text += f" No log could be written to {log.parent}."
        print(text, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
