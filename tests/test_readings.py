"""Readings: every sentence in each of its branches, on made tables, and its numbers are the tables'."""

import pandas as pd
import pytest

from helpers import readings


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


@pytest.mark.parametrize(
    "interval, lesson",
    [
        ((1.5, 1.2, 1.8), "others repair what is knocked out alone"),
        ((1.15, 1.05, 1.25), None),
        ((0.5, 0.4, 0.6), "the heads repeat one another"),
        ((0.85, 0.8, 0.95), None),
        ((1.0, 0.95, 1.05), "no sign of self-repair"),
    ],
)
def test_heads_knocked_out_together(interval, lesson):
    lessons = {"others repair what is knocked out alone", "the heads repeat one another"}
    text = said(readings.heads(head_strength(STRONG), knocked_out((2, "top 2", *interval))))
    value, low, high = interval
    assert f"top 2: {value:.2f} [{low:.2f}, {high:.2f}]" in text
    assert {found for found in lessons if found in text} == {lesson} & lessons
    assert lesson is None or lesson in text


def test_a_wide_interval_is_no_sign_that_heads_add_up():
    text = said(readings.heads(head_strength(STRONG), knocked_out((2, "top 2", 1.4, 0.6, 2.2))))
    assert "They add up" not in text


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


def test_layers_that_add_and_layers_that_do_not():
    both = ratios(("attention", "denoising", 1.02, 0.95, 1.08), ("feed-forward", "denoising", 0.96, 0.92, 1.0))
    text = said(readings.adding(both))
    assert "attention layers, denoising: 1.02 [0.95, 1.08]; feed-forward layers, denoising: 0.96 [0.92, 1.00]" in text
    assert "So they add, within a tenth" in text
    for low, high in ((0.5, 0.7), (1.2, 1.4)):
        off = ratios(
            ("attention", "denoising", 1.0, 0.95, 1.05), ("feed-forward", "denoising", (low + high) / 2, low, high)
        )
        text = said(readings.adding(off))
        assert "So for feed-forward layers they do not add" in text and "within a tenth" not in text
    off = ratios(("feed-forward", "noising", 2.0, 1.5, 2.5), ("attention", "noising", 0.5, 0.4, 0.6),
                 ("attention", "denoising", 0.5, 0.4, 0.6))  # fmt: skip
    assert "So for attention and feed-forward layers they do not add" in said(readings.adding(off))


def test_a_wide_interval_is_no_sign_that_layers_add():
    assert "So they add" not in said(readings.adding(ratios(("attention", "denoising", 1.3, 0.5, 2.1))))


def test_a_ratio_that_is_not_defined_is_no_sign_that_layers_do_not_add():
    undefined = ratios(("attention", "denoising", 5.0, 2.0, 9.0)).assign(defined=False)
    text = said(readings.adding(undefined))
    assert "undefined" in text and "do not add" not in text


def kinds_table(made_up: tuple, real: tuple, *, index="Gini index") -> pd.DataFrame:
    rows = [(index, arm, *values) for arm, values in (("made-up", made_up), ("real", real))]
    table = pd.DataFrame(rows, columns=["index", "arm", "difference", "low", "high"])
    names = ["participation ratio", "Gini index"]
    return table.assign(index=pd.Categorical(table["index"], names, ordered=True))


CLEAR, OTHER_SIGN, UNCLEAR, SMALL = (0.3, 0.2, 0.4), (-0.3, -0.4, -0.2), (0.3, -0.1, 0.7), (0.05, 0.02, 0.08)


def test_a_contrast_survives_where_it_is_clear_large_and_of_one_sign_in_both_arms():
    text = said(readings.contrast(kinds_table(CLEAR, (0.25, 0.1, 0.35))))
    assert "Gini index: made-up +0.30 [+0.20, +0.40]; real +0.25 [+0.10, +0.35]" in text
    assert "In both arms, and by a tenth or more, the kinds differ in Gini index" in text
    assert "participation ratio" not in text
    both = pd.concat([kinds_table(CLEAR, CLEAR), kinds_table(OTHER_SIGN, OTHER_SIGN, index="participation ratio")])
    text = said(readings.contrast(both))
    assert "differ in participation ratio, Gini index" in text


NOT_BOTH = [(CLEAR, OTHER_SIGN), (CLEAR, UNCLEAR), (UNCLEAR, CLEAR), (UNCLEAR, UNCLEAR), (CLEAR, SMALL), (SMALL, SMALL)]


@pytest.mark.parametrize("made_up, real", NOT_BOTH)
def test_a_contrast_does_not_survive_otherwise(made_up, real):
    text = said(readings.contrast(kinds_table(made_up, real)))
    assert "does not survive" in text and "the kinds differ in" not in text


def test_small_differences_that_are_clear_in_both_arms_are_named_as_small():
    small = "Smaller differences of one sign are clear in both arms: Gini index"
    for made_up, real in NOT_BOTH:
        said_so = small in said(readings.contrast(kinds_table(made_up, real)))
        assert said_so == ((made_up, real) in [(CLEAR, SMALL), (SMALL, SMALL)])
    assert small not in said(readings.contrast(kinds_table(CLEAR, CLEAR)))


def test_of_one_arm_alone_no_contrast_survives():
    text = said(readings.contrast(kinds_table(CLEAR, CLEAR).iloc[1:]))
    assert "the kinds differ in" not in text and "this run has one arm alone" in text


def test_claims_are_counted_and_named_by_verdict():
    verdicts = ["supported", "undecided", "refuted", "supported", "not tested"]
    table = pd.DataFrame({"claim": list("ABCDE"), "verdict": verdicts, "scope": "tiny, embedded"})
    text = said(readings.claims(table))
    assert text.startswith("Of 5 statements of the study: 2 supported, 1 refuted, 1 undecided, 1 not tested.")
    assert "Supported: A; D." in text and "Refuted: C." in text and text.endswith("Scope: tiny, embedded.")
    none = said(readings.claims(table.assign(verdict="not tested")))
    assert none == "Of 5 statements of the study: 5 not tested. Scope: tiny, embedded."
