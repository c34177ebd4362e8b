"""Mining: facts from made-up abstracts by hand, what is dropped and why, and precision on hand-checked sentences."""

import math
import os
from pathlib import Path

import pandas as pd
import pytest
from toy import ROOT

from helpers.config import Paths
from helpers.mining import KEPT, REASONS, mine, outcome_table, precision_table, read_labels, relation_table

PATHS = Paths("mini", ROOT)


def corpus(*abstracts):
    """Records 10, 11, … with these abstracts."""
    return pd.DataFrame({"pmid": [str(10 + n) for n in range(len(abstracts))], "abstract": abstracts})


def facts(*abstracts):
    return [(f.relation, f.subject, f.answer, f.evidence.pattern) for f in mine(corpus(*abstracts)).facts]


def outcomes(*abstracts):
    return [statement.outcome for statement in mine(corpus(*abstracts)).statements]


@pytest.mark.parametrize(
    "sentence, expected",
    [
        ("Status epilepticus (SE) lasts.", ("definition", "SE", "status epilepticus", "abbreviation")),
        ("Remission was defined as lasting freedom from fits.", None),
        ("Drowsiness was defined as late sleep onset.", ("definition", "drowsiness", "late sleep onset", "defined as")),
        ("Obesity is associated with poor sleep.", ("association", "obesity", "poor sleep", "associated with")),
        (
            "Obesity has been shown to be strongly linked to poor sleep in adults.",
            ("association", "obesity", "poor sleep", "linked to"),
        ),
        ("Obesity correlated strongly with poor sleep.", ("association", "obesity", "poor sleep", "correlated with")),
        (
            "Obesity was an independent risk factor for stroke (p < 0.01).",
            ("association", "obesity", "stroke", "risk factor for"),
        ),
        ("Obesity was a good prognostic factor for stroke.", None),
        ("Obesity was a significant prognostic factor for stroke patients with fever.", None),
        ("Obesity predicted poor sleep.", ("association", "obesity", "poor sleep", "predicts")),
        ("Obesity increases the risk of stroke.", ("association", "obesity", "stroke", "increases the risk of")),
        (
            "We found a clear association between obesity and poor sleep.",
            ("association", "obesity", "poor sleep", "association between"),
        ),
        ("Blindness is mainly caused by trachoma.", ("cause", "blindness", "trachoma", "caused by")),
        ("Some feared loss of vision due to trachoma.", None),
        ("Mortality due to stroke was not raised.", None),
        ("Mortality was due to stroke.", ("cause", "mortality", "stroke", "caused by")),
        ("Blindness results from trachoma.", ("cause", "blindness", "trachoma", "results from")),
        ("We investigated an association between obesity and poor sleep.", None),
        ("We found the association between obesity and poor sleep was not significant.", None),
    ],
)
def test_every_pattern_by_hand(sentence, expected):
    assert facts(f"RESULTS: {sentence} All fell.") == ([expected] if expected else [])


def test_an_association_of_one_thing_alone_has_no_answer():
    (statement,) = mine(corpus("Our pain charts showed a link between obesity, age.")).statements
    assert (statement.answer, statement.outcome) == (None, "answer")


def test_a_fact_says_where_it_stands():
    records = corpus("AIMS: To ask. RESULTS: We saw that obesity is associated with poor sleep.")
    (fact,) = mine(records).facts
    evidence, abstract = fact.evidence, records["abstract"][0]
    assert abstract[slice(*evidence.subject_span)] == "obesity" == fact.subject
    assert abstract[slice(*evidence.answer_span)] == "poor sleep" == fact.answer
    assert evidence.sentence == "We saw that obesity is associated with poor sleep."
    assert (evidence.pmid, fact.kind, fact.source) == ("10", "associative", "PMID 10")
    assert fact.fact_id == f"p10-a{abstract.index('obesity')}-{abstract.index('poor')}"


def test_a_fact_keeps_its_id_when_the_corpus_grows():
    one, two = "Obesity is associated with poor sleep.", "Atopic eczema (AE) itches."
    few, more = mine(corpus(one)), mine(corpus(one, two))
    assert [f.fact_id for f in few.facts] == [f.fact_id for f in more.facts][:1] and len(more.facts) == 2


@pytest.mark.parametrize(
    "abstract, outcome",
    [
        ("No trial showed that obesity is associated with poor sleep.", "unsure"),
        ("Is obesity associated with poor sleep? Obesity is associated with it.", "answer"),
        ("It is associated with poor sleep.", "subject"),
        ("Low iron stores were associated with poor sleep.", "plural"),
        ("Poor sleep is associated with sleep apnea.", "leak"),
        ("Treatment of HO is associated with recurrence of HO.", "leak"),
        ("A white cell count (WCC) and WCC-like cells (WLC) fell.", KEPT),
        ("The PSA doubling rate (PSADR) fell.", "leak"),
    ],
)
def test_why_a_statement_is_dropped(abstract, outcome):
    assert outcome in outcomes(abstract)
    assert (outcome == KEPT) == bool(facts(abstract))


def test_the_answer_of_most_records_wins_and_of_equal_ones_the_earliest():
    one, two = "An atrial ectasia (AE) was seen.", "Atopic eczema (AE) itches."
    assert facts(one, two, two) == [("definition", "AE", "atopic eczema", "abbreviation")]
    assert outcomes(one, two, two) == ["outvoted", KEPT, "again"]
    assert outcomes(two, one) == [KEPT, "outvoted"] and outcomes(one, two) == [KEPT, "outvoted"]
    assert outcomes(f"{two} {two} {two}", one, one) == ["outvoted"] * 3 + [KEPT, "again"], (
        "records count, not sentences"
    )
    shuffled = corpus(two, one).iloc[::-1]
    assert [f.answer for f in mine(shuffled).facts] == ["atopic eczema"], "the order of the records decides nothing"


def test_case_and_plural_make_no_other_fact():
    assert outcomes("The region of interest (ROI) grew.", "Regions of interest (ROIs) shrank.") == [KEPT, "again"]


def test_a_capital_of_the_sentence_goes_and_a_name_keeps_its_own():
    named = "Crohn disease is linked to pain. We saw Crohn disease. We saw Crohn disease."
    assert facts(named)[0][1] == "Crohn disease"
    assert facts("Smoking is linked to pain. We saw smoking.")[0][1] == "smoking"
    assert facts("HIV is linked to pain.")[0][1] == "HIV"


def test_every_outcome_is_counted_once():
    mined = mine(
        corpus("No sign that obesity is linked to pain. Smoking is due to stress.", "Smoking is due to stress.")
    )
    table = outcome_table(mined.statements).set_index("outcome")
    assert table.loc[REASONS[KEPT], ["cause", "all"]].tolist() == [1, 1]
    assert table.loc[REASONS["unsure"], "association"] == 1 and table.loc[REASONS["again"], "cause"] == 1
    assert table["all"].sum() == len(mined.statements) == 3
    assert outcome_table([])["all"].sum() == 0


def test_relations_of_which_nothing_was_mined_are_counted_too():
    table = relation_table(mine(corpus("Obesity predicted poor sleep.", "Atopic eczema (AE) itches.")).facts)
    assert table.set_index("relation")["facts"].to_dict() == {
        "definition": 1, "association": 1, "cause": 0, "treatment": 0,
    }  # fmt: skip
    assert table.groupby("kind")["facts"].sum().to_dict() == {"associative": 1, "definitional": 1}


def test_precision_by_hand():
    labels = pd.DataFrame(
        {"kind": "associative", "pattern": ["linked to"] * 3 + ["predicts"], "right": [True, True, False, True]}
    )
    found = mine(corpus("Obesity predicted poor sleep.", "Atopic eczema (AE) itches.")).facts
    table = precision_table(labels, found).set_index(["kind", "pattern"])
    whole = table.loc[("associative", "all")]
    assert whole[["found", "checked", "right", "precision"]].tolist() == [1, 4, 3, 0.75]
    z, n, p = 1.959963984540054, 4, 0.75  # Wilson (1927)
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    assert (whole["low"], whole["high"]) == pytest.approx(((centre - half) / scale, (centre + half) / scale))
    assert table.loc[("associative", "linked to"), ["right", "found"]].tolist() == [2, 0]
    assert table.loc[("definitional", "abbreviation"), "checked"] == 0
    assert math.isnan(table.loc[("definitional", "abbreviation"), "precision"])


def test_the_labels_hold_spans_and_no_text():
    labels = read_labels(PATHS.embedded)
    spans = ["subject_start", "subject_stop", "answer_start", "answer_stop"]
    assert labels.columns.tolist() == ["pmid", "kind", "pattern", *spans, "right"]
    assert labels["pmid"].str.fullmatch(r"\d+").all() and not labels.duplicated(["pmid", *spans]).any()
    assert labels["kind"].value_counts().to_dict() == {"associative": 100, "definitional": 100}
    assert set(labels.loc[labels["kind"] == "definitional", "pattern"]) == {"abbreviation"}


@pytest.mark.skipif("CLAP_REAL_DATA" not in os.environ, reason="needs the abstracts that were labelled")
def test_what_was_labelled_is_still_found_and_mostly_right():
    abstracts = Path(os.environ["CLAP_REAL_DATA"]) / "pubmed" / "pubmedqa_abstracts.jsonl"
    records = pd.read_json(abstracts, lines=True, dtype={"pmid": str})
    joined = [" ".join(f"{part['label']}: {part['text']}" for part in sections) for sections in records["sections"]]
    mined, labels = mine(records.assign(abstract=joined)), read_labels(PATHS.embedded)
    kept = {(s.pmid, s.pattern, *s.subject, *s.answer) for s in mined.statements if s.outcome == KEPT}
    assert {*labels.drop(columns=["kind", "right"]).itertuples(index=False, name=None)} <= kept
    table = precision_table(labels, mined.facts).set_index(["pattern", "kind"])
    assert table.loc[("abbreviation", "definitional"), "precision"] >= 0.9
    assert table.loc[("all", "associative"), "precision"] >= 0.8
    assert (table.loc["all", "found"] >= 100).all()
