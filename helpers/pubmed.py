"""PubMed abstracts: a plan of PMIDs, raw batches fetched by id, and the records parsed from them by stated rules.

`pubmed_plan` freezes what is fetched, `pubmed_batches` fetches it, `pubmed_records` parses it; each can be interrupted
and run again. What the rules below make of the records is counted, so that nothing disappears unseen. Key and e-mail
come from NCBI_API_KEY and NCBI_EMAIL.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from helpers.artifacts import locked_file, read_json, sha256_bytes
from helpers.config import Corpus
from helpers.eutils import Client, PubmedError, connect
from helpers.pubmed_batches import fetch
from helpers.pubmed_plan import plan
from helpers.pubmed_records import parse_records

# In the order in which they are applied: what is counted, and what is done.
RULES = {
    "missing": "PMIDs for which PubMed returned nothing (deleted): listed in manifest.json",
    "merged": "records returned in the place of another PMID: kept, and listed in manifest.json",
    "superseded": "earlier versions of a record, and records returned twice: dropped",
    "retracted": "retracted publications and notices of retraction: dropped",
    "other_abstract": "no main abstract, but another in English (OtherAbstract): that one is used",
    "without_abstract": "no abstract in English: dropped",
    "truncated": "“(ABSTRACT TRUNCATED AT … WORDS)”: the words are removed, the abstract is kept",
    "duplicate": "the abstract of an earlier record, but for case and white space: dropped",
    "vernacular_title": "no English title: the title in the record's own language is used",
    "book": "book documents: kept as records without a journal",
    "kept": "records in the corpus",
}
TRUNCATED = re.compile(r"\s*\(ABSTRACT TRUNCATED(?: AT \d+ WORDS)?\)\s*")
RETRACTED = {"Retracted Publication", "Retraction of Publication", "Retraction Notice"}
NO_TITLE = {None, "[Not Available].", "[Not Available]"}


def collect(
    settings: Corpus, folder: Path, *, progress=None, client: Client | None = None
) -> tuple[Iterator[dict], Counter]:
    """Plan, fetch and parse into `(records, counts)`: the records that the rules keep, in the order of their PMIDs.

    A merged record stands in its batch. Records are parsed as they are read. `counts` holds matched (hits of the
    query), asked, and a number for every rule of RULES, complete when the last record was read. A complete folder is
    read without any request. Raises PubmedError as `plan` and `fetch` do, and when another process collects into
    `folder`.
    """
    client = client or connect(settings, progress=progress)
    try:
        with locked_file(folder / ".lock"):
            planned = plan(settings, folder, client=client)
            batches = fetch(settings, folder, client=client)
    except BlockingIOError:
        raise PubmedError(f"Another process is collecting into {folder}: wait for it, then run again.") from None
    except OSError as error:
        remedy = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "let it be written to"
        raise PubmedError(
            f"{folder} cannot be written ({error.strerror}): {remedy}, then run again; what is there is kept."
        ) from None
    counts, listed = Counter(dict.fromkeys(RULES, 0)), read_json(folder / "manifest.json")["batches"]
    for entry in listed.values():
        counts.update({"missing": len(entry["missing"]), "merged": len(entry["merged"])})
    counts.update({"matched": planned["count"], "asked": len(planned["pmids"])})
    return kept(stored_records(_contents(batches, listed), counts), counts), counts


def _contents(batches: list[Path], listed: dict) -> Iterator[bytes]:
    """The bytes of batches as the manifest lists them; raises PubmedError when another run has changed one."""
    for path in batches:
        content = path.read_bytes() if path.is_file() else b""
        if sha256_bytes(content) != listed[path.name]["sha256"]:
            raise PubmedError(f"{path} changed while the corpus was read: let one run at a time collect there.")
        yield content


def stored_records(contents: Iterable[bytes], counts: Counter) -> Iterator[dict]:
    """The records of raw batches, one batch in memory at a time, sorted by PMID within each, the last version of each.

    `counts` gains `superseded`.
    """
    seen: set[int] = set()
    for content in contents:
        found = parse_records(gzip.decompress(content))
        latest = {int(record["pmid"]): record for record in sorted(found, key=lambda record: record["version"])}
        fresh = sorted(latest.keys() - seen)
        counts["superseded"] += len(found) - len(fresh)
        seen.update(fresh)
        yield from (latest[pmid] for pmid in fresh)


def kept(records: Iterator[dict], counts: Counter) -> Iterator[dict]:
    """The records that RULES keep, with the title and the abstract that they decide on; `counts` gains what they did.

    Of the records before, only a digest is held in memory.
    """
    seen: set[bytes] = set()
    for record in records:
        if RETRACTED.intersection(record["publication_types"]):
            counts["retracted"] += 1
            continue
        abstract, title = record["abstract"], record["title"]
        if abstract is None:
            abstract = next((other["text"] for other in record["other_abstracts"] if other["language"] == "eng"), None)
            counts["other_abstract"] += abstract is not None
        cut_off = TRUNCATED.search(abstract or "") is not None
        shorter = TRUNCATED.sub(" ", abstract).strip(" ") if cut_off else abstract
        if not shorter:
            counts["without_abstract"] += 1
            continue
        counts["truncated"] += cut_off
        digest = hashlib.blake2b(" ".join(shorter.casefold().split()).encode(), digest_size=16).digest()
        if digest in seen:
            counts["duplicate"] += 1
            continue
        seen.add(digest)
        if title in NO_TITLE:
            title = record["vernacular_title"] or title
            counts["vernacular_title"] += record["vernacular_title"] is not None
        counts["book"] += record["kind"] == "book"
        counts["kept"] += 1
        yield {**record, "title": title, "abstract": shorter}
