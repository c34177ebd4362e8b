"""Drafts: the prompts of the tasks in words, drawn without end from word lists and templates.

    IOI            two names, one of them again: who is it given to? (Wang et al., arXiv 2211.00593)
    greater-than   a span of years within a century: which last two digits? (Hanna et al., arXiv 2305.00586)
    docstring      parameters described in their order: which is next? (after a study of a 4-layer model)
    arithmetic     two solved examples and an unsolved one (Stolfo et al., arXiv 2305.15054)

The sentences are ours. Words come in two lists: the embedded task model is trained on the `seen` ones, and notebook 05
asks it with the `unseen`. Of arithmetic a tenth of all pairs of operands is never trained on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import yaml

from helpers.draws import draw_rank
from helpers.tasks import Draft, Replacement

LISTS = ("seen", "unseen")
CENTURIES = range(11, 18)
OPERATIONS = {"+": "addition", "-": "subtraction", "*": "multiplication"}
PEOPLE = 60
DONORS = 3  # of a choice that leaves a choice: only IO's name replaces S2, but any word may replace C_def


@dataclass(frozen=True)
class Words:
    """What prompts are made of; `operands` says which pairs of operands the unsolved example is drawn from."""

    names: Sequence[str]
    places: Sequence[str]
    objects: Sequence[str]
    ioi_openings: Sequence[str]
    ioi_endings: Sequence[str]
    span_template: str
    nouns: Sequence[str]
    parameters: Sequence[str]
    largest: int
    operands: Sequence[str] = field(default=LISTS)


def load_words(folder: Path, *, lists: Sequence[str]) -> Words:
    """Read `tasks.yaml`: the words of one list ("seen", "unseen"), or of both."""
    tree = _tree(folder)

    def words(entry: dict[str, str]) -> list[str]:
        return [word for name in lists for word in entry[name].split()]

    return Words(
        names=words(tree["names"]),
        places=words(tree["places"]),
        objects=words(tree["objects"]),
        ioi_openings=[opening for name in lists for opening in tree["ioi"]["openings"][name]],
        ioi_endings=[ending for name in lists for ending in tree["ioi"]["endings"][name]],
        span_template=tree["greater_than"]["template"],
        nouns=words(tree["greater_than"]["nouns"]),
        parameters=words(tree["docstrings"]["words"]),
        largest=tree["arithmetic"]["largest"],
        operands=tuple(lists),
    )


def made_up_people(folder: Path) -> pd.DataFrame:
    """Facts about people who do not exist: relation, subject, template (subject as `{}`), answer.

    No single name tells a person: first, middle and last names are each shared.
    """
    tree, chooser = _tree(folder), random.Random("people")
    parts = [tree["people"][part].split() for part in ("first", "middle", "last")]
    everyone = [" ".join((first, middle, last)) for first in parts[0] for middle in parts[1] for last in parts[2]]
    rows = [
        {"relation": name, "subject": person, "template": f"{{}} {name}", "answer": chooser.choice(answers.split())}
        for person in chooser.sample(everyone, PEOPLE)
        for name, answers in tree["relations"].items()
    ]
    return pd.DataFrame(rows)


def ioi_drafts(words: Words, *, seed: int) -> Iterator[Draft]:
    """Indirect object identification, both orders of the names: r is IO, r′ the repeated name S.

    S2 becomes IO ("S2"), IO and S1 become other names ("S1+IO"), or all three become three others ("all names", p_ABC).
    """
    chooser, number = random.Random(f"IOI {seed}"), 0
    while True:
        template = f"{chooser.choice(words.ioi_openings)} {chooser.choice(words.ioi_endings)}"
        io, subject, *others = chooser.sample(words.names, 2 + 3 * DONORS)
        order = chooser.sample(("IO", "S1"), 2)
        for place, role in zip(("first", "second"), order, strict=True):
            template = template.replace(f"{{{place}}}", f"{{{role}}}")
        wrong, donors = (f" {subject}",), [others[3 * i : 3 * i + 3] for i in range(DONORS)]
        yield Draft(
            name=f"IOI {number}",
            template=template,
            values={"IO": io, "S1": subject, "S2": subject}
            | {"place": chooser.choice(words.places), "object": chooser.choice(words.objects)},
            right=(f" {io}",),
            replaced={
                "S2": [Replacement({"S2": io}, wrong)],
                "S1+IO": [Replacement({"S1": a, "IO": b}, wrong) for a, b, _ in donors],
                "all names": [Replacement({"IO": a, "S1": b, "S2": c}, wrong) for a, b, c in donors],
            },
        )
        number += 1


def greater_than_drafts(words: Words, *, seed: int) -> Iterator[Draft]:
    """Greater-than: every later year of the century is right, every earlier one wrong; YY becomes 01."""
    chooser, number = random.Random(f"greater-than {seed}"), 0
    while True:
        year, century = chooser.randint(2, 98), str(chooser.choice(CENTURIES))
        yield Draft(
            name=f"greater-than {number}",
            template=words.span_template,
            values={"noun": chooser.choice(words.nouns), "XX": century, "YY": f"{year:02d}", "XX2": century},
            right=tuple(f"{later:02d}" for later in range(year + 1, 100)),
            replaced={"YY": [Replacement({"YY": "01"}, tuple(f"{earlier:02d}" for earlier in range(year)))]},
        )
        number += 1


def docstring_drafts(words: Words, *, seed: int) -> Iterator[Draft]:
    """Docstrings that stop before the third parameter: r is its name, r′ the word that replaces it or stands beside it.

    The third parameter becomes another word ("C_def"), or the first two do where they are declared ("A_def+B_def") or
    described ("A_doc+B_doc").
    """
    chooser, number = random.Random(f"docstring {seed}"), 0
    donors = min(DONORS, (len(words.parameters) - 8) // 2)  # no word stands twice, and the unseen ones are few
    while True:
        a, b, c, d, name, one, two, three, *others = chooser.sample(words.parameters, 8 + 2 * donors)
        others = list(zip(others[::2], others[1::2], strict=True))
        yield Draft(
            name=f"docstring {number}",
            template=(
                f"def {name}(self, {{A_def}}, {{B_def}}, {{C_def}}, {d}):\n    {one} {two}\n\n"
                f"    :param {{A_doc}}: {two} {three}\n    :param {{B_doc}}: {three} {one}\n    :param"
            ),
            values={"A_def": a, "B_def": b, "C_def": c, "A_doc": a, "B_doc": b},
            right=(f" {c}",),
            replaced={
                "C_def": [Replacement({"C_def": x}, (f" {x}",)) for x, _ in others],
                "A_def+B_def": [Replacement({"A_def": x, "B_def": y}, (f" {d}",)) for x, y in others],
                "A_doc+B_doc": [Replacement({"A_doc": x, "B_doc": y}, (f" {d}",)) for x, y in others],
            },
        )
        number += 1


def arithmetic_drafts(words: Words, *, operation: str, seed: int) -> Iterator[Draft]:
    """Two-shot arithmetic with `operation` one of OPERATIONS: r is the result, r′ that of the replaced operands."""
    chooser, number = random.Random(f"arithmetic {operation} {seed}"), 0
    while True:
        shots = [operands(chooser, operation, words.largest, "seen") for _ in range(2)]
        asked, *others = (operands(chooser, operation, words.largest, words.operands[-1]) for _ in range(1 + DONORS))
        replaced = {
            "X3+Y3": [{"X3": x, "Y3": y} for x, y in others],
            "X3": [{"X3": x} for x, _ in others],
            "Y3": [{"Y3": y} for _, y in others],
        }
        right, number = result(operation, *asked), number + 1
        results = [right, *(_result(operation, asked, new) for donors in replaced.values() for new in donors)]
        if min(results) < 0 or right in results[1:] or any(set(asked) & set(other) for other in others):
            continue
        solved = " ".join(f"{x} {operation} {y} = {result(operation, x, y)}." for x, y in shots)
        yield Draft(
            name=f"arithmetic {operation} {number}",
            template=f"{solved} {{X3}} {operation} {{Y3}} =",
            values={"X3": str(asked[0]), "Y3": str(asked[1])},
            right=(f" {right}",),
            replaced={
                choice: [
                    Replacement({k: str(v) for k, v in new.items()}, (f" {_result(operation, asked, new)}",))
                    for new in donors
                ]
                for choice, donors in replaced.items()
            },
        )


def operands(chooser: random.Random, operation: str, largest: int, which: str) -> tuple[int, int]:
    """A pair of operands from 1 to `largest` of the seen or the unseen part; a difference is never negative."""
    while True:
        pair = chooser.randint(1, largest), chooser.randint(1, largest)
        unseen = int(draw_rank("operands", *sorted(pair))[:8], 16) % 10 == 0
        if unseen == (which == "unseen") and (operation != "-" or pair[0] > pair[1]):
            return pair


def result(operation: str, x: int, y: int) -> int:
    """What an example's right side says."""
    return {"+": x + y, "-": x - y, "*": x * y}[operation]


def _result(operation: str, asked: tuple[int, int], replaced: dict[str, int]) -> int:
    return result(operation, replaced.get("X3", asked[0]), replaced.get("Y3", asked[1]))


def _tree(folder: Path) -> dict:
    return yaml.safe_load((folder / "tasks.yaml").read_text(encoding="utf-8"))
