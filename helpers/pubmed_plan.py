"""The plan: every PMID that answers a query, and which of them are fetched, frozen before anything is.

ESearch hands out its first 9,999 hits and no more. A query with more of them is asked again by slices of the date on
which PubMed entered a record, of which each record has exactly one: a slice with too many hits is cut in two, until
each can be listed whole. Two selections can be made of the hits:

    first    the first `max_records` in ESearch's own order: what the study most likely did
    sample   `max_records` drawn from all of them, from every slice in proportion

Where there are no more hits than that, or `max_records` is null, both are all of them.

    plan.json        the question, Count, the first hits in their order, the slices with their PMIDs, and the selection
    slices/*.json    answers for single slices, while the plan is being made

Source: NCBI, E-utilities Help (NBK25499, ESearch).
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from helpers.artifacts import ArtifactError, read_json, write_json
from helpers.config import Corpus
from helpers.eutils import Client, PubmedError, cleared, connect, excerpt, request

REACHABLE = 9_999  # ESearch hands out no hit beyond this one, whatever retstart says
FIRST_DAY = date(1781, 1, 1)  # PubMed's oldest records
SELECTIONS = ("first", "sample")


def plan(settings: Corpus, folder: Path, *, client: Client | None = None) -> dict:
    """Ask ESearch which PMIDs the query has, and freeze the answer in `plan.json`; later calls read it back.

    Keys: the question (base_url, query, max_records, selection, seed), translation (the query as PubMed understood it),
    count, first (PMIDs in ESearch's order), slices (from, to, count, pmids; empty when all hits are among the first),
    pmids (the selection, sorted), notes, retrieved_at (when the count was asked). A plan that was interrupted goes on;
    another question makes a new one. Raises PubmedError when nothing was found, and when one day has more hits than
    ESearch hands out.
    """
    client = client or connect(settings)
    path, partial = folder / "plan.json", folder / "slices"
    if settings.selection not in SELECTIONS:
        raise PubmedError(f"corpus.selection must be {' or '.join(SELECTIONS)}, not {settings.selection!r}.")
    question = question_of(settings)
    if path.is_file() and answers(stored := read_json(path), question):
        return checked(stored, path)
    first = _kept(client, settings, partial / "all.json", question)
    if first["count"] == 0:
        unknown = f" PubMed did not find {', '.join(first['not_found'])}." if first["not_found"] else ""
        raise PubmedError(
            f"The query {question['query']!r} returned no record: check its spelling and field tags, or widen it."
            f"{unknown}"
        )
    until = date(now().year, 12, 31)  # the same when a plan is continued on another day
    slices = []
    if first["count"] > len(first["pmids"]):
        slices = list(_slices(client, settings, partial, question, FIRST_DAY, until))
    made = {
        **question,
        "count": first["count"],
        "first": first["pmids"],
        "slices": slices,
        "translation": first["translation"],
        "retrieved_at": first["retrieved_at"],
    }
    made["pmids"] = select(made, settings.selection)
    made["notes"] = list(_notes(made, first["not_found"]))
    for note in made["notes"]:
        client.progress(note)
    write_json(path, made)
    shutil.rmtree(partial, ignore_errors=True)
    client.progress(f"PubMed: {len(made['pmids'])} of {made['count']} matching records planned.")
    return made


def question_of(settings: Corpus) -> dict:
    """What a plan answers: plans with another question are not this one's."""
    chosen = {name: getattr(settings, name) for name in ("max_records", "selection", "seed")}
    return {"base_url": (settings.base_url or "").rstrip("/"), "query": settings.asked.query, **chosen}


def answers(stored: object, question: dict) -> bool:
    """Whether a stored plan, or slice of one, answers this question."""
    return isinstance(stored, dict) and all(stored.get(name) == value for name, value in question.items())


def checked(stored: dict, path: Path) -> dict:
    """A stored plan; raises PubmedError when it was damaged by hand."""
    pmids = stored.get("pmids")
    valid = isinstance(pmids, list) and pmids and all(isinstance(pmid, str) and pmid.isdigit() for pmid in pmids)
    if not valid or len(set(pmids)) != len(pmids) or not isinstance(stored.get("count"), int):
        raise PubmedError(f"{path} lacks its Count or its distinct PMIDs: delete it, and the plan is made again.")
    return stored


def now() -> datetime:
    """The time that plans and manifests are stamped with."""
    return datetime.now(UTC)


def select(planned: Mapping, selection: str) -> list[str]:
    """The PMIDs that a selection takes of a plan's hits, sorted by number; the plan's seed decides a sample."""
    strata = [stratum["pmids"] for stratum in planned["slices"]] or [planned["first"]]
    if planned["max_records"] is None or planned["count"] <= planned["max_records"]:
        chosen = {pmid for stratum in strata for pmid in stratum}
    elif selection == "first":
        chosen = planned["first"][: planned["max_records"]]
    else:
        shares = allocate([len(stratum) for stratum in strata], planned["max_records"])
        chooser = random.Random(f"selection {planned['seed']}")
        # A set, because a record can be entered anew while the slices are asked for.
        chosen = {
            pmid
            for stratum, share in zip(strata, shares, strict=True)
            for pmid in chooser.sample(sorted(stratum, key=int), share)
        }
    return sorted(chosen, key=int)


def allocate(sizes: Sequence[int], total: int) -> list[int]:
    """Share `total` among strata in proportion to their sizes: whole numbers by largest remainder, none above its size.

    Of equal remainders the earlier stratum's counts first. A total above the sum of sizes takes everything.
    """
    total, whole = min(total, sum(sizes)), sum(sizes)
    quotas = [size * total / whole for size in sizes] if whole else []
    shares = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (shares[i] - quotas[i], i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def _notes(made: dict, not_found: list[str]) -> Iterator[str]:
    if not_found:
        yield f"PubMed did not find, and left out: {', '.join(not_found)}."
    if made["count"] > len(made["pmids"]):
        how = {
            "first": f"the first {len(made['pmids'])} that ESearch lists are used",
            "sample": f"a sample of {len(made['pmids'])}, drawn from all of them, is used",
        }
        yield f"The query matches {made['count']} records; {how[made['selection']]}."
    listed = len({pmid for stratum in made["slices"] for pmid in stratum["pmids"]})
    if made["slices"] and listed != made["count"]:
        yield f"PubMed counts {made['count']} records and its slices list {listed}: it changed while it was asked."


def _slices(client: Client, settings: Corpus, partial: Path, question: dict, start: date, end: date) -> Iterator[dict]:
    """The slices between two days, oldest first: from, to, count, pmids. Answers are kept in `partial` as they come."""
    known = _kept(client, settings, partial / f"{start}_{end}.json", question, start, end)
    if known["count"] <= len(known["pmids"]):
        if known["pmids"]:
            yield {"from": str(start), "to": str(end), "count": known["count"], "pmids": known["pmids"]}
    elif start == end:
        raise PubmedError(
            f"The query {question['query']!r} has {known['count']} records entered on the one day {start}, and ESearch "
            f"hands out {REACHABLE}: narrow the query, for example by language or publication type."
        )
    else:
        middle = start + (end - start) // 2
        yield from _slices(client, settings, partial, question, start, middle)
        yield from _slices(client, settings, partial, question, middle + timedelta(days=1), end)


def _kept(
    client: Client, settings: Corpus, path: Path, question: dict, start: date | None = None, end: date | None = None
) -> dict:
    """What `_hits` gives, with the time; asked for once, and then read from `path`."""
    try:
        known = read_json(path)
    except ArtifactError:
        known = None
    if not answers(known, question):
        known = {**question, **_hits(client, settings, start, end), "retrieved_at": now().isoformat(timespec="seconds")}
        write_json(path, known)
        span = f"entered from {start} to {end}" if start else "in all"
        more = ", more than it lists: asked in parts" if known["count"] > len(known["pmids"]) else ""
        client.progress(f"PubMed: {known['count']} records {span}{more}.")
    return known


def _hits(client: Client, settings: Corpus, start: date | None = None, end: date | None = None) -> dict:
    """Count, and the hits that ESearch hands out, of the whole query or of the records entered between two days.

    What PubMed says of the query, not_found and translation, is cleared of key and e-mail before anything keeps it.
    Answers may list fewer hits than were asked for; then the rest is asked for.
    """
    dates = {"datetype": "edat", "mindate": f"{start:%Y/%m/%d}", "maxdate": f"{end:%Y/%m/%d}"} if start else {}
    pmids: dict[str, None] = {}
    while True:
        offset = len(pmids)
        search = {
            "term": settings.asked.query,
            "retmode": "json",
            "retstart": offset,
            "retmax": REACHABLE - offset,
            **dates,
        }
        page = request(client, "esearch", search, lambda body, last, offset=offset: _search_page(body, offset))
        pmids.update(dict.fromkeys(page["pmids"]))
        within_reach = page["count"] <= REACHABLE or not dates  # a slice that is cut anyway need not be listed
        if len(pmids) == offset or len(pmids) >= min(REACHABLE, page["count"]) or not within_reach:
            said = {
                "not_found": [cleared(client, phrase) for phrase in page["not_found"]],
                "translation": cleared(client, page["translation"]),
            }
            return {"count": page["count"], "pmids": list(pmids)[:REACHABLE], **said}


def _search_page(body: bytes, offset: int) -> dict:
    """Read one ESearch answer; raises PubmedError when it is an error, cut short, or empty where hits remain."""
    try:
        answer = json.loads(body, strict=False)  # titles in the answer's translation may hold control characters
        result = answer["esearchresult"]
        count, pmids = int(result["count"]), [str(int(pmid)) for pmid in result["idlist"]]
        errors, warnings = result.get("errorlist", {}), result.get("warninglist", {})
        not_found = [*errors.get("phrasesnotfound", []), *errors.get("fieldsnotfound", [])]
        not_found += warnings.get("quotedphrasesnotfound", [])
        translation = str(result.get("querytranslation", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise PubmedError(f"the answer is not a list of PMIDs but {excerpt(body)}") from None
    if "ERROR" in result:
        raise PubmedError(f"the answer is not a list of PMIDs but {excerpt(body)}")
    if min(count, REACHABLE) > offset and not pmids:
        raise PubmedError(f"the answer lists no PMID although {count - offset} hits remain")
    return {"count": count, "pmids": pmids, "not_found": [str(p) for p in not_found], "translation": translation}
