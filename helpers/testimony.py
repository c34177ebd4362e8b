"""Testimony: all the evidence of one run of notebook 05, put together from what it measured."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from helpers.backup import risers
from helpers.detection import HeadScores
from helpers.evidence import floor_evidence, head_evidence, method_evidence, missed_evidence
from helpers.head_parts import S_INHIBITION, heads_of
from helpers.prompt_evidence import attention_evidence, restoration_evidence, window_evidence
from helpers.zhang_nanda import PUBLISHED_WINDOW


def gather_evidence(
    scores: HeadScores,
    methods: HeadScores,
    floors: pd.DataFrame,
    mechanism: Mapping[str, pd.DataFrame],
    layers: pd.DataFrame,
    *,
    published: Mapping[str, str],
    roles: Mapping[str, str],
    resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """verdicts.EVIDENCE: what every function of helpers.evidence and helpers.prompt_evidence reads off its table.

    `scores` are by evidence.BY, `methods` by task and method; `mechanism` is that of mechanism.measure_mechanism;
    `layers` are larger.published_effects of all tasks whose MLPs were patched, at the role that `roles` names.
    """
    statistics = {"resamples": resamples, "confidence": confidence, "seed": seed}
    later = risers(mechanism["repair"], **statistics)
    inhibiting = len(heads_of(mechanism["parts"], S_INHIBITION))
    tables = [
        head_evidence(scores, published=published),
        floor_evidence(scores, floors, published=published),
        method_evidence(methods),
        missed_evidence(scores, mechanism["parts"], later, published=published),
        attention_evidence(mechanism["shares"], **statistics),
        restoration_evidence(mechanism["restored"], inhibiting, **statistics),
        window_evidence(layers, roles=roles, focus_window=PUBLISHED_WINDOW, **statistics),
    ]
    return pd.concat([table for table in tables if len(table)], ignore_index=True)
