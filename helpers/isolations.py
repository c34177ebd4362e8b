"""The published protocol with one thing changed at a time, and how far its numbers move.

A protocol differs from the one it is compared with by its change alone, so what moves is what the change does.
With no answer in the prompt the study's two prompts are one and the same; that is why the corruption moves into the
question first (another subject, the right answer in both prompts) and only then the answer goes.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch

from helpers.claimed import PUBLISHED_FIGURES, causal_cut
from helpers.published import PUBLISHED, PUBLISHED_ITEMS, Protocol, PublishedItem, equal_length_twin, phrase_difference

IN_QUESTION = {"corrupted": "question"}
NO_ANSWER = {**IN_QUESTION, "read": "question"}
SPACED_FIRST = {"first_only": True, "spaced": True}
ISOLATIONS = (
    Protocol("no full stop", "published", "read after the last word, the full stop left out", read="last word"),
    Protocol("first token", "published", "first token of each phrase, not the mean over its tokens", first_only=True),
    Protocol("spaced", "first token", "with the space that running text has before it", **SPACED_FIRST),
    Protocol(
        "own answers", "spaced", "the item's own two answers scored, not the study's phrases", **SPACED_FIRST, own=True
    ),
    Protocol("other subject", "published", "question corrupted; the right answer in both prompts", **IN_QUESTION),
    Protocol("no answer", "other subject", "no answer in the prompt; read where it would begin", **NO_ANSWER),
    Protocol("all of these", "published", "all of these changes together", **NO_ANSWER, **SPACED_FIRST, own=True),
)
PROTOCOLS = (PUBLISHED, *ISOLATIONS)
OTHER_SUBJECT = ISOLATIONS[4]


def planned(tokenizer) -> list[tuple[PublishedItem, tuple[Protocol, ...]]]:
    """The items of a run, each with the protocols it is asked under.

    An item or, where that gives a shape error, its twin, is asked under all; the other of these two only as published.
    """
    plan = []
    for item in PUBLISHED_ITEMS:
        twin = equal_length_twin(item, tokenizer)
        fits = len({len(tokens) for tokens in PUBLISHED.prompts(item, tokenizer).values()}) == 1
        plan += [(item, PROTOCOLS if fits else (PUBLISHED,)), (twin, (PUBLISHED,) if fits else PROTOCOLS)]
    return plan


def more_subjects(item: PublishedItem, tokenizer) -> list[Protocol]:
    """The protocol "other subject" with every other subject that fits but the first, which it has already."""
    fitting = len(item.other_questions(tokenizer))
    return [replace(OTHER_SUBJECT, name=f"{OTHER_SUBJECT.name} {n + 1}", other=n) for n in range(1, fitting)]


def protocol_ranges(sweep: pd.DataFrame, *, layers: int, item: str) -> pd.DataFrame:
    """How far recovery ranges over the protocols at the modules the published rows may mean, the steadiest first.

    One row per module: site, low, high (of the median over fine-tuned runs, protocol by protocol; denoising),
    protocols, base_low, base_high.
    """
    rows = isolation_profile(sweep, layers=layers, item=item)
    medians = rows.groupby(["group", "site", "protocol"], sort=False)["recovery"].median()
    ranges = medians.groupby(level=["group", "site"], sort=False).agg(["min", "max", "size"])
    table = ranges.loc["fine-tuned"].set_axis(["low", "high", "protocols"], axis=1)
    table = table.join(ranges.loc["base"].set_axis(["base_low", "base_high", "_"], axis=1).drop(columns="_"))
    width = table["high"] - table["low"]
    return table.loc[width.sort_values(kind="stable").index].reset_index()


def moves(sweep: pd.DataFrame) -> pd.DataFrame:
    """By how much recovery moves from a protocol to the next, where it is not fixed by construction (denoising).

    One row per item, isolation and group of networks: item, protocol, compared_with, change, group, median and largest
    absolute move over networks and modules, and `opposed`: the share whose recovery changes sign. Rows without a
    number, as after a shape error, are left out.
    """
    found = _inner(sweep).set_index(["item", "group", "network", "site", "protocol"])["recovery"].unstack()
    tables = []
    for protocol in ISOLATIONS:
        before, after = found[protocol.differs_from], found[protocol.name]
        pairs = pd.DataFrame({"move": (after - before).abs(), "opposed": (after * before < 0).astype(float)})
        grouped = pairs[pairs["move"].notna()].groupby(level=["item", "group"], sort=False)
        table = grouped.agg(median=("move", "median"), largest=("move", "max"), opposed=("opposed", "mean"))
        names = {"protocol": protocol.name, "compared_with": protocol.differs_from, "change": protocol.change}
        tables.append(table.reset_index().assign(**names))
    return pd.concat(tables, ignore_index=True)


def single_moves(moved: pd.DataFrame, *, group: str = "fine-tuned") -> pd.DataFrame:
    """The moves of a group by one change each, where the change is one: an item may be scored by its own answers."""
    together = moved["protocol"] == ISOLATIONS[-1].name
    return moved[(moved["group"] == group) & ~together & (moved["largest"] > 0)]


def subject_moves(sweep: pd.DataFrame, *, group: str = "fine-tuned") -> pd.DataFrame:
    """The median move by another subject, over all subjects that were asked about (denoising).

    One row per item: item, subjects, low, high.
    """
    inner = _inner(sweep)
    found = inner[inner["group"] == group].set_index(["item", "network", "site", "protocol"])["recovery"].unstack()
    moved = found.filter(like=OTHER_SUBJECT.name).sub(found[OTHER_SUBJECT.differs_from], axis=0).abs()
    medians = moved.groupby(level="item", sort=False).median().dropna(how="all").T.agg(["count", "min", "max"]).T
    return medians.set_axis(["subjects", "low", "high"], axis=1).reset_index()


def moves_table(moved: pd.DataFrame, *, group: str = "fine-tuned", null: str = "untrained") -> pd.DataFrame:
    """The moves for reading: one row per isolation, the median of every item, the largest of all, and the null's."""
    ours, theirs = moved[moved["group"] == group], moved[moved["group"] == null]
    keys = ["change", "compared_with"]
    medians = ours.pivot_table(index=keys, columns="item", values="median", sort=False)
    largest = ours.groupby(keys, sort=False)["largest"].max().rename("largest of all")
    nulls = theirs.groupby(keys, sort=False)["median"].median().rename(f"{null}, median")
    table = medians.add_suffix(", median").join(largest).join(nulls)
    return table.reset_index().rename(columns={"compared_with": "compared with"})


def isolation_profile(sweep: pd.DataFrame, *, layers: int, item: str) -> pd.DataFrame:
    """Recovery of the modules that the published rows of an item may mean, under every protocol (denoising).

    Columns: site, protocol, group, network, recovery. Of two modules that are one causal cut, only the first is kept.
    """
    cuts: dict[str, str] = {}
    for site in (site for figure in PUBLISHED_FIGURES if figure.item == item for site in figure.candidates(layers)):
        cuts.setdefault(causal_cut(site), site)
    sites = list(cuts.values())
    order = {protocol.name: number for number, protocol in enumerate(PROTOCOLS)}
    rows = _inner(sweep)
    rows = rows[(rows["item"] == item) & rows["site"].isin(sites) & rows["protocol"].isin(order)]
    rows = rows.sort_values("protocol", key=lambda names: names.map(order), kind="stable")
    rows = rows.sort_values("site", key=lambda names: names.map(sites.index), kind="stable")
    rows = rows.assign(site=rows["site"].str.removeprefix("transformer."))
    return rows[["site", "protocol", "group", "network", "recovery"]].reset_index(drop=True)


@torch.no_grad()
def contrast_by_position(model, tokenizer, item: PublishedItem) -> pd.DataFrame:
    """What the two published prompts differ by, token by token, in the study's metric.

    One row per position: position, clean, corrupted (tokens), in_question, difference (clean minus corrupted run, each
    read after that token). Exactly 0 before the first token that differs, since nothing the model has seen differs.
    """
    prompts, scored = PUBLISHED.prompts(item, tokenizer), PUBLISHED.scored(item, tokenizer)
    shared = min(map(len, prompts.values()))
    # Equal lengths, so that equal beginnings are computed by the same operations, to the bit.
    read = {
        run: phrase_difference(model(torch.tensor([tokens[:shared]], device=model.device)).logits[0], scored)
        for run, tokens in prompts.items()
    }
    question = len(tokenizer(item.question)["input_ids"])
    return pd.DataFrame(
        {
            "position": range(shared),
            "clean": tokenizer.convert_ids_to_tokens(prompts["clean"][:shared]),
            "corrupted": tokenizer.convert_ids_to_tokens(prompts["corrupted"][:shared]),
            "in_question": [position < question for position in range(shared)],
            "difference": (read["clean"] - read["corrupted"]).tolist(),
        }
    )


def _inner(sweep: pd.DataFrame) -> pd.DataFrame:
    return sweep[(sweep["direction"] == "denoising") & ~sweep["by_construction"]].dropna(subset="recovery")
