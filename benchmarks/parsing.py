"""`python -m benchmarks.parsing`: how many PubMed records a second become a corpus, and whether memory stays flat.

Answers have the size and the parts of PubMed's: authors with affiliations, MeSH headings, references, a structured
abstract. `--xml` takes real EFetch answers instead. Our parser is timed beside Bio.Entrez.read, on which it is built,
in alternation; then batches on disk become a corpus, four times as many the second time.
"""

from __future__ import annotations

import gzip
import io
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.machine import Measurement, measured
from benchmarks.sweep import RESULTS, options, write_csv
from helpers.corpus import FILLERS, SECTIONS, pubmed_rows, write_corpus
from helpers.pubmed import kept, stored_records
from helpers.pubmed_records import parse_records

HEADER = (
    '<?xml version="1.0" ?>\n<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2025//EN" '
    '"https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_250101.dtd">\n<PubmedArticleSet>'
)
FOOTER = "</PubmedArticleSet>"
PMID = re.compile(r'(<PMID Version="\d+">)\d+')
BATCH = 400  # records in an answer, as in the profile `paper`
BATCHES = (10, 40)
ROUNDS = 9
WANTED = 1500  # records a second on one core
FLAT_MB = 30.0  # of growth between the smaller and the larger corpus; a batch with its tree takes as much


def made_article(number: int) -> str:
    """One PubmedArticle of about ten kilobytes, as PubMed's are, that no other number gives."""
    chooser = random.Random(number)
    date = f"<Year>{1970 + number % 50}</Year><Month>05</Month><Day>17</Day>"
    sentences = [chooser.choice(FILLERS).format(n=chooser.randrange(9999), place=f"site {number}") for _ in range(40)]
    abstract = "".join(
        f'<AbstractText Label="{label}">{" ".join(sentences[i::4])} <i>p</i> &lt; 0.05</AbstractText>'
        for i, label in enumerate(SECTIONS)
    )
    authors = "".join(
        f'<Author ValidYN="Y"><LastName>Name{i}</LastName><ForeName>First</ForeName><Initials>F</Initials>'
        f"<AffiliationInfo><Affiliation>{sentences[i]}</Affiliation></AffiliationInfo></Author>"
        for i in range(6)
    )
    mesh = "".join(
        f'<MeshHeading><DescriptorName UI="D{i:06d}" MajorTopicYN="N">Heading {i}</DescriptorName>'
        f'<QualifierName UI="Q{i:06d}" MajorTopicYN="Y">diagnosis</QualifierName></MeshHeading>'
        for i in range(10)
    )
    references = "".join(
        f"<Reference><Citation>{sentences[i]}</Citation><ArticleIdList>"
        f'<ArticleId IdType="pubmed">{i}</ArticleId></ArticleIdList></Reference>'
        for i in range(20)
    )
    history = "".join(f'<PubMedPubDate PubStatus="{name}">{date}</PubMedPubDate>' for name in ("received", "entrez"))
    return (
        f'<PubmedArticle><MedlineCitation Status="MEDLINE" Owner="NLM"><PMID Version="1">{number}</PMID>'
        f'<DateCompleted>{date}</DateCompleted><DateRevised>{date}</DateRevised><Article PubModel="Print"><Journal>'
        f'<ISSN IssnType="Print">0000-0000</ISSN><JournalIssue CitedMedium="Print"><Volume>7</Volume><PubDate>{date}'
        "</PubDate></JournalIssue><Title>Journal of Made Answers</Title><ISOAbbreviation>J Made</ISOAbbreviation>"
        f"</Journal><ArticleTitle>{sentences[0]}</ArticleTitle><Pagination><MedlinePgn>1-9</MedlinePgn></Pagination>"
        f'<Abstract>{abstract}</Abstract><AuthorList CompleteYN="Y">{authors}</AuthorList><Language>eng</Language>'
        '<PublicationTypeList><PublicationType UI="D016428">Journal Article</PublicationType></PublicationTypeList>'
        "</Article><MedlineJournalInfo><Country>X</Country><MedlineTA>J Made</MedlineTA></MedlineJournalInfo>"
        f"<MeshHeadingList>{mesh}</MeshHeadingList></MedlineCitation><PubmedData><History>{history}</History>"
        "<PublicationStatus>ppublish</PublicationStatus><ArticleIdList>"
        f'<ArticleId IdType="pubmed">{number}</ArticleId></ArticleIdList>'
        f"<ReferenceList>{references}</ReferenceList></PubmedData></PubmedArticle>"
    )


def repeated(answers: Sequence[Path]) -> Callable[[int], str]:
    """A maker of articles that goes round those of real EFetch answers, each with a PMID of its own."""
    articles = [
        article
        for path in answers
        for article in re.findall(r"<PubmedArticle>.*?</PubmedArticle>", path.read_text("utf-8"), re.DOTALL)
    ]
    if not articles:
        raise SystemExit("The files that --xml names hold no <PubmedArticle>: give whole EFetch answers.")
    return lambda number: PMID.sub(rf"\g<1>{number}", articles[number % len(articles)], count=1)


def answer(make: Callable[[int], str], batch: int) -> bytes:
    """An EFetch answer of BATCH records, others in every batch."""
    articles = "".join(make(batch * BATCH + number) for number in range(1, BATCH + 1))
    return f"{HEADER}{articles}{FOOTER}".encode()


def biopython(xml: bytes):
    """Everything in the answer, as Bio.Entrez.read gives it."""
    from Bio import Entrez

    return Entrez.read(io.BytesIO(xml), validate=False, escape=True)


def parsed(xml: bytes) -> Iterator[dict]:
    """Rows of single runs over one answer: what, round, records, seconds, peak_mb."""
    for number in range(ROUNDS + 1):
        for name, parser in (("parse_records", parse_records), ("Bio.Entrez.read", biopython)):
            _, took = measured(lambda parser=parser: parser(xml), "cpu", trim=False)
            if number:  # the first round imports
                yield row(name, number, BATCH, took)


def collected(make: Callable[[int], str]) -> Iterator[dict]:
    """Rows of whole corpora written from batches on disk, few and then many: as `parsed`, what is "corpus"."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / f"batch_{number:04d}.xml.gz" for number in range(max(BATCHES))]
        for number, path in enumerate(paths):
            path.write_bytes(gzip.compress(answer(make, number), mtime=0))
        for number, count in enumerate((1, *BATCHES)):
            counts = Counter()

            def collect(chosen=paths[:count], counts=counts):
                records = stored_records((path.read_bytes() for path in chosen), counts)
                write_corpus(Path(scratch) / "corpus", pubmed_rows(kept(records, counts)))

            _, took = measured(collect, "cpu")
            if number:  # the first imports
                yield row("corpus", 1, counts["kept"] + counts["duplicate"], took)


def row(what: str, number: int, records: int, took: Measurement) -> dict:
    """One line of parsing.csv."""
    growth = took.peak - took.before
    return {"what": what, "round": number, "records": records, "seconds": took.seconds, "peak_mb": growth}


def report(rows: pd.DataFrame, answer_bytes: int) -> str:
    """Records a second, beside Biopython's, what a million would take, and the growth of memory."""
    speed = (rows["records"] / rows["seconds"]).groupby(rows["what"]).median()
    corpora = rows[rows["what"] == "corpus"].sort_values("records")
    growth = float(corpora["peak_mb"].iloc[-1] - corpora["peak_mb"].iloc[0])
    ours = speed["parse_records"]
    return (
        f"{ours:,.0f} records a second on one core ({answer_bytes / BATCH / 1000:.1f} kB each; wanted: {WANTED:,}), "
        f"{ours / speed['Bio.Entrez.read']:.2f} × Bio.Entrez.read; {speed['corpus']:,.0f} from batches on disk to a "
        f"written corpus, so a million records take {1e6 / speed['corpus'] / 60:.0f} minutes. A corpus "
        f"{corpora['records'].iloc[-1] / corpora['records'].iloc[0]:.0f} times as large needed {growth:+.0f} MB: "
        f"{'flat' if growth <= FLAT_MB else 'NOT flat'} (wanted: at most {FLAT_MB:g})."
    )


def main() -> int:
    """Time the parser and the way from raw answers to a corpus."""
    parser = options(main.__doc__)
    parser.add_argument("--xml", type=Path, nargs="+", help="real EFetch answers, instead of made ones")
    arguments = parser.parse_args()
    make = repeated(arguments.xml) if arguments.xml else made_article
    xml = answer(make, 0)
    rows = pd.DataFrame([*parsed(xml), *collected(make)])
    if not arguments.xml:
        write_csv(rows, RESULTS / "parsing.csv")
    print(report(rows, len(xml)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
