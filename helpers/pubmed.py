"""PubMed abstracts: a frozen plan of PMIDs, raw batches fetched by id, and the records parsed from them.

    plan.json              what was asked and what PubMed answered: query, Count, sorted PMIDs, time
    batch_0001.xml.gz …    EFetch answers as they came, each checked before it is written
    manifest.json          bytes, SHA-256 and missing PMIDs of every batch, rewritten after each one

A rerun asks PubMed only for what is absent or damaged. Key and e-mail come from NCBI_API_KEY and NCBI_EMAIL.
Source: NCBI, E-utilities Help (NBK25499, ESearch and EFetch).
"""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

from helpers.artifacts import ArtifactError, fingerprint, read_json, sha256_bytes, sha256_file, write_bytes, write_json
from helpers.config import Corpus
from helpers.eutils import TOOL, Client, PubmedError, connect, excerpt, request
from helpers.pubmed_records import parse_records

__all__ = ["PubmedError", "collect", "fetch", "parse_records", "plan"]

REACHABLE = 9_999  # ESearch hands out no hit beyond this one, whatever retstart says


def collect(settings: Corpus, folder: Path, *, progress=None, client: Client | None = None) -> tuple[list[dict], dict]:
    """Plan, fetch and parse into `(records, counts)`: the records with an abstract, in the order of their PMIDs.

    `counts` holds matched (hits of the query), asked, returned, missing (asked but not returned) and without_abstract
    (returned but dropped). A complete folder is read without any request. Raises PubmedError as `plan` and `fetch` do.
    """
    client = client or connect(settings, progress=progress)
    planned = plan(settings, folder, client=client)
    by_pmid = {}
    for path in fetch(settings, folder, client=client):
        for record in parse_records(gzip.decompress(path.read_bytes())):
            by_pmid[record["pmid"]] = record  # of several versions of one article, the last given
    records = [by_pmid[pmid] for pmid in planned["pmids"] if pmid in by_pmid]
    kept = [record for record in records if record["abstract"]]
    counts = {
        "matched": planned["count"],
        "asked": len(planned["pmids"]),
        "returned": len(records),
        "missing": len(planned["pmids"]) - len(records),
        "without_abstract": len(records) - len(kept),
    }
    return kept, counts


def plan(settings: Corpus, folder: Path, *, client: Client | None = None) -> dict:
    """Ask ESearch once which PMIDs the query has, and freeze the answer in `plan.json`; later calls read it back.

    Of more than `max_records` hits the first are taken, in ESearch's own order, and `notes` says so. Another query,
    limit or address makes a new plan. Raises PubmedError when nothing was found, and when `max_records` and Count both
    exceed the hits ESearch can reach.
    """
    client = client or connect(settings)
    path = folder / "plan.json"
    if path.is_file() and _answers(stored := read_json(path), settings, client):
        return _checked(stored, path)
    wanted, pmids, notes = min(settings.max_records, REACHABLE), {}, []
    while True:
        offset = len(pmids)
        search = {"term": settings.query, "retmode": "json", "retstart": offset, "retmax": wanted - offset}
        page = request(client, "esearch", search, lambda body, last, offset=offset: _search_page(body, offset))
        _check_count(settings, page)
        pmids.update(dict.fromkeys(page["pmids"]))
        if len(pmids) == offset or len(pmids) >= min(wanted, page["count"]):
            break
    chosen = sorted(list(pmids)[:wanted], key=int)
    if page["not_found"]:
        notes.append(f"PubMed did not find, and left out: {', '.join(page['not_found'])}.")
    if page["count"] > len(chosen):
        notes.append(f"The query matches {page['count']} records; the first {len(chosen)} that ESearch lists are used.")
    for note in notes:
        client.progress(note)
    made = {
        **_question(settings, client),
        "count": page["count"],
        "pmids": chosen,
        "notes": notes,
        "retrieved_at": _now(),
    }
    write_json(path, made)
    client.progress(f"PubMed: {len(chosen)} of {page['count']} matching records planned.")
    return made


def _check_count(settings: Corpus, page: dict) -> None:
    if page["count"] == 0:
        unknown = f" PubMed did not find {', '.join(page['not_found'])}." if page["not_found"] else ""
        raise PubmedError(
            f"The query {settings.query!r} returned no record: check its spelling and field tags, or widen it.{unknown}"
        )
    if min(page["count"], settings.max_records) > REACHABLE:
        raise PubmedError(
            f"The query {settings.query!r} matches {page['count']} records, and ESearch hands out only the first "
            f"{REACHABLE}: set corpus.max_records to at most {REACHABLE}, or narrow the query (AND 2015:2019[dp])."
        )


def _question(settings: Corpus, client: Client) -> dict:
    return {"base_url": client.base_url, "query": settings.query, "max_records": settings.max_records}


def _answers(stored: object, settings: Corpus, client: Client) -> bool:
    """Whether a stored plan answers the question these settings ask."""
    return isinstance(stored, dict) and all(stored.get(k) == v for k, v in _question(settings, client).items())


def _checked(stored: dict, path: Path) -> dict:
    pmids = stored.get("pmids")
    valid = isinstance(pmids, list) and pmids and all(isinstance(pmid, str) and pmid.isdigit() for pmid in pmids)
    if not valid or len(set(pmids)) != len(pmids) or not isinstance(stored.get("count"), int):
        raise PubmedError(f"{path} lacks its Count or its distinct PMIDs: delete it, and the plan is made again.")
    return stored


def _search_page(body: bytes, offset: int) -> dict:
    """Read one ESearch answer; raises PubmedError when it is an error, cut short, or empty where hits remain."""
    try:
        answer = json.loads(body, strict=False)  # titles in the answer's translation may hold control characters
        result = answer["esearchresult"]
        count, pmids = int(result["count"]), [str(int(pmid)) for pmid in result["idlist"]]
        errors = result.get("errorlist", {})
        not_found = [*errors.get("phrasesnotfound", []), *errors.get("fieldsnotfound", [])]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PubmedError(f"the answer is not a list of PMIDs but {excerpt(body)}") from None
    if count > offset and not pmids:
        raise PubmedError(f"the answer lists no PMID although {count - offset} hits remain")
    return {"count": count, "pmids": pmids, "not_found": [str(phrase) for phrase in not_found]}


def fetch(settings: Corpus, folder: Path, *, client: Client | None = None) -> list[Path]:
    """Bring every batch of the frozen plan into `folder`, and return their paths in order.

    Only absent or damaged batches are asked for. An answer is kept when it parses and holds no PMID that was not
    asked for; an empty one counts as a fault until the last try. Batches of an earlier plan are removed at the end.
    Raises PubmedError when a batch fails `tries` times (finished ones stay), or when the plan answers another question.
    """
    client = client or connect(settings)
    plan_path, manifest_path = folder / "plan.json", folder / "manifest.json"
    source = f"{client.base_url}/efetch.fcgi"
    if not _answers(planned := read_json(plan_path), settings, client):
        raise PubmedError(f"{plan_path} was made for another query, limit or address: make the plan again first.")
    pmids, size, known = _checked(planned, plan_path)["pmids"], settings.batch_size, _known_batches(manifest_path)
    batches = {f"batch_{i // size + 1:04d}.xml.gz": pmids[i : i + size] for i in range(0, len(pmids), size)}
    whole = {
        name: known[name] for name, asked in batches.items() if _is_whole(folder / name, known.get(name), source, asked)
    }
    for number, (name, asked) in enumerate(batches.items(), 1):
        if name in whole:
            continue
        wanted = {"id": ",".join(asked), "retmode": "xml"}
        body, returned = request(client, "efetch", wanted, lambda body, last, asked=asked: _batch(body, asked, last))
        content = gzip.compress(body, mtime=0)
        write_bytes(folder / name, content)
        whole[name] = {
            "asked": fingerprint([source, asked]),
            "bytes": len(content),
            "missing": [pmid for pmid in asked if pmid not in returned],
            "retrieved_at": _now(),
            "sha256": sha256_bytes(content),
        }
        write_json(manifest_path, {"batches": whole, "source": source, "tool": TOOL})
        client.progress(f"PubMed: batch {number} of {len(batches)}, {len(returned)} of {len(asked)} records.")
    if set(known) - set(whole):
        write_json(manifest_path, {"batches": whole, "source": source, "tool": TOOL})
    for path in folder.glob("batch_*.xml.gz"):
        if path.name not in batches:
            path.unlink()
    return [folder / name for name in batches]


def _known_batches(path: Path) -> dict:
    """The manifest's batches; a damaged manifest vouches for nothing, so it counts as none."""
    try:
        batches = read_json(path)["batches"]
    except (ArtifactError, KeyError, TypeError):
        return {}
    return batches if isinstance(batches, dict) else {}


def _is_whole(path: Path, entry: object, source: str, asked: list[str]) -> bool:
    if not isinstance(entry, dict) or entry.get("asked") != fingerprint([source, asked]) or not path.is_file():
        return False
    return sha256_file(path) == entry.get("sha256")


def _batch(body: bytes, asked: list[str], last: bool) -> tuple[bytes, set[str]]:
    returned = {record["pmid"] for record in parse_records(body)}
    if strangers := sorted(returned - set(asked)):
        raise PubmedError(f"the answer holds records that were not asked for ({', '.join(strangers[:3])})")
    if not returned and not last:
        raise PubmedError("the answer holds no record")
    return body, returned


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
