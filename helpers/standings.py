"""Standings: what the committed leaderboard says of every method, with intervals, and whether it is still true.

`data/embedded/leaderboard/` has a line per method and plant (scores), one per method, plant and place (places), and the
digests of the code and of the plants they came from. Everything here is computed from these lines.

Plants of one seed share their facts, so that means over plants have intervals by resampling in two stages: seeds, then
plants within each drawn seed. Methods are ordered by skill = (hit@1 − chance) / (1 − chance), 0 at chance and 1 for
always right, because a method is not ranked on plants where its answer holds by construction, and chance is another on
those that are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.artifacts import ArtifactError, read_json, read_table, sha256_file, sha256_tree, write_json, write_tables
from helpers.config import ROOT
from helpers.pointing import SCORES
from helpers.stages import sources

FOLDER = ROOT / "data" / "embedded" / "leaderboard"
SCORED_BY = ("localisers", "calibration", "pointing")  # with every module that these import
FLOORS = ("random",)  # methods that know nothing
RESAMPLES, CONFIDENCE = 2000, 0.95
AGAIN = "run `make leaderboard`"


@dataclass(frozen=True)
class Standings:
    """The committed leaderboard: its two tables, and whether code and plants are those that they were made with."""

    scores: pd.DataFrame
    places: pd.DataFrame
    fresh: bool
    note: str


def code_digests(root: Path = ROOT) -> dict[str, str]:
    """The sha256 of every source that a leaderboard depends on, by path; modules that are not there have none."""
    starts = [root / "helpers" / f"{name}.py" for name in SCORED_BY]
    files = {file for start in starts if start.is_file() for file in sources(start, root=root)}
    return {str(file.relative_to(root)): sha256_file(file) for file in sorted(files)}


def write_standings(
    scores: pd.DataFrame, places: pd.DataFrame, *, code: Mapping, plants: Mapping, folder: Path = FOLDER
) -> None:
    """Write the two tables, then what they came from: `code` of code_digests, and the digest of every plant by name."""
    write_tables(folder, {"scores": scores, "places": places})
    tables = sha256_tree([folder / "scores.parquet", folder / "places.parquet"], folder)
    write_json(folder / "leaderboard.json", {"code": dict(code), "plants": dict(plants), "tables": tables})


def read_standings(folder: Path = FOLDER, *, code: Mapping | None = None, plants: Mapping | None = None) -> Standings:
    """Read the leaderboard, and compare what it came from with the code (None: as it is now) and plants, if given.

    Raises ArtifactError when a file is missing or a table is not the one that was written.
    """
    record = read_json(folder / "leaderboard.json")
    tables = {name: read_table(folder / f"{name}.parquet") for name in ("scores", "places")}
    if sha256_tree([folder / f"{name}.parquet" for name in tables], folder) != record["tables"]:
        raise ArtifactError(f"The tables of {folder} are not those that were written with leaderboard.json: {AGAIN}.")
    changed = _changed(record["code"], code_digests() if code is None else code)
    changed += _changed(record["plants"], record["plants"] if plants is None else plants)
    note = "The leaderboard is that of the code and the plants as they are."
    if changed:
        named = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        note = f"The leaderboard is not up to date, because {named} changed since: {AGAIN}."
    return Standings(tables["scores"], tables["places"], not changed, note)


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
    NAME_high (a mean over the plants that define it), chance (of hit@1), plants, seeds, false_alarms, nulls,
    stable_block, stable_places, passes, seconds (means), and left_out, the plants that do not count.
    """
    rows = []
    for (method, *key), lines in scores.groupby(["method", *by], sort=False):
        counting = lines[lines["counts"]]
        ranked, nulls = counting[counting["ranked"]], counting[counting["kind"] == "null"]
        row = {"method": method, **lines.iloc[0][["question", "informed"]], "group": group_of(lines.iloc[0])}
        row |= dict(zip(by, key, strict=True)) | {"skill": nan}
        for name in SCORES:
            known = ranked.dropna(subset=name)
            low, high = clustered_interval(known[name], known["seed"], resamples=resamples)
            row |= {name: known[name].mean(), f"{name}_low": low, f"{name}_high": high}
        hits = ranked.dropna(subset="hit_at_1")
        row["chance"] = hits["chance_hit_at_1"].mean()
        row["skill"] = (row["hit_at_1"] - row["chance"]) / (1 - row["chance"])
        row |= {"plants": len(hits), "seeds": ", ".join(map(str, sorted(set(lines["seed"]))))}
        row |= {"false_alarms": int(nulls["claims"].sum()), "nulls": len(nulls)}
        row |= counting[["stable_block", "stable_places", "passes", "seconds"]].mean().to_dict()
        rows.append(row | {"left_out": ", ".join(sorted(lines.loc[~lines["counts"], "plant"]))})
    order = {"by": ["skill", "reciprocal_rank", "auroc", "method"], "ascending": [False, False, False, True]}
    table = pd.DataFrame(rows).sort_values(**order, kind="stable")
    return table.sort_values(list(by), kind="stable").reset_index(drop=True) if by else table.reset_index(drop=True)


def group_of(line: pd.Series) -> str:
    """Whether a method sees one model (blind), two (informed), or knows nothing (floor)."""
    return "floor" if line["method"] in FLOORS else ("informed" if line["informed"] else "blind")


def given_cells(scores: pd.DataFrame) -> pd.DataFrame:
    """Where answers hold by construction, and are not ranked: method, group, kind, hit_at_1, plants."""
    lines = scores[scores["counts"] & scores["given"]].dropna(subset="hit_at_1")
    rows = [
        (method, group_of(part.iloc[0]), kind, part["hit_at_1"].mean(), len(part))
        for (method, kind), part in lines.groupby(["method", "kind"], sort=False)
    ]
    return pd.DataFrame(rows, columns=["method", "group", "kind", "hit_at_1", "plants"])


def figure_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The board as board_drawings.leaderboard draws it, with the lines of `given_cells` behind it, marked `given`."""
    given = given_cells(scores).groupby(["method", "group"], sort=False, as_index=False)["hit_at_1"].mean()
    ranked = board(scores)[["method", "group", "hit_at_1", "hit_at_1_low", "hit_at_1_high", "chance"]]
    return pd.concat([ranked.assign(given=False), given.assign(given=True)], ignore_index=True)


def best(table: pd.DataFrame, group: str) -> pd.Series:
    """The first line of a group (blind, informed, floor) of a board; raises ArtifactError when there is none."""
    lines = table[(table["group"] == group) & table["skill"].notna()]
    if lines.empty:
        raise ArtifactError(f"The leaderboard has no ranked {group} method: {AGAIN}.")
    return lines.iloc[0]


def said(line: pd.Series, name: str = "hit_at_1") -> str:
    """A method's score with its interval, and over what, in words."""
    interval = f"{line[name]:.2f} ({line[f'{name}_low']:.2f} to {line[f'{name}_high']:.2f})"
    return f"{line['method']}: {interval} over {line['plants']} plants of the seeds {line['seeds']}"


def covers_chance(line: pd.Series) -> bool:
    """Whether the interval of a method's hit@1 covers chance."""
    return bool(line["hit_at_1_low"] <= line["chance"] <= line["hit_at_1_high"])


def floor_sentence(table: pd.DataFrame) -> str:
    """Whether random scores sit at chance, as they must if the scores are right."""
    line = best(table, "floor")
    verdict = "covers" if covers_chance(line) else "does not cover"
    return (
        f"Random scores hit the planted block in {line['hit_at_1']:.2f} of the plants; the interval "
        f"{line['hit_at_1_low']:.2f} to {line['hit_at_1_high']:.2f} {verdict} chance, {line['chance']:.2f}."
    )


def alarm_sentence(table: pd.DataFrame, method: str) -> str:
    """How often a method claims a block where nothing was written; raises ArtifactError for an unknown method."""
    lines = table[table["method"] == method]
    if lines.empty:
        raise ArtifactError(f"The leaderboard has no method {method!r}; it has {', '.join(table['method'])}.")
    line = lines.iloc[0]
    return (
        f"{method[:1].upper()}{method[1:]} claims a block in {line['false_alarms']} of {line['nulls']} models into "
        "which nothing was written."
    )


def by_question(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The lines of a board by the question that a method answers, storage or mediation, floors left out."""
    asked = table[table["group"] != "floor"]
    return {question: part.reset_index(drop=True) for question, part in asked.groupby("question", sort=True)}


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


def _changed(before: Mapping, now: Mapping) -> list[str]:
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
