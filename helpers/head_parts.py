"""Head parts: which heads play which part when a model solves the IOI task, found by rules, or as published for GPT-2.

    mover            its direct effect is positive, and more than 2 SD above the mean of all heads
    negative mover   its direct effect is negative, and more than 2 SD below that mean
    S-inhibition     no mover of either sign, in a layer before the last mover; S2 is the one token that it attends to
                     most from the last token in more than half of the pairs; denoising score more than 1 SD above the
                     mean of all heads
    other            all the rest

The direct effect is that on the logit difference of the clean run (helpers.streams); an SD is that of all heads of the
model, their number as divisor. Parts are chosen: measure on other prompts than those they were chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from helpers.architectures import head_count, layer_count
from helpers.attended import NAMES, Head, attention_shares
from helpers.metrics import recovery_table
from helpers.pairs import PromptPair
from helpers.patching import measure_runs, sweep
from helpers.plans import Site
from helpers.streams import direct_attribution
from helpers.tracing import module_of
from helpers.zhang_nanda import CLASSES

MOVER, NEGATIVE_MOVER, S_INHIBITION, NO_PART = "mover", "negative mover", "S-inhibition", "other"
PARTS = (MOVER, NEGATIVE_MOVER, S_INHIBITION, NO_PART)
MOVER_DEVIATIONS, SCORE_DEVIATIONS, MAJORITY = 2.0, 1.0, 0.5
# Of `gpt2` (124M): Wang et al. (arXiv 2211.00593), in the classes of Zhang & Nanda (arXiv 2309.16042), Table 1.
PUBLISHED = {MOVER: "name movers", NEGATIVE_MOVER: "negative name movers", S_INHIBITION: "S-inhibition heads"}


def head_parts(model, pairs: Sequence[PromptPair], *, row_budget: int | None = None) -> pd.DataFrame:
    """The part of every head, with what it was judged by.

    One row per head: layer, head, part, direct (mean direct effect, in logits), IO, S1, S2 (mean shares of the
    attention from the last token of the clean run), most_to_S2 (share of pairs in which S2 is the token attended to
    most), and score (recovery by denoising the head at all positions, a ratio of means; NaN where the mean denominator
    is 0). `pairs` are of the IOI task, corrupted by token replacement; raises AttendedError for others.
    """
    module = module_of(model)
    heads = [(layer, head) for layer in range(layer_count(module)) for head in range(head_count(module))]
    keys = ["layer", "head"]
    shares = attention_shares(model, pairs, heads, row_budget=row_budget)
    shares = shares[shares["corruption"] == "clean"].groupby([*keys, "role"])[["share", "most"]].mean().unstack("role")
    written = direct_attribution(model, pairs, row_budget=row_budget)
    written = written[written["component"] == "head_out"].groupby(keys)["contribution"].mean()
    swept = sweep(model, pairs, components=["head_out"], positions="all", direction="denoising", row_budget=row_budget)
    runs = measure_runs(model, pairs, metrics=("logit_difference",), row_budget=row_budget)
    score = recovery_table(swept, runs, by=keys).set_index(keys)["recovery"]
    columns = {"direct": written} | {name: shares["share", name] for name in NAMES}
    table = pd.DataFrame(columns | {"most_to_S2": shares["most", "S2"], "score": score}).reset_index()
    table = table.astype({"layer": int, "head": int})
    table.insert(2, "part", parts_of(table))
    return table


def parts_of(heads: pd.DataFrame) -> np.ndarray:
    """The rules alone: a part for every row of a table with layer, direct, most_to_S2 and score."""
    direct, score = heads["direct"], heads["score"]
    reach = MOVER_DEVIATIONS * direct.std(ddof=0)
    mover = (direct > 0) & (direct > direct.mean() + reach)
    negative = (direct < 0) & (direct < direct.mean() - reach)
    inhibition = (
        (heads["layer"] < heads.loc[mover, "layer"].max())
        & (heads["most_to_S2"] > MAJORITY)
        & (score > 0)
        & (score > score.mean() + SCORE_DEVIATIONS * score.std(ddof=0))
    )
    return np.select([mover, negative, inhibition], PARTS[:3], NO_PART)


def published_parts(heads: pd.DataFrame) -> pd.DataFrame:
    """A table of `head_parts` of GPT-2 small, with the parts that its heads are published to play."""
    names = [name_of(head) for head in zip(heads["layer"], heads["head"], strict=True)]
    known = {name: part for part, group in PUBLISHED.items() for name in CLASSES[group].names}
    return heads.assign(part=[known.get(name, NO_PART) for name in names])


def heads_of(parts: pd.DataFrame, part: str) -> list[Head]:
    """The heads that play a part, by layer and head."""
    found = parts[parts["part"] == part].sort_values(["layer", "head"])
    return list(zip(found["layer"].tolist(), found["head"].tolist(), strict=True))


def name_of(head: Head) -> str:
    """A head as it is written: layer.head."""
    return f"{head[0]}.{head[1]}"


def head_sites(heads: Sequence[Head]) -> list[Site]:
    """The heads' outputs at all positions, to be patched."""
    return [Site("head_out", layer, "all", head) for layer, head in heads]
