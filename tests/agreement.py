"""What it means that a table of the engine equals the rows of the slow oracle."""

import numpy as np
import pandas as pd
from oracle import oracle_rank_bounds

KEYS = ("pair", "run", "sites", "component", "layer", "position", "role", "head")


def assert_equals_oracle(table: pd.DataFrame, expected: list[dict], *, precision: float = 1e-5) -> None:
    """The same lines in the same order, and every metric of the table within `precision` of the scale of the logits."""
    assert len(table) == len(expected)
    for key in KEYS:
        if key in expected[0]:
            assert [None if pd.isna(value) else value for value in table[key]] == [row[key] for row in expected], key
    tolerance = precision * np.array([max(1.0, float(row["logits"].abs().max())) for row in expected])
    for name in expected[0]["metrics"]:
        if name in table:
            error = np.abs(table[name].to_numpy() - np.array([row["metrics"][name] for row in expected]))
            worst = int((error / tolerance).argmax())
            assert error[worst] <= tolerance[worst], f"{name} {error[worst]:.2g} apart:\n{table.iloc[worst]}"
    if "rank" in table:
        for rank, row, allowed in zip(table["rank"], expected, tolerance, strict=True):
            low, high = oracle_rank_bounds(row["logits"], row["right"], allowed)
            assert low <= rank <= high
