"""Committed tables: results that take too long for `make reproduce`, kept in git with what they were made from.

A folder has its tables as parquet, and `made_from.json`: the digest of every source and every plant that they depend
on, and that of the tables themselves. So a reader is told whether code and plants are still those, and what to run when
they are not. Modules that say where files are, which notebooks run, or what the tables amount to, change no number in
them, and are no part of this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from helpers.artifacts import ArtifactError, read_json, read_table, sha256_file, sha256_tree, write_json, write_tables
from helpers.config import ROOT
from helpers.stages import sources

RECORD = "made_from.json"
WITHOUT_NUMBERS = ("config", "stages", "committed", "standings")


@dataclass(frozen=True)
class Committed:
    """The tables of a folder by name, and whether code and plants are those that they were made with."""

    tables: dict[str, pd.DataFrame]
    fresh: bool
    note: str


def code_digests(modules: Sequence[str], *, root: Path = ROOT) -> dict[str, str]:
    """The sha256 of helpers' `modules` and of all that they import, by path; modules that are not there have none."""
    starts = [root / "helpers" / f"{name}.py" for name in modules]
    reached = {file for start in starts if start.is_file() for file in sources(start, root=root)}
    files = sorted(file for file in reached if file.stem not in WITHOUT_NUMBERS)
    return {str(file.relative_to(root)): sha256_file(file) for file in files}


def write_committed(
    folder: Path, tables: Mapping[str, pd.DataFrame], *, code: Mapping, plants: Mapping, again: str
) -> None:
    """Write tables, then what they came from: `code` of code_digests, the digest of every plant by name, and what to
    run to make them `again`, as in "make leaderboard"."""
    write_tables(folder, tables)
    files = [folder / f"{name}.parquet" for name in sorted(tables)]
    record = {"code": dict(code), "plants": dict(plants), "again": again, "tables": sha256_tree(files, folder)}
    write_json(folder / RECORD, record | {"names": sorted(tables)})


def read_committed(folder: Path, *, code: Mapping, plants: Mapping) -> Committed:
    """Read a folder's tables, and compare what they came from with the code as it is and the plants that are given.

    Raises ArtifactError when a file is missing or a table is not the one that was written.
    """
    record = read_json(folder / RECORD)
    tables = {name: read_table(folder / f"{name}.parquet") for name in record["names"]}
    if sha256_tree([folder / f"{name}.parquet" for name in tables], folder) != record["tables"]:
        raise ArtifactError(
            f"The tables of {folder} are not those that were written with {RECORD}: run `{record['again']}`."
        )
    before = record["code"]
    changed = sorted(name for name in before.keys() | code.keys() if before.get(name) != code.get(name))
    changed += sorted(name for name in plants if record["plants"].get(name) != plants[name])
    note = "The committed tables fit the code as it is, and the embedded plants."
    if changed:
        named = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        note = f"The committed tables are not up to date, for {named} changed or is new: run `{record['again']}`."
    return Committed(tables, not changed, note)
