"""Donors: whose prompt and whose activations an item's pair borrows.

Corruption is symmetric token replacement (STR; Zhang & Nanda, arXiv 2309.16042, section 2): the corrupted prompt is
another item's clean prompt, so the model runs on text of the kind it was trained on, and the wrong answer r′ is that
item's right one. A shuffled donor is a null: an item that has to do with neither of the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd

from helpers.draws import draw_rank
from helpers.pairs import SUBJECT, PairError, PromptPair, answer_tokens, make_pair, token_range, tokenise


def symmetric_replacement(items: pd.DataFrame, tokenizer, *, seed: int) -> tuple[list[PromptPair], pd.DataFrame]:
    """Pair every item with the prompt of a donor item: symmetric token replacement.

    `items` has the columns item_id, relation, wording_id, prompt, subject, subject_start (characters), answer. The
    donor is drawn among the rows of the same relation and wording whose prompt has as many tokens, whose subject covers
    the same positions, and whose subject and first answer token are others; one donor may serve several items. The draw
    depends on seed, item, wording and candidate only, never on the order of the rows. Returns the pairs, sorted by
    item_id and wording_id and named "item_id/wording_id", and the excluded rows with the columns item_id, wording_id,
    reason. Raises PairError when a column is missing or an item stands twice in one wording.
    """
    rows = _rows(items, tokenizer)
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["relation"], row["wording_id"]), []).append(row)
    identifiers = [_pair_id(row) for row in rows]
    if (
        twice := {name for name in identifiers if identifiers.count(name) > 1}
        if len(set(identifiers)) < len(rows)
        else ()
    ):
        raise PairError(f"{min(twice)} stands more than once among the items: keep one row per item and wording.")
    pairs, excluded = [], []
    for row in rows:
        candidates, reason = _candidates(row, groups[row["relation"], row["wording_id"]])
        if not candidates:
            excluded.append({"item_id": row["item_id"], "wording_id": row["wording_id"], "reason": reason})
            continue
        donor = min(candidates, key=lambda other: draw_rank(seed, row["item_id"], row["wording_id"], other["item_id"]))
        pairs.append(
            make_pair(
                tokenizer,
                pair_id=_pair_id(row),
                clean=row["prompt"],
                corrupted=donor["prompt"],
                answer=row["answer"],
                foil=donor["answer"],
                clean_subject=_subject_span(row),
                corrupted_subject=_subject_span(donor),
                donor_id=donor["item_id"],
            )
        )
    return pairs, pd.DataFrame(excluded, columns=["item_id", "wording_id", "reason"])


def shuffled_donors(pairs: Sequence[PromptPair], *, seed: int) -> list[PromptPair]:
    """The null of denoising: every pair with the clean prompt of an unrelated pair in the place of its own.

    Answer, foil and corrupted prompt stay, and so does the name: what such a patch "recovers" is not the answer, it is
    what the loss of the wrong answer is worth. The stranger has the same roles, differs from the clean prompt at the
    subject only, and its answer begins neither as the pair's answer nor as its foil. Pairs without one are left out.
    """

    def frame(pair: PromptPair) -> tuple:
        return pair.roles, *(t for t, role in zip(pair.clean, pair.roles, strict=True) if role not in SUBJECT)

    alike: dict[tuple, list[PromptPair]] = {}
    for pair in pairs:
        alike.setdefault(frame(pair), []).append(pair)
    shuffled = []
    for pair in pairs:
        answers, prompts = (pair.answer[0], pair.foil[0]), (pair.clean, pair.corrupted)
        same_form = [other for other in alike[frame(pair)] if other.clean not in prompts]
        strangers = [other for other in same_form if other.answer[0] not in answers]
        if strangers:
            stranger = min(strangers, key=lambda other: draw_rank(seed, pair.pair_id, other.pair_id))
            shuffled.append(replace(pair, clean=stranger.clean, donor_id=stranger.pair_id))
    return shuffled


def donor_table(items: pd.DataFrame, tokenizer) -> pd.DataFrame:
    """How many pairs of items could be each other's donors, and in how many of them the answers begin differently.

    Two rows are a pair where relation, wording, prompt length and subject positions are the same and the subjects are
    not; `items` is as in `symmetric_replacement`. One row per relation: relation, pairs, differing, share (null where
    there is no pair).
    """
    alike: dict[tuple, list[tuple]] = {}
    for row in _rows(items, tokenizer):
        key = (row["relation"], row["wording_id"], len(row["ids"]), row["span"])
        alike.setdefault(key, []).append((row["subject"], row["first"]))
    counts = []
    for (relation, *_), members in alike.items():
        subjects, firsts = zip(*members, strict=True)
        pairs = len(members) * (len(members) - 1) // 2 - _repeats(subjects)
        counts.append((relation, pairs, pairs - _repeats(firsts) + _repeats(members)))
    table = pd.DataFrame(counts, columns=["relation", "pairs", "differing"]).groupby("relation", as_index=False).sum()
    return table.assign(share=table["differing"] / table["pairs"].where(table["pairs"] > 0))


def _rows(items: pd.DataFrame, tokenizer) -> list[dict]:
    """Items sorted by item and wording, each with the ids of its prompt, its subject's span, its first answer token."""
    needed = ["item_id", "relation", "wording_id", "prompt", "subject", "subject_start", "answer"]
    if missing := [column for column in needed if column not in items.columns]:
        raise PairError(
            f"The items have no column {', '.join(missing)}; symmetric replacement needs {', '.join(needed)}."
        )
    rows = items[needed].sort_values(["item_id", "wording_id"], kind="stable").to_dict("records")
    for row in rows:
        row["ids"], row["span"] = tokenise(tokenizer, _pair_id(row), row["prompt"], _subject_span(row))
        row["first"] = answer_tokens(tokenizer, row["answer"])[:1]
    return rows


def _repeats(values: Iterable) -> int:
    """Pairs of equal values."""
    return sum(count * (count - 1) // 2 for count in Counter(values).values())


def _candidates(row: dict, group: list[dict]) -> tuple[list[dict], str]:
    """Rows that may replace `row`'s subject, or an empty list and the first condition that none of them met."""
    where = f"of relation {row['relation']!r} in wording {row['wording_id']!r}"
    conditions = (
        (lambda other: other["subject"] != row["subject"], f"there is no other subject {where}"),
        (
            lambda other: len(other["ids"]) == len(row["ids"]),
            f"no other prompt {where} has {len(row['ids'])} tokens",
        ),
        (
            lambda other: other["span"] == row["span"],
            f"no other subject {where} covers {token_range(row['span'])} of {len(row['ids'])}",
        ),
        (
            lambda other: other["first"] != row["first"],
            f"every donor's answer {where} begins with the same token as {row['answer']!r}",
        ),
    )
    for holds, reason in conditions:
        group = [other for other in group if holds(other)]
        if not group:
            return [], reason
    return group, ""


def _pair_id(row: dict) -> str:
    return f"{row['item_id']}/{row['wording_id']}"


def _subject_span(row: dict) -> tuple[int, int]:
    return int(row["subject_start"]), int(row["subject_start"]) + len(row["subject"])
