"""Answers: whole answers as a metric, teacher-forced, where the other metrics read the answer's first token alone.

The log-probability of an answer a₁…a_k after a prompt x is Σ_j log P(a_j | x a₁…a_{j−1}), in nats. A patched run gets
the prompt *continued* by the clean answer so far, in both prompts of the pair alike; only the prompt's own tokens are
patched. One sweep of the continued pairs per token of the answer gives every term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from helpers.pairs import ANSWER, PairError, PromptPair
from helpers.patching import measure_runs, sweep

ANSWER_LOG_PROBABILITY = "answer_log_probability"


def continued(pair: PromptPair) -> list[PromptPair]:
    """The pair once for every token of its answer, which is what each of them asks for; "pair/…" becomes "pair/…+j".

    The foil of a continued pair has no meaning but to begin with another token. Raises PairError for a pair with a set
    of answers, of which no single one could be continued.
    """
    if pair.answer_set or pair.foil_set:
        raise PairError(
            f"Pair {pair.pair_id}: a whole answer is one answer, and this pair has {len(pair.right)} right and "
            f"{len(pair.wrong)} wrong ones; score it by log_probability, which sums over them."
        )
    pairs = []
    for number, token in enumerate(pair.answer):
        said = pair.answer[:number]
        pairs.append(
            replace(
                pair,
                pair_id=f"{pair.pair_id}+{number}",
                clean=pair.clean + said,
                corrupted=pair.corrupted + said,
                answer=(token,),
                foil=pair.foil if pair.foil[0] != token else pair.answer,
                roles=pair.roles + (ANSWER,) * number,
            )
        )
    return pairs


def sweep_answers(model, pairs: Sequence[PromptPair], **settings) -> pd.DataFrame:
    """`patching.sweep`, with the log-probability of the whole clean answer as its one metric, in nats.

    `settings` are those of `patching.sweep` without `metrics`. Columns and order of lines are its own too. A
    `corruption` is drawn by the name of a pair, so every token of an answer would meet another noise: it is refused.
    """
    if settings.get("corruption") is not None:
        raise ValueError("Whole answers are scored after a replaced prompt, not a noised one: leave corruption out.")
    return _summed(sweep(model, _all_continued(pairs), metrics=("log_probability",), **settings))


def measure_answers(model, pairs: Sequence[PromptPair], *, row_budget: int | None = None) -> pd.DataFrame:
    """`patching.measure_runs`, with the log-probability of the whole clean answer as its one metric, in nats."""
    runs = measure_runs(model, _all_continued(pairs), metrics=("log_probability",), row_budget=row_budget)
    return _summed(runs)


def _all_continued(pairs: Sequence[PromptPair]) -> list[PromptPair]:
    return [part for pair in pairs for part in continued(pair)]


def _summed(parts: pd.DataFrame) -> pd.DataFrame:
    """The terms of one line added up; lines stay in their order."""
    named = parts.assign(pair=parts["pair"].str.rpartition("+")[0].astype("str"))
    keys = [name for name in named.columns if name != "log_probability"]
    sums = named.groupby(keys, sort=False, dropna=False, as_index=False)["log_probability"].sum()
    return sums.rename(columns={"log_probability": ANSWER_LOG_PROBABILITY})
