"""Alignment: two prompts side by side, token by token, and the pair that two freely written prompts make.

Patching copies an activation to the same *position* of the other prompt, so prompts of one length are compared position
by position. Prompts of different lengths cannot be patched; they are laid side by side by their longest common runs of
tokens, and what stands against a gap is what makes the length differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import pandas as pd

from helpers.pairs import PairError, PromptPair, make_pair, token_texts

VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})
Span = tuple[int, int]


def align(tokenizer, clean: str, corrupted: str) -> pd.DataFrame:
    """Both prompts token by token, one row for every position, or for every token and gap where lengths differ.

    Columns: position (of the clean token), corrupted_position, clean, corrupted (the tokens as text), same. In a gap
    the position is <NA> and the text is null.
    """
    ids = [tokenizer(prompt)["input_ids"] for prompt in (clean, corrupted)]
    table = pd.DataFrame(_places(*ids), columns=["position", "corrupted_position"], dtype="Int64")
    places = [[None if pd.isna(place) else int(place) for place in table[column]] for column in table]
    for name, positions, tokens in zip(("clean", "corrupted"), places, ids, strict=True):
        texts = token_texts(tokenizer, tokens)
        table[name] = pd.Series([None if i is None else texts[i] for i in positions], dtype="str")
    table["same"] = [None not in (i, j) and ids[0][i] == ids[1][j] for i, j in zip(*places, strict=True)]
    return table.astype({"same": bool})


def visible(token: str) -> str:
    """A token with its white space made visible."""
    return token.translate(VISIBLE)


def subject_spans(tokenizer, clean: str, corrupted: str) -> tuple[Span, Span]:
    """The characters (start, stop) of each prompt that hold every token that differs, and what stands between them.

    A multi-byte character that a token begins or ends within is held whole, in both prompts alike: they share the bytes
    before and after. For prompts of different lengths, and for equal ones, it is the whole of each.
    """
    encodings = [tokenizer(prompt, return_offsets_mapping=True) for prompt in (clean, corrupted)]
    first_ids, second_ids = (encoding["input_ids"] for encoding in encodings)
    if len(first_ids) != len(second_ids) or first_ids == second_ids:
        return (0, len(clean)), (0, len(corrupted))
    different = [i for i, (a, b) in enumerate(zip(first_ids, second_ids, strict=True)) if a != b]
    places = [encoding["offset_mapping"] for encoding in encodings]
    spans = [(place[different[0]][0], place[different[-1]][1]) for place in places]
    return spans[0], spans[1]


def pair_of_texts(tokenizer, *, clean: str, corrupted: str, answer: str, foil: str) -> PromptPair:
    """The pair of two freely written prompts; its subject is the shortest stretch that holds every difference.

    Raises PairError for a text that is empty, for prompts of different lengths, naming the tokens that make them
    differ, and for all that `make_pair` refuses.
    """
    texts = {"clean prompt": clean, "corrupted prompt": corrupted, "answer": answer, "foil": foil}
    if empty := [name for name, text in texts.items() if not text.strip()]:
        raise PairError(f"The {' and the '.join(empty)} must not be empty: type what the model is to read or to say.")
    ends_well = all(prompt == prompt.rstrip() for prompt in (clean, corrupted))
    if ends_well and (unequal := length_differences(align(tokenizer, clean, corrupted))):
        raise PairError(
            f"The prompts have different numbers of tokens: {'; '.join(unequal)}. "
            "Choose a corrupted subject of the same token length."
        )
    clean_subject, corrupted_subject = subject_spans(tokenizer, clean, corrupted)
    return make_pair(
        tokenizer,
        pair_id="typed",
        clean=clean,
        corrupted=corrupted,
        answer=answer.strip(),
        foil=foil.strip(),
        clean_subject=clean_subject,
        corrupted_subject=corrupted_subject,
    )


def length_differences(alignment: pd.DataFrame) -> list[str]:
    """One phrase for every stretch of an alignment that has more tokens in one prompt than in the other."""
    stretches = alignment[~alignment["same"]].groupby(alignment["same"].cumsum())
    sides = [(part["clean"].dropna().tolist(), part["corrupted"].dropna().tolist()) for _, part in stretches]
    return [
        f"{_counted(clean)} in the clean prompt against {_counted(corrupted)} in the corrupted one"
        for clean, corrupted in sides
        if len(clean) != len(corrupted)
    ]


def _places(clean: Sequence[int], corrupted: Sequence[int]) -> Iterator[tuple[int | None, int | None]]:
    """Which position stands against which; None where there is a gap."""
    if len(clean) == len(corrupted):
        yield from ((i, i) for i in range(len(clean)))
        return
    for _, i, i_end, j, j_end in SequenceMatcher(None, clean, corrupted, autojunk=False).get_opcodes():
        for step in range(max(i_end - i, j_end - j)):
            yield i + step if i + step < i_end else None, j + step if j + step < j_end else None


def _counted(tokens: Sequence[str]) -> str:
    count = f"{len(tokens)} token{'' if len(tokens) == 1 else 's'}"
    return f"{count} ({'|'.join(map(visible, tokens))})" if tokens else count
