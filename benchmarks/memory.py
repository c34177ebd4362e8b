"""`python -m benchmarks.memory`: one sweep again and again in one process: what it needs, and that it leaves nothing.

Memory is what the process holds, in MB, after the allocator gave back what it could. The case is a short one of GPT-2
small, so that fifty repeats end within minutes; how much long sweeps need at most is a column of sweep.csv.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pandas as pd

from benchmarks.cases import SMALL, Case
from benchmarks.comparisons import OURS
from benchmarks.sweep import MOST_MB, RESULTS, options, write_csv
from benchmarks.worker import Worker, WorkerError

CASE = Case("gpt2-small blocks, last 4 tokens", SMALL, replaced=12)
REPEATS = 50
WARM = 10  # repeats that are not judged: libraries set themselves up
FLAT_MB = 10.0  # over all repeats; the allocator alone moves it by a few


def repeat(worker: Worker, case: Case, repeats: int) -> Iterator[dict]:
    """One row per sweep: case, repeat, and before_mb, peak_mb, after_mb."""
    worker.prepare(case)
    for number in range(1, repeats + 1):
        timing = worker.sweep(case)
        yield {
            "case": case.name,
            "repeat": number,
            "before_mb": timing.before,
            "peak_mb": timing.peak,
            "after_mb": timing.after,
        }


def drift(repeats: pd.DataFrame, column: str) -> float:
    """MB that a column gains over as many repeats as there are, by the line of least squares after the first WARM."""
    judged = repeats[repeats["repeat"] > WARM]
    return float(np.polyfit(judged["repeat"], judged[column], 1)[0]) * len(repeats)


def report(repeats: pd.DataFrame) -> str:
    """The largest growth and the drift, in words."""
    growth = (repeats["peak_mb"] - repeats["before_mb"]).max()
    held, peak = drift(repeats, "before_mb"), drift(repeats, "peak_mb")
    flat = "flat" if max(held, peak) <= FLAT_MB else "NOT flat"
    return (
        f"{repeats['case'].iat[0]}: {growth:.0f} MB above what was held before at most (wanted: {MOST_MB}); over "
        f"{len(repeats)} repeats what is held drifts by {held:+.1f} MB and the peak by {peak:+.1f} MB: {flat} "
        f"(wanted: at most {FLAT_MB:g})."
    )


def main() -> int:
    """Repeat one sweep fifty times, and watch the memory."""
    arguments = options(main.__doc__).parse_args()
    try:
        with Worker(OURS, python=sys.executable, device=arguments.device, threads=arguments.threads) as worker:
            repeats = pd.DataFrame(repeat(worker, CASE, REPEATS))
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    write_csv(repeats, RESULTS / "memory.csv")
    print(report(repeats))
    return 0


if __name__ == "__main__":
    sys.exit(main())
