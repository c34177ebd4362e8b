"""Circuit scores: what every method says of the compiled circuit, where storage and mediation are two places.

In the circuit of `helpers.compiled` one MLP stores the facts, and one attention carries the answer to where it is said.
A method that is right for its question scores either or both, and nothing else: no training stands between what it
says and what is true.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from helpers.compiled import Compiled
from helpers.methods import Method, apply, place_scores

FIRST = {(True, True): "both", (True, False): "stored", (False, True): "moved", "elsewhere": "elsewhere"}
ALIKE = 1e-3  # of the highest score: the methods estimate, and the circuit's answers are whole and half numbers


def circuit_scores(methods: Sequence[Method], case: Compiled) -> pd.DataFrame:
    """A line per method: method, question, informed, stored, moved, elsewhere, first.

    A block scores what the better of its places does, as in helpers.pointing: `stored` is the block whose MLP stores,
    `moved` the one whose attention moves, `elsewhere` the best other one. `first` says which have the highest score.
    """
    rows = []
    for method in methods:
        scores = place_scores(apply(method, case.models, case.pairs)).fillna({"score": 0.0})
        blocks = scores.groupby("layer")["score"].max()
        stored, moved, elsewhere = blocks[case.lookup], blocks[case.move], blocks.drop([case.lookup, case.move]).max()
        least = max(stored, moved, elsewhere) - ALIKE * blocks.abs().max()
        first = FIRST["elsewhere" if elsewhere >= least else (stored >= least, moved >= least)]
        rows.append((method.name, method.question, method.informed, stored, moved, elsewhere, first))
    columns = ["method", "question", "informed", "stored", "moved", "elsewhere", "first"]
    return pd.DataFrame(rows, columns=columns)


def reading(table: pd.DataFrame) -> str:
    """How many methods put what first, and the names of those that look elsewhere."""
    counts = table["first"].value_counts()
    astray = table.loc[table["first"] == "elsewhere", "method"]
    text = (
        f"Of {len(table)} methods {counts.get('stored', 0)} put the block that stores the facts first, "
        f"{counts.get('moved', 0)} the one that only moves the answer, and {counts.get('both', 0)} both alike."
    )
    if len(astray):
        text += (
            f" {len(astray)} score another block as high or higher: {'; '.join(astray)}. (A window spans most of so "
            "small a model.)"
        )
    return text
