"""PubMed: the plan, the batches and the requests for them, against a loopback server that misbehaves on request."""

from __future__ import annotations

import errno
import gzip
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import eutils_server
import pytest
from eutils_server import article_set, entry_date, serve

from helpers import eutils, pubmed, pubmed_batches, pubmed_plan
from helpers.artifacts import ArtifactError, sha256_tree, write_bytes
from helpers.config import Corpus, Domain
from helpers.corpus import collect as collect_corpus
from helpers.eutils import GATE_MARGIN, PubmedError, connect, rate_gate
from helpers.pubmed import RULES, collect, kept, stored_records
from helpers.pubmed_batches import fetch
from helpers.pubmed_plan import REACHABLE, allocate, plan
from helpers.pubmed_records import parse_records

ROOT = Path(__file__).resolve().parent.parent
KEY, MAIL = "0123456789abcdef0123456789abcdef0123", "reader+clap@example.org"


def corpus(base_url: str, query: str = "epilepsy[MeSH Terms]", **changes) -> Corpus:
    values = {
        "source": "pubmed",
        "base_url": base_url,
        "domain": "epilepsy",
        "domains": {"epilepsy": Domain(query, ("epilepsy",))},
        "selection": "first",
        "max_records": 100,
        "batch_size": 3,
        "requests_per_second": 3.0,
        "timeout_seconds": 5.0,
        "tries": 3,
        "deadline_minutes": 600.0,
        "facts_per_relation": None,
        "facts_per_record": 1,
        "repeats": 1,
        "seed": 0,
    }
    return Corpus(**{**values, **changes})


def record(pmid: int, **changes) -> dict:
    sections = [{"label": "METHODS", "text": f"We read {pmid}."}, {"label": None, "text": "It ended."}]
    return {"pmid": str(pmid), "title": f"Title {pmid}", "sections": sections, "year": 2001, **changes}


RECORDS = [record(pmid) for pmid in (30, 4, 100, 21, 5, 9, 8)]  # 7 records in batches of 3: 3, 3 and 1
NOTHING = dict.fromkeys(RULES, 0)
PMIDS = ["4", "5", "8", "9", "21", "30", "100"]


class Time:
    """A clock that only sleeping moves, and what was slept."""

    def __init__(self):
        self.now, self.slept = 1000.0, []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)

    def clock(self) -> float:
        return self.now


@pytest.fixture
def fake():
    return Time()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """No key by chance, and a proxy that answers nothing: the loopback must be reached without it."""
    for name in ("NCBI_API_KEY", "NCBI_EMAIL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def gather(asked: Corpus, folder: Path, fake: Time, lines: list[str] | None = None, **options):
    progress = (lambda line: None) if lines is None else lines.append
    client = connect(asked, progress=progress, sleep=fake.sleep, clock=fake.clock, jitter=lambda low, high: 1.0)
    records, counts = collect(asked, folder, client=client, **options)
    return list(records), counts


# --- the happy path ---------------------------------------------------------------------------------------------------


def test_collect_gives_every_record_in_the_order_of_its_pmid_and_counts_them(tmp_path, fake):
    lines = []
    with serve([*RECORDS, record(6, sections=[])]) as server:
        records, counts = gather(corpus(server.base_url), tmp_path, fake, lines)
        assert [r["pmid"] for r in records] == PMIDS
        assert counts == {**NOTHING, "matched": 8, "asked": 8, "without_abstract": 1, "kept": 7}
        assert [p["id"] for p in server.asked("efetch")] == ["4,5,6", "8,9,21", "30,100"]
        assert [p["retstart"] for p in server.asked("esearch")] == ["0"]
        assert {(p["db"], p["tool"]) for _, p in server.requests} == {("pubmed", "clap-notebooks")}
    assert records[0] == {
        "pmid": "4",
        "version": 1,
        "kind": "article",
        "title": "Title 4",
        "vernacular_title": None,
        "abstract": "METHODS: We read 4. It ended.",
        "sections": [{"label": "METHODS", "text": "We read 4."}, {"label": None, "text": "It ended."}],
        "other_abstracts": [],
        "journal": None,
        "year": 2001,
        "languages": ["eng"],
        "publication_types": [],
        "keywords": [],
        "mesh": [],
        "url": "https://pubmed.ncbi.nlm.nih.gov/4/",
    }
    assert lines[-1] == "PubMed: batch 3 of 3, 2 of 2 records."


def test_the_files_are_what_was_asked_and_what_came(tmp_path, fake):
    with serve(RECORDS) as server:
        gather(corpus(server.base_url), tmp_path, fake)
        base_url = server.base_url
    planned = json.loads((tmp_path / "plan.json").read_text())
    assert (planned["query"], planned["count"], planned["pmids"]) == ("epilepsy[MeSH Terms]", 7, PMIDS)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["source"] == f"{base_url}/efetch.fcgi"
    names = [f"batch_{n:04d}.xml.gz" for n in (1, 2, 3)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([".lock", *names, "manifest.json", "plan.json"])
    by_pmid = {r["pmid"]: r for r in RECORDS}
    for name, pmids in zip(names, (PMIDS[:3], PMIDS[3:6], PMIDS[6:]), strict=True):
        content, entry = (tmp_path / name).read_bytes(), manifest["batches"][name]
        assert gzip.decompress(content) == article_set([by_pmid[p] for p in pmids])  # raw, as it came
        assert content[4:8] == bytes(4)  # no time in gzip's header, so that equal answers are equal files
        assert (entry["bytes"], entry["missing"]) == (len(content), [])


def test_pmids_that_pubmed_no_longer_has_are_listed(tmp_path, fake):
    with serve(RECORDS) as server:
        asked = corpus(server.base_url)
        plan(asked, tmp_path)
        del server.records["9"]
        records, counts = gather(asked, tmp_path, fake)
        assert "9" not in {r["pmid"] for r in records}
        assert (counts["asked"], counts["kept"], counts["missing"]) == (7, 6, 1)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["missing"] for entry in manifest["batches"].values()] == [[], ["9"], []]


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_max_records_takes_the_first_hits_and_says_so(tmp_path, fake):
    lines = []
    with serve(RECORDS) as server:
        records, counts = gather(corpus(server.base_url, max_records=3), tmp_path, fake, lines)
    assert [r["pmid"] for r in records] == ["21", "30", "100"]  # the server lists the newest first
    assert (counts["matched"], counts["asked"]) == (7, 3)
    note = "The query matches 7 records; the first 3 that ESearch lists are used."
    assert json.loads((tmp_path / "plan.json").read_text())["notes"] == [note] and note in lines


def test_the_plan_reads_on_when_a_page_is_shorter_than_asked(tmp_path, fake):
    with serve(RECORDS, page_limit=3) as server:
        asked = corpus(server.base_url)
        planned = plan(asked, tmp_path, client=connect(asked, sleep=fake.sleep, clock=fake.clock))
        assert planned["pmids"] == PMIDS
        assert [p["retstart"] for p in server.asked("esearch")] == ["0", "3", "6"]


def test_the_plan_is_frozen_until_the_question_changes(tmp_path, fake):
    with serve(RECORDS) as server:
        first = plan(corpus(server.base_url), tmp_path)
        server.records["777"] = record(777)
        assert plan(corpus(server.base_url), tmp_path) == first
        assert len(server.requests) == 1
        again = plan(corpus(server.base_url, query="seizure"), tmp_path)
        assert again["pmids"] == [*PMIDS, "777"]
        with pytest.raises(PubmedError, match="made for another query"):
            fetch(corpus(server.base_url), tmp_path)


def test_another_question_leaves_no_batch_of_the_last_one(tmp_path, fake):
    with serve(RECORDS) as server:
        gather(corpus(server.base_url), tmp_path, fake)
        records, _ = gather(corpus(server.base_url, max_records=2), tmp_path, fake)
    assert [r["pmid"] for r in records] == ["30", "100"]
    assert [p.name for p in tmp_path.glob("batch_*")] == ["batch_0001.xml.gz"]
    assert list(json.loads((tmp_path / "manifest.json").read_text())["batches"]) == ["batch_0001.xml.gz"]


def test_an_empty_result_is_one_sentence_and_leaves_no_plan(tmp_path):
    with serve([]) as server, pytest.raises(PubmedError) as caught:
        plan(corpus(server.base_url, query="epilepzy"), tmp_path)
    assert str(caught.value) == (
        "The query 'epilepzy' returned no record: check its spelling and field tags, or widen it. "
        "PubMed did not find epilepzy."
    )
    assert not (tmp_path / "plan.json").exists()


@pytest.fixture(scope="module")
def many():
    """A server with more records than ESearch hands out, entered over thirty years, most of them late."""
    years = [1995 + int(30 * (n / 25_000) ** 0.5) for n in range(25_000)]
    with serve([{"pmid": str(1000 + n), "year": year} for n, year in enumerate(years)]) as server:
        yield server


def quiet(asked: Corpus):
    """A client that never waits."""
    return connect(asked, sleep=lambda seconds: None)


def test_hits_out_of_reach_are_found_by_slices(tmp_path, many):
    many.requests.clear()
    asked = corpus(many.base_url, selection="sample", max_records=10_000)
    planned = plan(asked, tmp_path, client=quiet(asked))
    listed = [pmid for stratum in planned["slices"] for pmid in stratum["pmids"]]
    assert planned["count"] == len(listed) == 25_000 and set(listed) == set(many.records)
    assert [stratum["count"] for stratum in planned["slices"]] == [len(s["pmids"]) for s in planned["slices"]]
    assert max(len(stratum["pmids"]) for stratum in planned["slices"]) <= REACHABLE
    days = [day for stratum in planned["slices"] for day in (stratum["from"], stratum["to"])]
    assert days == sorted(days)
    assert len(many.requests) < 30 and not (tmp_path / "slices").exists()
    newest = sorted(many.records, key=lambda pmid: (entry_date(many.records[pmid]), int(pmid)), reverse=True)
    assert planned["first"] == newest[:REACHABLE]
    assert planned["notes"] == ["The query matches 25000 records; a sample of 10000, drawn from all of them, is used."]
    # From every slice in proportion, and the seed alone decides which.
    chosen = set(planned["pmids"])
    assert len(chosen) == 10_000
    for stratum in planned["slices"]:
        assert len(chosen.intersection(stratum["pmids"])) == pytest.approx(0.4 * len(stratum["pmids"]), abs=1)
    other = corpus(many.base_url, selection="sample", max_records=10_000, seed=1)
    assert 2_000 < len(chosen.difference(plan(other, tmp_path / "b", client=quiet(other))["pmids"])) < 8_000


def test_the_first_hits_are_those_that_esearch_lists(tmp_path, many):
    asked = corpus(many.base_url, max_records=10_000)
    planned = plan(asked, tmp_path, client=quiet(asked))
    assert planned["pmids"] == sorted(planned["first"], key=int) and len(planned["pmids"]) == REACHABLE
    assert planned["notes"] == ["The query matches 25000 records; the first 9999 that ESearch lists are used."]


@pytest.mark.parametrize(("selection", "most"), [("first", 5), ("sample", 5), ("first", None), ("sample", 6)])
def test_where_all_hits_are_wanted_all_are_taken(tmp_path, monkeypatch, selection, most):
    """Also the one that ESearch lists behind its last."""
    monkeypatch.setattr(pubmed_plan, "REACHABLE", 4)
    monkeypatch.setattr(eutils_server, "REACHABLE", 4)
    with serve([record(pmid, year=2000 + pmid) for pmid in range(1, 6)]) as server:
        asked = corpus(server.base_url, selection=selection, max_records=most)
        planned = plan(asked, tmp_path, client=quiet(asked))
    assert planned["first"] == ["5", "4", "3", "2"]
    assert planned["pmids"] == ["1", "2", "3", "4", "5"] and planned["notes"] == []


def test_an_interrupted_plan_goes_on(tmp_path, many):
    asked = corpus(many.base_url, selection="sample", max_records=100, tries=1)
    whole = plan(asked, tmp_path / "whole", client=quiet(asked))
    many.requests.clear()
    many.faults = {8: "503"}
    with pytest.raises(PubmedError, match="HTTP 503"):
        plan(asked, tmp_path / "cut", client=quiet(asked))
    done = [tuple(sorted(parameters.items())) for _, parameters in many.requests[:-1]]
    many.faults = {}
    again = plan(asked, tmp_path / "cut", client=quiet(asked))
    asked_again = [tuple(sorted(parameters.items())) for _, parameters in many.requests[8:]]
    assert len(done) == 7 and not set(done) & set(asked_again)
    assert {**again, "retrieved_at": 0} == {**whole, "retrieved_at": 0}


def test_a_day_with_too_many_hits_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pubmed_plan, "REACHABLE", 3)
    crowd = [record(365 * n, year=2001) for n in range(1, 6)]
    with serve(crowd) as server, pytest.raises(PubmedError, match="5 records entered on the one day 2001-01-01"):
        asked = corpus(server.base_url)
        plan(asked, tmp_path, client=quiet(asked))


@pytest.mark.parametrize(
    ("sizes", "total", "shares"),
    [
        ([10, 10], 5, [3, 2]),  # equal remainders: the earlier counts first
        ([1, 2, 7], 5, [1, 1, 3]),  # quotas 0.5, 1, 3.5
        ([3, 0, 1], 9, [3, 0, 1]),
        ([], 4, []),
        ([5, 5, 5], 1, [1, 0, 0]),
    ],
)
def test_shares_by_hand(sizes, total, shares):
    assert allocate(sizes, total) == shares


@pytest.mark.parametrize("text", ['{"half', "[]", '{"base_url": 1}'])
def test_a_damaged_plan_is_refused_or_made_again(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with serve(RECORDS) as server:
        if text == '{"half':
            with pytest.raises(ArtifactError, match="not valid JSON"):
                plan(corpus(server.base_url), tmp_path)
        else:
            assert plan(corpus(server.base_url), tmp_path)["pmids"] == PMIDS


def test_a_plan_whose_pmids_were_edited_away_is_refused(tmp_path):
    with serve(RECORDS) as server:
        made = plan(corpus(server.base_url), tmp_path)
        for pmids in ([], ["4", "4"], ["4; drop"], [4], None):
            (tmp_path / "plan.json").write_text(json.dumps({**made, "pmids": pmids}))
            with pytest.raises(PubmedError, match="delete it"):
                plan(corpus(server.base_url), tmp_path)


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", ["429", "503", "relayed", "cut", "short", "json", "html", "empty", "partial", "stranger"]
)
def test_a_fault_is_tried_again_and_then_forgotten(tmp_path, fake, fault):
    lines = []
    with serve(RECORDS, faults={3: fault}) as server:  # request 1 is the search, 3 the second batch
        records, counts = gather(corpus(server.base_url), tmp_path, fake, lines)
        assert [p["id"] for p in server.asked("efetch")] == ["4,5,8", "9,21,30", "9,21,30", "100"]
    assert [r["pmid"] for r in records] == PMIDS and counts["missing"] == 0
    assert [line for line in lines if "try 2 of 3 in 1.0 s" in line]


@pytest.mark.parametrize("fault", ["429", "503", "cut", "short", "json", "html"])
def test_a_search_that_faults_is_tried_again(tmp_path, fake, fault):
    with serve(RECORDS, faults={1: fault, 2: fault}) as server:
        asked = corpus(server.base_url)
        planned = plan(asked, tmp_path, client=connect(asked, sleep=fake.sleep, clock=fake.clock))
        assert planned["pmids"] == PMIDS and len(server.asked("esearch")) == 3


def test_a_silent_server_is_given_up_on_and_tried_again(tmp_path, fake):
    with serve(RECORDS, faults={1: "hang"}) as server:
        asked = corpus(server.base_url, timeout_seconds=0.2)
        planned = plan(asked, tmp_path, client=connect(asked, sleep=fake.sleep, clock=fake.clock))
        assert planned["pmids"] == PMIDS and len(server.requests) == 2


def test_pauses_double_and_retry_after_is_honoured(tmp_path, fake):
    faults = dict.fromkeys((1, 2, 3), "503")
    with serve(RECORDS, faults=faults) as server:
        gather(corpus(server.base_url, tries=4, batch_size=100), tmp_path / "a", fake)
    assert [s for s in fake.slept if s >= 1] == [1.0, 2.0, 4.0]
    fake.slept.clear()
    with serve(RECORDS, faults={1: "429"}, retry_after="7") as server:
        gather(corpus(server.base_url, batch_size=100), tmp_path / "b", fake)
    assert [s for s in fake.slept if s >= 1] == [7.0]
    fake.slept.clear()
    with serve(RECORDS, faults={1: "429"}, retry_after=formatdate(time.time() + 100, usegmt=True)) as server:
        gather(corpus(server.base_url, batch_size=100), tmp_path / "c", fake)
    assert [s for s in fake.slept if s >= 1] == [pytest.approx(99, abs=10)]


def test_a_long_retry_after_ends_the_run_instead_of_hanging_it(tmp_path, fake):
    with serve(RECORDS, faults={1: "429"}, retry_after="3600") as server:
        with pytest.raises(PubmedError, match="asks to wait 3600 seconds"):
            gather(corpus(server.base_url), tmp_path, fake)
    assert fake.slept == []


@pytest.mark.parametrize(
    ("fault", "tries", "said"),
    [("503", 3, "failed 3 times.*HTTP 503"), ("400", 1, "refused the request .HTTP 400"), ("cut", 3, "cut after")],
)
def test_a_lasting_fault_ends_in_one_sentence_and_keeps_what_was_fetched(tmp_path, fake, fault, tries, said):
    with serve(RECORDS, faults=dict.fromkeys(range(3, 9), fault)) as server:
        with pytest.raises(PubmedError, match=said):
            gather(corpus(server.base_url), tmp_path, fake)
        assert len(server.asked("efetch")) == 1 + tries
        assert [p.name for p in tmp_path.glob("batch_*")] == ["batch_0001.xml.gz"]
        server.faults.clear()
        server.requests.clear()
        records, _ = gather(corpus(server.base_url), tmp_path, fake)
        assert [p["id"] for p in server.asked("efetch")] == ["9,21,30", "100"]
    assert [r["pmid"] for r in records] == PMIDS


def test_a_batch_of_deleted_records_is_accepted_on_the_last_try(tmp_path, fake):
    with serve(RECORDS) as server:
        asked = corpus(server.base_url)
        plan(asked, tmp_path)
        del server.records["100"]
        _, counts = gather(asked, tmp_path, fake)
        assert counts["missing"] == 1 and [p["id"] for p in server.asked("efetch")].count("100") == 3


def test_deleted_records_cost_one_more_request(tmp_path, fake):
    """What two answers in a row lack is not there; what only one lacked was a fault."""
    with serve(RECORDS, faults={3: "partial"}) as server:
        asked = corpus(server.base_url, batch_size=100)
        plan(asked, tmp_path)
        del server.records["9"]
        _, counts = gather(asked, tmp_path, fake)
        assert (counts["kept"], counts["missing"]) == (6, 1)
        assert len(server.asked("efetch")) == 3  # without "9", nearly empty, and without "9" again


def test_what_pubmed_did_not_find_of_a_query_is_noted(tmp_path, monkeypatch):
    """It leaves out a phrase that it does not know, and searches for the rest: another question than was asked."""
    monkeypatch.setenv("NCBI_API_KEY", KEY)
    with serve(RECORDS, unfound=('"focal fit"', f"echo {KEY}")) as server:
        planned = plan(corpus(server.base_url), tmp_path)
    assert planned["translation"] == "(epilepsy[MeSH Terms])"
    assert planned["notes"] == ['PubMed did not find, and left out: "focal fit", echo (api_key).']
    assert KEY not in (tmp_path / "plan.json").read_text()


def test_an_interrupted_plan_holds_no_echo_of_the_key(tmp_path, monkeypatch):
    """Answers are kept as they come, and stay where the plan is not finished."""
    monkeypatch.setenv("NCBI_API_KEY", KEY)
    monkeypatch.setattr(pubmed_plan, "REACHABLE", 3)
    with serve(RECORDS, unfound=(f"echo {KEY}",), faults={4: "400"}) as server, pytest.raises(PubmedError):
        asked = corpus(server.base_url)
        plan(asked, tmp_path, client=quiet(asked))
    kept_answers = list((tmp_path / "slices").iterdir())
    assert kept_answers and not (tmp_path / "plan.json").exists()
    assert all(KEY not in path.read_text() and "echo (api_key)" in path.read_text() for path in kept_answers)


def test_a_wait_that_would_outlast_the_deadline_is_not_begun(tmp_path, fake):
    with serve(RECORDS, faults={2: "429"}, retry_after="290") as server:
        with pytest.raises(PubmedError, match="deadline_minutes would pass while waiting"):
            gather(corpus(server.base_url, deadline_minutes=1.0), tmp_path, fake)
    assert max(fake.slept, default=0) < 60


def test_batches_that_another_run_changes_meanwhile_are_not_mixed(tmp_path, fake):
    with serve(RECORDS) as server:
        records, _ = collect(corpus(server.base_url), tmp_path, client=quiet(corpus(server.base_url)))
        assert next(records)["pmid"] == "4"
        other = corpus(server.base_url, max_records=4)
        gather(other, tmp_path, fake)
        with pytest.raises(PubmedError, match="changed while the corpus was read"):
            list(records)


def test_batches_without_a_manifest_are_vouched_for_by_nothing(tmp_path, fake):
    with serve(RECORDS) as server, serve([record(int(pmid), title="Other") for pmid in PMIDS]) as elsewhere:
        gather(corpus(server.base_url), tmp_path, fake)
        (tmp_path / "manifest.json").unlink()
        records, _ = gather(corpus(elsewhere.base_url), tmp_path, fake)
    assert {r["title"] for r in records} == {"Other"}


def test_a_merged_record_is_kept_and_listed(tmp_path, fake):
    """PubMed answers for a merged PMID with the record that took it in."""
    with serve(RECORDS) as server:
        asked = corpus(server.base_url)
        plan(asked, tmp_path)
        server.records["100"] = record(4711)
        records, counts = gather(asked, tmp_path, fake)
        assert len(server.asked("efetch")) == 4  # the last batch twice: at first it may be a fault
    assert [r["pmid"] for r in records][-1] == "4711"
    assert (counts["missing"], counts["merged"], counts["kept"]) == (1, 1, 7)
    entry = json.loads((tmp_path / "manifest.json").read_text())["batches"]["batch_0003.xml.gz"]
    assert (entry["missing"], entry["merged"]) == (["100"], ["4711"])


def test_a_body_that_drips_is_given_up_on(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(eutils, "BODY_PATIENCE", 2)
    with serve(RECORDS, faults={1: "drip"}) as server:
        asked = corpus(server.base_url, timeout_seconds=0.2)
        assert plan(asked, tmp_path, client=quiet(asked))["pmids"] == PMIDS
        assert len(server.requests) == 2


def test_a_deadline_ends_the_run_and_the_next_goes_on(tmp_path, fake):
    with serve(RECORDS, on_request=lambda: fake.sleep(60)) as server:
        with pytest.raises(PubmedError, match="deadline_minutes have passed"):
            gather(corpus(server.base_url, deadline_minutes=1.5), tmp_path, fake)
        assert len(server.asked("efetch")) == 1
        records, _ = gather(corpus(server.base_url, deadline_minutes=60.0), tmp_path, fake)
        assert [p["id"] for p in server.asked("efetch")] == ["4,5,8", "9,21,30", "100"]
    assert [r["pmid"] for r in records] == PMIDS


def test_a_full_disk_is_one_sentence_and_keeps_what_was_fetched(tmp_path, fake, monkeypatch):
    written = []

    def until_full(path, content):
        if len(written) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        write_bytes(path, content)

    with serve(RECORDS) as server:
        with monkeypatch.context() as full:
            full.setattr(pubmed_batches, "write_bytes", until_full)
            with pytest.raises(PubmedError, match="cannot be written .No space left on device.: make room there"):
                gather(corpus(server.base_url), tmp_path, fake)
        assert [path.name for path in tmp_path.glob("batch_*")] == ["batch_0001.xml.gz"]
        server.requests.clear()
        assert len(gather(corpus(server.base_url), tmp_path, fake)[0]) == 7
        assert [p["id"] for p in server.asked("efetch")] == ["9,21,30", "100"]


def test_no_connection_is_one_sentence(tmp_path, fake):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        with pytest.raises(PubmedError, match=r"esearch at http://127.0.0.1:\d+ failed 3 times.*refused"):
            gather(corpus(f"http://127.0.0.1:{taken.getsockname()[1]}"), tmp_path, fake)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_url": "http://example.org/eutils"}, "must start with https"),
        ({"base_url": "file:///etc"}, "must start with https"),
        ({"base_url": "http://127.0.0.1.example.org"}, "must start with https"),
        ({"query": "  "}, "query is empty"),
        ({"batch_size": 0}, "batch_size must be above 0"),
        ({"tries": 0}, "tries must be above 0"),
        ({"requests_per_second": 0.0}, "requests_per_second must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_sent(tmp_path, changes, said):
    with serve(RECORDS) as server:
        with pytest.raises(PubmedError, match=said):
            collect(corpus(**{"base_url": server.base_url, **changes}), tmp_path)
        assert server.requests == []


# --- the rules --------------------------------------------------------------------------------------------------------


def parsed(pmid: int, **changes) -> dict:
    """A record as the parser gives it, that every rule leaves alone."""
    plain = {
        "pmid": str(pmid),
        "kind": "article",
        "title": "A title.",
        "vernacular_title": None,
        "abstract": f"Abstract {pmid}.",
        "other_abstracts": [],
        "publication_types": ["Journal Article"],
    }
    return {**plain, **changes}


@pytest.mark.parametrize(
    ("changes", "rule", "title", "abstract"),
    [
        ({}, None, "A title.", "Abstract 2."),
        ({"publication_types": ["Journal Article", "Retracted Publication"]}, "retracted", None, None),
        ({"publication_types": ["Retraction of Publication"]}, "retracted", None, None),
        ({"publication_types": ["Expression of Concern"]}, None, "A title.", "Abstract 2."),
        ({"abstract": None}, "without_abstract", None, None),
        ({"abstract": None, "other_abstracts": [{"language": "fre", "text": "Non."}]}, "without_abstract", None, None),
        (
            {
                "abstract": None,
                "other_abstracts": [{"language": "fre", "text": "Non."}, {"language": "eng", "text": "Y"}],
            },
            "other_abstract",
            "A title.",
            "Y",
        ),
        ({"other_abstracts": [{"language": "eng", "text": "Y"}]}, None, "A title.", "Abstract 2."),
        ({"abstract": "It was cut. (ABSTRACT TRUNCATED AT 250 WORDS)"}, "truncated", "A title.", "It was cut."),
        ({"abstract": "(ABSTRACT TRUNCATED)"}, "without_abstract", None, None),
        ({"abstract": "ABSTRACT  1."}, "duplicate", None, None),
        ({"abstract": "Abstract +1."}, None, "A title.", "Abstract +1."),
        ({"abstract": "\u2003Abstract 2."}, None, "A title.", "\u2003Abstract 2."),
        ({"title": "[Not Available].", "vernacular_title": "Über."}, "vernacular_title", "Über.", "Abstract 2."),
        ({"title": None, "vernacular_title": "Über."}, "vernacular_title", "Über.", "Abstract 2."),
        ({"title": None}, None, None, "Abstract 2."),
        ({"title": "[On it].", "vernacular_title": "Über."}, None, "[On it].", "Abstract 2."),
        ({"kind": "book"}, "book", "A title.", "Abstract 2."),
    ],
)
def test_every_rule_by_hand(changes, rule, title, abstract):
    counts = Counter()
    records = list(kept(iter([parsed(1), parsed(2, **changes)]), counts))
    expected = {"kept": len(records)} | ({rule: 1} if rule else {})
    assert +counts == Counter(expected)
    if abstract is None:
        assert len(records) == 1
    else:
        assert (records[1]["title"], records[1]["abstract"]) == (title, abstract)


def test_of_several_versions_and_places_a_record_is_read_once():
    first = article_set([record(5, title="New"), record(4), record(5, title="Old")])
    first = first.replace(b'<PMID Version="1">5</PMID>', b'<PMID Version="2">5</PMID>', 1)
    second = article_set([record(4, title="Again"), record(6)])
    counts = Counter()
    records = list(stored_records(map(gzip.compress, (first, second)), counts))
    assert [(r["pmid"], r["title"]) for r in records] == [("4", "Title 4"), ("5", "New"), ("6", "Title 6")]
    assert counts == {"superseded": 2}


def test_batches_are_read_one_at_a_time(monkeypatch):
    """However many there are, so that memory stays flat."""
    answers, read = [article_set([record(10 * number + n) for n in range(3)]) for number in range(4)], []
    monkeypatch.setattr(pubmed, "parse_records", lambda xml: read.append(1) or parse_records(xml))
    records = kept(stored_records(map(gzip.compress, answers), Counter()), Counter())
    for number in range(4):
        assert [next(records)["pmid"] for _ in range(3)] == [str(10 * number + n) for n in range(3)]
        assert len(read) == number + 1


# --- the rate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "wanted", "allowed"), [(None, 50.0, 3.0), (KEY, 50.0, 10.0), (None, 2.0, 2.0)])
def test_every_attempt_passes_the_gate_retries_too(tmp_path, fake, monkeypatch, key, wanted, allowed):
    if key:
        monkeypatch.setenv("NCBI_API_KEY", key)
    times = []
    with serve(RECORDS, faults={2: "503", 3: "503"}, on_request=lambda: times.append(fake.now)) as server:
        asked = corpus(server.base_url, batch_size=1, max_records=4, requests_per_second=wanted)
        # A jitter of 0 leaves the gate alone to hold the retries apart.
        client = connect(asked, sleep=fake.sleep, clock=fake.clock, jitter=lambda low, high: 0.0)
        collect(asked, tmp_path, client=client)
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert len(gaps) == 6  # between a search, 4 batches and 2 retries
    assert gaps == pytest.approx([GATE_MARGIN / allowed] * 6)


def test_the_gate_does_not_make_a_slow_caller_wait(fake):
    gate = rate_gate(2.0, sleep=fake.sleep, clock=fake.clock)
    gate()
    fake.now += 5
    gate()
    assert fake.slept == []
    gate()
    assert fake.slept == [pytest.approx(0.55)]


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_complete_folder_is_read_without_a_request(tmp_path, fake):
    with serve(RECORDS) as server:
        asked = corpus(server.base_url)
        first = gather(asked, tmp_path, fake)
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        server.requests.clear()
        assert gather(asked, tmp_path, fake) == first
        assert server.requests == []
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_smaller_plan_keeps_the_batch_it_shares_and_forgets_the_rest(tmp_path, fake):
    with serve(RECORDS) as server:
        gather(corpus(server.base_url), tmp_path, fake)
        for pmid in PMIDS[3:]:
            del server.records[pmid]
        server.requests.clear()
        records, _ = gather(corpus(server.base_url, query="narrower"), tmp_path, fake)
        assert [r["pmid"] for r in records] == PMIDS[:3] and not server.asked("efetch")
    assert list(json.loads((tmp_path / "manifest.json").read_text())["batches"]) == ["batch_0001.xml.gz"]


@pytest.mark.parametrize("damage", ["flip", "gone", "unlisted", "manifest"])
def test_only_damaged_batches_are_fetched_again(tmp_path, fake, damage):
    with serve(RECORDS) as server:
        asked = corpus(server.base_url)
        first = gather(asked, tmp_path, fake)
        victim, manifest = tmp_path / "batch_0002.xml.gz", tmp_path / "manifest.json"
        content = victim.read_bytes()
        if damage == "flip":
            victim.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        elif damage == "gone":
            victim.unlink()
        elif damage == "unlisted":
            listed = json.loads(manifest.read_text())
            del listed["batches"][victim.name]
            manifest.write_text(json.dumps(listed))
        else:
            manifest.write_text('{"batches": {"batch_00')
        server.requests.clear()
        assert gather(asked, tmp_path, fake) == first
        expected = {"unlisted": [], "manifest": ["4,5,8", "9,21,30", "100"]}.get(damage, ["9,21,30"])
        assert [p["id"] for p in server.asked("efetch")] == expected and not server.asked("esearch")
    assert victim.read_bytes() == content


def die(*arguments) -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def collect_until(base_url: str, folder: Path, moment: str) -> None:
    """Collect into `folder`, in a process of its own, which dies at a moment."""
    write, fsync, replace_file = pubmed_batches.write_bytes, os.fsync, os.replace

    def progress(line):
        if moment == "after batch 2" and "batch 2" in line:
            die()

    def write_bytes(path, content):
        write(path, content)
        if moment == "before listing batch 2" and "0002" in path.name:
            die()

    pubmed_batches.write_bytes = write_bytes
    if moment == "while writing batch 2":
        os.fsync = lambda file: die() if "0002" in os.readlink(f"/proc/self/fd/{file}") else fsync(file)
    if moment == "while writing the corpus":
        os.replace = lambda old, new: die() if Path(new).name == "corpus" else replace_file(old, new)
    eutils.RATE_WITHOUT_KEY = 1e9
    paths = SimpleNamespace(data=folder)
    collect_corpus(corpus(base_url, requests_per_second=1e9), paths, folder / "corpus", progress=progress)


@contextmanager
def collector(server, folder: Path, moment: str):
    """A process that collects into `folder`, dies at a moment, or is killed at the server's request."""
    fresh = multiprocessing.get_context("forkserver")  # which imports everything once for all of them
    fresh.set_forkserver_preload([__name__])
    process = fresh.Process(target=collect_until, args=(server.base_url, folder, moment))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


@pytest.fixture
def at_once(monkeypatch):
    """No pause between requests."""
    monkeypatch.setattr(eutils, "RATE_WITHOUT_KEY", 1e9)


@pytest.mark.parametrize(
    ("moment", "again"),
    [
        ("in request 1", ["esearch", "4,5,8", "9,21,30", "100"]),
        ("in request 3", ["9,21,30", "100"]),
        ("while writing batch 2", ["9,21,30", "100"]),  # the answer came, but nothing kept it
        ("before listing batch 2", ["100"]),
        ("after batch 2", ["100"]),
        ("while writing the corpus", []),
    ],
)
def test_a_killed_process_is_resumed_and_repeats_nothing(tmp_path, at_once, moment, again):
    """`kill -9` anywhere: the next run asks for what is not there yet, and its corpus is the uninterrupted one."""
    if moment.startswith("while writing batch") and not Path("/proc/self/fd").is_dir():
        pytest.skip("open files cannot be told apart here")
    with serve(RECORDS) as server:
        whole, killed = (SimpleNamespace(data=tmp_path / name) for name in ("whole", "killed"))
        asked = corpus(server.base_url, requests_per_second=1e9)
        collect_corpus(asked, whole, whole.data / "corpus")
        server.requests.clear()
        with collector(server, killed.data, moment) as process:
            if moment.startswith("in request"):
                number = int(moment.rpartition(" ")[2])
                server.on_request = lambda: process.kill() if len(server.requests) == number else None
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
        server.on_request = lambda: None
        assert not (killed.data / "corpus").exists()
        server.requests.clear()
        collect_corpus(asked, killed, killed.data / "corpus")
        assert [parameters.get("id", utility) for utility, parameters in server.requests] == again
    hashes = [sha256_tree([paths.data / "corpus"], paths.data) for paths in (whole, killed)]
    assert hashes[0] == hashes[1]
    batches = sorted((whole.data / "raw").glob("epilepsy-*/batch_*"))
    assert len(batches) == 3
    for path in batches:
        assert path.read_bytes() == (killed.data / path.relative_to(whole.data)).read_bytes()


def test_two_processes_at_once(tmp_path, at_once):
    """The second is refused while the first collects, and finds everything there afterwards."""
    refused = []

    def second():
        try:
            collect_corpus(asked, paths, paths.data / "corpus")
        except PubmedError as error:
            refused.append(str(error))

    with serve(RECORDS) as server:
        asked, paths = corpus(server.base_url, requests_per_second=1e9), SimpleNamespace(data=tmp_path)
        server.on_request = lambda: second() if len(server.requests) == 2 else None  # while the first fetches a batch
        with collector(server, tmp_path, "never") as process:
            process.join(60)
            assert process.exitcode == 0
        assert len(refused) == 1 and refused[0].startswith("Another process is collecting into")
        server.requests.clear()
        collect_corpus(asked, paths, paths.data / "corpus")
        assert server.requests == []


# --- the key ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["400", "429", "503"])
def test_key_and_email_are_sent_but_written_nowhere(tmp_path, fake, monkeypatch, fault, capsys):
    monkeypatch.setenv("NCBI_API_KEY", KEY)
    monkeypatch.setenv("NCBI_EMAIL", MAIL)
    lines = []
    with serve(RECORDS, faults=dict.fromkeys(range(4, 9), fault)) as server:  # their bodies repeat the key
        with pytest.raises(PubmedError) as caught:
            gather(corpus(server.base_url), tmp_path, fake, lines)
        assert all((p["api_key"], p["email"]) == (KEY, MAIL) for _, p in server.requests)
        assert not [url for url in server.urls if "?" in url]
        client = connect(corpus(server.base_url))
    assert "(api_key)" in str(caught.value) and "email=(email)" in str(caught.value)  # the echo was there, and cleared
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    written = "".join([str(caught.value), repr(caught.value), *lines, repr(client), *capsys.readouterr()])
    written += "".join(p.read_text("latin-1") for p in tmp_path.iterdir())
    assert KEY not in written and MAIL not in written and "reader%2Bclap" not in written


@pytest.mark.parametrize("end", ["\r", "\n", " \r\n"])
def test_the_end_of_a_line_is_no_part_of_a_key(tmp_path, fake, monkeypatch, end):
    """A file of settings leaves it there, and an echo of it, escaped, would not be recognised."""
    monkeypatch.setenv("NCBI_API_KEY", KEY + end)
    with serve(RECORDS, faults={1: "400"}) as server:
        with pytest.raises(PubmedError) as caught:
            gather(corpus(server.base_url), tmp_path, fake)
        assert server.requests[0][1]["api_key"] == KEY
    assert KEY not in str(caught.value) and "(api_key)" in str(caught.value)


@pytest.mark.parametrize("key", ["two words", "tab\tkey", "\u00e9t\u00e9"])
def test_a_key_that_cannot_be_one_is_refused_without_saying_it(monkeypatch, key):
    monkeypatch.setenv("NCBI_API_KEY", key)
    with pytest.raises(PubmedError, match="NCBI_API_KEY holds") as caught:
        connect(corpus("http://127.0.0.1:9"))
    assert key not in str(caught.value)


def test_without_key_and_email_neither_is_sent(tmp_path, fake):
    with serve(RECORDS) as server:
        gather(corpus(server.base_url), tmp_path, fake)
        assert not [p for _, p in server.requests if "api_key" in p or "email" in p]


# --- the server, and real abstracts -----------------------------------------------------------------------------------


def test_the_server_runs_as_a_program(tmp_path, fake):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    command = [sys.executable, str(ROOT / "tests" / "eutils_server.py"), "--jsonl", str(path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            base_url = process.stdout.readline().strip()
            records, _ = gather(corpus(base_url), tmp_path / "raw", fake)
        finally:
            process.terminate()
    assert [r["pmid"] for r in records] == PMIDS


def real_file(name: str) -> Path:
    folder = os.environ.get("CLAP_REAL_DATA")
    if not folder:
        pytest.skip("CLAP_REAL_DATA names no folder with real PubMed records")
    return Path(folder) / "pubmed" / name


def test_real_abstracts_survive_the_way_through_the_server(tmp_path, fake):
    with real_file("pubmedqa_abstracts.jsonl").open(encoding="utf-8") as lines:
        originals = {r["pmid"]: r for r in map(json.loads, lines)}
    with serve(list(originals.values())) as server:
        records, counts = gather(corpus(server.base_url, max_records=1000, batch_size=200), tmp_path, fake)
        assert len(server.asked("efetch")) == 5
    assert counts == {**NOTHING, "matched": 1000, "asked": 1000, "kept": 1000}
    for parsed in records:
        original = originals[parsed["pmid"]]
        expected = [" ".join(section["text"].split()) for section in original["sections"]]
        assert [" ".join(section["text"].split()) for section in parsed["sections"]] == expected
        assert parsed["mesh"] == original["mesh"] and str(parsed["year"]) == str(original["year"])
