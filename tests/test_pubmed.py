"""PubMed: the plan, the batches and the requests for them, against a loopback server that misbehaves on request."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from eutils_server import article_set, serve

from helpers.artifacts import ArtifactError
from helpers.config import Corpus
from helpers.eutils import GATE_MARGIN, connect, rate_gate
from helpers.pubmed import REACHABLE, PubmedError, collect, fetch, plan

ROOT = Path(__file__).resolve().parent.parent
KEY, MAIL = "0123456789abcdef0123456789abcdef0123", "reader+clap@example.org"


def corpus(base_url: str, **changes) -> Corpus:
    values = {
        "source": "pubmed",
        "base_url": base_url,
        "query": "epilepsy[MeSH Terms]",
        "max_records": 100,
        "batch_size": 3,
        "requests_per_second": 3.0,
        "timeout_seconds": 5.0,
        "tries": 3,
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
    return collect(asked, folder, client=client, **options)


# --- the happy path ---------------------------------------------------------------------------------------------------


def test_collect_gives_every_record_in_the_order_of_its_pmid_and_counts_them(tmp_path, fake):
    lines = []
    with serve([*RECORDS, record(6, sections=[])]) as server:
        records, counts = gather(corpus(server.base_url), tmp_path, fake, lines)
        assert [r["pmid"] for r in records] == PMIDS
        assert counts == {"matched": 8, "asked": 8, "returned": 8, "missing": 0, "without_abstract": 1}
        assert [p["id"] for p in server.asked("efetch")] == ["4,5,6", "8,9,21", "30,100"]
        assert [p["retstart"] for p in server.asked("esearch")] == ["0"]
        assert {(p["db"], p["tool"]) for _, p in server.requests} == {("pubmed", "clap-notebooks")}
    assert records[0] == {
        "pmid": "4",
        "title": "Title 4",
        "abstract": "METHODS: We read 4. It ended.",
        "sections": [{"label": "METHODS", "text": "We read 4."}, {"label": None, "text": "It ended."}],
        "journal": None,
        "year": 2001,
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
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, "manifest.json", "plan.json"])
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
        assert (counts["asked"], counts["returned"], counts["missing"]) == (7, 6, 1)
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


def test_more_hits_than_esearch_can_reach_are_refused_only_when_they_are_wanted(tmp_path):
    with serve(RECORDS, count=57_123) as server:
        with pytest.raises(PubmedError, match=r"matches 57123 records.*at most 9999"):
            plan(corpus(server.base_url, max_records=REACHABLE + 1), tmp_path)
        planned = plan(corpus(server.base_url, max_records=7), tmp_path)
    assert (planned["count"], planned["pmids"]) == (57_123, PMIDS)
    assert planned["notes"] == ["The query matches 57123 records; the first 7 that ESearch lists are used."]


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


@pytest.mark.parametrize("fault", ["429", "503", "cut", "short", "json", "empty", "stranger"])
def test_a_fault_is_tried_again_and_then_forgotten(tmp_path, fake, fault):
    lines = []
    with serve(RECORDS, faults={3: fault}) as server:  # request 1 is the search, 3 the second batch
        records, counts = gather(corpus(server.base_url), tmp_path, fake, lines)
        assert [p["id"] for p in server.asked("efetch")] == ["4,5,8", "9,21,30", "9,21,30", "100"]
    assert [r["pmid"] for r in records] == PMIDS and counts["missing"] == 0
    assert [line for line in lines if "try 2 of 3 in 1.0 s" in line]


@pytest.mark.parametrize("fault", ["429", "503", "cut", "short", "json"])
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


def test_no_connection_is_one_sentence(tmp_path, fake):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        with pytest.raises(PubmedError, match="esearch failed 3 times.*refused"):
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
        expected = ["9,21,30"] if damage != "manifest" else ["4,5,8", "9,21,30", "100"]
        assert [p["id"] for p in server.asked("efetch")] == expected and not server.asked("esearch")
    assert victim.read_bytes() == content


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:4]
from test_pubmed import corpus
from helpers.pubmed import collect
def progress(line):
    if "batch 2" in line:
        os._exit(9)
collect(corpus(sys.argv[1], requests_per_second=1e9), Path(sys.argv[4]), progress=progress)
"""


def test_a_process_killed_between_batches_is_resumed(tmp_path, fake):
    with serve(RECORDS) as server:
        places = [str(ROOT), str(ROOT / "tests"), str(tmp_path / "killed")]
        done = subprocess.run([sys.executable, "-c", KILLED, server.base_url, *places], timeout=60)
        assert done.returncode == 9
        assert len(list((tmp_path / "killed").glob("batch_*"))) == 2
        server.requests.clear()
        resumed = gather(corpus(server.base_url), tmp_path / "killed", fake)
        assert [(u, p.get("id")) for u, p in server.requests] == [("efetch", "100")]
        assert resumed == gather(corpus(server.base_url), tmp_path / "whole", fake)
    for path in (tmp_path / "whole").glob("batch_*"):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


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
    assert counts == {"matched": 1000, "asked": 1000, "returned": 1000, "missing": 0, "without_abstract": 0}
    for parsed in records:
        original = originals[parsed["pmid"]]
        expected = [" ".join(section["text"].split()) for section in original["sections"]]
        assert [" ".join(section["text"].split()) for section in parsed["sections"]] == expected
        assert parsed["mesh"] == original["mesh"] and str(parsed["year"]) == str(original["year"])
