"""Zhang & Nanda (arXiv 2309.16042): what they publish, cell by cell, and nothing that was measured here.

A cell is identified by model, task, corruption, tokens (the corrupted ones), metric and quantity. All of it is
denoising. Layers and heads are 0-indexed, heads written "layer.head"; a head is found if its effect is at least 2
standard deviations from the mean over heads. The paper gives no interval, number of noise draws, or seed.
"""

from __future__ import annotations

from dataclasses import dataclass

LD, PROBABILITY, KL = "logit_difference", "probability", "kl_divergence"
PUBLISHED_WINDOW = 5  # layers, where the paper names no other
RUN = "mean over prompts"
TO_IO, TO_S1 = "attention of the name movers to IO", "attention of the name movers to S1"
VALUES = "effect of the values of all S-inhibition heads, normalised"
POSITIONS = "effects of all layers, last over middle subject tokens, window 5"
JOINT = "peak, joint over sum of single layers, window {}"
PEAKS = "peak under GN over peak under STR, window 5"
DOCSTRING_MODEL = "attention-only, 4 layers"


@dataclass(frozen=True)
class Number:
    """A number with the digits it was printed with."""

    printed: str

    @property
    def value(self) -> float:
        """The number itself."""
        return float(self.printed)

    @property
    def decimals(self) -> int:
        """How many digits are printed after the point."""
        return len(self.printed.partition(".")[2])

    def __str__(self) -> str:
        return self.printed


@dataclass(frozen=True)
class Range:
    """A range that the paper states instead of a number, both ends included."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Heads:
    """The heads found with one sign, patched at the tokens of `role`; `omitted` are found but not printed."""

    names: tuple[str, ...]
    sign: str = "positive"
    role: str = "all"
    omitted: int = 0

    def __str__(self) -> str:
        return (" ".join(self.names) or "none") + (f" and {self.omitted} not printed" if self.omitted else "")


@dataclass(frozen=True)
class Found:
    """How many heads of a class of the IOI circuit are found."""

    count: int
    group: str

    def __str__(self) -> str:
        return f"{self.count}/{len(CLASSES[self.group].names)}"


@dataclass(frozen=True)
class Cell:
    """One published cell: where it stands, what identifies it, and what it says."""

    source: str
    model: str
    task: str
    corruption: str
    tokens: str
    metric: str
    quantity: str
    published: Number | Range | Heads | Found


def _heads(names: str, **where) -> Heads:
    return Heads(tuple(names.split()), **where)


CLASSES = {
    "name movers": _heads("9.6 9.9 10.0"),
    "duplicate token heads": _heads("0.1 3.0"),
    "S-inhibition heads": _heads("7.3 7.9 8.6 8.10"),
    "negative name movers": _heads("10.7 11.10", sign="negative"),
    "induction heads": _heads("5.5 6.9"),
}
_TABLE_1 = {
    ("STR", PROBABILITY): (1, 0, 3, 1, 1),
    ("GN", PROBABILITY): (0, 1, 2, 2, 1),
    ("STR", LD): (1, 0, 3, 2, 1),
    ("GN", LD): (1, 1, 3, 2, 1),
    ("STR", KL): (1, 0, 3, 2, 1),
    ("GN", KL): (0, 0, 2, 2, 1),
}
_TABLE_2 = {  # at the corrupted token, and at the last one
    ("STR", LD): (_heads("0.0 0.1 0.5", role="C_def"), _heads("2.3 3.0 3.5 3.6", role="last")),
    ("STR", PROBABILITY): (_heads("", role="C_def"), _heads("3.0 3.6", role="last")),
    ("STR", KL): (_heads("0.0 0.1 0.5 2.2", role="C_def"), _heads("2.3 3.0 3.6", role="last")),
    ("GN", LD): (_heads("0.5", role="C_def", omitted=2), _heads("1.4 1.5 2.2 2.3 3.0 3.6 3.7", role="last")),
    ("GN", PROBABILITY): (_heads("", role="C_def"), _heads("3.0 3.6", role="last")),
    ("GN", KL): (_heads("", role="C_def"), _heads("2.2 2.3 3.0 3.5 3.6", role="last")),
}
_TABLE_3 = {  # positive, negative
    ("STR", LD): ("6.9 7.10 8.11 9.1 10.4", ""),
    ("STR", PROBABILITY): ("7.10 8.11 9.1", ""),
    ("STR", KL): ("6.9 7.10 8.11 9.1", "10.7"),
    ("GN", LD): ("0.9 7.10 8.10 9.1 10.4", "6.1 8.6 9.5"),
    ("GN", PROBABILITY): ("5.5 6.1 6.9 7.10 7.11 8.8 9.1", ""),
    ("GN", KL): ("5.5 6.1 6.9 7.10 7.11 8.8 9.1", "5.9 7.6"),
}
_TABLE_4 = {
    ("STR", LD): ("9.6 9.9 10.0", "10.7 11.10"),
    ("STR", KL): ("9.6 9.9 10.0", "10.7 11.10"),
    ("GN", LD): ("9.6 9.9 10.0", "10.7 11.10"),
    ("GN", KL): ("9.6 9.9 10.0", "10.7 11.10"),
    ("STR", PROBABILITY): ("9.9", ""),
    ("GN", PROBABILITY): ("9.6 9.9 10.0", ""),
}
_TABLE_5 = {
    ("STR", PROBABILITY): ("5.5 7.9 8.6 8.10 9.9", "10.7"),
    ("GN", PROBABILITY): ("3.0 5.5 7.9 8.6", "0.10 10.7 11.10"),
    ("STR", LD): ("5.5 7.9 8.6 8.10 9.9", "10.7 11.10"),
    ("GN", LD): ("3.0 5.5 7.9 8.6 8.10 9.9", "10.7 11.10"),
    ("STR", KL): ("5.5 7.9 8.6 8.10 9.9", "10.7 11.10"),
    ("GN", KL): ("5.5 7.9 8.6", "0.10 10.7 11.10"),
}
# Probability and logit difference on PairedFacts; section 3 calls the first accuracy, the appendix probability.
_FACTS = {"gpt2-xl": ("0.490", "6.85"), "gpt2-large": ("0.411", "5.88"), "gptj": ("0.501", "7.36")}


def _counts() -> list[Cell]:
    return [
        Cell("Table 1", "gpt2", "IOI", corruption, "S2", metric, f"{group} found", Found(count, group))
        for (corruption, metric), counts in _TABLE_1.items()
        for group, count in zip(CLASSES, counts, strict=True)
    ]


def _docstring() -> list[Cell]:
    places = {"C_def": "the corrupted token", "last": "the last token"}
    return [
        Cell("Table 2", DOCSTRING_MODEL, "docstring", corruption, "C_def", metric,
             f"{heads.sign} heads at {places[heads.role]}", heads)
        for (corruption, metric), both in _TABLE_2.items()
        for heads in both
    ]  # fmt: skip


def _signed(source: str, task: str, tokens: str, table: dict) -> list[Cell]:
    return [
        Cell(source, "gpt2", task, corruption, tokens, metric, f"{sign} heads", _heads(names, sign=sign))
        for (corruption, metric), both in table.items()
        for sign, names in zip(("positive", "negative"), both, strict=True)
    ]


def _number(source: str, model: str, task: str, what: tuple[str, str, str], quantity: str, printed: str) -> Cell:
    return Cell(source, model, task, *what, quantity, Number(printed))


CELLS = (
    *_counts(),
    *_docstring(),
    *_signed("Table 3", "greater-than", "YY", _TABLE_3),
    *_signed("Table 4 (appendix F)", "IOI", "S1+IO", _TABLE_4),
    *_signed("Table 5", "IOI", "S2", _TABLE_5),
    _number("Appendix, IOI", "gpt2", "IOI", ("none", "none", PROBABILITY), RUN, "0.481"),
    _number("Appendix, IOI", "gpt2", "IOI", ("GN", "S2", PROBABILITY), RUN, "0.129"),
    _number("Section 4", "gpt2", "IOI", ("STR", "S2", PROBABILITY), RUN, "0.03"),
    _number("Section 4", "gpt2", "IOI", ("STR", "all names", PROBABILITY), RUN, "0.0005"),
    _number("Section 3.2", "gpt2", "IOI", ("none", "none", "attention"), TO_IO, "0.58"),
    _number("Section 3.2", "gpt2", "IOI", ("GN", "S2", "attention"), TO_IO, "0.26"),
    _number("Section 3.2", "gpt2", "IOI", ("GN", "S2", "attention"), TO_S1, "0.21"),
    _number("Section 3.2", "gpt2", "IOI", ("STR", "S2", LD), VALUES, "1.04"),
    _number("Section 3.2", "gpt2", "IOI", ("GN", "S2", LD), VALUES, "0.49"),
    *(
        _number("Section 3, appendix", model, "facts", ("none", "none", metric), RUN, printed)
        for model, both in _FACTS.items()
        for metric, printed in zip((PROBABILITY, LD), both, strict=True)
    ),
    *(
        Cell("Section 3.1", "gpt2-xl", "facts", "GN over STR", "subject", metric, PEAKS, Range(2, 5))
        for metric in (PROBABILITY, LD)
    ),
    _number("Section 4.1", "gpt2-xl", "facts", ("STR", "subject", PROBABILITY), POSITIONS, "4.33"),
    _number("Section 4.1", "gpt2-xl", "facts", ("STR", "subject", LD), POSITIONS, "1.22"),
    _number("Section 4.1", "gpt2-xl", "facts", ("GN", "subject", PROBABILITY), POSITIONS, "1.74"),
    _number("Section 4.1", "gpt2-xl", "facts", ("GN", "subject", LD), POSITIONS, "0.77"),
    *(
        _number("Section 5", "gpt2-xl", "facts", ("GN", "subject", PROBABILITY), JOINT.format(window), printed)
        for window, printed in ((3, "1.40"), (5, "1.75"), (10, "1.59"))
    ),
    _number("Appendix, docstring", DOCSTRING_MODEL, "docstring", ("none", "none", "accuracy"), RUN, "0.56"),
    _number("Appendix, docstring", DOCSTRING_MODEL, "docstring", ("none", "none", LD), RUN, "0.5"),
)
