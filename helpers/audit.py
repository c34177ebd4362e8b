"""The published protocol audited: what its results, its scores and its conclusions rest on, computed in this run.

`audit` makes every number that `helpers.flaws` puts into words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from scipy import stats
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from helpers.claimed import causal_cut, published_in_null
from helpers.claims import scope_of
from helpers.config import Model
from helpers.isolations import (
    PROTOCOLS,
    contrast_by_position,
    more_subjects,
    moves,
    planned,
    protocol_ranges,
    subject_moves,
)
from helpers.models import load_model, untrained_twin
from helpers.published import PUBLISHED, PUBLISHED_ITEMS, PublishedItem, describe_items, items_for, published_sweep

LEVEL = 0.01  # the study's
QUANTILES = [0.025, 0.975]
ONE_PER_CUT, BOTH_DIRECTIONS = "one value per cut, denoising", "one value per cut, both directions"
EVERY_MODULE, EVERYTHING = "every module, denoising", "every module, both directions"


@dataclass(frozen=True)
class Audit:
    """The sweep of a run and all that was computed about it; each table is that of the function it names.

    Tables: `sweep` (all protocols), `published` (the study's alone), `moves`, `subjects` (`subject_moves`), `ranges`
    (`protocol_ranges` of the associative item), `contrast` (`contrast_by_position` of the associative item, per
    network), `keys` (`colliding_keys`), `copied` (`copied_tokens`), `ranks` (`answer_ranks`, per network), `alarms`
    (`false_alarms`), `intervals` (`null_intervals`), `shares` (`shares_in_null`), `figures` (`published_in_null`),
    `items` (`describe_items`), `padding` (notebook 02's). Numbers: `convolutions` (modules of torch's convolution
    classes), `from_linear` (`distance_from_linear`). `scope` says of which model and weights all this speaks.
    """

    scope: str
    sweep: pd.DataFrame
    published: pd.DataFrame
    moves: pd.DataFrame
    subjects: pd.DataFrame
    ranges: pd.DataFrame
    contrast: pd.DataFrame
    keys: pd.DataFrame
    copied: pd.DataFrame
    ranks: pd.DataFrame
    alarms: pd.DataFrame
    intervals: pd.DataFrame
    shares: pd.DataFrame
    figures: pd.DataFrame
    items: pd.DataFrame
    padding: pd.DataFrame
    convolutions: int
    from_linear: float


@dataclass(frozen=True)
class Examined:
    """What one network gives: the sweep under all protocols, `contrast_by_position`, `answer_ranks`, as tables."""

    sweep: pd.DataFrame
    contrast: pd.DataFrame
    ranks: pd.DataFrame


def studied_networks(
    base, runs: Sequence[str], folder: Path, *, untrained: int
) -> Iterator[tuple[str, str, nn.Module]]:
    """Group, name and network: the base, every fine-tuned run in `folder`, untrained twins; one in memory at a time."""
    yield "base", "base", base
    for run in runs:
        yield "fine-tuned", run, load_model(folder / run)[0].to(base.device)
    for number in range(untrained):
        yield "untrained", f"untrained-{number}", untrained_twin(base, seed=number)


def examine(network: nn.Module, tokenizer, /, **labels: str) -> Examined:
    """Run every item under its protocols, and ask what else the audit wants; `labels` become columns."""
    plan = planned(tokenizer)
    sweeps = [published_sweep(network, tokenizer, item, protocols=asked) for item, asked in plan]
    for item in (item for item, asked in plan if asked == PROTOCOLS):
        others = more_subjects(item, tokenizer)
        sweeps.append(published_sweep(network, tokenizer, item, protocols=others, directions=("denoising",)))
    ranks = [{"item": item.name, **answer_ranks(network, tokenizer, item)} for item in PUBLISHED_ITEMS]
    contrast = contrast_by_position(network, tokenizer, PUBLISHED_ITEMS[0])
    return Examined(*(table.assign(**labels) for table in (pd.concat(sweeps), contrast, pd.DataFrame(ranks))))


def audit(examined: Sequence[Examined], base: nn.Module, tokenizer, padding: pd.DataFrame, *, settings: Model) -> Audit:
    """Audit what the networks gave, which are labelled by `group` ("base", "fine-tuned", "untrained") and `network`.

    `settings` name the weights of the base.
    """
    sweep = pd.concat([one.sweep for one in examined], ignore_index=True)
    published = sweep[sweep["protocol"] == PUBLISHED.name].drop(columns="protocol")
    intervals = null_intervals(published)
    return Audit(
        scope=scope_of(settings, base),
        sweep=sweep,
        published=published,
        moves=moves(sweep),
        subjects=subject_moves(sweep),
        ranges=protocol_ranges(sweep, layers=base.config.n_layer, item=PUBLISHED_ITEMS[0].name),
        contrast=pd.concat([one.contrast for one in examined], ignore_index=True),
        keys=colliding_keys(base),
        copied=copied_tokens(tokenizer),
        ranks=pd.concat([one.ranks for one in examined], ignore_index=True),
        alarms=false_alarms(published),
        intervals=intervals,
        shares=shares_in_null(published, intervals),
        figures=published_in_null(intervals, layers=base.config.n_layer),
        items=describe_items(tokenizer),
        padding=padding,
        convolutions=sum(isinstance(module, _ConvNd) for module in base.modules()),
        from_linear=distance_from_linear(base),
    )


def colliding_keys(model) -> pd.DataFrame:
    """What is left of a result per module when it is kept under `str(module)`, as in the published script.

    One row per key: key, modules (that share it), survives (the name of the last one), lost (how many it overwrites).
    Modules are all `nn.Linear` and `Conv1D`.
    """
    kept: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            kept.setdefault(str(module), []).append(name)
    rows = [{"key": k, "modules": len(v), "survives": v[-1], "lost": len(v) - 1} for k, v in kept.items()]
    return pd.DataFrame(rows)


@torch.no_grad()
def distance_from_linear(model) -> float:
    """How far, at most, any `Conv1D` of a model is from the matrix product x·W + b, relative to the largest output."""
    generator, distances = torch.Generator().manual_seed(0), []
    for module in model.modules():
        if isinstance(module, Conv1D):
            x = torch.randn(4, module.weight.shape[0], generator=generator).to(module.weight)
            expected = x @ module.weight + module.bias
            distances.append(float((module(x[None])[0] - expected).abs().max() / expected.abs().max()))
    return max(distances)


def copied_tokens(tokenizer) -> pd.DataFrame:
    """Which tokens of the scored phrases already stand in the question, and in the clean prompt.

    One row per item and phrase: item, phrase, tokens, in_question, in_prompt (counts), copied (those in the question).
    """
    rows = []
    for item in items_for(tokenizer):
        question, prompt = tokenizer(item.question)["input_ids"], PUBLISHED.prompts(item, tokenizer)["clean"]
        for phrase, tokens in zip(("clean", "corrupted"), PUBLISHED.scored(item, tokenizer), strict=True):
            copied = [token for token in tokens if token in question]
            counts = {"in_question": len(copied), "in_prompt": sum(token in prompt for token in tokens)}
            row = {"item": item.name, "phrase": phrase, "tokens": len(tokens), **counts}
            rows.append(row | {"copied": " | ".join(tokenizer.decode([token]) for token in copied)})
    return pd.DataFrame(rows)


@torch.no_grad()
def answer_ranks(model, tokenizer, item: PublishedItem) -> dict[str, float]:
    """How probable a question's two answers are where they would begin: first token with its space, no answer before.

    Keys: right_probability, right_rank, wrong_probability, wrong_rank; rank 1 is the most probable token.
    """
    question = torch.tensor([tokenizer(item.question)["input_ids"]], device=model.device)
    probabilities = model(question).logits[0, -1].float().softmax(-1)
    found = {}
    for name, answer in (("right", item.clean_answer), ("wrong", item.corrupted_answer)):
        probability = probabilities[tokenizer(f" {answer}")["input_ids"][0]]
        found[f"{name}_probability"] = float(probability)
        found[f"{name}_rank"] = int((probabilities > probability).sum()) + 1
    return found


def false_alarms(sweep: pd.DataFrame) -> pd.DataFrame:
    """How often one prompt, with its values taken for independent observations, gives a layer effect at p < 0.01.

    A one-way analysis of variance of recovery by layer in every network; the study's own test is not known. The units
    are causal cuts, or modules, of which two are one cut and have one value; by denoising, or by both directions. One
    row per item, units and group of networks: item, units, values (per network), group, networks, share (p < 0.01).
    """
    inner = sweep[~sweep["by_construction"]].dropna(subset="recovery")
    inner = inner.assign(layer=inner["site"].str.extract(r"\.h\.(\d+)\.", expand=False).astype(int))
    inner = inner.assign(cut=inner["site"].map(causal_cut))
    once = inner.drop_duplicates(["item", "group", "network", "direction", "cut"])
    rows = []
    for units, found in (
        (ONE_PER_CUT, once[once["direction"] == "denoising"]),
        (BOTH_DIRECTIONS, once),
        (EVERY_MODULE, inner[inner["direction"] == "denoising"]),
        (EVERYTHING, inner),
    ):
        for (item, group, _), network in found.groupby(["item", "group", "network"], sort=False):
            layers = [values["recovery"].to_numpy() for _, values in network.groupby("layer")]
            p_value = stats.f_oneway(*layers).pvalue
            rows.append(
                {"item": item, "units": units, "values": len(network), "group": group, "alarm": p_value < LEVEL}
            )
    grouped = pd.DataFrame(rows).groupby(["item", "units", "values", "group"], sort=False)["alarm"]
    return grouped.agg(networks="size", share="mean").reset_index()


def null_intervals(sweep: pd.DataFrame, *, null: str = "untrained") -> pd.DataFrame:
    """Every trained network's values beside the null's central 95 % for the same item, direction and module.

    Sites by construction are left out. Columns of the sweep; low, high, inside of the recovery; effect_low,
    effect_high, effect_inside of the effect before it is divided, in logits.
    """
    inner = sweep[~sweep["by_construction"]].dropna(subset="recovery")
    keys, trained = ["item", "direction", "site"], inner[inner["group"] != null]
    for value, prefix in (("recovery", ""), ("effect", "effect_")):
        low, high, inside = (f"{prefix}{name}" for name in ("low", "high", "inside"))
        bounds = inner[inner["group"] == null].groupby(keys)[value].quantile(QUANTILES).unstack()
        trained = trained.join(bounds.set_axis([low, high], axis=1), on=keys)
        trained = trained.assign(**{inside: trained[value].between(trained[low], trained[high])})
    return trained


def shares_in_null(sweep: pd.DataFrame, intervals: pd.DataFrame) -> pd.DataFrame:
    """What dividing by the difference of the runs does to each group of networks.

    One row per group: group, networks, difference (median of |clean − corrupted| over networks and items, in logits),
    recovery_inside and effect_inside (shares of its values inside the null's central 95 %; none for the null itself).
    """
    runs = sweep.drop_duplicates(["group", "network", "item"])
    runs = runs.assign(difference=(runs["clean"] - runs["corrupted"]).abs()).groupby("group", sort=False)
    table = runs.agg(networks=("network", "nunique"), difference=("difference", "median"))
    shares = intervals.groupby("group")[["inside", "effect_inside"]].mean()
    return table.join(shares.rename(columns={"inside": "recovery_inside"})).reset_index()


def twin_move(sweep: pd.DataFrame, item: str) -> pd.Series:
    """|Recovery of an item − of its twin| per fine-tuned run and module; empty after a shape error.

    Only the wrong answer differs between the two (denoising, no site by construction).
    """
    inner = sweep[(sweep["direction"] == "denoising") & ~sweep["by_construction"] & (sweep["group"] == "fine-tuned")]
    found = inner.pivot_table(index=["network", "site"], columns="item", values="recovery", dropna=False)
    if not {item, f"{item} twin"} <= set(found):
        return pd.Series(dtype=float)
    return (found[item] - found[f"{item} twin"]).abs().dropna()


def same_cut(sweep: pd.DataFrame) -> float:
    """Largest difference between a projection's patched run and that of its only reader, in logits."""
    inner = sweep[~sweep["by_construction"]].dropna(subset="patched")
    cut = inner["site"].map(causal_cut)
    grouped = inner["patched"].groupby([cut, inner["item"], inner["direction"], inner["network"]])
    return float((grouped.max() - grouped.min()).max())


def deviation(sweep: pd.DataFrame) -> float:
    """How far the patched runs of a sweep are, at most, from the run whose value was put in, in logits."""
    wanted = sweep["clean"].where(sweep["direction"] == "denoising", sweep["corrupted"])
    return float((sweep["patched"] - wanted).abs().max())


def rank_table(ranks: pd.DataFrame) -> pd.DataFrame:
    """Ranks for reading: the median over the networks of a group, as whole numbers, and the right one's probability."""
    medians = ranks.groupby(["item", "group"], sort=False).median(numeric_only=True).reset_index()
    probability = [f"{value:.1e}" for value in medians["right_probability"]]
    whole = medians[["right_rank", "wrong_rank"]].round().astype(int)
    return medians[["item", "group"]].join(whole).assign(right_probability=probability)


def alarm_table(alarms: pd.DataFrame) -> pd.DataFrame:
    """The shares of networks with a "layer effect" for reading: one column per group of networks."""
    named = alarms.assign(group=[f"{row.group} ({row.networks})" for row in alarms.itertuples()])
    keys = ["item", "units", "values"]
    return named.pivot_table(index=keys, columns="group", values="share", sort=False).reset_index()
