"""Readings: every sentence in each of its branches, on made tables, and its numbers are the tables'."""

import re

import pandas as pd
import pytest

from helpers import readings
from helpers.localisation import INDICES


def said(text: str) -> str:
    return " ".join(text.split())


def intervals_of(*rows, columns=()) -> pd.DataFrame:
    """Rows end in recovery, low, high."""
    return pd.DataFrame(rows, columns=[*columns, "recovery", "low", "high"]).assign(defined=True)


def cells_of(values: dict[tuple, float]) -> pd.DataFrame:
    """Cells by direction, kind, component, role and layer."""
    names = ["direction", "kind", "component", "role", "layer"]
    return pd.DataFrame([(*place, value) for place, value in values.items()], columns=[*names, "recovery"])


def site_cells(stream=(1.0, 1.02), mlp=(0.11, 0.7), noising=(0.11, 0.7)) -> pd.DataFrame:
    values = {}
    for layer in (0, 1):
        for kind, less in (("definitional", 0.0), ("associative", 0.05)):
            values["denoising", kind, "resid_pre", "last", layer] = stream[layer]
            values["noising", kind, "resid_pre", "last", layer] = -stream[layer]
            values["denoising", kind, "mlp_out", "subject_last", layer] = mlp[layer] - less
            values["noising", kind, "mlp_out", "subject_last", layer] = mlp[layer] - less if less else noising[layer]
            for direction in ("denoising", "noising"):
                values[direction, kind, "attn_out", "last", layer] = 0.01 * layer
    return cells_of(values)


def test_sites_name_the_best_of_every_kind_and_whether_any_stands_out():
    text = said(readings.sites(site_cells()))
    assert "mlp_out 1 at subject last for associative items (0.65)" in text
    assert "mlp_out 1 at subject last for definitional items (0.70)" in text
    assert "Over 4 sites, the residual stream recovers between 1.00 and 1.02: *uniform recovery everywhere*" in text
    assert "Over 4 sites, MLP output recovers between 0.06 and 0.70 (median 0.38): sites differ" in text
    assert "Over 4 sites, attention output recovers between 0.00 and 0.01: no site does anything" in text
    # The residual stream is never the site that recovers most, and noising is not looked at.
    assert "resid_pre" not in text and "0.90" not in said(readings.sites(site_cells(noising=(0.9, 0.9))))
    assert "the residual stream recovers between 0.20 and 1.02 (median" in said(
        readings.sites(site_cells(stream=(0.2, 1.02)))
    )


def test_directions_that_agree_and_that_do_not():
    agree = said(readings.directions(site_cells(noising=(0.11, 0.66))))
    assert "correlate at 1.00 (Spearman)" in agree and "what is sufficient is also necessary" in agree
    assert "for definitional items at mlp_out 1, subject last (0.70 recovered, 0.66 destroyed)" in agree
    apart = said(readings.directions(site_cells(noising=(0.11, 0.2))))
    assert "sufficient and necessary are two questions" in apart and "(0.70 recovered, 0.20 destroyed)" in apart
    # The residual stream, which is by construction, is left out of both.
    assert said(readings.directions(site_cells(stream=(9.0, -9.0), noising=(0.11, 0.66)))) == agree


def test_networks_by_their_peaks_and_by_what_nulls_reach():
    place = ("network", "component", "kind", "layer")
    curves = intervals_of(
        ("fine-tuned", "mlp_out", "definitional", 0, 0.25, 0.2, 0.3),
        ("fine-tuned", "mlp_out", "definitional", 1, 0.75, 0.7, 0.8),
        ("fine-tuned", "attn_out", "definitional", 0, 0.125, 0.0, 0.2),
        ("base", "mlp_out", "definitional", 0, 0.0625, 0.0, 0.1),
        ("base", "attn_out", "definitional", 0, -0.5, -0.6, -0.4),
        ("untrained", "attn_out", "definitional", 0, 0.01, 0.0, 0.02),
        columns=place,
    )
    own = intervals_of(
        ("fine-tuned", "associative", 0.25, 0.2, 0.3),
        ("base", "associative", 9.0, -9.0, 99.0),
        ("shuffled donor", "associative", 0.125, 0.1, 0.15),
        ("shuffled donor", "definitional", 0.5, 0.3, 0.7),
        columns=("network", "kind"),
    )
    text = said(readings.networks(curves, own.assign(defined=[True, False, True, True])))
    assert "mlp_out, definitional: layer 1 with 0.75 [0.70, 0.80]" in text
    assert "attn_out, definitional: layer 0 with 0.12 [0.00, 0.20]" in text
    assert "base 0.06 (mlp_out 0, definitional), untrained 0.01 (attn_out 0, definitional)" in text
    assert "fine-tuned, associative: 0.25 [0.20, 0.30], base, associative: undefined" in text and "9.00" not in text
    assert "a share of up to 0.70 is no evidence" in text


def metric_cells(answer=(0.3, 0.8)) -> pd.DataFrame:
    rows = []
    for name, values in (("logit_difference", (0.25, 0.75)), ("kl_divergence", (0.2, 0.5)), ("answer", answer)):
        rows += [(name, "mlp_out", layer, "associative", value) for layer, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["metric", "component", "layer", "kind", "recovery"])


def test_metrics_that_name_one_site_and_that_do_not():
    text = said(readings.metrics(metric_cells()))
    assert text.startswith("All metrics name the same top site") and "logit difference: mlp_out 1" in text
    assert (
        "kl divergence (rank correlation 1.00; largest gap 0.25, mlp_out 1 of associative items: 0.50 against 0.75)"
        in text
    )
    text = said(readings.metrics(metric_cells(answer=(0.95, 0.1))))
    assert text.startswith("The top site depends on the metric") and "answer: mlp_out 0" in text
    assert (
        "answer (rank correlation -1.00; largest gap 0.70, mlp_out 0 of associative items: 0.95 against 0.25)" in text
    )


def head_strength(*noising) -> pd.DataFrame:
    rows = [("denoising", 0, 1, 0.5, 0.4, 0.6), ("denoising", 1, 0, 0.1, 0.0, 0.2)]
    return intervals_of(*rows, *noising, columns=("direction", "layer", "head"))


STRONG = ("noising", 1, 0, 0.75, 0.7, 0.8)


def knocked_out(*rows) -> pd.DataFrame:
    return intervals_of(*rows, columns=("sites", "group"))


def test_heads_that_work_against_the_answer_and_none_that_does():
    together = knocked_out((2, "top 2", 1.0, 0.95, 1.05))
    strength = head_strength(
        STRONG,
        ("noising", 0, 0, -0.2, -0.3, -0.1),
        ("noising", 0, 1, -0.4, -0.5, -0.3),
        ("noising", 1, 1, -0.3, -0.9, 0.1),
    )
    text = said(readings.heads(strength, together))
    assert "0.1 by denoising (0.50 [0.40, 0.60]) and 1.0 by noising (0.75 [0.70, 0.80])" in text
    assert "2 of 4 heads work against the answer" in text and "most of all 0.1 (-0.40 [-0.50, -0.30])" in text
    text = said(readings.heads(head_strength(STRONG, ("noising", 0, 0, -0.3, -0.7, 0.1)), together))
    assert "No head works against the answer" in text and "-0.30" not in text
    # Less than a hundredth is nothing, however sure.
    text = said(readings.heads(head_strength(STRONG, ("noising", 0, 0, -0.005, -0.006, -0.004)), together))
    assert "No head works against the answer" in text
    # By denoising a negative head is another thing, and is not counted.
    odd = head_strength(STRONG).assign(high=lambda t: t["high"].where(t["layer"] > 0, -1))
    assert "No head works against the answer" in said(readings.heads(odd, together))


LESSONS = {
    "more": "More is lost together than one by one: when one is lost alone, another stands in for it",
    "less": "Less is lost together than one by one: each alone already breaks what they do together",
    "mixed": "Some groups lose more together than one by one, and some less",
    "adds": "They add up within a tenth: there is no sign of self-repair among them",
    "open": "It is not decided whether single knock-outs are repaired",
}


@pytest.mark.parametrize(
    "intervals, lesson",
    [
        ([(1.5, 1.2, 1.8)], "more"),
        ([(1.0, 0.95, 1.05), (1.5, 1.2, 1.8)], "more"),  # one group that is clear is enough
        ([(1.15, 1.05, 1.25)], "open"),
        ([(0.5, 0.4, 0.6)], "less"),
        ([(0.5, 0.4, 0.6), (1.4, 0.6, 2.2)], "less"),
        ([(0.85, 0.8, 0.95)], "open"),
        ([(0.5, 0.4, 0.6), (1.5, 1.2, 1.8)], "mixed"),
        ([(1.0, 0.95, 1.05)], "adds"),
        ([(1.0, 0.95, 1.05), (1.4, 0.6, 2.2)], "open"),  # a wide interval is no sign that heads add up
    ],
)
def test_heads_knocked_out_together(intervals, lesson):
    knocked = knocked_out(*((n + 2, f"top {n + 2}", *interval) for n, interval in enumerate(intervals)))
    text = said(readings.heads(head_strength(STRONG), knocked))
    for name, (value, low, high) in zip(knocked["group"], intervals, strict=True):
        assert f"{name}: {value:.2f} [{low:.2f}, {high:.2f}]" in text
    assert [name for name, words in LESSONS.items() if words in text] == [lesson]


def test_a_ratio_that_is_not_defined_decides_nothing_about_heads():
    knocked = knocked_out((2, "top 2", 5.0, 2.0, 9.0)).assign(defined=False)
    assert LESSONS["open"] in said(readings.heads(head_strength(STRONG), knocked))


def changes(*stream) -> pd.DataFrame:
    rows = [
        ("denoising", "attn_out", 0, 0.1, 0.0, 0.2),
        ("denoising", "mlp_out", 1, 0.4, 0.3, 0.5),
        ("noising", "attn_out", 2, 0.6, 0.5, 0.7),
        ("noising", "mlp_out", 1, 0.2, 0.1, 0.3),
        ("noising", "resid_post", 0, 7.0, 7.0, 7.0),
        ("denoising", "resid_pre", 0, 8.0, 8.0, 8.0),
        ("denoising", "resid_post", 2, 0.9, 0.8, 1.0),
        ("denoising", "resid_post", 0, 0.25, 0.2, 0.3),
    ]
    return intervals_of(*rows, columns=("direction", "component", "layer"))


def test_what_fine_tuning_changed():
    text = said(readings.change(changes()))
    assert "tuned into base recovers most at mlp_out 1 (0.40 [0.30, 0.50])" in text
    assert "base into tuned destroys most at attn_out 2 (0.60 [0.50, 0.70])" in text
    assert "recovers 0.25 [0.20, 0.30] after block 0 and 0.90 [0.80, 1.00] after block 2" in text


def test_streams_and_where_runs_begin_to_differ():
    rows = []
    for pair, more in (("p", 0.0), ("q", 2.0)):
        for component, layer, value in (("embedding", 0, 1.0), ("bias", 0, -1.0), ("attn_out", 0, 2.0 + more),
                                        ("mlp_out", 0, 3.0), ("mlp_out", 1, 4.0), ("head_out", 0, 99.0)):  # fmt: skip
            rows.append((pair, component, layer, value))
    parts = pd.DataFrame(rows, columns=["pair", "component", "layer", "contribution"]).assign(seed=0)
    distances = pd.DataFrame(
        [
            ("last", 0, 0.0),
            ("last", 1, 0.05),
            ("last", 2, 0.3),
            ("last", 3, 0.5),
            ("last", 2, 0.1),
            ("subject_last", 0, 1.0),
        ],
        columns=["role", "layer", "relative"],
    )
    text = said(readings.streams(parts, distances))
    # 9 and 11 of all parts but heads; the MLP of block 1 writes 4 in both pairs, attention 2 and 4.
    assert "Of a clean logit difference of 10.0, mlp_out 1 writes 4.0 directly (40 %)" in text
    assert "differ first in what enters block 2; at the end they are 0.50 of their own length apart" in text
    alike = distances.assign(relative=distances["relative"] / 10)
    assert "runs differ nowhere by a tenth of their length; at the end they are 0.05" in said(
        readings.streams(parts, alike)
    )
    late = distances.assign(relative=distances["relative"].where(distances["layer"] == 3, 0.0))
    assert "runs differ in what leaves the last block alone; at the end" in said(readings.streams(parts, late))


def ratios(*rows) -> pd.DataFrame:
    return intervals_of(*rows, columns=("group", "direction"))


NOT_ADDING = "So outputs of this kind do not add ({}), and shares of single layers are not parts of one whole"
IN_SERIES = "Attention and MLP outputs stand in series"


def test_layers_that_add_and_layers_that_do_not():
    both = ratios(("attention", "denoising", 1.02, 0.95, 1.08), ("feed-forward", "denoising", 0.96, 0.92, 1.0))
    text = said(readings.adding(both))
    assert "attention, denoising: 1.02 [0.95, 1.08]; feed-forward, denoising: 0.96 [0.92, 1.00]" in text
    assert text.endswith("So they add, within a tenth.")
    for low, high in ((0.5, 0.7), (1.2, 1.4)):
        off = ratios(
            ("attention", "denoising", 1.0, 0.95, 1.05), ("feed-forward", "denoising", (low + high) / 2, low, high)
        )
        text = said(readings.adding(off))
        assert NOT_ADDING.format("feed-forward") in text and "within a tenth" not in text
    # One kind may be more than the sum by one direction and less by the other.
    off = ratios(("feed-forward", "noising", 2.0, 1.5, 2.5), ("feed-forward", "denoising", 0.5, 0.4, 0.6),
                 ("attention", "denoising", 0.5, 0.4, 0.6), ("both", "noising", 1.0, 0.95, 1.05))  # fmt: skip
    assert NOT_ADDING.format("attention and feed-forward") in said(readings.adding(off))


@pytest.mark.parametrize(
    "group, direction, interval, series",
    [
        ("both", "denoising", (0.6, 0.5, 0.8), True),
        ("both", "denoising", (0.8, 0.7, 0.95), False),  # not clear of 1 by a tenth
        ("both", "denoising", (1.5, 1.2, 1.8), False),
        ("both", "noising", (0.6, 0.5, 0.8), False),
        ("attention", "denoising", (0.6, 0.5, 0.8), False),
    ],
)
def test_attention_and_mlps_in_series_are_counted_twice(group, direction, interval, series):
    others = [("feed-forward", "denoising", 1.0, 0.95, 1.05), ("both", "noising", 1.0, 0.95, 1.05)]
    text = said(readings.adding(ratios((group, direction, *interval), *others[: 2 - (direction == "noising")])))
    assert (IN_SERIES in text) == series
    assert not series or NOT_ADDING.format("both") in text and "redundant" not in text


def test_a_wide_interval_is_no_sign_that_layers_add():
    text = said(readings.adding(ratios(("attention", "denoising", 1.3, 0.5, 2.1))))
    assert text.endswith("Whether they add is not decided.")


def test_a_ratio_that_is_not_defined_is_no_sign_that_layers_do_not_add():
    undefined = ratios(("attention", "denoising", 5.0, 2.0, 9.0)).assign(defined=False)
    text = said(readings.adding(undefined))
    assert "undefined" in text and "do not add" not in text


def kinds_table(*arms: tuple, index="Gini index", items=(30, 12)) -> pd.DataFrame:
    """Rows are difference, low, high, null_low, null_high; of one arm alone it is the real one."""
    names = ("made-up", "real")[-len(arms) :]
    rows = [(index, name, *values, n) for name, values, n in zip(names, arms, items, strict=False)]
    parts = ["difference", "low", "high", "null_low", "null_high"]
    table = pd.DataFrame(rows, columns=["index", "arm", *parts, "items"])
    return table.assign(index=pd.Categorical(table["index"], list(INDICES.values()), ordered=True))


NARROW, WIDE = (-0.05, 0.1), (-0.6, 0.6)
CLEAR, BELOW = (0.3, 0.2, 0.4, *NARROW), (-0.3, -0.4, -0.16, *NARROW)  # a tenth beyond the null
AT_NULL, UNCLEAR = (0.3, 0.19, 0.4, *NARROW), (0.3, -0.1, 0.7, *NARROW)
IN_NULL, SMALL, NOT_SMALL = (0.3, 0.2, 0.4, *WIDE), (0.05, 0.02, 0.08, *WIDE), (0.05, 0.02, 0.1, *WIDE)


def lessons(text: str) -> tuple[str, str, str]:
    """Which indices the kinds differ in, for which a tenth is ruled out, and for how many it is not decided."""
    found = []
    for pattern in (
        r"the kinds differ in ([^;.]+)",
        r"is ruled out [^;]* for ([^;.]+)",
        r"for (\d+ of \d+) indices it is not",
    ):
        match = re.search(pattern, text.partition("Beyond every null")[2])
        found.append(match.group(1) if match else "")
    return tuple(found)


@pytest.mark.parametrize(
    "made_up, real, expected",
    [
        (CLEAR, CLEAR, ("Gini index", "", "")),
        (BELOW, BELOW, ("Gini index", "", "")),
        (CLEAR, BELOW, ("none", "", "1 of 1")),  # of the other sign
        (CLEAR, AT_NULL, ("none", "", "1 of 1")),  # beyond the null by less than a tenth
        (BELOW, (-0.3, -0.4, -0.14, *NARROW), ("none", "", "1 of 1")),
        (CLEAR, IN_NULL, ("none", "", "1 of 1")),  # an untrained network gives as much
        (CLEAR, UNCLEAR, ("none", "", "1 of 1")),
        (UNCLEAR, CLEAR, ("none", "", "1 of 1")),
        (CLEAR, SMALL, ("none", "", "1 of 1")),
        (SMALL, SMALL, ("none", "Gini index", "")),  # whatever the null
        (SMALL, NOT_SMALL, ("none", "", "1 of 1")),
        (UNCLEAR, UNCLEAR, ("none", "", "1 of 1")),
    ],
)
def test_a_contrast_differs_is_ruled_out_or_is_not_decided(made_up, real, expected):
    text = said(readings.contrast(kinds_table(made_up, real)))
    assert lessons(text) == expected
    assert "in both arms the kinds differ in" in text and ("(the smaller arm has 12 items)" in text) == bool(
        expected[2]
    )


def test_a_contrast_is_told_with_its_interval_and_null_by_arm():
    text = said(readings.contrast(kinds_table(CLEAR, (0.25, 0.1, 0.35, -0.05, -0.02))))
    assert "Gini index: made-up +0.30 [+0.20, +0.40], null -0.05 to +0.10; real +0.25 [+0.10, +0.35], null" in text
    assert "participation ratio" not in text


def test_indices_are_told_apart():
    tables = [
        kinds_table(CLEAR, CLEAR),
        kinds_table(BELOW, BELOW, index="participation ratio"),
        kinds_table(SMALL, SMALL, index="share in the top site"),
        kinds_table(UNCLEAR, SMALL, index="layer centre of mass"),
    ]
    found = lessons(said(readings.contrast(pd.concat(tables))))
    assert found == ("Gini index, participation ratio", "share in the top site", "1 of 4")


@pytest.mark.parametrize("real, expected", [(CLEAR, ("Gini index", "", "")), (SMALL, ("none", "Gini index", ""))])
def test_of_one_arm_alone_a_contrast_says_that_subjects_differ_too(real, expected):
    text = said(readings.contrast(kinds_table(real)))
    assert lessons(text) == expected
    assert "in the one arm of this run, where subjects differ too," in text and "both arms" not in text


def test_confounds_are_shares_and_lengths_by_kind():
    rows = [
        ("definitional", "JME", "juvenile", 2, 3),  # the letter counts, whatever its case
        ("definitional", "TLE", "temporal", 3, 4),
        ("definitional", "ABE", "benign", 4, 4),
        ("definitional", "XY", "xylose", 2, 2),
        ("associative", "valproate", "seizures", 5, 1),
        ("associative", "stiripentol", "Syndrome", 6, 2),
        ("associative", "fenfluramine", "Dravet", 7, 2),
    ]
    items = pd.DataFrame(rows, columns=["kind", "subject", "answer", "subject_tokens", "answer_tokens"])
    text = said(readings.confounds(items, arms=2))
    assert "the first letter of the subject begins the answer in 75 % of definitional and 33 % of associative" in text
    assert "subjects have 2.8 and 6.0 tokens, answers 3.2 and 1.7" in text
    assert text.endswith("Only the made-up arm holds subject and answer fixed.")
    assert said(readings.confounds(items, arms=1)).endswith("No arm of this run holds them fixed.")


def test_what_is_known_stands_beside_chance_and_the_number_of_donors():
    shares = pd.DataFrame(
        [("base", "associative", 0.5, 0.375, 0.625), ("fine-tuned", "definitional", 0.96, 0.8, 0.99)],
        columns=["network", "kind", "share", "low", "high"],
    )
    text = said(readings.known(shares, pd.Series(["a", "b", "a", "c", "a"])))
    assert "base, associative: 50 % [38 %, 62 %]; fine-tuned, definitional: 96 % [80 %, 99 %]" in text
    assert "5 pairs share 3 donors" in text and "half is chance" in text


def test_claims_are_counted_and_named_by_verdict_and_place_with_one_scope():
    verdicts = ["supported", "undecided", "refuted", "supported", "not tested", "by construction"]
    table = pd.DataFrame({"claim": list("ABCADA"), "measured at": list("uvwxyz"), "verdict": verdicts})
    text = said(readings.claims(table, "tiny, embedded"))
    counted = "2 supported, 1 refuted, 1 undecided, 1 by construction, 1 not tested"
    assert text == (
        f"Of 6 readings of the study's statements: {counted}. Supported: A (u); A (x). Refuted: C (w). "
        "Scope: tiny, embedded."
    )
    none = said(readings.claims(table.assign(verdict="not tested"), "tiny"))
    assert none == "Of 6 readings of the study's statements: 6 not tested. Scope: tiny."
