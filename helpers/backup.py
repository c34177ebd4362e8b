"""Backup: what is lost when heads are knocked out one by one and together, and which other heads step in.

Two knock-outs. *Noising* puts the corrupted run's outputs, at all positions, into the clean run. *Mean ablation* puts
the mean over the task's prompts in the place of the heads' outputs at the last token, where movers write their answer.
Under the second, what every part says to the answer itself (helpers.streams) is measured before and after: a head that
says more once others are silent stands in for them (Wang et al., arXiv 2211.00593, section 3.4; McGrath et al., arXiv
2307.15771). A silent head also makes the last residual shorter, and with it everything louder that is still said. That
is no repair: the scale of the final normalisation is held at the intact run's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor

from helpers.architectures import attention
from helpers.attended import Head, check_heads
from helpers.conditions import CLEAN
from helpers.head_parts import head_sites, name_of
from helpers.interactions import joint_effects
from helpers.memory import in_chunks
from helpers.pairs import PromptPair
from helpers.patterns import recorder
from helpers.plans import check_pairs
from helpers.rows import HEAD_OUT, split_heads
from helpers.stats import recovery_intervals
from helpers.streams import direct_attribution
from helpers.tracing import Traced, module_of, traceable

TOGETHER = "together"
STEPS_IN = 0.05  # a head that makes up for less of what was lost is not counted as a backup


def knockouts(
    model, pairs: Sequence[PromptPair], heads: Sequence[Head], *, row_budget: int | None = None
) -> pd.DataFrame:
    """Noising: every head alone ("layer.head"), and all of them together, beside the sum of the single effects.

    The columns of interactions.joint_effects: pair, direction, group, sites, joint, added, denominator, in logits.
    """
    groups = {name: head_sites(chosen) for name, chosen in knockout_groups(heads).items()}
    return joint_effects(model, pairs, groups, directions=("noising",), row_budget=row_budget)


def knockout_groups(heads: Sequence[Head]) -> dict[str, list[Head]]:
    """Every head alone, and all together, by name."""
    return {name_of(head): [head] for head in heads} | {TOGETHER: list(heads)}


def self_repair(
    model, pairs: Sequence[PromptPair], heads: Sequence[Head], *, row_budget: int | None = None
) -> pd.DataFrame:
    """Mean ablation at the last token, of every head alone and of all together: what each part says before and after.

    One row per group, pair and part: group, pair, component, layer, head (as in streams.direct_attribution), intact and
    without (contributions to the clean logit difference, in logits, both on the intact run's scale), knocked_out
    (whether the part is a head that was), and later: whether a knocked-out head stands in an earlier layer. The mean is
    that of these pairs' clean prompts.
    Raises AttendedError for a head that does not exist.
    """
    module = module_of(model)
    check_pairs(module, pairs, row_budget)
    check_heads(module, heads)
    means = _mean_outputs(model, pairs, heads, row_budget)
    keys = ["pair", "component", "layer", "head"]

    def said(without: Sequence[Head], name: str) -> pd.DataFrame:
        with _silenced(module, {head: means[head] for head in without}):
            table = direct_attribution(model, pairs, row_budget=row_budget)
        return table.rename(columns={"contribution": name, "scale": f"{name}_scale"})

    intact, tables = said([], "intact"), []
    for group, chosen in knockout_groups(heads).items():
        table = intact.merge(said(chosen, "without"), on=keys, validate="one_to_one")
        scaled = (table["intact_scale"] / table["without_scale"]).where(table["component"] != "bias", 1.0)
        table["without"] *= scaled
        numbers = zip(table["layer"], table["head"].fillna(-1), strict=True)
        knocked_out = [head in chosen for head in numbers]
        first = min((layer for layer, _ in chosen), default=len(table))
        tables.append(table.assign(group=group, knocked_out=knocked_out, later=table["layer"] > first))
    columns = ["group", *keys, "intact", "without", "knocked_out", "later"]
    return pd.concat(tables, ignore_index=True)[columns]


def repaired(table: pd.DataFrame) -> pd.DataFrame:
    """Of what knocked-out heads said themselves, how much is made up for, per group and pair of `self_repair`.

    Columns: group, pair, lost (their own contributions, intact − without), drop (of the logit difference, on the intact
    run's scale), numerator (lost − drop) and denominator (lost), in logits: the ratio of means is 0 where nothing else
    changes, 1 where the logit difference stays.
    """
    change = table.assign(lost=table["intact"] - table["without"])
    keys = ["group", "pair"]
    own = change[change["knocked_out"]].groupby(keys, sort=False)["lost"].sum()
    # Heads are parts of attn_out: without them, the parts sum to the logit difference.
    drop = change[change["component"] != "head_out"].groupby(keys, sort=False)["lost"].sum()
    result = pd.DataFrame({"lost": own, "drop": drop}).fillna({"lost": 0.0}).reset_index()
    return result.assign(numerator=result["lost"] - result["drop"], denominator=result["lost"])


def risers(table: pd.DataFrame, *, resamples: int, confidence: float, seed: int) -> pd.DataFrame:
    """By how much every later head says more when others are knocked out, strongest first within each group.

    `table` is that of `self_repair`. Columns: group, layer, head, change (mean, in logits), share (the change over what
    the knocked-out heads said less, a ratio of means), low, high (of the share, over pairs) and defined (whether what
    was lost is told from 0). A head with `low` above STEPS_IN is a backup. Empty where no head comes after a
    knocked-out one.
    """
    later = table[(table["component"] == "head_out") & table["later"] & ~table["knocked_out"]]
    columns = ["group", "layer", "head", "change", "share", "low", "high", "defined"]
    if later.empty:
        return pd.DataFrame(columns=columns)
    lost = repaired(table)[["group", "pair", "denominator"]]
    later = later.assign(numerator=later["without"] - later["intact"]).merge(lost, on=["group", "pair"])
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    by = ["group", "layer", "head"]
    found = recovery_intervals(later, by=by, item="pair", **options).rename(columns={"recovery": "share"})
    found = found.merge(later.groupby(by)["numerator"].mean().rename("change").reset_index(), on=by)
    found = found[columns].astype({"layer": int, "head": int})
    order = {group: number for number, group in enumerate(table["group"].unique())}
    found = found.assign(place=found["group"].map(order))
    return found.sort_values(["place", "change"], ascending=[True, False], ignore_index=True)[columns]


def backups(found: pd.DataFrame) -> pd.DataFrame:
    """Of the rows of `risers`, the heads that surely step in when all the others are knocked out together."""
    return found[(found["group"] == TOGETHER) & found["defined"].astype(bool) & (found["low"] > STEPS_IN)]


def _mean_outputs(
    model, pairs: Sequence[PromptPair], heads: Sequence[Head], row_budget: int | None
) -> dict[Head, Tensor]:
    """Each head's mean output at the last token of the clean prompts, `(head width,)`."""
    layers = sorted({layer for layer, _ in heads})

    def outputs(traced: Traced, chunk: list[PromptPair], budget: int) -> dict[int, Tensor]:
        run = CLEAN.record(traced, chunk, [("head_out", layer) for layer in layers])
        return {layer: split_heads(traced, run.sites["head_out", layer][:, -1:], HEAD_OUT)[:, 0] for layer in layers}

    with torch.no_grad(), traceable(model) as traced:
        chunks = list(in_chunks(traced, pairs, outputs, row_budget=row_budget, rows_per_pair=1))
    means = {layer: torch.cat([chunk[layer] for chunk in chunks]).float().mean(0) for layer in layers}
    return {(layer, head): means[layer][head].to(module_of(model).dtype) for layer, head in heads}


@contextmanager
def _silenced(model, outputs: Mapping[Head, Tensor]) -> Iterator[None]:
    """While this lasts, the heads write these outputs at the last token."""
    with attention(model, _attend(outputs)):
        yield


def _attend(outputs: Mapping[Head, Tensor]) -> Callable:
    def attend(module, *inputs, **settings):
        output, weights = recorder({})(module, *inputs, **settings)
        for (layer, head), written in outputs.items():
            if layer == module.layer_idx:
                output[:, -1, head] = written
        return output, weights

    return attend
