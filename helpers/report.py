"""What a notebook says in words: paragraphs and findings, always computed from the numbers of this run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helpers.artifacts import write_json
from helpers.config import Paths


@dataclass(frozen=True)
class Answer:
    """A table and what it says, in sentences."""

    table: object
    sentence: str


def paragraph(text: str) -> None:
    """Show one paragraph of Markdown under the figure or table it speaks of."""
    from IPython.display import Markdown, display

    display(Markdown(" ".join(text.split())))


def box(title: str, sentences: Sequence[str]) -> None:
    """Show sentences in a box under a title: what a reader should take away."""
    from IPython.display import Markdown, display

    points = [f"> - {' '.join(sentence.split())}" for sentence in sentences]
    display(Markdown("\n".join([f"> **{title}**", ">", *points])))


def table(frame, *, digits: int = 3) -> None:
    """Show a DataFrame without its index, numbers rounded for reading only."""
    from IPython.display import HTML, display

    for name in frame.select_dtypes("Int64"):  # whose absence to_html writes as <NA>, whatever na_rep says
        frame = frame.assign(**{name: frame[name].astype(object).where(frame[name].notna(), float("nan"))})
    display(HTML(frame.to_html(index=False, border=0, float_format=lambda number: f"{number:.{digits}f}", na_rep="–")))


def save_findings(paths: Paths, notebook: str, findings: dict[str, str]) -> None:
    """Keep a notebook's main findings (title → sentences) for the site's index page, as plain text."""
    rows = [{"title": title, "text": " ".join(text.split()).replace("**", "")} for title, text in findings.items()]
    write_json(paths.data / "findings" / f"{notebook}.json", rows)


def percent(share: float) -> str:
    """A share as a whole percentage."""
    return f"{100 * share:.0f} %"


def started(text: str) -> str:
    """A text that begins a sentence."""
    return text[:1].upper() + text[1:]


def tiny(number: float) -> str:
    """A rounding error as a reader says it: one digit that counts, or that it is none."""
    return f"{float(f'{number:.0e}'):.12f}".rstrip("0") if number else "exactly 0"


def with_interval(row) -> str:
    """An estimate with its interval, from a row holding recovery, low, high; or that it is undefined."""
    if not row["defined"]:
        return "undefined (the interval of its denominator includes 0)"
    estimate, low, high = (f"{round(row[name], 2) + 0.0:.2f}" for name in ("recovery", "low", "high"))  # no "-0.00"
    return f"{estimate} [{low}, {high}]"


def chi_square(row) -> str:
    """A Wald test in words, from a row holding chi2, df and p_value."""
    p_value = "p < 0.001" if row["p_value"] < 0.001 else f"p = {row['p_value']:.3f}"
    return f"χ²({row['df']:.0f}) = {row['chi2']:.1f}, {p_value}"
