"""`python -m benchmarks.scaling`: the sweep's time against pairs, positions, layers, and the model's width.

One of the four is varied at a time, on random weights. Patches per pair grow with positions and layers, and so does
what each of them computes: time is expected to grow linearly with pairs, and faster with everything else. Pairs begin
with as many as one forward pass of this size takes; fewer share its fixed cost, and each costs more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from benchmarks.cases import Case, Network
from benchmarks.comparisons import OURS
from benchmarks.figures import draw_scaling, save
from benchmarks.sweep import RESULTS, options, write_csv
from benchmarks.worker import Worker, WorkerError

CENTRE = Case("centre", Network(layers=4, width=256, heads=4, vocabulary=1000), pairs=16)
VALUES = {
    "pairs": (48, 96, 144, 192),
    "positions": (8, 16, 24, 32, 48),
    "layers": (2, 4, 6, 8, 12),
    "width": (128, 256, 512, 768),
}
ROUNDS = 5
LINEAR = 0.05  # how far from 1 the exponent of pairs may be


def cases() -> Iterator[tuple[str, int, Case]]:
    """What is varied, its value, and the case; the rest is as in the centre."""
    for varied, values in VALUES.items():
        for value in values:
            if varied in ("layers", "width"):
                case = replace(CENTRE, network=replace(CENTRE.network, **{varied: value}))
            else:
                case = replace(CENTRE, **{varied: value})
            yield varied, value, replace(case, name=f"{varied} {value}")


def time_cases(worker: Worker, cases: Sequence[tuple[str, int, Case]], rounds: int) -> pd.DataFrame:
    """Median seconds: columns varied, value, seconds. Every round runs every case, so that all see the same machine."""
    for _, _, case in cases:
        worker.prepare(case)
    rows = [
        {"varied": varied, "value": value, "seconds": worker.sweep(case).seconds}
        for _ in range(rounds)
        for varied, value, case in cases
    ]
    return pd.DataFrame(rows).groupby(["varied", "value"], sort=False, as_index=False)["seconds"].median()


def exponents(times: pd.DataFrame) -> dict[str, float]:
    """For each quantity x that was varied, the e of seconds ∝ x^e, by least squares on logarithms."""
    return {
        varied: float(np.polyfit(np.log(points["value"]), np.log(points["seconds"]), 1)[0])
        for varied, points in times.groupby("varied", sort=False)
    }


def report(found: dict[str, float]) -> str:
    """The exponents, and whether time is linear in pairs."""
    listed = ", ".join(f"{varied}^{exponent:.2f}" for varied, exponent in found.items())
    linear = "linear" if abs(found["pairs"] - 1) <= LINEAR else "NOT linear"
    return f"Seconds grow as {listed}: {linear} in pairs (wanted: an exponent within {LINEAR:g} of 1)."


def main() -> int:
    """Time the sweep while one quantity at a time is varied."""
    arguments = options(main.__doc__).parse_args()
    try:
        with Worker(OURS, python=sys.executable, device=arguments.device, threads=arguments.threads) as worker:
            times = time_cases(worker, list(cases()), ROUNDS)
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    write_csv(times, RESULTS / "scaling.csv")
    found = exponents(times)
    save(lambda: draw_scaling(times, found), RESULTS / "scaling")
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
