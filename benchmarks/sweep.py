"""`python -m benchmarks.sweep`: the sweep beside its peers, on the same patches, in alternation, in one run.

Every implementation runs in a process of its own (`benchmarks.worker`). A round runs each of them once, so that a
machine that grows slower does so for all; seconds are medians over rounds, and memory is the largest growth of the
process above what it held before the call. A time counts only for the right answer: every result is compared with
ours, and a difference above rounding ends the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.cases import MINI, Case
from benchmarks.comparisons import BETWEEN_CASES, COMPARISONS, OURS, Comparison, medians, ratio_table
from benchmarks.environments import interpreters
from benchmarks.figures import draw_ratios, save
from benchmarks.machine import processors
from benchmarks.worker import IMPLEMENTATIONS, Worker, WorkerError
from helpers.artifacts import write_bytes
from helpers.config import ROOT
from helpers.environment import SetupError

RESULTS = Path(__file__).with_name("results")
QUICK_RESULTS = ROOT / "build" / "benchmarks" / "quick"  # one round is too few to be kept
MOST_MB = 700  # of memory growth that any sweep of ours is to need
TOLERANCE = 1e-5  # of the largest logit, or of 1: rounding in float32 through a dozen blocks


class DisagreementError(RuntimeError):
    """Two implementations that give different effects for the same patches."""


def compare(comparisons: Iterable[Comparison], workers: Mapping[str, Worker], *, rounds: int) -> Iterator[dict]:
    """One row per call: case, implementation, round, seconds, peak_mb, and difference, the largest from ours.

    `rounds` is the most of them, whatever a comparison asks for. Raises DisagreementError when a result is not ours.
    """
    network = None
    for comparison in comparisons:
        case = comparison.case
        if case.network != network:
            for worker in workers.values():
                worker.release()
            network = case.network
        for name in comparison.rounds:
            workers[name].prepare(case)
        reference, largest_logit = None, workers[OURS].largest_logit(case)
        for number in range(min(rounds, max(comparison.rounds.values()))):
            for name in (name for name, most in comparison.rounds.items() if number < most):
                timing = workers[name].sweep(case)
                effects = np.array(timing.effects)
                reference = effects if reference is None else reference
                yield {
                    "case": case.name,
                    "implementation": name,
                    "round": number + 1,
                    "seconds": timing.seconds,
                    "peak_mb": timing.growth,
                    "difference": difference(name, case.name, effects, reference, largest_logit),
                }


def difference(name: str, case: str, effects: np.ndarray, reference: np.ndarray, largest_logit: float) -> float:
    """The largest absolute difference between two results; raises DisagreementError when it is more than rounding."""
    if effects.shape != reference.shape:
        raise DisagreementError(
            f"{name} returns effects {effects.shape} on {case!r} where {OURS} has {reference.shape}: let both "
            "patch the same sites."
        )
    found, allowed = float(np.abs(effects - reference).max()), TOLERANCE * max(1.0, largest_logit)
    if not found <= allowed:  # so that NaN is refused too
        raise DisagreementError(
            f"{name} and {OURS} differ by {found:.1e} on {case!r}, where rounding allows {allowed:.1e}: one of them is "
            "wrong, and their times mean nothing; see which by patching one of the sites with tests/oracle.py."
        )
    return found


def arithmetic(case: Case, workers: Mapping[str, Worker], times: pd.DataFrame) -> Iterator[str]:
    """Sentences on how much our sweep of a case computes, and how fast beside a large matrix product."""
    peak = workers[OURS].matrix_peak()
    yield f"A large float32 matrix product reaches {peak / 1e9:.0f} GFLOP/s here."
    workers[OURS].prepare(case)
    operations = workers[OURS].floating_point_operations(case)
    speed = operations / times.set_index(["case", "implementation"])["seconds"][case.name, OURS]
    yield (
        f"{case.name}, {OURS}: {operations / 1e9:.1f} GFLOP at {speed / 1e9:.0f} GFLOP/s, "
        f"{100 * speed / peak:.0f} % of that."
    )


def save_results(rounds: pd.DataFrame, folder: Path) -> None:
    """Write sweep_rounds.csv, sweep.csv (case, implementation, seconds, peak_mb), and sweep.png and .pdf."""
    for name, table in (("sweep_rounds", rounds), ("sweep", medians(rounds))):
        write_csv(table, folder / f"{name}.csv")
    save(lambda: draw_ratios(medians(rounds)), folder / "sweep")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table of results, whole or not at all."""
    write_bytes(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())


def report(rounds: pd.DataFrame, comparisons: Sequence[Comparison]) -> str:
    """The medians, the agreement, the ratios and the memory as text."""
    times = medians(rounds)
    times["difference"] = rounds.groupby(["case", "implementation"], sort=False)["difference"].max().to_numpy()
    within = [ratio for comparison in comparisons for ratio in comparison.ratios()]
    ratios = ratio_table(times, [*within, *BETWEEN_CASES])
    ratios["met"] = ratios["met"].map({True: "yes", False: "NO"}).where(ratios["target"] != "", "")
    growth = times.loc[times["implementation"] == OURS, "peak_mb"].max()
    return "\n\n".join(
        (
            times.to_string(
                index=False,
                formatters={"seconds": "{:.3f}".format, "peak_mb": "{:.0f}".format, "difference": "{:.1e}".format},
            ),
            ratios.to_string(index=False, formatters={"value": "{:.2f}".format}),
            f"Largest growth of memory, {OURS}: {growth:.0f} MB (wanted: {MOST_MB} at most).",
        )
    )


def options(description: str) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="a torch device, such as cpu or cuda:0")
    parser.add_argument("--threads", type=int, default=processors(), help="of every worker")
    return parser


def main() -> int:
    """Time the sweep beside its peers."""
    parser = options(main.__doc__)
    parser.add_argument("--quick", action="store_true", help="the mini cases alone, one round, into build/")
    parser.add_argument("--transformerlens", type=Path, help="an interpreter that has it; else one is made in build/")
    arguments = parser.parse_args()
    comparisons = [c for c in COMPARISONS if c.case.network == MINI or not arguments.quick]
    folder = QUICK_RESULTS if arguments.quick else RESULTS
    settings = {"device": arguments.device, "threads": arguments.threads}
    rows = []
    try:
        python = interpreters(arguments.transformerlens)
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(Worker(name, python=python[implementation.environment], **settings))
                for name, implementation in IMPLEMENTATIONS.items()
            }
            for row in compare(comparisons, workers, rounds=1 if arguments.quick else 3):
                print("{case}, round {round}: {implementation} {seconds:.3f} s".format(**row), flush=True)
                rows.append(row)
            rounds = pd.DataFrame(rows)
            save_results(rounds, folder)
            print(f"\n{report(rounds, comparisons)}\n")
            for sentence in arithmetic(comparisons[0].case, workers, medians(rounds)):
                print(sentence)
    except (WorkerError, DisagreementError, SetupError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Tables and figure: {folder.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
