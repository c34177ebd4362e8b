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

from helpers.claimed import PUBLISHED_FIGURES
from helpers.isolations import contrast_by_position, moves, planned, protocol_ranges
from helpers.models import load_model, untrained_twin
from helpers.published import PUBLISHED, PUBLISHED_ITEMS, PublishedItem, describe_items, items_for, published_sweep

LEVEL = 0.01  # the study's
QUANTILES = [0.025, 0.975]


@dataclass(frozen=True)
class Audit:
    """The sweep of a run and all that was computed about it; each table is that of the function it names.

    Tables: `sweep` (all protocols), `published` (the study's alone), `moves`, `ranges` (`protocol_ranges` of the
    associative item), `contrast` (`contrast_by_position` of the associative item, per network), `keys`
    (`colliding_keys`), `copied` (`copied_tokens`), `ranks` (`answer_ranks`, per network), `alarms` (`false_alarms`),
    `intervals` (`null_intervals`), `figures` (`published_in_null`), `items` (`describe_items`), `padding` (notebook
    02's). Numbers: `convolutions` (modules of torch's convolution classes), `from_linear` (`distance_from_linear`).
    """

    sweep: pd.DataFrame
    published: pd.DataFrame
    moves: pd.DataFrame
    ranges: pd.DataFrame
    contrast: pd.DataFrame
    keys: pd.DataFrame
    copied: pd.DataFrame
    ranks: pd.DataFrame
    alarms: pd.DataFrame
    intervals: pd.DataFrame
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
    sweeps = [published_sweep(network, tokenizer, item, protocols=asked) for item, asked in planned(tokenizer)]
    ranks = [{"item": item.name, **answer_ranks(network, tokenizer, item)} for item in PUBLISHED_ITEMS]
    contrast = contrast_by_position(network, tokenizer, PUBLISHED_ITEMS[0])
    return Examined(*(table.assign(**labels) for table in (pd.concat(sweeps), contrast, pd.DataFrame(ranks))))


def audit(examined: Sequence[Examined], base: nn.Module, tokenizer, padding: pd.DataFrame) -> Audit:
    """Audit what the networks gave, which are labelled by `group` ("base", "fine-tuned", "untrained") and `network`."""
    sweep = pd.concat([one.sweep for one in examined], ignore_index=True)
    published = sweep[sweep["protocol"] == PUBLISHED.name].drop(columns="protocol")
    intervals = null_intervals(published)
    return Audit(
        sweep=sweep,
        published=published,
        moves=moves(sweep),
        ranges=protocol_ranges(sweep, layers=base.config.n_layer, item=PUBLISHED_ITEMS[0].name),
        contrast=pd.concat([one.contrast for one in examined], ignore_index=True),
        keys=colliding_keys(base),
        copied=copied_tokens(tokenizer),
        ranks=pd.concat([one.ranks for one in examined], ignore_index=True),
        alarms=false_alarms(published),
        intervals=intervals,
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
    """How often one prompt, with its modules taken for independent observations, gives a layer effect at p < 0.01.

    A one-way analysis of variance of recovery by layer in every network. The study's
    own test is not known. One row per item, units and group of networks: item, units, values (per network), group,
    networks, share (with p < 0.01).
    """
    inner = sweep[~sweep["by_construction"]].dropna(subset="recovery")
    inner = inner.assign(layer=inner["site"].str.extract(r"\.h\.(\d+)\.", expand=False).astype(int))
    rows = []
    for units, found in (
        ("modules, denoising", inner[inner["direction"] == "denoising"]),
        ("modules, both directions", inner),
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
    """Recovery of every trained network beside the null's central 95 % for the same item, direction and module.

    Sites by construction are left out. Columns of the sweep and low, high, inside.
    """
    inner = sweep[~sweep["by_construction"]].dropna(subset="recovery")
    keys = ["item", "direction", "site"]
    bounds = inner[inner["group"] == null].groupby(keys)["recovery"].quantile(QUANTILES).unstack()
    trained = inner[inner["group"] != null].join(bounds.set_axis(["low", "high"], axis=1), on=keys)
    return trained.assign(inside=trained["recovery"].between(trained["low"], trained["high"]))


def published_in_null(intervals: pd.DataFrame, *, layers: int) -> pd.DataFrame:
    """Whether a published figure, and our fine-tuned runs, lie inside the null at each module the figure may mean.

    Denoising; one row per figure and module: figure, published, site, low, high, inside (the published figure), runs,
    runs_outside. Figures that hold by construction are left out.
    """
    rows = []
    for figure in PUBLISHED_FIGURES:
        for site in figure.candidates(layers):
            found = intervals[(intervals["item"] == figure.item) & (intervals["site"] == site)]
            found = found[(found["direction"] == "denoising") & (found["group"] == "fine-tuned")]
            if len(found):
                low, high = found[["low", "high"]].iloc[0]
                row = {"figure": figure.name, "published": figure.recovery, "site": site, "low": low, "high": high}
                counts = {"runs": len(found), "runs_outside": int((~found["inside"]).sum())}
                rows.append(row | {"inside": low <= figure.recovery <= high, **counts})
    return pd.DataFrame(rows)


def twin_move(sweep: pd.DataFrame) -> pd.Series:
    """|Recovery of the definitional item − of its twin| per fine-tuned run and module; empty after a shape error.

    Only the wrong answer differs between the two (denoising, no site by construction).
    """
    inner = sweep[(sweep["direction"] == "denoising") & ~sweep["by_construction"] & (sweep["group"] == "fine-tuned")]
    found = inner.pivot_table(index=["network", "site"], columns="item", values="recovery", dropna=False)
    if not {"definitional", "definitional twin"} <= set(found):
        return pd.Series(dtype=float)
    return (found["definitional"] - found["definitional twin"]).abs().dropna()


def same_cut(sweep: pd.DataFrame) -> float:
    """Largest difference between a projection's patched run and that of its only reader, in logits."""
    inner = sweep[~sweep["by_construction"]].dropna(subset="patched")
    part = inner["site"].str.rsplit(".", n=1).str[0]
    grouped = inner["patched"].groupby([part, inner["item"], inner["direction"], inner["network"]])
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
