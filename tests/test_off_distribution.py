"""Intervals and figure by hand, and sentences that hold for every outcome."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from ioi import ioi_pairs
from tiny import shared_model

from helpers import backup
from helpers import off_distribution as words
from helpers.attended import attention_shares
from helpers.figures import preview
from helpers.head_parts import head_parts
from helpers.noise import GaussianNoise
from helpers.restoration import restored_differences
from helpers.stats import recovery_intervals
from helpers.strangeness import stream_strangeness

OPTIONS = {"resamples": 200, "confidence": 0.95, "seed": 0}
CLEAN = {"IO": 0.6, "S1": 0.1, "S2": 0.1, "other": 0.2}


def attention(*, clean=None, **runs) -> pd.DataFrame:
    """A table of attention_by_run from shares to IO and S1; names of runs with _ for ", "."""
    rows = [("clean", role, share) for role, share in (clean or CLEAN).items()]
    for run, (io, s1) in runs.items():
        parts = {"IO": io, "S1": s1, "S2": 0.1, "other": 0.9 - io - s1}
        rows += [(run.replace("_", ", "), role, share) for role, share in parts.items()]
    table = pd.DataFrame(rows, columns=["run", "role", "share"])
    return table.assign(low=table["share"] - 0.02, high=table["share"] + 0.02)


def recoveries(**rows) -> pd.DataFrame:
    columns = ["recovery", "low", "high", "defined"]
    return pd.DataFrame(rows, index=columns).T.rename_axis("corruption").reset_index()


def plain(text: str) -> str:
    text = " ".join(text.split())
    assert not re.search(r"nan|NaN|<NA>|None|\binf", text) and text.endswith(".") and ".." not in text
    return text


def test_attention_is_averaged_over_heads_and_draws_within_a_pair_first():
    rows = [("a", "clean", 0, False, head, "IO", share) for head, share in ((0, 0.2), (1, 0.4))]
    rows += [("b", "clean", 0, False, 0, "IO", 0.9)]  # one row: it weighs as much as the two of a
    rows += [(pair, "GN", draw, True, 0, "IO", 0.1 * draw) for pair in "ab" for draw in (1, 3)]
    rows += [("a", "clean", 0, False, 0, "other", 0.7), ("b", "clean", 0, False, 0, "other", 0.7)]
    names = ["pair", "corruption", "draw", "restored", "head", "role", "share"]
    found = words.attention_by_run(pd.DataFrame(rows, columns=names), **OPTIONS)
    assert found["run"].tolist() == ["clean", "clean", "GN, restored"]
    assert found["role"].tolist() == ["IO", "other", "IO"]
    assert found["share"].tolist() == pytest.approx([0.6, 0.7, 0.2])
    assert found.loc[0, ["low", "high"]].tolist() == pytest.approx([0.3, 0.9])
    assert words.attention_by_run(pd.DataFrame(columns=names), **OPTIONS).empty


def test_the_figure_holds_both_tables_and_leaves_out_what_is_undefined():
    one = attention(STR=(0.1, 0.62), STR_restored=(0.58, 0.1), GN=(0.26, 0.21), GN_restored=(0.35, 0.2))
    restored = recoveries(GN=[9.0, -70.0, 80.0, False], STR=[1.04, 1.0, 1.1, True])
    table = words.restoration_figure(one, restored)
    assert table.columns.tolist() == ["corruption", "place", "run", "share", "low", "high"]
    assert table["corruption"].unique().tolist() == ["STR", "GN"]
    assert table["place"].unique().tolist() == ["IO", "S1", "S2", "other", "LD"]
    found = table.set_index(["corruption", "place", "run"])["share"]
    runs = ["clean", "corrupted", "corrupted, with clean values"]
    assert [found["STR", "IO", run] for run in runs] == [0.6, 0.1, 0.58]
    assert [found["GN", "S1", run] for run in runs] == [0.1, 0.21, 0.2]
    assert [found["STR", "LD", run] for run in runs] == [1, 0, 1.04]
    assert found.sort_index()["GN", "LD"].to_dict() == {"clean": 1, "corrupted": 0}
    assert table[table["share"] == 1.04][["low", "high"]].to_numpy().tolist() == [[1.0, 1.1]]
    assert preview(table, plumbing=False, **words.FIGURE).startswith(b"\x89PNG")
    assert words.restoration_figure(attention()[:0], restored)["place"].unique().tolist() == ["LD"]


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ({"STR": (0.1, 0.6), "GN": (0.26, 0.21)}, ["Under STR IO and S1 have changed places", "noise splits"]),
        ({"STR": (0.3, 0.3), "GN": (0.58, 0.1)}, ["have not simply changed places", "leaves the movers with IO"]),
        ({"STR": (0.1, 0.6), "GN": (0.1, 0.6)}, ["turns the movers to S1"]),
        ({"STR": (0.1, 0.6), "GN": (0.4, 0.1)}, ["weakens the movers' preference"]),
        ({"STR": (0.15, 0.5001)}, ["have changed places (they are off by 0.10 at most)."]),
        ({"clean": CLEAN | {"IO": 0.15}, "STR": (0.1, 0.1), "GN": (0.1, 0.1)}, ["no preference that a corruption"]),
    ],
)
def test_attention_is_said_as_it_is(runs, expected):
    text = plain(words.said_of_attention(attention(**runs)))
    assert all(part in text for part in expected)
    assert "clean: 0.60 to IO, 0.10 to S1" in text or "clean" in runs


def test_restoration_is_said_as_it_is():
    both = attention(STR=(0.1, 0.6), STR_restored=(0.58, 0.1), GN=(0.26, 0.21), GN_restored=(0.35, 0.2))
    text = plain(words.said_of_restoration(recoveries(GN=[0.5, 0.4, 0.6, True], STR=[1, 0.9, 1.1, True]), both, 4))
    assert "values of 4 heads" in text and "Under noise less comes back" in text
    assert "attention to IO is back under STR (0.10, 0.58 restored, 0.60 clean)" in text and "not back under GN" in text
    turned = recoveries(STR=[0.5, 0.4, 0.6, True], GN=[1, 0.9, 1.1, True])
    assert "Under noise more comes back" in plain(words.said_of_restoration(turned, both, 1))
    alike = recoveries(STR=[0.5, 0.4, 0.6, True], GN=[0.6, 0.55, 0.7, True])
    assert "The intervals overlap" in plain(words.said_of_restoration(alike, attention()[:0], 1))
    unknown = recoveries(STR=[0.5, 0.4, 0.6, True], GN=[np.nan, -1, 1, False])
    text = plain(words.said_of_restoration(unknown, both, 1))
    assert "GN: undefined" in text and "comes back:" not in text and "overlap" not in text


def strange(gap: float, *, layers: int = 3) -> pd.DataFrame:
    rows = [
        (pair, corruption, draw, layer, 1.5, nearest + 0.02 * pair)
        for pair, layer in itertools.product(range(4), range(layers))
        for corruption, draw, nearest in (
            ("clean", 0, 0.5),
            ("STR", 0, 0.6),
            ("GN", 1, 0.6 + gap),
            ("GN", 2, 0.6 + gap),
        )
    ]
    return pd.DataFrame(rows, columns=["pair", "corruption", "draw", "layer", "norm", "nearest"])


def test_strangeness_is_said_as_it_is():
    text = plain(words.said_of_strangeness(strange(1.0), **OPTIONS))
    assert "layer 0: 1.63 (STR 0.63, clean 0.53), at 1.50 times the clean length" in text
    assert "farther from clean streams than STR does in 3 of 3 layers, nearer in 0" in text
    assert "in 0 of 3 layers, nearer in 3" in plain(words.said_of_strangeness(strange(-0.2), **OPTIONS))
    assert plain(words.said_of_strangeness(strange(1.0, layers=1), **OPTIONS)).count("layer 0") == 1
    table = strange(1.0)
    assert "No noise was drawn" in plain(words.said_of_strangeness(table[table["corruption"] != "GN"], **OPTIONS))
    assert "No noise was drawn" in plain(words.said_of_strangeness(table.assign(nearest=np.nan), **OPTIONS))


def knocked(together: float, singles=(0.5, 0.3)) -> pd.DataFrame:
    rows = [(f"p{i}", f"9.{n}", 1, v, v, 2.0) for i in range(3) for n, v in enumerate(singles)]
    rows += [(f"p{i}", backup.TOGETHER, len(singles), together, sum(singles), 2.0) for i in range(3)]
    return pd.DataFrame(rows, columns=["pair", "group", "sites", "joint", "added", "denominator"])


def test_knockouts_are_said_as_they_are():
    text = plain(words.said_of_knockouts(knocked(1.6), **OPTIONS))
    assert "9.0 0.25 [0.25, 0.25]; 9.1 0.15 [0.15, 0.15]; all together 0.80" in text
    assert "2.00 [2.00, 2.00] times the sum of the single effects: more together" in text
    assert "less together than one by one" in plain(words.said_of_knockouts(knocked(0.4), **OPTIONS))
    assert "together about what" in plain(words.said_of_knockouts(knocked(0.8), **OPTIONS))
    assert "nothing that could be compared" in plain(words.said_of_knockouts(knocked(0.8, (0.5, -0.5)), **OPTIONS))
    assert "9.0 alone destroys 0.25" in plain(words.said_of_knockouts(knocked(0.5, (0.5,)), **OPTIONS))
    assert "fewer than two" in plain(words.said_of_knockouts(knocked(0.0, ()), **OPTIONS))


def test_repair_is_said_as_it_is():
    rows = [
        (backup.TOGETHER, pair, component, layer, head, intact, without, out, later)
        for pair in "abc"
        for component, layer, head, intact, without, out, later in (
            ("head_out", 1, 0, 5.0, 3.0, True, False),
            ("attn_out", 1, pd.NA, 5.0, 3.0, False, False),
            ("head_out", 2, 0, 1.0, 1.5, False, True),
            ("head_out", 2, 1, 1.0, 0.9, False, True),
            ("attn_out", 2, pd.NA, 2.0, 2.4, False, True),
        )
    ]
    names = ["group", "pair", "component", "layer", "head", "intact", "without", "knocked_out", "later"]
    table = pd.DataFrame(rows, columns=names).astype({"head": "Int64"})
    text = plain(words.said_of_repair(table, **OPTIONS))
    assert "said themselves: 0.20 [0.20, 0.20]. Of the 2 heads" in text
    assert "1 surely make up for more than 5 % of it (2.0 0.25 of what was lost), 1 say less" in text
    alone = plain(words.said_of_repair(table.assign(later=False), **OPTIONS))
    assert "Of the 0 heads in later layers 0 surely make up for more than 5 % of it, 0 say less" in alone
    assert "No head is a mover" in plain(words.said_of_repair(table.assign(knocked_out=False), **OPTIONS))


def test_parts_are_said_as_they_are():
    names = ["layer", "head", "part", "direct", "IO", "S1", "S2", "score"]
    rows = [(9, 6, "mover", 1.0, 0.6, 0.1, 0.1, 0.2), (9, 9, "mover", 2.0, 0.5, 0.1, 0.0, 0.3)]
    rows += [(7, 3, "S-inhibition", 0.0, 0, 0, 0.7, 0.05), (0, 1, "other", 0.0, 0, 0, 0, 0)]
    table = pd.DataFrame(rows, columns=names)
    text = plain(words.said_of_parts(table))
    assert "Of 4 heads: Movers: 9.9 (+2.00 logits), 9.6 (+1.00 logits). Negative movers: none by the rule." in text
    assert "S-inhibition heads: 7.3 (score 0.05)" in text and "To IO the movers pay 55 %" in text
    assert plain(words.said_of_parts(table[3:])).count("none by the rule") == 3


@pytest.mark.parametrize(
    ("movers", "restored"), [([(2, 0), (2, 1)], [(1, 0)]), ([(1, 1)], []), ([], [(0, 0)]), ([], [])]
)
def test_every_sentence_and_the_figure_hold_in_a_random_model(movers, restored):
    model, pairs, noises = shared_model("gpt2", 0), ioi_pairs(3), [GaussianNoise(0.7, 5, ("S2",))]
    shares = attention_shares(model, pairs, movers, noises=noises, restoring=restored)
    by_run = words.attention_by_run(shares, **OPTIONS)
    differences = restored_differences(model, pairs, restored, noises=noises)
    found = recovery_intervals(differences, by=["corruption"], item="pair", **OPTIONS)
    plain(words.said_of_attention(by_run))
    assert ("No head is an S-inhibition" in plain(words.said_of_restoration(found, by_run, len(restored)))) != bool(
        restored
    )
    plain(words.said_of_strangeness(stream_strangeness(model, pairs, role="S2", noises=noises), **OPTIONS))
    plain(words.said_of_knockouts(backup.knockouts(model, pairs, movers), **OPTIONS))
    plain(words.said_of_repair(backup.self_repair(model, pairs, movers), **OPTIONS))
    plain(words.said_of_parts(head_parts(model, pairs)))
    table = words.restoration_figure(by_run, found)
    assert (table["place"] == "LD").sum() == 4 + found["defined"].sum() and table["share"].notna().all()
