"""Standings: what the committed leaderboard says of every method, with intervals, and whether it is still true.

`data/embedded/leaderboard/` has a line per method and plant (scores), one per method, plant and place (places), one per
plant (plants), and what they were made from (`helpers.committed`). Everything here is computed from these lines.

Plants of one seed share their facts, so that means over plants have intervals by resampling in two stages: seeds, then
plants within each drawn seed. Three seeds are few, and where every answer is right no resample is wrong: an interval of
hit@1 is never narrower than Wilson's of as many independent plants. Methods are ordered by skill = (hit@1 − chance) /
(1 − chance), 0 at chance and 1 for always right, because a method is not ranked on plants where its answer holds by
construction, and chance is another on those that are left; ties by reciprocal rank, AUROC, then number of plants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from helpers.artifacts import ArtifactError
from helpers.committed import code_digests, read_committed, write_committed
from helpers.config import ROOT
from helpers.pointing import SCORES, calibration_error, reliability, seed_agreement

FOLDER = ROOT / "data" / "embedded" / "leaderboard"
SCORED_BY = ("localisers", "calibration", "pointing")  # with every module that these import
FLOORS = ("random", "weight norm")  # methods that ask the model nothing
RESAMPLES, CONFIDENCE = 2000, 0.95
UNTOUCHED = "null-base"  # the nulls that are the base itself, to the bit
ALARMS = 0.05  # of the nulls: a method that claims a block in more is not recommended
AGAIN = "make leaderboard"


@dataclass(frozen=True)
class Standings:
    """The committed leaderboard: its tables, and whether code and plants are those that they were made with.

    `plants` has the columns plant, kind, seed, learnt, kept_replayed, kept_held_out, counts.
    """

    scores: pd.DataFrame
    places: pd.DataFrame
    plants: pd.DataFrame
    fresh: bool
    note: str


def scoring_code() -> dict[str, str]:
    """The digests of the code that scores depend on."""
    return code_digests(SCORED_BY)


def write_standings(tables: Mapping[str, pd.DataFrame], *, code: Mapping, plants: Mapping, folder: Path = FOLDER):
    """Write the tables by name, and what they came from: `code` of scoring_code, and every plant's digest by name."""
    write_committed(folder, tables, code=code, plants=plants, again=AGAIN)


def read_standings(
    folder: Path = FOLDER, *, code: Mapping | None = None, plants: Mapping = MappingProxyType({})
) -> Standings:
    """Read the leaderboard, and compare what it came from with the code (None: as it is now) and the given plants.

    Raises ArtifactError when a file is missing or a table is not the one that was written.
    """
    found = read_committed(folder, code=scoring_code() if code is None else code, plants=plants)
    return Standings(**found.tables, fresh=found.fresh, note=found.note)


def clustered_interval(
    values: Sequence[float], clusters: Sequence, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a mean when clusters are resampled, then values within each; NaN for no value."""
    groups = [np.sort(part.to_numpy()) for _, part in pd.Series(values, dtype=float).groupby(np.asarray(clusters))]
    if not groups:
        return nan, nan
    chooser, total, count = np.random.default_rng(seed), np.zeros(resamples), np.zeros(resamples)
    for chosen in chooser.integers(0, len(groups), size=(len(groups), resamples)):
        for number, group in enumerate(groups):
            drawn = np.flatnonzero(chosen == number)
            total[drawn] += chooser.choice(group, size=(len(drawn), len(group))).sum(1)
            count[drawn] += len(group)
    low, high = np.quantile(total / count, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def board(scores: pd.DataFrame, *, by: Sequence[str] = (), resamples: int = RESAMPLES) -> pd.DataFrame:
    """A line per method, in order, over the plants that count and where its answer does not hold by construction.

    `scores` are lines of calibration.score_method; `by` adds columns to divide by, such as kind. Columns: method,
    question, informed, group (blind, informed or floor), then `by`, skill, each of SCORES with its NAME_low and
    NAME_high (a mean over the plants that define it), chance (of hit@1), plants, seeds, claims (of a block of these
    plants), claims_right (share of them), false_alarms and nulls (claims on nulls: on all, but for informed methods
    those that were trained, as the base itself differs in nothing from the base), stable_block, stable_places (over
    pairs, as pointing.stability), stable_seeds (as pointing.seed_agreement), passes and seconds (means, nulls left
    out), and left_out, the plants that do not count.
    """
    rows = []
    for (method, *key), lines in scores.groupby(["method", *by], sort=False):
        counting = lines[lines["counts"]]
        ranked, nulls = counting[counting["ranked"]], counting[counting["kind"] == "null"]
        nulls = nulls[~(nulls["informed"].astype(bool) & nulls["plant"].str.startswith(UNTOUCHED))]
        row = {"method": method, **lines.iloc[0][["question", "informed"]], "group": group_of(lines.iloc[0])}
        row |= dict(zip(by, key, strict=True)) | {"skill": nan}
        for name in SCORES:
            known = ranked.dropna(subset=name)
            low, high = clustered_interval(known[name], known["seed"], resamples=resamples)
            row |= {name: known[name].mean(), f"{name}_low": low, f"{name}_high": high}
        hits = ranked.dropna(subset="hit_at_1")
        row |= _at_least_wilson(row, len(hits)) | {"chance": hits["chance_hit_at_1"].mean()}
        row["skill"] = (row["hit_at_1"] - row["chance"]) / (1 - row["chance"])
        written = counting[counting["kind"] != "null"]
        row |= {"plants": len(hits), "seeds": ", ".join(map(str, sorted(set(written["seed"]))))}
        row |= {"claims": int(hits["claims"].sum()), "claims_right": hits.loc[hits["claims"], "hit_at_1"].mean()}
        row |= {"false_alarms": int(nulls["claims"].sum()), "nulls": len(nulls)}
        row |= written[["stable_block", "stable_places"]].mean().to_dict() | {"stable_seeds": _stable_seeds(written)}
        row |= written[["passes", "seconds"]].mean().to_dict()
        rows.append(row | {"left_out": ", ".join(sorted(lines.loc[~lines["counts"], "plant"]))})
    better = ["skill", "reciprocal_rank", "auroc", "plants"]
    order = {"by": [*better, "method"], "ascending": [False] * len(better) + [True]}
    table = pd.DataFrame(rows).sort_values(**order, kind="stable")
    return table.sort_values(list(by), kind="stable").reset_index(drop=True) if by else table.reset_index(drop=True)


def group_of(line: pd.Series) -> str:
    """Whether a method sees one model (blind), two (informed), or asks the model nothing (floor)."""
    return "floor" if line["method"] in FLOORS else ("informed" if line["informed"] else "blind")


def given_cells(scores: pd.DataFrame) -> pd.DataFrame:
    """Where answers hold by construction, and are not ranked: method, group, kind, hit_at_1, plants."""
    lines = scores[scores["counts"] & scores["given"]].dropna(subset="hit_at_1")
    rows = [
        (method, group_of(part.iloc[0]), kind, part["hit_at_1"].mean(), len(part))
        for (method, kind), part in lines.groupby(["method", "kind"], sort=False)
    ]
    return pd.DataFrame(rows, columns=["method", "group", "kind", "hit_at_1", "plants"])


def figure_table(scores: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """A board as board_drawings.leaderboard draws it, with the lines of `given_cells` behind it, marked `given`."""
    given = given_cells(scores).groupby(["method", "group"], sort=False, as_index=False)["hit_at_1"].mean()
    ranked = table[["method", "group", "hit_at_1", "hit_at_1_low", "hit_at_1_high", "chance"]]
    return pd.concat([ranked.assign(given=False), given.assign(given=True)], ignore_index=True)


def best(table: pd.DataFrame, group: str) -> pd.Series:
    """The first line of a group (blind, informed, floor) of a board; raises ArtifactError when there is none."""
    lines = table[(table["group"] == group) & table["skill"].notna()]
    if lines.empty:
        raise ArtifactError(f"The leaderboard has no ranked {group} method: run `{AGAIN}`.")
    return lines.iloc[0]


def recommended(table: pd.DataFrame, group: str) -> pd.Series:
    """The first line of a group that is above chance, claims blocks, and does so in ALARMS of the nulls or less.

    A method that never claims raises no alarm, and is of no use. Raises ArtifactError for none.
    """
    useful = (table["hit_at_1_low"] > table["chance"]) & (table["claims"] > 0)
    return best(table[useful & (table["false_alarms"] <= ALARMS * table["nulls"])], group)


def first_shares(scores: pd.DataFrame, group: str, *, resamples: int = RESAMPLES, seed: int = 0) -> pd.Series:
    """In which share of resamples of seeds, then plants, each method of a group has the highest skill, alone or not.

    All methods are asked about the same resample, each on the plants that it is ranked on. By method, highest first.
    """
    ranked = scores[scores["ranked"] & scores["hit_at_1"].notna()]
    ranked = ranked[[group_of(line) == group for _, line in ranked.iterrows()]].sort_values(["seed", "plant"])
    hits, chance = (
        ranked.pivot(index=["seed", "plant"], columns="method", values=name) for name in ("hit_at_1", "chance_hit_at_1")
    )
    groups = [np.flatnonzero(hits.index.get_level_values("seed") == one) for one in hits.index.unique("seed")]
    chooser, times = np.random.default_rng(seed), np.zeros((resamples, len(hits)))
    for row in times:
        for number in chooser.integers(0, len(groups), size=len(groups)):
            np.add.at(row, chooser.choice(groups[number], size=len(groups[number])), 1)
    sums = [times @ table.fillna(0.0).to_numpy() for table in (hits, chance, hits.notna().astype(float))]
    with np.errstate(divide="ignore", invalid="ignore"):
        skill = np.nan_to_num((sums[0] - sums[1]) / (sums[2] - sums[1]), nan=-np.inf)
    first = skill >= skill.max(1, keepdims=True) - 1e-9
    return pd.Series(first.mean(0), hits.columns).sort_values(ascending=False, kind="stable")


def common(scores: pd.DataFrame, group: str) -> pd.DataFrame:
    """The lines of a group's methods on the plants that all of them are ranked on, of those ranked on any."""
    lines = scores[[group_of(line) == group for _, line in scores.iterrows()]]
    ranked = lines[lines["ranked"] & lines["hit_at_1"].notna()]
    times = ranked["plant"].value_counts()
    everywhere = times.index[times == ranked["method"].nunique()]
    return ranked[ranked["plant"].isin(everywhere)]


def pointing_matrix(
    scores: pd.DataFrame, places: pd.DataFrame, *, kinds: Sequence[str] = ("single",), component: str | None = None
) -> pd.DataFrame:
    """Where each method points when one block was planted: method, planted, pointed, score; the largest of a row is 1.

    Blocks' scores (the better place, at least 0) are averaged over plants that count, of these kinds, and written into
    this component (None: either); whether the answer holds by construction makes no difference here.
    """
    counting = scores.loc[scores["counts"] & scores["kind"].isin(kinds), ["method", "plant"]]
    lines = places.merge(counting, on=["method", "plant"])
    truth = lines[lines["share"] > 0]
    truth = truth[(truth["component"] == component) | (component is None)]
    planted = truth.drop_duplicates("plant").set_index("plant")["layer"]
    lines = lines[lines["plant"].isin(planted.index)].assign(planted=lines["plant"].map(planted))
    blocks = lines.groupby(["method", "plant", "planted", "layer"], sort=False)["score"].max().clip(lower=0)
    means = blocks.groupby(["method", "planted", "layer"], sort=False).mean()
    largest = means.groupby(["method", "planted"]).transform("max")
    table = (means / largest.where(largest > 0)).fillna(0).rename("score").reset_index()
    return table.rename(columns={"layer": "pointed"})


def reliabilities(scores: pd.DataFrame, places: pd.DataFrame, *, bins: int = 10) -> pd.DataFrame:
    """When a method says 0.8, how often is it right? The columns of pointing.reliability for every method.

    Over the places of all plants on which the method is ranked and which have a truth to hit. Places of one plant are
    not independent, so that plants are resampled.
    """
    ranked = scores.loc[scores["ranked"] & scores["hit_at_1"].notna(), ["method", "plant"]]
    lines = places.merge(ranked, on=["method", "plant"]).assign(planted=lambda rows: rows["share"] > 0)
    tables = []
    for name, rows in lines.groupby("method", sort=False):
        table, told = reliability(rows, bins=bins), rows.dropna(subset="score")
        number = np.minimum((told["score"].astype(float).clip(0, 1) * bins).astype(int), bins - 1)
        for line in table.itertuples():
            own = told[number == line.bin]
            ends = clustered_interval(own["planted"].astype(float), own["plant"])
            table.loc[line.Index, ["low", "high"]] = min(ends[0], line.low), max(ends[1], line.high)
        tables.append(table.assign(method=name))
    return pd.concat(tables, ignore_index=True)


def trust(scores: pd.DataFrame, places: pd.DataFrame, methods: Sequence[str], *, high: float) -> pd.DataFrame:
    """What the high scores of methods are worth: method, places (that it gives `high` or more), planted, share, …

    … error, the expected calibration error, and never, the error of giving every place 0. Of places as reliabilities.
    """
    ranked = scores.loc[scores["ranked"] & scores["hit_at_1"].notna(), ["method", "plant"]]
    lines = places.merge(ranked, on=["method", "plant"]).assign(planted=lambda rows: rows["share"] > 0)
    rows = []
    for method in methods:
        own = lines[lines["method"] == method]
        above = own.loc[own["score"] >= high, "planted"]
        error = calibration_error(reliability(own))
        rows.append((method, len(above), int(above.sum()), above.mean(), error, own["planted"].mean()))
    return pd.DataFrame(rows, columns=["method", "places", "planted", "share", "error", "never"])


def _at_least_wilson(row: Mapping, plants: int) -> dict[str, float]:
    """The interval of hit@1, widened to Wilson's."""
    if not plants:
        return {}
    low, high = proportion_confint(row["hit_at_1"] * plants, plants, alpha=1 - CONFIDENCE, method="wilson")
    return {"hit_at_1_low": min(row["hit_at_1_low"], low), "hit_at_1_high": max(row["hit_at_1_high"], high)}


def _stable_seeds(written: pd.DataFrame) -> float:
    """How often two seeds of a plant lead to the same block, over all that were compared; NaN for one seed."""
    tops = written.assign(top_blocks=[frozenset(blocks.split()) for blocks in written["top_blocks"]])
    found = seed_agreement(tops)
    return float(np.average(found["agreement"], weights=found["comparisons"])) if len(found) else nan
