"""PubMed's XML as records: against a plain XML parser, and with damaged and hostile answers."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from eutils_server import HEADER, article_set, serve
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers import pubmed_records
from helpers.eutils import PubmedError
from helpers.pubmed_records import parse_records

ROOT = Path(__file__).resolve().parent.parent


def record(pmid: int, **changes) -> dict:
    sections = [{"label": "METHODS", "text": f"We read {pmid}."}, {"label": None, "text": "It ended."}]
    return {"pmid": str(pmid), "title": f"Title {pmid}", "sections": sections, "year": 2001, **changes}


def text_record(**changes) -> dict:
    return parse_records(article_set([record(7, **changes)]))[0]


RECORDS = [record(30), record(4)]


# --- the records ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("xml", "text"),
    [
        ("p &lt; 0.05", "p < 0.05"),
        ("a &lt;b&gt; c", "a <b> c"),  # written text that looks like a tag
        ("Vitamin D<sub>3</sub> and <i>E. <b>coli</b></i>", "Vitamin D3 and E. coli"),
        ("x<sup>2</sup> &lt; y &amp; z &gt; 1", "x2 < y & z > 1"),
        ("said &amp;lt; here", "said &lt; here"),  # escaped twice by its publisher: opened once
        ("β-blocker \u2009≥ 5 µg\n   daily ", "β-blocker \u2009≥ 5 µg daily"),
        (
            'a <mml:math xmlns:mml="http://www.w3.org/1998/Math/MathML"><mml:mi id="x>y">x</mml:mi></mml:math> z',
            "a x z",
        ),
    ],
)
def test_inline_markup_goes_and_its_text_stays(xml, text):
    parsed = text_record(xml=xml, sections=[{"label": "AIM", "xml": xml}, {"label": None, "xml": f"<i>{xml}</i>"}])
    assert parsed["title"] == text
    assert parsed["sections"] == [{"label": "AIM", "text": text}, {"label": None, "text": text}]
    assert parsed["abstract"] == f"AIM: {text} {text}"


PIECES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Zs", "Zl", "Zp")), max_size=12)


@settings(max_examples=15, deadline=None)
@example(title="a <b> &lt; c", parts=[("<i>", "i")])
@given(title=PIECES, parts=st.lists(st.tuples(PIECES, st.sampled_from(["", "i", "b", "sup", "sub", "u"])), max_size=5))
def test_text_agrees_with_a_plain_xml_parser(title, parts):
    body = "".join(f"<{tag}>{escape(text)}</{tag}>" if tag else escape(text) for text, tag in parts)
    xml = article_set([record(7, title=title, sections=[{"label": title, "xml": f"{body}<b>!</b>"}])])
    oracle = ElementTree.fromstring(xml)
    parsed = parse_records(xml)[0]
    assert (parsed["title"] or "") == "".join(oracle.find(".//ArticleTitle").itertext()) == title
    assert parsed["sections"][0]["text"] == "".join(oracle.find(".//AbstractText").itertext())
    assert (parsed["sections"][0]["label"] or "") == title


def test_what_a_record_lacks_is_none_or_empty():
    bare = {"pmid": "7", "title": "", "sections": [{"label": "AIM", "text": " "}], "year": None}
    assert parse_records(article_set([bare])) == [
        {
            "pmid": "7",
            "version": 1,
            "kind": "article",
            "title": None,
            "vernacular_title": None,
            "abstract": None,
            "sections": [],
            "other_abstracts": [],
            "journal": None,
            "year": None,
            "languages": ["eng"],
            "publication_types": [],
            "keywords": [],
            "mesh": [],
            "url": "https://pubmed.ncbi.nlm.nih.gov/7/",
        }
    ]


def test_journal_keywords_and_mesh_are_read():
    parsed = text_record(journal="Acta & Co", keywords=["EEG", "seizure", "EEG"], mesh=["Epilepsy", "Humans"])
    assert (parsed["journal"], parsed["keywords"]) == ("Acta & Co", ["EEG", "seizure"])
    assert parsed["mesh"] == ["Epilepsy", "Humans"]


@pytest.mark.parametrize(("date", "year"), [("1998 Dec-1999 Jan", 1998), ("Winter 2003", 2003), ("Spring", None)])
def test_the_year_of_a_medline_date_is_its_first(date, year):
    xml = article_set([record(7)]).replace(b"<Year>2001</Year>", f"<MedlineDate>{date}</MedlineDate>".encode())
    assert parse_records(xml)[0]["year"] == year


@pytest.mark.parametrize("label", ["UNLABELLED", "UNASSIGNED", ""])
def test_a_label_that_says_there_is_none_is_none(label):
    parsed = text_record(sections=[{"label": label or None, "text": "All of it."}])
    assert parsed["sections"] == [{"label": None, "text": "All of it."}] and parsed["abstract"] == "All of it."


def test_a_book_is_a_record_too():
    book = (
        '<PubmedBookArticle><BookDocument><PMID Version="1">20301</PMID><ArticleIdList/><Book><Publisher>'
        "<PublisherName>P</PublisherName></Publisher><BookTitle>Reviews</BookTitle><PubDate><Year>1993</Year></PubDate>"
        '</Book><ArticleTitle>A chapter</ArticleTitle><Abstract><AbstractText Label="SIGNS">Two.</AbstractText>'
        '</Abstract><PublicationType UI="D016454">Review</PublicationType><KeywordList Owner="NLM"><Keyword>ataxia'
        "</Keyword></KeywordList></BookDocument></PubmedBookArticle>"
    )
    xml = article_set([record(7)]).replace(b"</PubmedArticleSet>", f"{book}</PubmedArticleSet>".encode())
    parsed = parse_records(xml)[1]
    assert (parsed["pmid"], parsed["title"], parsed["abstract"]) == ("20301", "A chapter", "SIGNS: Two.")
    assert (parsed["year"], parsed["journal"], parsed["keywords"]) == (1993, None, ["ataxia"])
    assert parsed["publication_types"] == ["Review"]


def test_other_abstracts_types_and_the_title_in_its_own_language():
    xml = article_set([record(7)]).decode()
    xml = xml.replace(
        "<Language>eng</Language>",
        "<Language>fre</Language><Language>eng</Language>"
        "<PublicationTypeList><PublicationType UI='D1'>Review</PublicationType></PublicationTypeList>"
        "<VernacularTitle>L'\u00e9pilepsie</VernacularTitle>",
    )
    other = '<OtherAbstract Type="Publisher" Language="{}"><AbstractText Label="BUT">{}</AbstractText></OtherAbstract>'
    xml = xml.replace("</MedlineCitation>", f"{other.format('fre', 'Non.')}{other.format('spa', '')}</MedlineCitation>")
    parsed = parse_records(xml.encode())[0]
    assert parsed["languages"] == ["fre", "eng"] and parsed["publication_types"] == ["Review"]
    assert parsed["vernacular_title"] == "L'\u00e9pilepsie"
    assert parsed["other_abstracts"] == [{"language": "fre", "text": "BUT: Non."}]
    assert parsed["abstract"] == "METHODS: We read 7. It ended."


def test_cutting_out_what_is_not_read_changes_no_record(monkeypatch):
    authors = (
        '<AuthorList CompleteYN="Y"><Author ValidYN="Y"><LastName>M\u00fcller</LastName><ForeName>A</ForeName>'
        "<AffiliationInfo><Affiliation>Here</Affiliation></AffiliationInfo></Author></AuthorList><Language>"
    )
    references = (
        "<PubmedData><PublicationStatus>ppublish</PublicationStatus><ArticleIdList><ArticleId>7</ArticleId>"
        "</ArticleIdList><ReferenceList><Reference><Citation>One <i>two</i></Citation></Reference></ReferenceList>"
        "</PubmedData></PubmedArticle>"
    )
    xml = article_set([record(7, mesh=["Epilepsy"], keywords=["EEG"])]).decode().replace("<Language>", authors)
    xml = xml.replace("</DescriptorName>", '</DescriptorName><QualifierName UI="Q1">drug therapy</QualifierName>')
    xml = xml.replace("</PubmedArticle>", references).encode()
    skipped = parse_records(xml)
    monkeypatch.setattr(pubmed_records, "UNREAD", ())
    assert parse_records(xml) == skipped == parse_records(article_set([record(7, mesh=["Epilepsy"], keywords=["EEG"])]))


# --- damaged and hostile answers --------------------------------------------------------------------------------------


def test_an_answer_cut_anywhere_is_refused():
    xml = article_set(RECORDS)
    assert len(parse_records(xml)) == 2
    for stop in range(0, len(xml.rstrip()), 41):
        with pytest.raises(PubmedError):
            parse_records(xml[:stop])


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b'{"error":"API rate limit exceeded"}',
        b"<html><body>Busy</body></html>",
        b'<?xml version="1.0"?><PubmedArticleSet></PubmedArticleSet>',
        b'<?xml version="1.0"?><!DOCTYPE eSearchResult SYSTEM "x.dtd"><eSearchResult/>',
        HEADER.format(dtd="pubmed_250101.dtd").encode() + b"<PubmedArticleSet><ERROR>no</ERROR></PubmedArticleSet>",
        b'<?xml version="1.0"?><!DOCTYPE PubmedArticleSet SYSTEM "pubmed_250101.dtd" [<!ENTITY a "b">]>'
        b"<PubmedArticleSet><PubmedArticle>&a;</PubmedArticle></PubmedArticleSet>",
    ],
)
def test_what_is_not_a_record_set_is_refused(answer):
    with pytest.raises(PubmedError, match="the answer is not a"):
        parse_records(answer)


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize(
    "subset",
    [
        f'<!ENTITY l0 "ha">{LAUGHS}<!ENTITY e "&l9;">',
        '<!ENTITY e SYSTEM "{secret}">',
        '<!ENTITY e SYSTEM "{page}">',
        '<!ENTITY % more SYSTEM "{page}"> %more; <!ENTITY e "x">',
    ],
    ids=["expansion", "file", "page", "parameter"],
)
@pytest.mark.parametrize("place", ["subset", "second", "inside"])
def test_hostile_entities_are_refused_and_nothing_is_fetched(tmp_path, subset, place):
    """Entities in the document type, in a second one, and between records: none is opened, whatever it names."""
    secret = tmp_path / "secret.txt"
    secret.write_text("top secret")
    answer = article_set([record(7, title="&e;")]).decode().replace("&amp;e;", "&e;")
    with serve([]) as server:
        subset = subset.replace("{secret}", secret.as_uri()).replace("{page}", f"{server.base_url}/efetch.fcgi")
        doctype = f"<!DOCTYPE PubmedArticleSet [{subset}]>"
        if place == "subset":
            answer = answer.replace('.dtd">', f'.dtd" [{subset}]>', 1)
        elif place == "second":
            answer = answer.replace("<PubmedArticleSet>", f"{doctype}<PubmedArticleSet>", 1)
        else:
            answer = answer.replace("<PubmedArticle>", f"{doctype}<PubmedArticle>", 1)
        with pytest.raises(PubmedError, match="the answer is not a") as caught:
            parse_records(answer.encode())
        assert server.requests == [] and "top secret" not in str(caught.value)


@pytest.mark.parametrize("pmid", ["", "x9", "\u0663"])
def test_a_record_without_a_number_is_refused(pmid):
    with pytest.raises(PubmedError, match="is no PMID|not a whole PubMed record set"):
        parse_records(article_set([record(7)]).replace(b">7</PMID>", f">{pmid}</PMID>".encode()))


def test_unclosed_elements_are_refused_in_no_time():
    """Where each opening tag was followed to the end of the answer, this took half a minute."""
    started = time.monotonic()
    with pytest.raises(PubmedError):
        parse_records(article_set([record(7)]).replace(b"<Language>", b"<AuthorList>" * 50_000 + b"<Language>"))
    assert time.monotonic() - started < 10


def test_the_collector_runs_again_after_an_answer_good_or_bad():
    for answer in (article_set([]), b"<html>"):
        try:
            parse_records(answer)
        except PubmedError:
            pass
        assert gc.isenabled()


def test_an_empty_record_set_has_no_records():
    assert parse_records(article_set([])) == []


OFFLINE = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("the network was touched")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.path[:0] = sys.argv[1:3]
from eutils_server import article_set
from helpers.pubmed import parse_records
record = {"pmid": "7", "title": "T", "sections": [{"label": None, "text": "An end."}]}
for dtd in ("pubmed_250101.dtd", "pubmed_180601.dtd", "pubmed_990101.dtd", "../../x.dtd"):
    xml = article_set([record], dtd=dtd).replace(b"<Language>", b"<Newer><i>thing</i></Newer><Language>")
    assert parse_records(xml)[0]["abstract"] == "An end.", dtd
    assert parse_records(xml.replace(b'"https:', b'"http:'))[0]["pmid"] == "7", dtd
attribute = b'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:noNamespaceSchemaLocation='
schema = b'<PubmedArticleSet ' + attribute + b'"https://www.ncbi.nlm.nih.gov/new.xsd">'
try:
    parse_records(article_set([record]).replace(b"<PubmedArticleSet>", schema))
except RuntimeError as error:
    assert "network" not in str(error), error
"""


def test_parsing_touches_neither_the_network_nor_the_home_directory(tmp_path):
    """A DTD newer than Biopython's, an old one, an http one: none is downloaded, and no cache folder appears."""
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    surroundings = {**os.environ, "HOME": str(home), "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", OFFLINE, str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == [] and list(scratch.rglob("*")) == []


def test_a_damaged_dtd_in_someones_cache_is_not_read(tmp_path, monkeypatch):
    parse_records(article_set([]))  # imports the parser
    from Bio.Entrez.Parser import DataHandler

    (tmp_path / "pubmed_250101.dtd").write_text("<!ELEMENT half")
    monkeypatch.setattr(DataHandler, "local_dtd_dir", str(tmp_path))
    assert parse_records(article_set(RECORDS[:1]))[0]["pmid"] == "30"


# --- real answers -----------------------------------------------------------------------------------------------------


def real_file(name: str) -> Path:
    folder = os.environ.get("CLAP_REAL_DATA")
    if not folder:
        pytest.skip("CLAP_REAL_DATA names no folder with real PubMed records")
    return Path(folder) / "pubmed" / name


@pytest.mark.parametrize("name", ["efetch_pubmed1.xml", "efetch_pubmed2.xml"])
def test_real_answers_agree_with_a_plain_xml_parser(name, monkeypatch):
    xml = real_file(name).read_bytes()
    articles = ElementTree.fromstring(xml).findall("PubmedArticle")
    parsed = parse_records(xml)
    assert len(parsed) == len(articles) > 0
    for record_, article in zip(parsed, articles, strict=True):
        citation = article.find("MedlineCitation")
        texts = ["".join(part.itertext()) for part in citation.findall("Article/Abstract/AbstractText")]
        assert record_["pmid"] == citation.findtext("PMID")
        assert record_["title"] == "".join(citation.find("Article/ArticleTitle").itertext())
        assert [section["text"] for section in record_["sections"]] == texts
        assert record_["journal"] == citation.findtext("Article/Journal/Title")
        assert record_["languages"] == [e.text for e in citation.findall("Article/Language")]
        kinds = citation.findall("Article/PublicationTypeList/PublicationType")
        assert record_["publication_types"] == [e.text for e in kinds]
        assert record_["year"] == int(citation.findtext("Article/Journal/JournalIssue/PubDate/Year"))
        assert record_["mesh"] == [e.text for e in citation.findall("MeshHeadingList/MeshHeading/DescriptorName")]
        assert record_["keywords"] == [e.text for e in citation.findall("KeywordList/Keyword")]
    monkeypatch.setattr(pubmed_records, "UNREAD", ())
    assert parse_records(xml) == parsed
