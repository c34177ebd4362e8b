"""Abbreviations that a sentence defines, by the algorithm of Schwartz & Hearst (2003, "A simple algorithm for …").

Written out here because what there is on the package index was last released in 2019 or needs all of spaCy. An
abbreviation is looked for on either side of a bracket; its letters must occur in the long form in the same order, the
first of them at the beginning of a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

CLOSING = {"(": ")", "[": "]"}
LONGEST, MOST_WORDS = 10, 2  # of a short form, in characters and words
GREEK = dict(zip("αβγδεζηθκλμνπρστφχω", "abgdezetklmnprstpco", strict=True))  # by the first letter of their names
ROMAN = re.compile(r"[IVX]+[ab]?")
UNITS = {"mmHg", "mL", "dL", "IU", "Hz", "kHz", "MHz", "Gy", "cGy", "mGy", "MPa", "kPa", "kV", "mV", "mM", "nM", "kDa"}
FUNCTION_WORDS = set(
    "a an the of in on at to for and or by with as is are was were be from than that this these those its their our "
    "we it not no all both each per via into using".split()
)


@dataclass(frozen=True)
class Abbreviation:
    """Character spans (start, stop) of a short form and its long form in the sentence that was searched."""

    short: tuple[int, int]
    long: tuple[int, int]


def find_abbreviations(sentence: str) -> list[Abbreviation]:
    """Every "long form (SHORT)" and "SHORT (long form)" of a sentence, in the order of their brackets."""
    found = []
    for start, stop in _brackets(sentence):
        match = _short_inside(sentence, start, stop) or _long_inside(sentence, start, stop)
        if match:
            found.append(match)
    return found


def _brackets(text: str) -> Iterator[tuple[int, int]]:
    """Spans of what stands in brackets, nested ones too, as far as the first comma or semicolon inside.

    What is cut by a bracket is nothing: "(SpO(2))" abbreviates no "SpO".
    """
    for start, opening in enumerate(text):
        if opening not in CLOSING:
            continue
        depth = 0
        for position in range(start, len(text)):
            depth += (text[position] == opening) - (text[position] == CLOSING[opening])
            if not depth:
                inside = re.match(r"\s*([^;,()\[\]]*[^;,()\[\]\s])\s*($|[;,])", text[start + 1 : position])
                if inside:
                    yield start + 1 + inside.start(1), start + 1 + inside.end(1)
                break


def _short_inside(text: str, start: int, stop: int) -> Abbreviation | None:
    if not _is_short(text[start:stop]):
        return None
    before = re.search(r"([^;:()\[\]?!]*)[(\[]\s*$", text[:start])
    end = len(before[1].rstrip()) + before.start()
    words = [match.start() for match in re.finditer(r"\S+", text[before.start() : end])]
    size = sum(map(str.isalnum, text[start:stop]))
    words = words[-min(size + 5, 2 * size) :]
    if not words:
        return None
    found = _long_form(_stem(text[start:stop]), text, before.start() + words[0], end)
    return None if found is None else Abbreviation(_of_number(text, start, stop, text[found:end]), (found, end))


def _long_inside(text: str, start: int, stop: int) -> Abbreviation | None:
    """The bracket holds the long form, as a whole; the word before it is the short one."""
    before = re.search(r"(\S+)\s*[(\[]\s*$", text[:start])
    if not before or len(text[start:stop].split()) < 2 or not _is_short(before[1]):
        return None
    if _long_form(_stem(before[1]), text, start, stop) != start:
        return None
    return Abbreviation(_of_number(text, *before.span(1), text[start:stop]), (start, stop))


def _stem(short: str) -> str:
    """A short form without its plural's -s."""
    return short[:-1] if len(short) > 2 and short[-1] == "s" and short[-2].isupper() else short


def _of_number(text: str, start: int, stop: int, long: str) -> tuple[int, int]:
    """The span of a short form, its plural's -s only where a word of the long form has one too."""
    return start, stop if re.search(r"s\b", long) else start + len(_stem(text[start:stop]))


def _is_short(text: str) -> bool:
    """Two to ten characters in at most two words, with a capital; no number, statistic, unit, or reference."""
    return (
        2 <= len(text) <= LONGEST
        and len(text.split()) <= MOST_WORDS
        and text[0].isalnum()
        and any(map(str.isupper, text))
        and not re.search(r"[=<>≤≥%±~*]|\d{3}|\d\.\d|^\d+$|\bFig|\bTable|^[Nn] |\bet\b", text)
        and not ROMAN.fullmatch(text)
        and text not in UNITS
    )


def _long_form(short: str, text: str, start: int, stop: int) -> int | None:
    """Where the shortest long form that ends at `stop` begins, not before `start`; None when there is none.

    Stricter than the paper: the last letter must be in the last word, and in a long form of several words at least half
    of the letters must begin one. Where the word before begins with the first letter as well, and the second letter
    begins the word found, that word belongs to it ("African American (AA)"). What a hyphen ties to its beginning does
    not ("99mTc-white blood cell (WBC)").
    """
    letters, places, position = [c for c in short if c.isalnum()], [], stop
    for number, letter in reversed(list(enumerate(letters))):
        position -= 1
        while position >= start and not (
            _letter(text[position]) == _letter(letter) and (number > 0 or _begins_a_word(text, position))
        ):
            position -= 1
        if position < start:
            return None
        places.append(position)
    before = _word_start(text, max(position - 2, start), start)
    both = [_letter(text[before]), _letter(text[position])]
    if both == [_letter(c) for c in letters[:2]] and _begins_a_word(text, before):
        position = before
    while not text[position].isalnum():
        position += 1
    long, begun = text[position:stop], sum(_begins_a_word(text, place) for place in places)
    words = [word.casefold() for word in re.split(r"[^\w]+", long)]
    if len(long) <= len(short) + 2 or short.casefold() in words or not long[-1].isalnum():
        return None
    return position if len(words) == 1 or (places[0] >= stop - len(words[-1]) and 2 * begun >= len(letters)) else None


def _begins_a_word(text: str, position: int) -> bool:
    if position and text[position - 1].isalnum():
        return False
    return re.match(r"\w+", text[position:])[0].lower() not in FUNCTION_WORDS


def _word_start(text: str, position: int, start: int) -> int:
    """The beginning of the word around `position`, with all that hyphens tie to it."""
    while position > start and not text[position - 1].isspace():
        position -= 1
    return position


def _letter(character: str) -> str:
    lower = character.lower()
    return GREEK.get(lower, lower)
