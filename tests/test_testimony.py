"""Testimony: every source of evidence is heard, in the order of the keys' functions, and none is heard twice."""

import pandas as pd
import pytest

from helpers import testimony as module
from helpers.testimony import gather_evidence
from helpers.verdicts import EVIDENCE

STATISTICS = {"resamples": 10, "confidence": 0.95, "seed": 0}
SOURCES = ("head", "floor", "method", "missed", "attention", "restoration", "window")


def row(key: str) -> pd.DataFrame:
    return pd.DataFrame([(key, "IOI", 1.0, 0.0, 2.0, "")], columns=EVIDENCE)


@pytest.fixture
def heard(monkeypatch):
    """Each source says its own name; what it was given is kept."""
    given = {}
    for source in SOURCES:

        def said(*tables, source=source, **options):
            given[source] = (tables, options)
            return row(source) if source != "floor" else row(source).head(0)

        monkeypatch.setattr(module, f"{source}_evidence", said)
    monkeypatch.setattr(module, "risers", lambda table, **options: ("risers of", table))
    return given


def test_every_source_is_heard_with_its_own_table(heard):
    parts = pd.DataFrame({"layer": [0, 1], "head": [0, 0], "part": ["S-inhibition", "mover"]})
    mechanism = {"parts": parts, "shares": "shares", "restored": "restored", "repair": "repair"}
    published, roles = {"IOI": "S2"}, {"facts": "subject_last"}
    table = gather_evidence(
        "scores", "methods", "floors", mechanism, "layers", published=published, roles=roles, **STATISTICS
    )
    assert table["key"].tolist() == [source for source in SOURCES if source != "floor"]
    assert heard["restoration"][0] == ("restored", 1) and heard["missed"][0][2] == ("risers of", "repair")
    assert heard["window"] == (("layers",), {"roles": roles, "focus_window": 5, **STATISTICS})
    assert heard["floor"] == (("scores", "floors"), {"published": published})
    assert heard["method"][0] == ("methods",)
