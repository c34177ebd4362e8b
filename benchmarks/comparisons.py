"""Comparisons: which implementation runs which case how often, and the ratios of their times that are wanted.

Absolute times move with the machine, ratios within one run hardly do. Peers that take minutes run in the first round
alone, between two rounds of ours, and plain hooks, which take as long as one trace per patch, on the mini model, so
that a whole run on two cores ends within half an hour.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from benchmarks.cases import (
    MINI_BLOCKS,
    MINI_HEADS,
    SMALL_ALL_METRICS,
    SMALL_BLOCKS,
    SMALL_HEADS,
    SMALL_SHARED,
    Case,
)
from benchmarks.worker import IMPLEMENTATIONS

OURS, LIMIT = "ours", "limit"
Timed = tuple[str, str]  # case and implementation


@dataclass(frozen=True)
class Ratio:
    """A quotient of two median times, and what it should at least or at most be."""

    above: Timed
    below: Timed
    at_least: float | None = None
    at_most: float | None = None

    @property
    def name(self) -> str:
        """Such as "mini heads: hooks / ours"; the second case is named where it is another one."""
        (case, above), (other, below) = self.above, self.below
        return f"{case}: {above} / {below}" + ("" if case == other else f" ({other})")

    @property
    def target(self) -> str:
        """The target in words; empty where there is none."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    def is_met(self, value: float) -> bool:
        """Whether a value is within the target; without a target, every value is."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True)
class Comparison:
    """A case, the rounds of each implementation, and targets: peer / ours at least, ours / limit at most."""

    case: Case
    rounds: Mapping[str, int]
    targets: Mapping[str, float] = field(default_factory=dict)

    def ratios(self) -> Iterator[Ratio]:
        """Each peer over ours, and ours over the limit."""
        ours = self.case.name, OURS
        for name in self.rounds:
            target = self.targets.get(name)
            if name == LIMIT:
                yield Ratio(ours, (self.case.name, LIMIT), at_most=target)
            elif name != OURS:
                yield Ratio((self.case.name, name), ours, at_least=target)


COMPARISONS = (
    Comparison(
        SMALL_BLOCKS,
        {OURS: 3, LIMIT: 3, "one-trace-per-patch": 1, "bridge": 1, "transformerlens": 1},
        {LIMIT: 1.2, "one-trace-per-patch": 7, "bridge": 8, "transformerlens": 12},
    ),
    Comparison(
        SMALL_HEADS,
        {OURS: 3, LIMIT: 3, "one-trace-per-patch": 1, "bridge": 1, "transformerlens": 3},
        {LIMIT: 1.2, "transformerlens": 6},
    ),
    Comparison(SMALL_ALL_METRICS, {OURS: 3}),
    Comparison(SMALL_SHARED, {OURS: 3, LIMIT: 3}, {LIMIT: 1.2}),
    *(Comparison(case, dict.fromkeys(IMPLEMENTATIONS, 3)) for case in (MINI_BLOCKS, MINI_HEADS)),
)
BETWEEN_CASES = (
    Ratio((SMALL_ALL_METRICS.name, OURS), (SMALL_BLOCKS.name, OURS), at_most=1.5),
    Ratio((SMALL_BLOCKS.name, OURS), (SMALL_SHARED.name, OURS)),
)


def medians(rounds: pd.DataFrame) -> pd.DataFrame:
    """Median seconds and largest peak_mb by case and implementation, from one row per round; the order is kept."""
    groups = rounds.groupby(["case", "implementation"], sort=False)
    return groups.agg(seconds=("seconds", "median"), peak_mb=("peak_mb", "max")).reset_index()


def ratio_table(times: pd.DataFrame, ratios: Sequence[Ratio]) -> pd.DataFrame:
    """Ratios of the medians' seconds: columns ratio, value, target, met; those with a time missing are left out."""
    seconds = times.set_index(["case", "implementation"])["seconds"]
    rows = []
    for ratio in ratios:
        if ratio.above in seconds.index and ratio.below in seconds.index:
            value = seconds[ratio.above] / seconds[ratio.below]
            rows.append((ratio.name, value, ratio.target, ratio.is_met(value)))
    return pd.DataFrame(rows, columns=["ratio", "value", "target", "met"])
