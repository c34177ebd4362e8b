"""A loopback server that speaks the two E-utilities the project uses, ESearch and EFetch, from a list of records.

It answers every query with all its records, last entered first, or with those entered between two days, and misbehaves
on request. For a run of a whole profile:
    python tests/eutils_server.py --jsonl abstracts.jsonl --port 0      prints its base URL, and serves until stopped
A record is a dictionary: pmid, title, sections [{label, text}], and optionally journal, year, keywords, mesh. Where a
section or the record has `xml` beside or instead of `text` and `title`, that goes into the answer as it stands.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape, quoteattr

REACHABLE = 9_999
DTD = "pubmed_250101.dtd"
HEADER = (
    '<?xml version="1.0" ?>\n<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2025//EN" '
    '"https://dtd.nlm.nih.gov/ncbi/pubmed/out/{dtd}">\n'
)
FAULTS = (
    "429",
    "503",
    "400",
    "relayed",
    "cut",
    "short",
    "json",
    "html",
    "empty",
    "partial",
    "hang",
    "drip",
    "stranger",
)


class EutilsServer(ThreadingHTTPServer):
    """The server; `faults` maps the number of a request, from 1, to one of FAULTS, and `requests` logs what came in."""

    daemon_threads = True

    def __init__(
        self,
        records: list[dict],
        *,
        port: int = 0,
        faults: dict[int, str] | None = None,
        retry_after: str | None = None,
        count: int | None = None,
        page_limit: int = 10_000,
        dtd: str = DTD,
        unfound: tuple[str, ...] = (),
        on_request: Callable[[], None] = lambda: None,
    ):
        """Listen on the loopback; port 0 picks a free one, `count` overrides the Count that ESearch reports."""
        super().__init__(("127.0.0.1", port), Handler)
        self.records = {record["pmid"]: record for record in records}
        self.faults, self.retry_after, self.count, self.page_limit = faults or {}, retry_after, count, page_limit
        self.dtd, self.unfound, self.on_request = dtd, list(unfound), on_request
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.urls: list[str] = []
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        """What corpus.base_url must be."""
        return f"http://127.0.0.1:{self.server_address[1]}/entrez/eutils"

    def asked(self, utility: str) -> list[dict[str, str]]:
        """The parameters of every request to `esearch` or `efetch`, in order."""
        return [parameters for name, parameters in self.requests if name == utility]


@contextmanager
def serve(records: list[dict], **options) -> Iterator[EutilsServer]:
    """Run a server in a thread for the length of a block."""
    with EutilsServer(records, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    """One request of a client."""

    server: EutilsServer

    def do_GET(self) -> None:
        """Answer a GET, its parameters in the URL."""
        self._answer(urlsplit(self.path).query)

    def do_POST(self) -> None:
        """Answer a POST, its parameters in the body."""
        self._answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

    def log_message(self, *arguments) -> None:
        """Say nothing on the terminal."""

    def _answer(self, form: str) -> None:
        parameters = {name: values[0] for name, values in parse_qs(form).items()}
        utility = urlsplit(self.path).path.rpartition("/")[2].removesuffix(".fcgi")
        with self.server.lock:
            self.server.requests.append((utility, parameters))
            self.server.urls.append(self.path)
            fault = self.server.faults.get(len(self.server.requests))
            self.server.on_request()
        if fault in ("429", "503", "400"):
            # NCBI's own error body repeats the key it was sent; this one repeats the whole form too.
            error = {"error": "API rate limit exceeded", "api-key": parameters.get("api_key"), "form": form}
            body = json.dumps(error).encode()
            self._send(int(fault), body, "application/json")
        elif fault == "relayed":  # as NCBI's front passes on that what is behind it does not answer
            self._send(
                400, b"<eFetchResult><ERROR>proxy_stream(): failed to connect</ERROR></eFetchResult>", "text/xml"
            )
        elif fault == "json":
            self._send(200, b'{"error":"API rate limit exceeded","count":"11"}', "application/json")
        elif fault == "html":
            self._send(200, b"<!DOCTYPE html><html><body>Service is being updated</body></html>", "text/html")
        elif utility == "esearch":
            self._send(200, *search(self.server, parameters), fault=fault)
        elif utility == "efetch":
            pmids = [] if fault == "empty" else parameters["id"].split(",")
            chosen = [self.server.records[pmid] for pmid in pmids if pmid in self.server.records]
            if fault == "partial":
                chosen = chosen[:1]
            if fault == "stranger":
                chosen.append({"pmid": "1", "title": "Not asked for"})
            self._send(200, article_set(chosen, dtd=self.server.dtd), "text/xml; charset=UTF-8", fault=fault)
        else:
            self._send(404, b"no such utility", "text/plain")

    def _send(self, status: int, body: bytes, kind: str, *, fault: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        # "cut" breaks its promise of a length; "short" makes none, so only the body itself can tell. HTTP/1.0 closes.
        if fault != "short":
            self.send_header("Content-Length", str(len(body)))
        if status in (429, 503) and self.server.retry_after:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()
        if fault == "hang":
            time.sleep(0.5)
        try:
            if fault == "drip":
                for byte in body[:200]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
            self.wfile.write(body[: len(body) // 2] if fault in ("cut", "short") else body)
        except OSError:
            pass  # the client did not wait


def search(server: EutilsServer, parameters: dict[str, str]) -> tuple[bytes, str]:
    """An ESearch answer and its content type, as JSON or, as NCBI does by default, as XML."""
    pmids = sorted(server.records, key=lambda pmid: (entry_date(server.records[pmid]), int(pmid)), reverse=True)
    if parameters.get("datetype") == "edat":
        span = parameters["mindate"], parameters["maxdate"]
        pmids = [pmid for pmid in pmids if span[0] <= entry_date(server.records[pmid]) <= span[1]]
    start, most = int(parameters.get("retstart", 0)), min(int(parameters.get("retmax", 20)), server.page_limit)
    count = len(pmids) if server.count is None else server.count
    if start >= REACHABLE:
        result = {"ERROR": "Search Backend failed: Exception: 'retstart' cannot be larger than 9998."}
    else:
        page = pmids[start : min(start + most, REACHABLE)]
        result = {"count": str(count), "retmax": str(len(page)), "retstart": str(start), "idlist": page}
        if not count:
            result["errorlist"] = {"phrasesnotfound": [parameters.get("term", "")], "fieldsnotfound": []}
        result["querytranslation"] = f"({parameters.get('term', '')})"
        if server.unfound:
            result["warninglist"] = {"quotedphrasesnotfound": server.unfound}
    if parameters.get("retmode") == "json":
        answer = {"header": {"type": "esearch", "version": "0.3"}, "esearchresult": result}
        return json.dumps(answer).encode(), "application/json"
    ids = "".join(f"<Id>{pmid}</Id>" for pmid in result.get("idlist", []))
    inside = f"<Count>{count}</Count><RetMax>{most}</RetMax><RetStart>{start}</RetStart><IdList>{ids}</IdList>"
    if "ERROR" in result:
        inside = f"<ERROR>{escape(result['ERROR'])}</ERROR>"
    doctype = (
        '<?xml version="1.0" encoding="UTF-8" ?>\n<!DOCTYPE eSearchResult PUBLIC "-//NLM//DTD esearch 20060628//EN" '
        '"https://eutils.ncbi.nlm.nih.gov/eutils/dtd/20060628/esearch.dtd">\n'
    )
    return f"{doctype}<eSearchResult>{inside}</eSearchResult>".encode(), "text/xml; charset=UTF-8"


def entry_date(record: dict) -> str:
    """The day on which PubMed entered a record, as YYYY/MM/DD: in its year, or in 2000, and decided by its PMID."""
    return _day(int(record.get("year") or 2000), int(record["pmid"]) % 365)


@functools.cache
def _day(year: int, number: int) -> str:
    return (datetime.date(year, 1, 1) + datetime.timedelta(days=number)).strftime("%Y/%m/%d")


def article_set(records: list[dict], *, dtd: str = DTD) -> bytes:
    """An EFetch answer: a PubmedArticleSet of these records."""
    articles = "\n".join(article(record) for record in records)
    return f"{HEADER.format(dtd=dtd)}<PubmedArticleSet>\n{articles}\n</PubmedArticleSet>".encode()


def article(record: dict) -> str:
    """One PubmedArticle; what the record lacks is left out."""
    sections = []
    for section in record.get("sections") or []:
        label = f" Label={quoteattr(section['label'])}" if section.get("label") else ""
        text = section["xml"] if "xml" in section else escape(section["text"])
        sections.append(f"<AbstractText{label}>{text}</AbstractText>")
    abstract = f"<Abstract>{''.join(sections)}</Abstract>" if sections else ""
    date = f"<Year>{record['year']}</Year>" if record.get("year") else ""
    journal = f"<Title>{escape(record['journal'])}</Title>" if record.get("journal") else ""
    title = record["xml"] if "xml" in record else escape(record.get("title") or "")
    mesh = "".join(
        f'<MeshHeading><DescriptorName UI="D0" MajorTopicYN="N">{escape(name)}</DescriptorName></MeshHeading>'
        for name in record.get("mesh") or []
    )
    keywords = "".join(f'<Keyword MajorTopicYN="N">{escape(word)}</Keyword>' for word in record.get("keywords") or [])
    return (
        f'<PubmedArticle><MedlineCitation Status="MEDLINE" Owner="NLM"><PMID Version="1">{record["pmid"]}</PMID>'
        f'<Article PubModel="Print"><Journal><JournalIssue CitedMedium="Print"><PubDate>{date}</PubDate></JournalIssue>'
        f"{journal}</Journal><ArticleTitle>{title}</ArticleTitle>{abstract}<Language>eng</Language></Article>"
        + (f"<MeshHeadingList>{mesh}</MeshHeadingList>" if mesh else "")
        + (f'<KeywordList Owner="NOTNLM">{keywords}</KeywordList>' if keywords else "")
        + "</MedlineCitation></PubmedArticle>"
    )


def copied(records: list[dict], copies: int) -> list[dict]:
    """Every record `copies` times: the first as it is, the others with another PMID and one more sentence."""
    more = [
        {
            **record,
            "pmid": str(int(record["pmid"]) + 100_000_000 * copy),
            "sections": [*record["sections"], {"label": None, "text": f"This is copy {copy}."}],
        }
        for copy in range(1, copies)
        for record in records
    ]
    return [*records, *more]


def main() -> None:
    """Serve a file of records until stopped."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--jsonl", type=Path, required=True, help="one record a line")
    options.add_argument("--port", type=int, default=0, help="0 picks a free port")
    options.add_argument("--copies", type=int, default=1, help="of each record, with a PMID and a sentence of its own")
    options.add_argument("--fault", action="append", default=[], help=f"NUMBER=KIND of a request: {', '.join(FAULTS)}")
    chosen = options.parse_args()
    with chosen.jsonl.open(encoding="utf-8") as lines:  # not splitlines(), which cuts abstracts at U+2028 as well
        records = [json.loads(line) for line in lines if line.strip()]
    faults = {int(number): kind for number, _, kind in (fault.partition("=") for fault in chosen.fault)}
    with EutilsServer(copied(records, chosen.copies), port=chosen.port, faults=faults) as server:
        print(server.base_url, flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
