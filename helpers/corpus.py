"""The corpus: abstract-like records, as a table and as a `datasets.Dataset`.

Two sources give the same columns. `embedded` turns the knowledge base into records that look like PubMed's: a title,
labelled sections, journal, year, keywords, and in each a few fact sentences between sentences that say nothing.
`pubmed` takes what the E-utilities returned; absent fields stay null. Either is written record by record, so that a
million of them need no more memory than a thousand.
"""

from __future__ import annotations

import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pandas as pd

from helpers import pubmed
from helpers.artifacts import fingerprint, new_folder, read_json, sha256_file, write_json
from helpers.config import Corpus, Paths
from helpers.knowledge import Fact, Wording, load_facts, load_wordings, made_up_facts
from helpers.pubmed_plan import question_of

FEATURES = {
    "pmid": "string",
    "title": "string",
    "abstract": "string",
    "journal": "string",
    "year": "int64",
    "language": "string",  # several are joined by a comma, as in "eng,fre"
    "keywords": ["string"],
    "mesh": ["string"],
    "url": "string",
    "variant": "int64",
    "fact_ids": ["string"],
}
COLUMNS = list(FEATURES)
ROWS_PER_CHUNK = 1000  # held in memory at a time
SECTIONS = ("BACKGROUND", "METHODS", "RESULTS", "CONCLUSIONS")
JOURNALS = ("Acta Generata", "Annals of Made Records", "Journal of Plain Sentences", "Synthetic Neurology")
FILLERS = (
    "We studied {n} adults in {place}.",
    "We reviewed {n} records from {place}.",
    "The mean age was {n} years.",
    "Data were collected over {n} months.",
    "All recordings were read by two raters.",
    "No adverse event was noted.",
    "Follow-up lasted {n} months.",
    "The protocol was approved in {place}.",
    "Consent was obtained from all participants.",
    "Missing values were left as they were.",
    "The sample was small, and {n} files were lost.",
    "Further work is needed.",
)
WORD = re.compile(r"\w+")
PLACES = ("one hospital", "two hospitals", "a regional clinic", "a rural practice", "an outpatient unit", "the north")


class CorpusError(ValueError):
    """A corpus that is empty or cannot be used."""


def embedded_records(
    facts: list[Fact],
    wordings: list[Wording],
    *,
    facts_per_record: int,
    repeats: int,
    seed: int,
    variant: int | None = None,
    groups: tuple[str, ...] = ("seen",),
) -> pd.DataFrame:
    """Write every fact in every wording of `groups`, `repeats` times, into records of `facts_per_record` facts.

    One record never says the same fact twice in a row of the shuffled order, the first fact is the title, and the
    order depends on `seed` alone. Raises CorpusError when there is no fact.
    """
    if not facts:
        raise CorpusError(
            "The knowledge base gave no fact, so there is nothing to write: check corpus.facts_per_relation."
        )
    chooser = random.Random(f"records {seed} {variant}")
    said = [
        (fact, wording)
        for _ in range(repeats)
        for fact in facts
        for wording in wordings
        if wording.relation == fact.relation and wording.group in groups
    ]
    chooser.shuffle(said)
    rows = []
    for start in range(0, len(said), facts_per_record):
        chunk = said[start : start + facts_per_record]
        number = start // facts_per_record
        rows.append(
            _record(chunk, chooser, pmid=f"E{0 if variant is None else variant + 1}{number:06d}", variant=variant)
        )
    return pd.DataFrame(rows, columns=COLUMNS).astype({"variant": "Int64", "year": "Int64"})


def _record(said: list[tuple[Fact, Wording]], chooser: random.Random, *, pmid: str, variant: int | None) -> dict:
    title, *rest = [wording.sentence(fact) for fact, wording in said]
    body = [*rest, *(_filler(chooser) for _ in range(2))]
    chooser.shuffle(body)
    cut = sorted(chooser.sample(range(1, len(body)), k=min(len(body) - 1, 1)))
    parts = [body[i:j] for i, j in zip([0, *cut], [*cut, len(body)], strict=True)]
    labels = sorted(chooser.sample(range(len(SECTIONS)), k=len(parts)))
    abstract = " ".join(f"{SECTIONS[label]}: {' '.join(part)}" for label, part in zip(labels, parts, strict=True))
    return {
        "pmid": pmid,
        "title": title,
        "abstract": abstract,
        "journal": chooser.choice(JOURNALS),
        "year": chooser.randrange(1990, 2026),
        "language": "eng",
        "keywords": sorted({fact.subject for fact, _ in said}),
        "mesh": [],
        "url": None,
        "variant": variant,
        "fact_ids": [fact.fact_id for fact, _ in said],
    }


def _filler(chooser: random.Random) -> str:
    return chooser.choice(FILLERS).format(n=chooser.randrange(3, 99), place=chooser.choice(PLACES))


def embedded_corpus(folder: Path, *, facts_per_relation: int | None, facts_per_record: int, repeats: int, seed: int):
    """The records of the embedded default: real facts, and both variants of the made-up arm (column `variant`)."""
    facts, wordings = chosen_facts(folder, facts_per_relation), load_wordings(folder)
    pairs = len(made_up_facts(0)) if facts_per_relation is None else facts_per_relation
    options = {"facts_per_record": facts_per_record, "repeats": repeats, "seed": seed}
    tables = [embedded_records(facts, wordings, **options)]
    for variant in (0, 1):
        tables.append(embedded_records(made_up_facts(variant)[:pairs], wordings, variant=variant, **options))
    return pd.concat(tables, ignore_index=True)


def chosen_facts(folder: Path, facts_per_relation: int | None) -> list[Fact]:
    """The real facts that a corpus teaches: all, or the first of each relation for a quick run."""
    return first_facts(load_facts(folder), facts_per_relation)


def first_facts(facts: Iterable[Fact], per_relation: int | None) -> list[Fact]:
    """The first so many facts of each relation, in their order; all where that is None."""
    chosen, count = [], Counter()
    for fact in facts:
        count[fact.relation] += 1
        if per_relation is None or count[fact.relation] <= per_relation:
            chosen.append(fact)
    return chosen


def pubmed_rows(records: Iterable[dict]) -> Iterator[dict]:
    """Records from the E-utilities in the corpus's columns; a field a record lacks stays null."""
    for record in records:
        row = {column: record.get(column) for column in COLUMNS}
        yield {**row, "language": ",".join(record["languages"]) or None, "fact_ids": []}


def write_corpus(path: Path, rows: Iterable[dict], *, description: str = "") -> None:
    """Write rows as a folder that `datasets.load_from_disk` reads: whole or not at all, equal rows as equal bytes.

    The `description` goes into its `dataset_info.json`. Raises CorpusError when there is no row.
    """
    import datasets  # heavy, and only this function and the next need it
    import pyarrow as pa

    types = {
        name: datasets.List(datasets.Value(kind[0])) if isinstance(kind, list) else datasets.Value(kind)
        for name, kind in FEATURES.items()
    }
    schema, rows = datasets.Features(types).arrow_schema, iter(rows)
    with new_folder(path) as folder, tempfile.TemporaryDirectory(dir=folder, prefix="rows") as scratch:
        streamed = Path(scratch) / "rows.arrow"
        with streamed.open("wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            while chunk := list(islice(rows, ROWS_PER_CHUNK)):
                writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
        built = datasets.Dataset.from_file(str(streamed), info=datasets.DatasetInfo(description=description))
        if not len(built):
            raise CorpusError("The corpus is empty: no record with an abstract came back; widen the query.")
        with _no_progress_bars(datasets):
            built.save_to_disk(folder, num_shards=1)
        # What names the content must follow from it, or caches of one corpus would serve another.
        state = read_json(folder / "state.json")
        digests = [sha256_file(file) for file in sorted(folder.glob("*.arrow"))]
        write_json(folder / "state.json", {**state, "_fingerprint": fingerprint(digests)[:16]})


@contextmanager
def _no_progress_bars(datasets) -> Iterator[None]:
    """Keep the library's bars out of the notebook."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def read_corpus(path: Path) -> pd.DataFrame:
    """The corpus that `write_corpus` wrote, as a table; raises CorpusError when there is none."""
    import datasets

    if not (path / "state.json").is_file():
        raise CorpusError(f"{path} holds no corpus: run notebook 01, or `make collect`.")
    table = datasets.load_from_disk(str(path)).to_pandas()
    return table.astype({"variant": "Int64", "year": "Int64"})


def training_texts(corpus: pd.DataFrame, *, variant: int) -> list[str]:
    """Title and abstract of every record that this variant of the made-up arm trains on, in the corpus's order."""
    chosen = corpus[corpus["variant"].isna() | (corpus["variant"] == variant)]
    return [
        f"{title}\n{abstract}" if isinstance(title, str) and title else abstract  # an absent title is NaN, not None
        for title, abstract in zip(chosen["title"], chosen["abstract"], strict=True)
    ]


def count_mentions(texts: Iterable[str], terms: Sequence[str]) -> dict[str, int]:
    """How often each term occurs as a whole word, case-insensitively, counting its plural in -s as well.

    The study gives counts without a definition; this is ours, and it is stated beside them.
    """
    texts = list(texts)
    return {
        term: sum(len(re.findall(rf"\b{re.escape(term)}s?\b", text, re.IGNORECASE)) for text in texts) for term in terms
    }


def count_phrases(texts: Iterable[str], phrases: Iterable[str]) -> dict[str, int]:
    """How often each of many phrases occurs, as whole words in any case, whatever stands between them; one pass."""
    words = {phrase: tuple(WORD.findall(phrase.casefold())) for phrase in phrases}
    beginning: dict[str, list[tuple[str, ...]]] = {}
    for sought in set(words.values()):
        beginning.setdefault(sought[0] if sought else "", []).append(sought)
    found: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        said = WORD.findall(text.casefold())
        for place, word in enumerate(said):
            for sought in beginning.get(word, ()):
                found[sought] += tuple(said[place : place + len(sought)]) == sought
    return {phrase: found[sought] for phrase, sought in words.items()}


def collect(settings: Corpus, paths: Paths, target: Path, *, progress=None) -> dict[str, int]:
    """Write the corpus of a profile to `target`, and return what was counted on the way.

    Raises SettingsError for a domain without an entry, CorpusError when nothing comes back, PubmedError when the
    E-utilities cannot be read.
    """
    query = settings.asked.query
    if settings.source == "embedded":
        table = embedded_corpus(
            paths.embedded,
            facts_per_relation=settings.facts_per_relation,
            facts_per_record=settings.facts_per_record,
            repeats=settings.repeats,
            seed=settings.seed,
        )
        write_corpus(target, table.astype(object).where(table.notna(), None).to_dict("records"))
        return {"generated": len(table)}
    if settings.source == "pubmed":
        records, counts = pubmed.collect(settings, raw_folder(settings, paths), progress=progress)
        asked = f"PubMed, {settings.domain}, {counts['asked']} of {counts['matched']} records, by the query {query}"
        write_corpus(target, pubmed_rows(records), description=asked)
        return dict(counts)
    raise CorpusError(f"corpus.source must be 'embedded' or 'pubmed', not {settings.source!r}.")


def read_plan(settings: Corpus, paths: Paths) -> dict | None:
    """The frozen plan of the collected corpus; None when its records are generated."""
    return read_json(raw_folder(settings, paths) / "plan.json") if settings.source == "pubmed" else None


def raw_folder(settings: Corpus, paths: Paths) -> Path:
    """Where the plan and the raw answers to one question are; another question's stay beside them."""
    question = fingerprint([question_of(settings), settings.batch_size])
    return paths.data / "raw" / f"{settings.domain}-{question[:8]}"


def fact_exposures(corpus: pd.DataFrame, *, variant: int) -> dict[str, int]:
    """How many times the records of one variant say each fact, by fact id; empty where nobody knows what they say."""
    said = corpus.loc[corpus["variant"].isna() | (corpus["variant"] == variant), "fact_ids"].explode().dropna()
    return said.value_counts().to_dict()
