"""Restoration: what comes back of the answer when heads of a corrupted run have their clean values (denoising).

With LD_* the corrupted run's logit difference and LD_pt that of the run whose chosen heads read clean values,

    restored = (LD_pt − LD_*) / (LD_cl − LD_*)    a ratio of means over pairs

Zhang & Nanda (arXiv 2309.16042, section 3.2) restore the S-inhibition heads' values, and compare STR with GN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from helpers import readout
from helpers.attended import Head, attended_run, check_heads
from helpers.conditions import CLEAN, corrupted_conditions
from helpers.memory import in_chunks
from helpers.metrics import right_and_wrong
from helpers.noise import GaussianNoise
from helpers.pairs import PromptPair
from helpers.plans import check_pairs
from helpers.runs import Run
from helpers.tracing import Traced, module_of, traceable

METRIC = ("logit_difference",)


def restored_differences(
    model,
    pairs: Sequence[PromptPair],
    heads: Sequence[Head],
    *,
    noises: Sequence[GaussianNoise] = (),
    row_budget: int | None = None,
) -> pd.DataFrame:
    """Denoising: clean values, at all positions, into the `heads` of the STR run and of the GN run of every draw.

    One row per pair, corruption and draw: pair, corruption ("STR", "GN"), draw, clean, corrupted, patched, numerator
    (patched − corrupted), denominator (clean − corrupted), in logits; stats.recovery_intervals makes the ratio. Without
    heads nothing is restored. Raises AttendedError for a head that does not exist.
    """
    check_pairs(module_of(model), pairs, row_budget)
    check_heads(module_of(model), heads)

    def measure(traced: Traced, chunk: list[PromptPair], budget: int) -> pd.DataFrame:
        clean, _ = attended_run(traced, chunk, CLEAN)
        tables = []
        for condition in corrupted_conditions(noises):
            corrupted, _ = attended_run(traced, chunk, condition)
            patched, _ = attended_run(traced, chunk, condition, restoring=heads)
            columns = {"pair": [pair.pair_id for pair in chunk], "corruption": condition.corruption}
            columns |= {"draw": condition.draw}
            runs = {"clean": clean, "corrupted": corrupted, "patched": patched}
            columns |= {name: _logit_differences(traced, chunk, run) for name, run in runs.items()}
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables)

    with torch.no_grad(), traceable(model) as traced:
        tables = list(in_chunks(traced, pairs, measure, row_budget=row_budget, rows_per_pair=1))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(
        numerator=table["patched"] - table["corrupted"], denominator=table["clean"] - table["corrupted"]
    )


def _logit_differences(traced: Traced, chunk: Sequence[PromptPair], run: Run) -> np.ndarray:
    reference = readout.reference(traced, *right_and_wrong(chunk), None, METRIC)
    return readout.score(traced, run.final, torch.arange(len(chunk)), reference, METRIC)["logit_difference"]
