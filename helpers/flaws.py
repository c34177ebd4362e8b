"""The sixteen flaws of the published protocol with the numbers of this run, and what survives them, in words."""

from __future__ import annotations

import pandas as pd

from helpers.audit import LEVEL, Audit, deviation, same_cut, twin_move
from helpers.claimed import PUBLISHED_FIGURES
from helpers.isolations import single_moves
from helpers.report import percent, tiny

TUNED, NULL = "fine-tuned", "untrained"
# What the claims hang on: the share a feed-forward layer recovers, less that of what the study calls convolutional.
CONTRAST = PUBLISHED_FIGURES[0].recovery - PUBLISHED_FIGURES[2].recovery


def flaw_table(audit: Audit) -> pd.DataFrame:
    """One row per flaw: no., flaw, shown here by, this run, notebook."""
    keys, conv = audit.keys, audit.published.drop_duplicates("site")["module"].eq("Conv1D")
    fixed, sites = audit.published[audit.published["by_construction"]].dropna(subset="recovery"), len(conv)
    linear = keys[keys["key"].str.startswith("Linear")]["modules"].sum()
    head, networks = fixed[fixed["site"] == "lm_head"], audit.published["network"].nunique()
    inside = audit.figures.groupby("figure", sort=False)["inside"]
    within = "; ".join(f"{name}: {n} of {of}" for name, (n, of) in inside.agg(["sum", "size"]).iterrows())
    copied = audit.copied[(audit.copied["item"] == "associative") & (audit.copied["phrase"] == "clean")].iloc[0]
    lengths = "; ".join(f"{row.item} {row.tokens}" for row in audit.items.itertuples())
    before = audit.contrast[audit.contrast["in_question"]]["difference"].abs().max()
    twin = twin_move(audit.published)
    another = f"median move {twin.median():.2f}" if len(twin) else "no number: shape error"
    here, later = "03", "03, 04"
    rows = [
        ("only lm_head is an nn.Linear", "classes of all modules", f"{linear} nn.Linear, {conv.sum()} Conv1D", here),
        ("100 % at the output layer is an identity", "replay in trained and untrained networks",
         f"largest deviation in {networks} networks: {tiny(deviation(head))} logits", here),
        ("so it is at every bottleneck", "the same, at every visited module",
         f"{fixed['site'].nunique()} of {sites} sites; largest deviation {tiny(deviation(fixed))} logits", here),
        ("56 % and 13.6 % have no null", "untrained networks' central 95 % at each module that may be meant",
         f"the published figure lies inside: {within}", here),
        ("the “convolutional layer” is a linear one", "Conv1D beside the matrix product; torch's convolutions counted",
         f"relative distance {tiny(audit.from_linear)}; {audit.convolutions} convolutions", here),
        ("results collide under str(module)", "the published dictionary, filled",
         f"{keys['modules'].sum()} modules, {len(keys)} keys, {keys['lost'].sum()} results lost", here),
        ("a projection and its only reader count twice", "their recoveries side by side",
         f"largest difference {tiny(same_cut(audit.published))} logits", here),
        ("read after the finished answer", "full stop left out; answer left out",
         f"{_moved(audit, 'no full stop')}; {_moved(audit, 'no answer')}", here),
        ("scored by the other item's phrases", "the item's own answers scored",
         _moved(audit, "own answers", ["associative"]), here),
        ("mean over a phrase's tokens, which the question holds already", "first token only; tokens counted",
         f"{_moved(audit, 'first token')}; {copied.in_question} of {copied.tokens} tokens copied", here),
        ("prompts must be of equal length, and differ in the answer alone", "tokens counted; difference by position",
         f"{lengths}; before the answer the runs differ by {tiny(before)}", here),
        ("one item per kind, no position, no head", "another wrong answer; hundreds of items by role and head", another,
         later),
        ("p < 0.01 from one prompt", "layers compared in untrained networks, modules as units",
         f"p < {LEVEL} in {_alarm_range(audit)} of them", here),
        ("padding in the loss", "loss of configuration I taken apart",
         f"{percent(audit.padding['share'].mean())} of the scored tokens are padding", "02"),
        ("no base model, no evidence of knowledge", "rank of the right first token where the answer begins",
         _rank_text(audit), later),
        ("“editing efficacy” without an edit", "not tested here", "–", "06"),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["flaw", "shown by", "this run", "notebook"])
    table.insert(0, "no.", range(1, len(table) + 1))
    return table


def survivors(audit: Audit) -> list[str]:
    """What a reader may believe of the published numbers, and what not, from those of this run."""
    fixed = audit.published[audit.published["by_construction"]].dropna(subset="recovery")
    groups = audit.published.groupby("group")["network"].nunique()
    tuned, figures = audit.intervals[audit.intervals["group"] == TUNED], audit.figures
    given = "too" if figures["inside"].all() else "too, but not at every module they may mean"
    outside = figures[figures["runs_outside"] == figures["runs"]]["site"].str.removeprefix("transformer.")
    moved = single_moves(audit.moves)["median"]
    steady = audit.ranges.iloc[0]
    large = (moved > CONTRAST).sum()
    size = "as much as" if 2 * large >= len(moved) else "less than"
    ends = audit.published[(audit.published["site"] == "lm_head") & (audit.published["group"] == TUNED)]
    ends = ends[ends["direction"] == "denoising"]
    ahead, positive = (ends["clean"] > ends["corrupted"]).sum(), (ends["clean"] > 0).sum()
    preferred = "It reads a preference" if positive == ahead == len(ends) else "It reads no settled preference"
    return [
        f"**The replay is exact, and no more.** {fixed['site'].nunique()} sites recover 1 in all {groups.sum()} "
        f"networks, {groups[NULL]} of them untrained (the patched run and the one put in: {tiny(deviation(fixed))} "
        f"logits apart). “100 % at the output layer” is one of them: to be believed of the code, and no finding about "
        f"definitions.",
        f"**Untrained networks give 56 % and 13.6 % {given}.** The published figure lies inside their central 95 % at "
        f"{figures['inside'].sum()} of {len(figures)} modules it may mean, and so do {percent(tuned['inside'].mean())} "
        f"of all values of the fine-tuned models. Modules it may mean at which every fine-tuned run lies outside: "
        f"{', '.join(outside) or 'none'}.",
        f"**A choice of the protocol weighs {size} its finding.** One choice changed moves the fine-tuned models' "
        f"recovery by a median of {moved.min():.2f} to {moved.max():.2f}, depending on item and choice; in {large} of "
        f"{len(moved)} cases by more than the {CONTRAST:.2f} between the published 56 % and 13.6 %.",
        f"**{preferred} for the right answer.** Over fine-tuned runs and items, the right phrase is ahead in "
        f"{positive} of {len(ends)} clean runs, and further ahead than in the corrupted run in {ahead}. Recovery "
        f"divides by the difference of these two, whatever its sign.",
        f"**p < {LEVEL} is no evidence of knowledge.** With the modules of one prompt taken for independent "
        f"observations, {_alarm_range(audit)} of the untrained networks have such a “layer effect”.",
        f"**Steadiest is {steady['site']},** of the modules that the figures may mean "
        f"(associative item): median recovery {steady['low']:.2f} to {steady['high']:.2f} over {steady['protocols']} "
        f"protocols in the fine-tuned models, {steady['base_low']:.2f} to {steady['base_high']:.2f} in the base model. "
        f"What the base model shows as well is not the work of fine-tuning.",
        "**Not settled here, either way:** whether associations are distributed and definitions localised, and what "
        "low-level features contribute. Notebook 04 asks again, with many items and a null for each statement.",
    ]


def _moved(audit: Audit, protocol: str, items: list[str] | None = None) -> str:
    """Median move of the fine-tuned models' recovery by one change, item by item."""
    found = audit.moves[(audit.moves["protocol"] == protocol) & (audit.moves["group"] == TUNED)]
    found = found[found["item"].isin(items)] if items else found
    return f"{protocol}: median move " + ", ".join(f"{row.median:.2f} ({row.item})" for row in found.itertuples())


def _alarm_range(audit: Audit) -> str:
    """The lowest and highest share of untrained networks with an alarm, over items and ways to count units."""
    shares = audit.alarms[audit.alarms["group"] == NULL]["share"]
    return f"{percent(shares.min())} to {percent(shares.max())}"


def _rank_text(audit: Audit) -> str:
    """Median rank of the right answer's first token, base and fine-tuned, item by item."""
    ranks = audit.ranks[audit.ranks["group"] != NULL].groupby(["item", "group"], sort=False)["right_rank"].median()
    return "; ".join(f"{item}, {group}: {rank:.0f}" for (item, group), rank in ranks.items())
