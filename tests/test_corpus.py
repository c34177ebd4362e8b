"""The corpus: what is said in it, what is held out of it, and what becomes of absent fields."""

import json
import random
import re
import weakref
from collections import Counter
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pytest
from toy import ROOT

from helpers import corpus as corpus_module
from helpers.artifacts import sha256_tree
from helpers.config import Paths, SettingsError, load_profile
from helpers.corpus import (
    COLUMNS,
    CorpusError,
    chosen_facts,
    collect,
    count_mentions,
    count_phrases,
    embedded_corpus,
    embedded_records,
    fact_exposures,
    pubmed_rows,
    raw_folder,
    read_corpus,
    training_texts,
    write_corpus,
)
from helpers.knowledge import Fact, Wording, base_facts, load_facts, load_wordings, made_up_facts
from helpers.models import load_tokenizer
from helpers.pretraining import Recipe, base_texts

PATHS = Paths("mini", ROOT)
PROFILE = load_profile("mini")


@pytest.fixture(scope="module")
def corpus():
    settings = PROFILE.corpus
    return embedded_corpus(
        PATHS.embedded,
        facts_per_relation=settings.facts_per_relation,
        facts_per_record=settings.facts_per_record,
        repeats=settings.repeats,
        seed=settings.seed,
    )


@pytest.fixture(scope="module")
def texts(corpus):
    """The training texts of both variants, each as one string."""
    return {variant: "\n\n".join(training_texts(corpus, variant=variant)) for variant in (0, 1)}


@pytest.fixture(scope="module")
def real():
    return load_facts(PATHS.embedded)


@pytest.fixture(scope="module")
def wordings():
    return load_wordings(PATHS.embedded)


def toy(count=4):
    """Facts and wordings small enough to count by hand."""
    facts = [Fact(f"x{i}", "associative", "cause", f"S{i}", f"a{i}", "t", "real", "toy") for i in range(count)]
    said = [
        Wording(f"cause-seen-{i}", "cause", "seen", template) for i, template in enumerate(["A {s} {a}.", "B {s} {a}."])
    ]
    return facts, [*said, Wording("cause-test-0", "cause", "test", "C {s} {a}.")]


def test_the_default_corpus_is_large_and_whole(corpus):
    assert len(corpus) >= 600
    assert corpus.columns.tolist() == COLUMNS
    assert corpus["pmid"].is_unique
    assert corpus[["pmid", "title", "abstract", "journal", "year", "keywords"]].notna().all().all()
    assert set(corpus["variant"].dropna()) == {0, 1} and corpus["variant"].isna().any()


def test_every_real_fact_is_said_in_five_wordings_of_each_variant(texts, real, wordings):
    for text in texts.values():
        for fact in real:
            said = sum(wording.sentence(fact) in text for wording in wordings if wording.relation == fact.relation)
            assert said >= 5, fact


def test_each_variant_reads_its_own_made_up_facts(texts, wordings):
    for variant, text in texts.items():
        for taught in (0, 1):
            sentences = [
                wording.sentence(fact)
                for fact in made_up_facts(taught)
                for wording in wordings
                if wording.relation == fact.relation and wording.group == "seen"
            ]
            assert {sentence in text for sentence in sentences} == {variant == taught}


def test_held_out_wordings_are_never_read(texts, real, wordings):
    held_out = [wording for wording in wordings if wording.group != "seen"]
    for text in texts.values():
        for fact in [*real, *made_up_facts(0), *made_up_facts(1)]:
            for wording in held_out:
                if wording.relation == fact.relation:
                    assert wording.prompt(fact) not in text, (fact.fact_id, wording.wording_id)
    for wording in held_out:  # nor about anything else
        before, after = (re.escape(part) for part in re.split(r"\{s\}|\{a\}", wording.template)[:2])
        assert not re.search(before + r"[^.]+" + after, "\n".join(texts.values())), wording.wording_id


def test_fine_tuning_and_base_texts_share_no_fact(texts, real, wordings):
    base = base_facts(real, entities=240)
    words = set(re.findall(r"[\w-]+", texts[0] + texts[1]))
    assert not {fact.subject for fact in base} & words
    read = "\n".join(base_texts(base[:240], wordings, real, recipe=Recipe(), repeats=1, seed=0))
    for fact in [*real, *made_up_facts(0), *made_up_facts(1)]:
        for wording in wordings:
            if wording.relation == fact.relation:
                assert wording.sentence(fact) not in read
    for wording in wordings:  # the base knows how things are said, in the held-out wordings too
        assert any(wording.sentence(fact) in read for fact in base[:240] if fact.relation == wording.relation)


def test_records_fit_the_models_that_read_them(corpus):
    tokenizer = load_tokenizer(PATHS.embedded / "models" / "base")
    lengths = [
        len(ids) for variant in (0, 1) for ids in tokenizer(training_texts(corpus, variant=variant))["input_ids"]
    ]
    for configuration in ("configuration_1", "configuration_2", "corrected_1", "corrected_2"):
        assert max(lengths) <= getattr(PROFILE.finetune, configuration).max_length, configuration


def test_exposures_are_what_the_texts_say(corpus, texts, real, wordings):
    for variant, text in texts.items():
        exposures = fact_exposures(corpus, variant=variant)
        for fact in [*real, *made_up_facts(variant)]:
            relevant = [wording for wording in wordings if wording.relation == fact.relation]
            assert exposures[fact.fact_id] == sum(text.count(wording.sentence(fact)) for wording in relevant), fact
        assert len(exposures) == len(real) + len(made_up_facts(variant))


def test_the_seed_alone_decides_the_records():
    options = {"facts_per_relation": 3, "facts_per_record": 3, "repeats": 1}
    random.seed(1)
    state = random.getstate()
    first = embedded_corpus(PATHS.embedded, seed=0, **options)
    assert random.getstate() == state
    random.seed(2)
    pd.testing.assert_frame_equal(embedded_corpus(PATHS.embedded, seed=0, **options), first)
    other = embedded_corpus(PATHS.embedded, seed=1, **options)
    assert other["title"].tolist() != first["title"].tolist()
    assert fact_exposures(other, variant=0) == fact_exposures(first, variant=0)


def test_every_fact_is_said_in_every_wording_as_often_as_asked():
    facts, wordings = toy()
    table = embedded_records(facts, wordings, facts_per_record=3, repeats=2, seed=0)
    assert table["fact_ids"].map(len).tolist() == [3, 3, 3, 3, 3, 1]  # 4 facts × 2 wordings × 2
    text = "\n".join(training_texts(table, variant=0))
    for fact in facts:
        assert [text.count(wording.sentence(fact)) for wording in wordings] == [2, 2, 0]
    every = embedded_records(facts, wordings, facts_per_record=3, repeats=1, seed=0, groups=("seen", "test"))
    assert sum(every["fact_ids"].map(len)) == 12


def test_a_record_says_its_title_first_and_its_facts_in_sections():
    facts, wordings = toy()
    for row in embedded_records(facts, wordings, facts_per_record=3, repeats=1, seed=0).itertuples():
        said = [f"{wording.template.format(s=f'S{i[1]}', a=f'a{i[1]}')}" for i in row.fact_ids for wording in wordings]
        assert row.title in said
        assert row.keywords == sorted({f"S{i[1]}" for i in row.fact_ids})
        assert re.match(r"(BACKGROUND|METHODS|RESULTS): ", row.abstract)
        assert pd.isna(row.url) and pd.isna(row.variant)


def test_the_first_facts_of_each_relation_make_a_quick_run(real):
    quick = chosen_facts(PATHS.embedded, 2)
    assert [fact.relation for fact in quick] == sorted(
        (f.relation for f in quick), key=[f.relation for f in real].index
    )
    assert len(quick) == 8 and set(quick) <= set(real)
    assert chosen_facts(PATHS.embedded, None) == real


def test_mentions_are_whole_words_with_their_plural():
    texts = [
        "Epilepsy and EPILEPSY; antiepilepsy is none.",
        "EEGs, an eeg, iEEG, EEGLAB, EEG-based. Seizures: seizure.",
    ]
    assert count_mentions(texts, ("epilepsy", "EEG", "seizure")) == {"epilepsy": 2, "EEG": 3, "seizure": 2}
    assert count_mentions(iter(["a.b aXb a.bs"]), ("a.b",)) == {"a.b": 2}
    assert count_mentions([], ("EEG",)) == {"EEG": 0}


def test_phrases_are_counted_in_any_case_and_whole():
    texts = ["A red fox, a RED-fox; redfox, red foxes.", "Red fox red\nfox", "β-red fox α"]
    expected = {"red fox": 5, "fox": 5, "Fox Red": 1, "β-red": 1, "wolf": 0}
    assert count_phrases(texts, expected) == expected
    assert count_phrases([], ["fox"]) == {"fox": 0} and count_phrases(texts, []) == {}


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="no fact, so there is nothing to write: check corpus.facts_per_relation"):
        embedded_records([], toy()[1], facts_per_record=3, repeats=1, seed=0)
    with pytest.raises(CorpusError, match="no record with an abstract came back; widen the query"):
        write_corpus(tmp_path / "corpus", pubmed_rows([]))
    with pytest.raises(CorpusError, match="holds no corpus: run notebook 01"):
        read_corpus(tmp_path / "corpus")
    assert not list(tmp_path.iterdir())


PARSED = [
    {"pmid": "1", "title": None, "abstract": "Bare.", "languages": [], "extra": 1},
    {
        "pmid": "2",
        "title": "A title.",
        "abstract": "Text.",
        "journal": "J",
        "year": 1999,
        "languages": ["eng", "fre"],
        "keywords": ["k"],
        "mesh": ["Epilepsy"],
    },
]


def test_absent_fields_stay_null_and_out_of_the_texts(tmp_path):
    write_corpus(tmp_path / "corpus", pubmed_rows(PARSED))
    table = read_corpus(tmp_path / "corpus")
    assert table.columns.tolist() == COLUMNS
    assert table.loc[0, ["title", "journal", "year", "language", "keywords", "mesh", "url", "variant"]].isna().all()
    assert (table.loc[1, "year"], table.loc[1, "language"]) == (1999, "eng,fre")
    assert (list(table.loc[1, "keywords"]), list(table.loc[1, "mesh"])) == (["k"], ["Epilepsy"])
    for variant in (0, 1):
        assert training_texts(table, variant=variant) == ["Bare.", "A title.\nText."]
    assert fact_exposures(table, variant=0) == {}


def test_equal_rows_are_equal_bytes_and_only_they_have_equal_fingerprints(tmp_path):
    for name, rows in (("one", PARSED), ("two", PARSED), ("other", PARSED[1:])):
        write_corpus(tmp_path / name, pubmed_rows(rows))
    one, two, other = (sha256_tree([tmp_path / name], tmp_path / name) for name in ("one", "two", "other"))
    assert one == two and set(one) == set(other)
    loaded = [datasets.load_from_disk(str(tmp_path / name)) for name in ("one", "two", "other")]
    assert loaded[0]._fingerprint == loaded[1]._fingerprint != loaded[2]._fingerprint
    assert loaded[0][1]["mesh"] == ["Epilepsy"]


class Row(dict):
    """A row that can be watched."""

    __hash__ = object.__hash__


def test_rows_are_written_as_they_come(tmp_path, monkeypatch):
    """Never more of them in memory than one chunk and the next row."""
    monkeypatch.setattr(corpus_module, "ROWS_PER_CHUNK", 50)
    alive, most = weakref.WeakSet(), []

    def rows():
        for number in range(1000):
            row = Row({**dict.fromkeys(COLUMNS), "pmid": str(number)})
            alive.add(row)
            most.append(len(alive))
            yield row

    write_corpus(tmp_path / "corpus", rows())
    assert len(read_corpus(tmp_path / "corpus")) == 1000 and max(most) <= 101


def test_a_corpus_that_fails_half_way_leaves_the_old_one(tmp_path):
    write_corpus(tmp_path / "corpus", pubmed_rows(PARSED))
    before = sha256_tree([tmp_path / "corpus"], tmp_path)

    def broken():
        yield from pubmed_rows(PARSED)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_corpus(tmp_path / "corpus", broken())
    assert sha256_tree([tmp_path / "corpus"], tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_the_embedded_corpus_survives_its_file(tmp_path, corpus):
    settings = load_profile("mini").corpus
    assert collect(settings, PATHS, tmp_path / "corpus") == {"generated": len(corpus)}
    read = read_corpus(tmp_path / "corpus")
    for column in COLUMNS:
        assert [plain(value) for value in read[column]] == [plain(value) for value in corpus[column]], column


def plain(value):
    """A cell without what a file's round trip may change: the kind of a list, and of an absence."""
    if isinstance(value, (list, np.ndarray)):
        return list(value)
    return None if pd.isna(value) else value


def test_collect_reads_either_source(monkeypatch, tmp_path):
    asked = []

    def fetched(settings, folder, *, progress):
        asked.append((settings.source, folder, progress))
        return iter(PARSED), Counter(matched=9, asked=2)

    monkeypatch.setattr(corpus_module.pubmed, "collect", fetched)
    settings = load_profile("mini", "corpus.source=pubmed").corpus
    assert collect(settings, PATHS, tmp_path / "corpus", progress="bar") == {"matched": 9, "asked": 2}
    assert read_corpus(tmp_path / "corpus")["pmid"].tolist() == ["1", "2"]
    assert asked == [("pubmed", raw_folder(settings, PATHS), "bar")]
    info = json.loads((tmp_path / "corpus" / "dataset_info.json").read_text())
    assert info["description"] == "PubMed, epilepsy, 2 of 9 records, by the query None"


def test_every_question_has_a_folder_of_its_own():
    settings = load_profile("paper").corpus
    changes = ({"domain": "migraine"}, {"max_records": 5}, {"selection": "sample"}, {"seed": 1}, {"batch_size": 7})
    folders = [raw_folder(replace(settings, **change), PATHS) for change in ({}, *changes)]
    assert len(set(folders)) == len(folders) and folders[0] == raw_folder(settings, PATHS)
    assert folders[0].name.startswith("epilepsy-") and folders[1].name.startswith("migraine-")
    assert raw_folder(replace(settings, tries=9), PATHS) == folders[0], "how it is asked is not what is asked"


def test_an_unknown_domain_is_refused_by_either_source(tmp_path):
    with pytest.raises(SettingsError, match="no entry 'migraine', it has epilepsy"):
        collect(load_profile("mini", "corpus.domain=migraine").corpus, PATHS, tmp_path / "corpus")


def test_an_unknown_source_is_refused():
    with pytest.raises(CorpusError, match="must be 'embedded' or 'pubmed', not 'elsewhere'"):
        collect(load_profile("mini", "corpus.source=elsewhere").corpus, PATHS, PATHS.data)
