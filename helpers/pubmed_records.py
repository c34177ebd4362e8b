"""PubMed records: the XML of an EFetch answer as plain dictionaries.

Bio.Entrez does the parsing, kept from two habits of its own: it downloads a DTD it was not shipped with, and it makes a
cache folder in the home directory when its parser is imported. Here every answer is read with a DTD shipped with it.
"""

from __future__ import annotations

import gc
import io
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import unescape

from helpers.eutils import PubmedError, excerpt

DTD_URL = "https://dtd.nlm.nih.gov/ncbi/pubmed/out/"  # a name only: the file is read from Biopython's own folder
PAGE_URL = "https://pubmed.ncbi.nlm.nih.gov/"
# Anchored at the start and without an internal subset, so that an answer cannot bring entities of its own.
HEADER = re.compile(
    rb'(?:\xef\xbb\xbf)?\s*<\?xml[^>]*\?>\s*<!DOCTYPE\s+PubmedArticleSet\s+(?:PUBLIC\s+"[^"]*"|SYSTEM)\s+"([^"]*)"\s*>'
)
TAG = re.compile(r'</?[A-Za-z](?:[^<>"]|"[^"]*")*>')
# Half of an answer and more is what no record needs. It is cut out, because the parser makes objects of everything.
# None of these elements can hold itself, and a "<" of the text is written as an entity.
UNREAD = tuple(
    b"PubmedData PubmedBookData AuthorList InvestigatorList GrantList ChemicalList SupplMeshList GeneSymbolList "
    b"CommentsCorrectionsList PersonalNameSubjectList DataBankList DateCompleted DateRevised ArticleDate Pagination "
    b"MedlineJournalInfo ELocationID QualifierName CitationSubset ISSN ISOAbbreviation Volume Issue Month Day".split()
)
NO_LABEL = {"", "UNLABELLED", "UNASSIGNED"}
YEAR = re.compile(r"\b(?:1[5-9]|20)\d\d\b")


def parse_records(xml: bytes) -> list[dict]:
    """Parse one EFetch answer into a dictionary per article, then per book, without network or home directory.

    Keys: pmid, version (int), kind ("article" or "book"), title, vernacular_title, abstract, sections (list of {label,
    text}), other_abstracts (list of {language, text}), journal, year (int), languages, publication_types, keywords,
    mesh (descriptor names), url. What a record lacks is None or []. Inline markup is dropped and its text kept;
    `abstract` joins the sections with their labels ("METHODS: …"). Raises PubmedError when the bytes are not a whole
    PubmedArticleSet.
    """
    try:
        with _collector_paused():
            tree = _parser().read(io.BytesIO(_with_shipped_dtd(xml)))
            return [
                *(_article(entry["MedlineCitation"]) for entry in tree.get("PubmedArticle", [])),
                *(_book(entry["BookDocument"]) for entry in tree.get("PubmedBookArticle", [])),
            ]
    except PubmedError:
        raise
    except Exception as error:  # damaged input makes Bio.Entrez raise nearly anything
        raise PubmedError(f"the answer is not a whole PubMed record set ({type(error).__name__}: {error})") from None


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python from searching the whole process for garbage while a tree grows, which may take longer than it."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _parser():
    """A parser that opens nothing but the DTDs shipped with Bio.Entrez."""
    handler_class = _handler_class()

    def shipped(filename: str):
        path = Path(handler_class.global_dtd_dir) / filename
        if not path.is_file():
            raise PubmedError(f"the answer needs {filename}, which is not shipped with Bio.Entrez")
        return path.open("rb")

    # Elements that only a newer DTD knows are skipped. escape=True keeps a written "<" apart from that of a tag.
    handler = handler_class(validate=False, escape=True, ignore_errors=False)
    handler.open_dtd_file = handler.open_xsd_file = shipped  # where these find nothing, Bio.Entrez would download
    return handler


def _handler_class() -> type:
    """Bio.Entrez's parser class, imported without leaving a cache folder in the home directory."""
    from Bio import Entrez  # heavy, and not needed by the freshness check

    if "Bio.Entrez.Parser" not in sys.modules:
        before = Entrez.local_cache
        with tempfile.TemporaryDirectory() as scratch:
            try:
                Entrez.local_cache = scratch
                from Bio.Entrez import Parser
            finally:
                Entrez.local_cache = before
        # No cache at all, rather than the folder that has just vanished.
        Parser.DataHandler.local_dtd_dir = Parser.DataHandler.local_xsd_dir = None
    from Bio.Entrez.Parser import DataHandler

    return DataHandler


def _with_shipped_dtd(xml: bytes) -> bytes:
    header = HEADER.match(xml)
    if not header:
        raise PubmedError(f"the answer is not a PubMed record set, it starts with {excerpt(xml)}")
    if b"<ERROR" in xml:  # unknown to the DTD, so the parser would skip it and find no record
        raise PubmedError(f"the answer is not a whole PubMed record set: {excerpt(xml[xml.index(b'<ERROR') :])}")
    shipped = {path.name for path in Path(_handler_class().global_dtd_dir).glob("pubmed_[0-9]*.dtd")}
    named = header[1].decode("latin-1").rpartition("/")[2]
    dtd = named if named in shipped else max(shipped)  # pubmed_YYMMDD.dtd: the newest sorts last
    doctype = f'<?xml version="1.0" encoding="utf-8"?><!DOCTYPE PubmedArticleSet SYSTEM "{DTD_URL}{dtd}">'
    return doctype.encode() + _without(xml[header.end() :], UNREAD)


def _without(xml: bytes, names: Sequence[bytes]) -> bytes:
    """Cut elements out; an opening tag without an end before the next one stays. Linear in time, whatever comes."""
    for name in names:
        first, *rest = xml.split(b"<" + name)
        pieces = [first]
        for part in rest:
            inside, end, after = part.partition(b"</" + name + b">")
            opened = end and inside[:1] in (b">", b" ", b"\t", b"\r", b"\n")  # and no longer name
            pieces.append(after if opened else b"<" + name + part)
        xml = b"".join(pieces)
    return xml


def _article(citation: dict) -> dict:
    article = citation["Article"]
    journal = article.get("Journal", {})
    return _record(
        citation,
        article,
        kind="article",
        title=article.get("ArticleTitle"),
        journal=journal.get("Title"),
        date=journal.get("JournalIssue", {}).get("PubDate"),
    )


def _book(document: dict) -> dict:
    book = document.get("Book", {})
    return _record(
        document,
        document,
        kind="book",
        title=document.get("ArticleTitle") or book.get("BookTitle"),
        journal=None,
        date=book.get("PubDate"),
    )


def _record(source: dict, article: dict, *, kind: str, title, journal, date) -> dict:
    pmid = str(source["PMID"])
    if not (pmid.isascii() and pmid.isdigit()):
        raise PubmedError(f"the answer is not a whole PubMed record set: {pmid!r} is no PMID")
    sections = _sections(article.get("Abstract"))
    keywords = [_plain(word) for words in source.get("KeywordList", []) for word in words]
    mesh = [_plain(heading["DescriptorName"]) for heading in source.get("MeshHeadingList", [])]
    types = article.get("PublicationTypeList") or article.get("PublicationType", [])  # a book has no list of them
    others = [
        {"language": other.attributes.get("Language") or None, "text": text}
        for other in source.get("OtherAbstract", [])
        if (text := _joined(_sections(other)))
    ]
    return {
        "pmid": pmid,
        "version": int(source["PMID"].attributes.get("Version", 1)),
        "kind": kind,
        "title": _plain(title) or None,
        "vernacular_title": _plain(article.get("VernacularTitle")) or None,
        "abstract": _joined(sections) or None,
        "sections": sections,
        "other_abstracts": others,
        "journal": _plain(journal) or None,
        "year": _year(date or {}),
        "languages": [str(language) for language in article.get("Language", [])],
        "publication_types": [str(name) for name in types],
        "keywords": [word for word in dict.fromkeys(keywords) if word],
        "mesh": [name for name in dict.fromkeys(mesh) if name],
        "url": f"{PAGE_URL}{pmid}/",
    }


def _sections(abstract: dict | None) -> list[dict]:
    sections = []
    for part in (abstract or {}).get("AbstractText", []):
        if text := _plain(part):
            label = _one_line(part.attributes.get("Label", ""))  # an attribute arrives without tags or escapes
            sections.append({"label": None if label in NO_LABEL else label, "text": text})
    return sections


def _joined(sections: list[dict]) -> str:
    return " ".join(f"{part['label']}: {part['text']}" if part["label"] else part["text"] for part in sections)


def _plain(text: str | None) -> str:
    """Text without tags: first the tags go, then the entities open, so that "p &lt; 0.05" is not taken for a tag."""
    return _one_line(unescape(TAG.sub("", text or "")))


def _one_line(text: str) -> str:
    return re.sub(r"[ \t\r\n]+", " ", text).strip(" ")  # XML's own white space only: a thin space is the author's


def _year(date: dict) -> int | None:
    """The issue's year; of a MedlineDate such as "1998 Dec-1999 Jan", the first one."""
    found = YEAR.search(date.get("Year", "") or date.get("MedlineDate", ""))
    return int(found[0]) if found else None
