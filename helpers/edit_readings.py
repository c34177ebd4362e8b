"""Edit readings: what editing at every block says of localisation, and of kinds of facts.

    by_block         at which block do edits succeed, and is it the one that the facts are planted in?
    told_by_scores   do a method's scores tell at which blocks edits succeed, or do damage?
    by_kind          are definitional facts edited otherwise than associative ones?

Each answer is a table, and sentences computed from it. Edits are as `efficacy.edit_everywhere` gives them; here a way
of editing is an `edit`, since a `method` is a way to localise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pandas as pd

from helpers.editing import EditingError
from helpers.efficacy import correlation_with_scores, kind_contrasts
from helpers.report import Answer, started

READ = ("rewrite", "damage")  # the outcomes that are spoken of
WAYS = {
    "rank-one at subject_last": "rank-one at the subject's last token",
    "rank-one at last": "rank-one at the last token",
}
FIGURE = MappingProxyType(
    {
        "drawing": "curves",
        "x": "block",
        "y": "rewrite",
        "hue": "edit",
        "facet": "plant",
        "xlabel": "edited block",
        "ylabel": "rewrite score",
        "unit": None,
        "mark": "planted",
    }
)


def by_block(edits: pd.DataFrame, *, planted: Mapping[str, Sequence[int]]) -> Answer:
    """Mean outcomes of each way of editing at each block of each plant, and how often the planted block is the best.

    `planted` gives the blocks that a plant's facts are in, none for plants without a place. A plant counts when the
    mean rewrite score at one of these blocks is above that at every other. Columns: plant, edit, block, planted,
    rewrite, damage, facts. Raises EditingError for no edits.
    """
    _check(edits)
    groups = edits.groupby(["plant", "method", "block"], as_index=False, sort=False)
    table = groups.agg(**{name: (name, "mean") for name in READ}, facts=("item_id", "nunique"))
    is_planted = [block in planted.get(plant, ()) for plant, block in zip(table["plant"], table["block"], strict=True)]
    table = table.rename(columns={"method": "edit"})
    table.insert(3, "planted", is_planted)
    sentences = []
    for edit, lines in table.groupby("edit", sort=False):
        means = lines.groupby("block")[list(READ)].mean()
        best, plants = means["rewrite"].idxmax(), lines["plant"].nunique()
        hits = [
            own.loc[own["planted"], "rewrite"].max() > own.loc[~own["planted"], "rewrite"].max()
            for _, own in lines.groupby("plant")
            if own["planted"].any()
        ]
        told = f"; the planted block is the best one in {sum(hits)} of {len(hits)} plants" if hits else ""
        sentences.append(
            f"{started(_way(edit))} edits best at block {best} (rewrite {means.loc[best, 'rewrite']:.2f}, damage "
            f"{_number(means.loc[best, 'damage'], 'damage')}, means over {plants} plants){told}."
        )
    return Answer(table, " ".join(sentences))


def told_by_scores(
    edits: pd.DataFrame,
    places: pd.DataFrame,
    *,
    published: str | None = None,
    resamples: int,
    confidence: float,
    seed: int,
) -> Answer:
    """Each method's correlation with the outcomes, over the blocks of all plants together, by way of editing.

    `places` are the leaderboard's: method, plant, component, layer, score; MLPs' scores are what is compared. The
    correlation of the method `published` is said besides. Columns: outcome, edit, method, and those of
    `correlation_with_scores` but plant, whose gaps are explained there. Raises EditingError for no edits, where no
    method scores an edited plant, where `published` does not, and as `correlation_with_scores` does.
    """
    _check(edits)
    options = {"pooled": True, "resamples": resamples, "confidence": confidence, "seed": seed}
    tables = [correlation_with_scores(edits, places, outcome=name, **options).assign(outcome=name) for name in READ]
    table = pd.concat(tables, ignore_index=True)
    if table.empty:
        raise EditingError("No method scores the MLPs of a plant that was edited, so there is nothing to compare.")
    table = table[["outcome", "edit", "method", *table.columns.drop(["outcome", "edit", "method", "plant"])]]
    known = table.dropna(subset="correlation")
    sentences = [_told(lines) for _, lines in known.groupby(["outcome", "edit"], sort=False)]
    sentences.append(
        f"{len(known)} correlations were compared, of which {(1 - confidence) * len(known):.1f} would be beyond "
        "exchanged blocks by chance."
    )
    if undefined := len(table) - len(known):
        sentences.append(f"{undefined} more are undefined, since a score or an outcome is the same at every block.")
    if published is not None:
        own = table[table["method"] == published]
        if own.empty:
            raise EditingError(f"{published!r} scores no MLP of a plant that was edited.")
        words = "{} with the {} of {}"
        said = [words.format(_interval(row, "correlation"), row.outcome, _way(row.edit)) for row in own.itertuples()]
        sentences.append(f"{published} correlates {_listed(said)}.")
    return Answer(table, " ".join(sentences))


def by_kind(edits: pd.DataFrame, *, resamples: int, confidence: float, seed: int) -> Answer:
    """Outcomes of definitional facts less those of associative ones, over all plants and blocks, by way of editing.

    An outcome that is the same for all facts at every block, as fine-tuning's damage, which is that of all edits
    together, has no kind and is left out. Columns: outcome, edit, and those of `kind_contrasts` but block. Raises
    EditingError for no edits, and as `kind_contrasts` does.
    """
    _check(edits)
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    tables, sentences = [], []
    for outcome in READ:
        grouped = edits.groupby(["method", "plant", "block"], sort=False)[outcome]
        spread = (grouped.max() - grouped.min()).groupby("method", sort=False).max()
        shared = spread.index[spread <= 1e-6]
        if len(shared) < len(spread):
            found = kind_contrasts(edits[~edits["method"].isin(shared)], outcome=outcome, **options)
            found = found[found["block"].isna()].drop(columns="block").rename(columns={"method": "edit"})
            found.insert(0, "outcome", outcome)
            tables.append(found)
            apart = int(((found["low"] > 0) | (found["high"] < 0)).sum())
            said = [f"{_interval(row, 'difference')} by {_way(row.edit)}" for row in found.itertuples()]
            sentences.append(
                f"{started(outcome)} differs between types of fact, by an interval that excludes 0, for {apart} of "
                f"{len(found)} ways of editing, definitional less associative: {_listed(said)}."
            )
        if len(shared):
            named = _listed([_way(edit) for edit in shared])
            sentences.append(f"The {outcome} of {named} is the same for all facts of a block, and has no type.")
    return Answer(pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(), " ".join(sentences))


def figure_table(edits: pd.DataFrame, *, planted: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """The table of `by_block` for the drawing and the options of FIGURE: plants by where their facts are."""
    table = by_block(edits, planted=planted).table
    places = {plant: _listed([str(block) for block in sorted(planted.get(plant, ()))]) for plant in set(table["plant"])}
    words = {plant: f"facts in MLP {place}" if place else "facts in no one block" for plant, place in places.items()}
    return table.assign(plant=table["plant"].map(words), edit=table["edit"].map(_way))


def _told(lines: pd.DataFrame) -> str:
    """What the methods' correlations with one outcome of one way of editing say."""
    first, widest = lines.iloc[0], lines.loc[lines["correlation"].abs().idxmax()]
    value, rounding = lines["correlation"], 1e-9
    beyond = ((value > lines["null_high"] + rounding) | (value < lines["null_low"] - rounding)).sum()
    above, below = (lines["low"] > 0).sum(), (lines["high"] < 0).sum()
    over_facts = f", and the interval over facts excludes 0 for {above + below} ({above} above, {below} below)"
    return (
        f"{started(first['outcome'])} by {_way(first['edit'])}: of {len(lines)} methods, {beyond} "
        f"{'is' if beyond == 1 else 'are'} beyond what blocks exchanged at random give"
        f"{over_facts if lines['low'].notna().any() else ''}; furthest from 0 is {_interval(widest, 'correlation')} "
        f"({widest['method']})."
    )


def _check(edits: pd.DataFrame) -> None:
    if edits.empty:
        raise EditingError("There is no edit to read: run `make plants`.")


def _interval(row, name: str) -> str:
    """An estimate with its interval if there is one, from a row that has low and high."""
    value, low, high = (getattr(row, column) for column in (name, "low", "high"))
    if pd.isna(value):
        return "undefined"
    value, low, high = (_number(number, row.outcome if name == "difference" else "") for number in (value, low, high))
    return value if low == "nan" else f"{value} [{low}, {high}]"


def _number(value: float, outcome: str = "") -> str:
    """A number as it is read; differences of damage are small."""
    digits = 3 if outcome == "damage" else 2
    return f"{round(float(value), digits) + 0.0:.{digits}f}"  # no "-0.00"


def _way(edit: str) -> str:
    return WAYS.get(edit, edit)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
