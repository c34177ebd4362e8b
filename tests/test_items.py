"""Items: foils that match, phases that nothing but ids decides, and how the kinds balance."""

import dataclasses
import random

import pandas as pd
import pytest
from toy import ROOT

from helpers.config import Paths, load_profile
from helpers.corpus import embedded_corpus
from helpers.items import (
    Foil,
    ItemError,
    balance_table,
    build_items,
    choose_foils,
    collect_items,
    taught_items,
    watched_items,
)
from helpers.knowledge import Fact, load_facts, load_wordings, made_up_facts
from helpers.mining import mine
from helpers.models import load_tokenizer
from helpers.published import PUBLISHED_ITEMS, describe_items

PATHS = Paths("mini", ROOT)
PROFILE = load_profile("mini")


@pytest.fixture(scope="module")
def tokenizer():
    """The embedded one, for the properties that the committed facts must have with it."""
    return load_tokenizer(PATHS.embedded / "models" / "base")


@pytest.fixture(scope="module")
def real():
    return load_facts(PATHS.embedded)


@pytest.fixture(scope="module")
def records():
    return embedded_corpus(PATHS.embedded, facts_per_relation=None, facts_per_record=3, repeats=1, seed=0)


@pytest.fixture(scope="module")
def items(tokenizer, records):
    return collect_items(PROFILE.corpus, PROFILE.items, PATHS, tokenizer, records=records, mined=None)


class Words:
    """A tokenizer of whole words, so that lengths can be counted by eye."""

    def __call__(self, text):
        return {"input_ids": text.split()}

    def convert_ids_to_tokens(self, ids):
        return list(ids)


def fact(name, answer, *, kind="associative", relation="cause", answer_type="t"):
    return Fact(name, kind, relation, f"subject {name}", answer, answer_type, "real", "toy")


def length(tokenizer, text):
    return len(tokenizer(f" {text}")["input_ids"])


def test_every_real_fact_has_a_foil_of_its_kind_and_length(real, tokenizer):
    foils = choose_foils(real, tokenizer, seed=PROFILE.items.seed)
    answers = {kind: {f.answer for f in real if f.kind == kind} for kind in ("definitional", "associative")}
    assert foils.keys() == {f.fact_id for f in real}
    for f in real:
        foil = foils[f.fact_id]
        assert foil.match != "other length"
        assert foil.text in answers[f.kind] and foil.text != f.answer
        assert length(tokenizer, foil.text) == length(tokenizer, f.answer)


@pytest.mark.parametrize("seed", range(3))
def test_a_foil_is_told_from_the_answer_by_its_first_token(real, tokenizer, seed):
    for facts in (real, made_up_facts(0), made_up_facts(1)):
        for name, foil in choose_foils(facts, tokenizer, seed=seed).items():
            answer = next(f.answer for f in facts if f.fact_id == name)
            first, other = (tokenizer(f" {text}")["input_ids"][0] for text in (answer, foil.text))
            assert first != other


def test_the_order_of_the_facts_changes_no_foil(real, tokenizer):
    expected = choose_foils(real, tokenizer, seed=0)
    for seed in range(3):
        shuffled = random.Random(seed).sample(real, len(real))
        assert choose_foils(shuffled, tokenizer, seed=0) == expected
    assert choose_foils(real, tokenizer, seed=1) != expected


@pytest.mark.parametrize(
    "others, expected",
    [
        ([("x1", "two words", {}), ("x2", "two others", {"answer_type": "u"})], ("two words", "type")),
        (
            [("x1", "two words", {"answer_type": "u"}), ("x2", "two more", {"relation": "treatment"})],
            ("two words", "relation"),
        ),
        ([("x1", "two words", {"relation": "treatment"}), ("x2", "three words now", {})], ("two words", "kind")),
        ([("x1", "three words now", {}), ("x2", "right side", {})], ("three words now", "other length")),
        (
            [("x1", "three words now", {}), ("x2", "two words", {"kind": "definitional"})],
            ("three words now", "other length"),
        ),
    ],
    ids=["type", "relation", "kind", "length", "never another kind"],
)
def test_the_nearest_foil_is_preferred(others, expected):
    facts = [fact("x0", "right answer"), *(fact(name, answer, **more) for name, answer, more in others)]
    facts.append(fact("x9", "wrong kind", kind="definitional", relation="definition"))
    facts.append(fact("x8", "other kind", kind="definitional", relation="definition"))
    foil = choose_foils([*facts, fact("y", "right enough")], Words(), seed=0)["x0"]
    assert (foil.text, foil.match) == expected


def test_among_equals_the_foil_nearest_in_log_frequency_is_taken():
    facts = [fact(f"x{n}", answer) for n, answer in enumerate(("old cat", "new dog", "red fox", "big cow", "old hen"))]
    counts = {"old cat": 9, "new dog": 1, "red fox": 18, "big cow": 4, "old hen": 9}
    chosen = {name: (foil.text, foil.count, foil.answer_count) for name, foil in foils_by(facts, counts).items()}
    assert chosen["x0"] == ("red fox", 18, 9), "19/10 is nearer to 1 than 10/5, and “old hen” begins alike"
    assert chosen["x1"] == ("big cow", 4, 1) and chosen["x3"] in {("old cat", 9, 4), ("old hen", 9, 4)}
    counts["big cow"] = 5
    assert foils_by(facts, counts)["x0"].text == "big cow", "10/6 is nearer than 19/10, though 9 - 5 = 4 < 18 - 9"
    unseen = choose_foils(facts, Words(), seed=0, counts={})
    assert {(foil.count, foil.answer_count) for foil in unseen.values()} == {(0, 0)}


def foils_by(facts, counts):
    return choose_foils(facts, Words(), seed=0, counts=counts)


def test_length_comes_before_frequency_and_the_nearest_length_before_others():
    facts = [fact("x0", "right"), fact("x1", "two words"), fact("x2", "three whole words")]
    counts = {"right": 5, "two words": 500, "three whole words": 5}
    assert foils_by(facts, counts)["x0"] == Foil("two words", "other length", 500, 5)
    facts.append(fact("x3", "left"))
    assert foils_by(facts, counts | {"left": 1000})["x0"] == Foil("left", "type", 1000, 5)


def test_equally_frequent_foils_are_drawn_and_not_always_the_same():
    facts = [fact(f"x{n}", f"a{n} word") for n in range(40)]
    drawn = [foil.text for foil in choose_foils(facts, Words(), seed=0).values()]
    assert len(set(drawn)) > 15


def test_without_counts_an_answer_is_as_frequent_as_the_facts_that_have_it():
    facts = [fact(f"x{n}", answer) for n, answer in enumerate(("one", "one", "two", "two", "three"))]
    foils = choose_foils(facts, Words(), seed=0)
    assert foils["x0"] == Foil("two", "type", 2, 2) and foils["x4"].answer_count == 1


def test_answers_that_all_begin_alike_are_refused():
    facts = [fact("x0", "right answer"), fact("x1", "right side"), fact("x2", "left", kind="definitional")]
    with pytest.raises(ItemError, match=r"x0: every associative answer begins with the same token as 'right answer' "):
        choose_foils(facts, Words(), seed=0)


def test_no_fact_is_refused(tokenizer):
    with pytest.raises(ItemError, match="no fact to ask about: check corpus.facts_per_relation"):
        build_items([], load_wordings(PATHS.embedded), tokenizer, settings=PROFILE.items)


def test_each_item_is_a_question_that_can_be_asked(items, real, tokenizer):
    wordings = [wording for wording in load_wordings(PATHS.embedded) if wording.answer_last]
    counts = {relation: sum(w.relation == relation for w in wordings) for relation in {w.relation for w in wordings}}
    asked = [*real, *made_up_facts(0), *made_up_facts(1)]
    assert len(items) == sum(counts[f.relation] for f in asked)
    assert not items.duplicated(["item_id", "wording_id", "variant"]).any()
    for row in items.itertuples():
        assert row.prompt[row.subject_start :].startswith(row.subject)
    for row in items.sample(40, random_state=0).itertuples():
        assert (row.answer_tokens, row.subject_tokens) == (
            length(tokenizer, row.answer),
            length(tokenizer, row.subject),
        )
    assert items.loc[items["arm"] == "real", "variant"].isna().all()


def test_the_made_up_arm_differs_in_its_kind_alone(items):
    first, second = (
        items[items["variant"] == variant].drop_duplicates("item_id").set_index("item_id") for variant in (0, 1)
    )
    fixed = ["subject", "answer", "foil", "phase", "answer_tokens", "subject_tokens"]
    pd.testing.assert_frame_equal(first[fixed], second[fixed])
    assert (first["kind"] != second["kind"]).all()


def test_phases_take_their_share_of_every_relation(items):
    facts = items[items["arm"] == "real"].drop_duplicates(["item_id", "phase"])
    assert facts["item_id"].is_unique, "a fact is in one phase in all its wordings"
    for _, group in facts.groupby("relation"):
        assert (group["phase"] == "exploratory").sum() == round(PROFILE.items.exploratory_share * len(group))


def test_the_order_of_the_facts_changes_no_phase(real, tokenizer):
    wordings = load_wordings(PATHS.embedded)

    def phases(facts, settings):
        table = build_items(facts, wordings, tokenizer, settings=settings)
        return table.drop_duplicates("item_id").set_index("item_id")["phase"].to_dict()

    few = real[::6]
    expected = phases(few, PROFILE.items)
    assert phases(few[::-1], PROFILE.items) == expected
    assert phases(random.Random(1).sample(few, len(few)), PROFILE.items) == expected
    assert phases(few, dataclasses.replace(PROFILE.items, seed=1)) != expected
    assert set(phases(few, dataclasses.replace(PROFILE.items, exploratory_share=0.0)).values()) == {"confirmatory"}


def test_the_answers_decide_no_phase(real, tokenizer):
    wordings = load_wordings(PATHS.embedded)
    few = real[::6]
    swapped = [dataclasses.replace(f, answer=other.answer) for f, other in zip(few, few[1:] + few[:1], strict=True)]
    one, two = (build_items(facts, wordings, tokenizer, settings=PROFILE.items) for facts in (few, swapped))
    assert one["phase"].tolist() == two["phase"].tolist()


def test_balance_is_counted_per_fact():
    def row(item, kind, answer, tokens, match="type", arm="real", counts=(3, 3)):
        return {
            "item_id": item,
            "kind": kind,
            "arm": arm,
            "answer": answer,
            "subject_tokens": tokens,
            "answer_tokens": 2 * tokens,
            "foil_match": match,
            "foil_count": counts[0],
            "answer_count": counts[1],
        }

    rows = [
        *[row("d1", "definitional", "x", 1)] * 3,  # three wordings of one fact count once
        row("d2", "definitional", "y", 4, match="other length"),
        row("a1", "associative", "z", 1, counts=(1, 3)),  # 2 to 4: just alike
        row("a2", "associative", "z", 2, match="kind", counts=(1, 0)),  # 2 to 1: just alike
        row("a3", "associative", "w", 6, counts=(0, 2)),
        row("m1", "definitional", "v", 5, arm="made-up"),
        row("m1", "associative", "v", 5, arm="made-up"),
    ]
    table = balance_table(pd.DataFrame(rows), {"d1": 6, "a1": 3, "a2": 6, "a3": 9, "m1": 2}).set_index(["arm", "kind"])
    columns = [
        "facts",
        "subject_tokens",
        "answer_tokens",
        "exposures",
        "distinct_answers",
        "foils_of_same_length",
        "foils_alike_in_frequency",
        "facts_per_answer",
    ]
    assert table.loc[("real", "definitional"), columns].tolist() == [2, 2.5, 5.0, 3.0, 2, 0.5, 1.0, 1.0]
    assert table.loc[("real", "associative"), columns].tolist() == [3, 3.0, 6.0, 6.0, 2, 1.0, 2 / 3, 1.5]
    assert table.loc[("made-up", "definitional"), columns].tolist() == [1, 5.0, 10.0, 2.0, 1, 1.0, 1.0, 1.0]
    unknown = balance_table(pd.DataFrame(rows), {})
    assert unknown["exposures"].isna().all(), "of collected abstracts nobody knows what they say: that is not never"
    assert len(table) == 4


def test_a_model_is_asked_the_variant_it_was_taught(items):
    for seed in range(4):
        taught = taught_items(items, seed=seed)
        made_up = taught[taught["arm"] == "made-up"]
        assert set(made_up["variant"]) == {seed % 2}
        assert len(taught) - len(made_up) == (items["arm"] == "real").sum()
        assert set(zip(made_up["item_id"], made_up["kind"], strict=True)) == {
            (f.fact_id, f.kind) for f in made_up_facts(seed % 2)
        }


def test_training_watches_every_fact_in_one_wording_of_each_group(items):
    watched = watched_items(taught_items(items, seed=0))
    groups = watched.groupby("item_id")["group"].agg(lambda groups: " ".join(sorted(groups)))
    assert set(groups) == {"development seen test"}
    assert watched["item_id"].nunique() == taught_items(items, seed=0)["item_id"].nunique()


def test_a_pubmed_corpus_is_asked_what_it_states_and_nothing_made_up(tokenizer):
    stated = [
        "Atopic eczema (AE) itches.",
        "Focal seizure (FS) ends.",
        "Obesity is linked to pain. Salt is linked to thirst.",
    ]
    records = pd.DataFrame({"pmid": ["7", "8", "9"], "title": [None, "On AE", "On FS"], "abstract": stated})
    settings = load_profile("mini", "corpus.source=pubmed").corpus
    mined = mine(records).facts
    asked = collect_items(settings, PROFILE.items, PATHS, tokenizer, records=records, mined=mined)
    assert set(asked["arm"]) == {"real"} and asked["variant"].isna().all() and not asked["prompt"].duplicated().any()
    row = asked[asked["wording_id"] == "definition-seen-0"].set_index("pmid").loc["7"]
    assert row["prompt"] == "In this report, AE denotes" and (row["answer"], row["pattern"]) == (
        "atopic eczema",
        "abbreviation",
    )
    assert (row["sentence"], row["answer_count"], row["foil"]) == (stated[0], 1, "focal seizure")
    few = load_profile("mini", "corpus.source=pubmed corpus.facts_per_relation=1").corpus
    with pytest.raises(ItemError, match="collect more abstracts"):
        collect_items(few, PROFILE.items, PATHS, tokenizer, records=records, mined=mined)


def test_embedded_facts_have_no_evidence_and_their_answers_are_counted(items, records):
    assert items[["pmid", "sentence", "pattern"]].isna().all(axis=None)
    assert (items["answer_count"] > 0).all() and (items["foil_count"] > 0).all()
    row = items[items["arm"] == "real"].iloc[0]
    texts = (records["title"] + " | " + records["abstract"]).str.casefold()
    assert row["answer_count"] == sum(text.count(row["answer"].casefold()) for text in texts)


@pytest.mark.parametrize("item", PUBLISHED_ITEMS, ids=lambda item: item.name)
def test_the_published_prompts_are_equally_long(item, tokenizer):
    clean, corrupted = (
        len(tokenizer(f"{item.question} {answer}")["input_ids"])
        for answer in (item.clean_answer, item.corrupted_answer)
    )
    assert clean == corrupted
    described = describe_items(tokenizer).set_index("item").loc[item.name]
    assert described["tokens"] == f"{clean} / {corrupted}"
