"""Mechanism: all that is measured of how a model solves the IOI task, as tables that `helpers.off_distribution` words.

Which heads play which part is decided on other prompts than those that are measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from helpers.attended import attention_shares
from helpers.backup import knockouts, self_repair
from helpers.head_parts import MOVER, S_INHIBITION, head_parts, heads_of, published_parts
from helpers.noise import GaussianNoise
from helpers.pairs import PromptPair
from helpers.restoration import restored_differences
from helpers.strangeness import stream_strangeness


def measure_mechanism(
    model,
    pairs: Sequence[PromptPair],
    chosen_on: Sequence[PromptPair],
    *,
    noises: Sequence[GaussianNoise],
    gpt2_small: bool = False,
    row_budget: int | None = None,
) -> dict[str, pd.DataFrame]:
    """The parts of all heads, chosen on other pairs, and what STR and GN do to them, by table.

    The parts of `gpt2_small` are the published ones, so that what is measured of them is what was published of them.

    parts: head_parts.head_parts. shares: attended.attention_shares of the movers, with the S-inhibition heads' values
    restored too. restored: restoration.restored_differences of those heads. strangeness: of the
    stream at S2. knockouts, repair: helpers.backup, of the movers.
    """
    parts = head_parts(model, chosen_on, row_budget=row_budget)
    parts = published_parts(parts) if gpt2_small else parts
    movers, inhibiting = heads_of(parts, MOVER), heads_of(parts, S_INHIBITION)
    options = {"row_budget": row_budget}
    return {
        "parts": parts,
        "shares": attention_shares(model, pairs, movers, noises=noises, restoring=inhibiting, **options),
        "restored": restored_differences(model, pairs, inhibiting, noises=noises, **options),
        "strangeness": stream_strangeness(model, pairs, role="S2", noises=noises, **options),
        "knockouts": knockouts(model, pairs, movers, **options),
        "repair": self_repair(model, pairs, movers, **options),
    }
