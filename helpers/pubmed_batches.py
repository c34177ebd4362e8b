"""Batches: the raw EFetch answers of a plan, each checked before it is written, and a manifest of what they are.

    batch_0001.xml.gz …    EFetch answers as they came
    manifest.json          bytes, SHA-256, and missing and merged PMIDs of every batch, rewritten after each one

A rerun asks PubMed only for what is absent or damaged. Source: NCBI, E-utilities Help (NBK25499, EFetch).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from helpers.artifacts import ArtifactError, fingerprint, read_json, sha256_bytes, sha256_file, write_bytes, write_json
from helpers.config import Corpus
from helpers.eutils import TOOL, Client, PubmedError, connect, request
from helpers.pubmed_plan import answers, checked, now, question_of
from helpers.pubmed_records import parse_records


def fetch(settings: Corpus, folder: Path, *, client: Client | None = None) -> list[Path]:
    """Bring every batch of the frozen plan into `folder`, and return their paths in order.

    Only absent or damaged batches are asked for; one that a killed run wrote but did not list yet is read and listed.
    An answer is kept when it parses. One that lacks records counts as a fault until another answer lacks the same, one
    without any record until the last try: then what is absent is `missing` (deleted), and a record in the place of an
    absent one is `merged`. Batches of an earlier plan are removed. Raises PubmedError when a batch fails `tries` times
    (finished ones stay), and when the plan answers another question.
    """
    client = client or connect(settings)
    plan_path, manifest_path = folder / "plan.json", folder / "manifest.json"
    source = f"{client.base_url}/efetch.fcgi"
    if not answers(planned := read_json(plan_path), question_of(settings)):
        raise PubmedError(f"{plan_path} was made for another query, limit or address: make the plan again first.")
    pmids, size, listed = checked(planned, plan_path)["pmids"], settings.batch_size, _listed(manifest_path, source)
    batches = {f"batch_{i // size + 1:04d}.xml.gz": pmids[i : i + size] for i in range(0, len(pmids), size)}
    whole = {
        name: entry
        for name, asked in batches.items()
        if listed is not None and (entry := _whole(folder / name, asked, source, listed.get(name)))
    }
    for path in folder.glob("batch_*.xml.gz"):  # before any is fetched, so that what is unlisted later is this plan's
        if path.name not in whole:
            path.unlink()
    if listed != whole:
        write_json(manifest_path, {"batches": whole, "source": source, "tool": TOOL})
    for number, (name, asked) in enumerate(batches.items(), 1):
        if name in whole:
            continue
        wanted = {"id": ",".join(asked), "retmode": "xml", "retmax": len(asked)}
        body, returned = request(client, "efetch", wanted, _checker(asked))
        content = gzip.compress(body, mtime=0)
        write_bytes(folder / name, content)
        whole[name] = _entry(content, source, asked, returned, now())
        write_json(manifest_path, {"batches": whole, "source": source, "tool": TOOL})
        there = len(asked) - len(whole[name]["missing"])
        client.progress(f"PubMed: batch {number} of {len(batches)}, {there} of {len(asked)} records.")
    return [folder / name for name in batches]


def _listed(path: Path, source: str) -> dict | None:
    """The batches that the manifest lists; None where it vouches for none: absent, damaged, or of another source."""
    try:
        manifest = read_json(path)
        batches = manifest["batches"] if manifest["source"] == source else None
    except (ArtifactError, KeyError, TypeError):
        return None
    return batches if isinstance(batches, dict) else None


def _whole(path: Path, asked: list[str], source: str, entry: object) -> dict | None:
    """The manifest's entry of a batch that is there and undamaged; None of one that must be fetched."""
    if not path.is_file():
        return None
    if isinstance(entry, dict):
        same = entry.get("asked") == fingerprint([source, asked]) and entry.get("sha256") == sha256_file(path)
        return entry if same else None
    content = path.read_bytes()  # a killed run may have had no time to list it
    try:
        _, returned = _checker(asked)(gzip.decompress(content), last=True)
    except (PubmedError, OSError, EOFError, zlib.error):
        return None
    retrieved_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return _entry(content, source, asked, returned, retrieved_at)


def _entry(content: bytes, source: str, asked: list[str], returned: set[str], retrieved_at: datetime) -> dict:
    return {
        "asked": fingerprint([source, asked]),
        "bytes": len(content),
        "merged": sorted(returned - set(asked), key=int),
        "missing": [pmid for pmid in asked if pmid not in returned],
        "retrieved_at": retrieved_at.isoformat(timespec="seconds"),
        "sha256": sha256_bytes(content),
    }


def _checker(asked: list[str]) -> Callable[[bytes, bool], tuple[bytes, set[str]]]:
    """A check of answers to one batch that remembers what the last of them lacked; it returns body and PMIDs."""
    before: list[set[str]] = []

    def check(body: bytes, last: bool) -> tuple[bytes, set[str]]:
        returned = {record["pmid"] for record in parse_records(body)}
        missing, strangers = set(asked) - returned, returned - set(asked)
        agreed = last or (bool(returned) and returned in before)
        before.append(returned)
        if strangers and not (agreed and len(strangers) <= len(missing)):
            some = ", ".join(sorted(strangers)[:3])
            raise PubmedError(f"the answer holds records that were not asked for ({some})")
        if missing and not agreed:
            raise PubmedError(f"the answer lacks {len(missing)} of {len(asked)} records")
        return body, returned

    return check
