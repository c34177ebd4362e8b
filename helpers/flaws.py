"""The sixteen flaws of the published protocol with the numbers of this run, and what survives them, in words."""

from __future__ import annotations

import pandas as pd

from helpers.audit import BOTH_DIRECTIONS, EVERY_MODULE, LEVEL, ONE_PER_CUT, Audit, deviation, same_cut, twin_move
from helpers.claimed import PUBLISHED_FIGURES
from helpers.isolations import single_moves
from helpers.published import PUBLISHED_ITEMS
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
    copied = audit.copied[(audit.copied["item"] == "associative") & (audit.copied["phrase"] == "clean")].iloc[0]
    lengths = "; ".join(f"{row.item} {row.tokens}" for row in audit.items.itertuples())
    before = audit.contrast[audit.contrast["in_question"]]["difference"].abs().max()
    here, later = "03", "03, 04"
    rows = [
        ("only lm_head is an nn.Linear", "classes of all modules", f"{linear} nn.Linear, {conv.sum()} Conv1D", here),
        ("100 % at the output layer is an identity", "replay in trained and untrained networks",
         f"largest deviation in {networks} networks: {tiny(deviation(head))} logits", here),
        ("so it is at every bottleneck", "the same, at every visited module",
         f"{fixed['site'].nunique()} of {sites} sites; largest deviation {tiny(deviation(fixed))} logits", here),
        ("56 % and 13.6 % have no null", "untrained networks' central 95 % at the modules compared",
         f"{_figure_text(audit)}; scope: {audit.scope}", here),
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
        ("one item per kind, no position, no head", "another wrong answer; hundreds of items by role and head",
         _twin_text(audit), later),
        ("p < 0.01 from one prompt", "layers compared in untrained networks, by what counts as an observation",
         f"p < {LEVEL} in: {_alarm_text(audit)}", here),
        ("padding in the loss", "loss of configuration I taken apart",
         f"{percent(audit.padding['share'].mean())} of the scored tokens are padding", "02"),
        ("no base model, no evidence of knowledge", "rank of the right first token where the answer begins",
         _rank_text(audit), later),
        ("“editing efficacy” without an edit", "not shown here", "–", "06"),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["flaw", "shown by", "this run", "notebook"])
    table.insert(0, "no.", range(1, len(table) + 1))
    return table


def survivors(audit: Audit) -> list[str]:
    """What a reader may believe of the published numbers, and what not, from those of this run."""
    fixed = audit.published[audit.published["by_construction"]].dropna(subset="recovery")
    groups = audit.published.groupby("group")["network"].nunique()
    within = audit.figures["inside"]
    excluded = "do not exclude 56 % and 13.6 %" if within.all() else "exclude 56 % or 13.6 % at some modules, not all"
    excluded = excluded if within.any() else "exclude 56 % and 13.6 % at every module listed"
    moved = single_moves(audit.moves)["median"]
    steady = audit.ranges.iloc[0]
    large = (moved > CONTRAST).sum()
    size = "as much as" if 2 * large >= len(moved) else "less than"
    ends = audit.published[(audit.published["site"] == "lm_head") & (audit.published["group"] == TUNED)]
    ends = ends[ends["direction"] == "denoising"]
    ahead, positive = (ends["clean"] > ends["corrupted"]).sum(), (ends["clean"] > 0).sum()
    preferred = "It reads a preference" if positive == ahead == len(ends) else "It reads no settled preference"
    return [
        f"**Scope: {audit.scope}.** The published numbers are those of GPT-2; what is said of them here "
        f"rests on networks of this shape.",
        f"**The replay is exact, and no more.** {fixed['site'].nunique()} sites recover 1 in all {groups.sum()} "
        f"networks, {groups[NULL]} of them untrained (the patched run and the one put in: {tiny(deviation(fixed))} "
        f"logits apart). “100 % at the output layer” is one of them: to be believed of the code, and no finding about "
        f"definitions.",
        f"**Untrained networks of this shape {excluded}.** Their central 95 %: {_figure_text(audit)}. Modules at which "
        f"every fine-tuned run lies outside it: by recovery {_all_outside(audit, 'runs_outside')}, before dividing "
        f"{_all_outside(audit, 'effects_outside')}.",
        null_statement(audit),
        f"**A choice of the protocol weighs {size} its finding.** One choice changed moves the fine-tuned models' "
        f"recovery by a median of {moved.min():.2f} to {moved.max():.2f}, depending on item and choice; in {large} of "
        f"{len(moved)} cases by more than the {CONTRAST:.2f} between the published 56 % and 13.6 %.",
        f"**{preferred} for the right answer.** Over fine-tuned runs and items, the right phrase is ahead in "
        f"{positive} of {len(ends)} clean runs, and further ahead than in the corrupted run in {ahead}. Recovery "
        f"divides by the difference of these two, whatever its sign.",
        alarm_statement(audit),
        f"**Steadiest is {steady['site']},** of the modules listed that the figures may mean "
        f"(associative item): median recovery {steady['low']:.2f} to {steady['high']:.2f} over {steady['protocols']} "
        f"protocols in the fine-tuned models, {steady['base_low']:.2f} to {steady['base_high']:.2f} in the base model. "
        f"What the base model shows as well is not the work of fine-tuning.",
        "**Not settled here, either way:** whether associations are distributed and definitions localised, and what "
        "low-level features contribute. Notebook 04 asks again, with many items and a null for each statement.",
    ]


def null_statement(audit: Audit) -> str:
    """How much of what fine-tuned models give lies in the null as a ratio, and before it is divided."""
    shares = audit.shares.set_index("group")
    ratio, effect = shares.loc[TUNED, ["recovery_inside", "effect_inside"]]
    found = "throws away what separates" if effect < ratio else "throws away nothing of what separates"
    between = ", ".join(f"{row.difference:.3f} ({row.group})" for row in audit.shares.itertuples())
    return (
        f"**The ratio that the study reports {found} trained from untrained networks.** {percent(ratio)} of the "
        f"fine-tuned models' recoveries lie inside the untrained networks' central 95 % for the same module, item and "
        f"direction; before they are divided (the patched run minus the run it was put into, in logits) "
        f"{percent(effect)} do. What recovery divides by, |clean − corrupted|, has a median of {between} logits: near "
        f"0 a ratio can be of any size. Of the base model's effects {percent(shares.loc['base', 'effect_inside'])} lie "
        f"inside; what it shows as well is not the work of fine-tuning."
    )


def alarm_statement(audit: Audit) -> str:
    """How often untrained networks have a layer effect, and by which way of counting."""
    most = audit.alarms[audit.alarms["group"] == NULL].groupby("units")["share"].max()
    ways = {EVERY_MODULE: "counting the same cut twice", BOTH_DIRECTIONS: "counting both directions of one prompt"}
    raising = [way for units, way in ways.items() if most[units] > most[ONE_PER_CUT]]
    cause = f"What raises alarms is {' and '.join(raising)}" if raising else "Neither way of counting twice adds alarms"
    title = "is made by counting" if raising else "is not made by counting"
    tuned = audit.alarms[(audit.alarms["group"] == TUNED) & (audit.alarms["units"] == ONE_PER_CUT)]["share"]
    return (
        f"**In untrained networks p < {LEVEL} from one prompt {title}.** Share with a “layer effect”, by what is taken "
        f"for an independent observation: {_alarm_text(audit)}. {cause}. Of the fine-tuned models, "
        f"{percent(tuned.min())} to {percent(tuned.max())} have one with one value per cut and denoising."
    )


def subject_statement(audit: Audit) -> str:
    """By how much another subject in the question moves fine-tuned models, over all subjects that were asked about."""
    found = "; ".join(
        f"{row.low:.2f} to {row.high:.2f} over {row.subjects:.0f} subjects ({row.item})"
        for row in audit.subjects.itertuples()
    )
    return f"Which other subject is asked about matters, too: the median move is {found}."


def shown_statement(flaws: pd.DataFrame) -> str:
    """How many of the flaws have a number in this run, and which have none."""
    absent = flaws[flaws["this run"] == "–"]
    missing = "; ".join(f"no. {row[1]} (notebook {row[5]})" for row in absent.itertuples())
    return f"{len(flaws) - len(absent)} of the {len(flaws)} are shown by a computation; not shown here: {missing}."


def _figure_text(audit: Audit) -> str:
    """Every published figure, the untrained range over the modules it may mean, and at how many it lies inside."""
    figures = audit.figures.groupby(["figure", "published"], sort=False)
    found = figures.agg(low=("low", "min"), high=("high", "max"), inside=("inside", "sum"), of=("inside", "size"))
    return "; ".join(
        f"{row.figure} ({100 * row.published:g} %): {row.low:.2f} to {row.high:.2f} over its modules, inside at "
        f"{row.inside} of {row.of}"
        for row in found.reset_index().itertuples()
    )


def _all_outside(audit: Audit, counted: str) -> str:
    """The modules at which every fine-tuned run lies outside the null, by one of the counts of `audit.figures`."""
    sites = audit.figures[audit.figures[counted] == audit.figures["runs"]]["site"].str.removeprefix("transformer.")
    return ", ".join(sites.unique()) or "none"


def _twin_text(audit: Audit) -> str:
    """Median move by another wrong answer, item by item."""
    found = {item.name: twin_move(audit.published, item.name) for item in PUBLISHED_ITEMS}
    return "median move " + ", ".join(
        f"{moved.median():.2f} ({item})" if len(moved) else f"none ({item}: shape error)"
        for item, moved in found.items()
    )


def _moved(audit: Audit, protocol: str, items: list[str] | None = None) -> str:
    """Median move of the fine-tuned models' recovery by one change, item by item."""
    found = audit.moves[(audit.moves["protocol"] == protocol) & (audit.moves["group"] == TUNED)]
    found = found[found["item"].isin(items)] if items else found
    return f"{protocol}: median move " + ", ".join(f"{row.median:.2f} ({row.item})" for row in found.itertuples())


def _alarm_text(audit: Audit) -> str:
    """The lowest and highest share of untrained networks with an alarm over the items, by units."""
    shares = audit.alarms[audit.alarms["group"] == NULL].groupby("units", sort=False)["share"].agg(["min", "max"])
    return "; ".join(f"{row.Index}: {percent(row.min)} to {percent(row.max)}" for row in shares.itertuples())


def _rank_text(audit: Audit) -> str:
    """Median rank of the right answer's first token, base and fine-tuned, item by item."""
    ranks = audit.ranks[audit.ranks["group"] != NULL].groupby(["item", "group"], sort=False)["right_rank"].median()
    return "; ".join(f"{item}, {group}: {rank:.0f}" for (item, group), rank in ranks.items())
