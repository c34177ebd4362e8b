"""Prompt pairs: a clean and a corrupted prompt of equal length whose subjects stand at the same positions.

Patching copies an activation from one prompt to the same position of the other, so a pair is only worth making when
position means the same in both. Everything that could break this quietly is an error here, with both prompts printed
token by token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ROLES = ("prefix", "subject_first", "subject_middle", "subject_last", "relation", "last")
SUBJECT = ("subject_first", "subject_middle", "subject_last")
# The tokens that decide a task of helpers.tasks, by the names its authors gave them; the rest of its prompts has ROLES.
TASK_ROLES = ("IO", "S1", "S2", "YY", "A_def", "B_def", "C_def", "A_doc", "B_doc", "X3", "Y3")
ANSWER = "answer"  # tokens of an answer that stand in both prompts of a continued pair: they are never patched


class PairError(ValueError):
    """Two prompts that cannot be patched into one another."""


@dataclass(frozen=True)
class PromptPair:
    """Two prompts of `positions` tokens each, their answers, and what stands at each position.

    `answer` is the whole clean answer r and `foil` the whole answer r′ of the corrupted prompt; metrics use their first
    tokens. Where several tokens are right, or wrong (all later and all earlier years), `answer_set` and `foil_set` hold
    them, and metrics use those. `roles` names each position by one of ROLES or TASK_ROLES: a one-token subject is
    `subject_last`, and the last position is always `last`, even where the subject ends there, for what is measured
    there is another thing; ANSWER stands for tokens after it (helpers.answers). `donor_id` is the item whose prompt is
    the corrupted one. Raises PairError when lengths differ, the prompts are equal, an answer is empty, or a token
    stands twice in a set or in both.
    """

    pair_id: str
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: tuple[int, ...]
    foil: tuple[int, ...]
    roles: tuple[str, ...]
    donor_id: str | None = None
    answer_set: tuple[int, ...] = ()
    foil_set: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.clean) == len(self.corrupted) == len(self.roles) or not self.clean:
            raise PairError(
                f"Pair {self.pair_id}: {len(self.clean)} clean tokens, {len(self.corrupted)} corrupted tokens and "
                f"{len(self.roles)} roles; a pair has one length, and at least one token."
            )
        if self.clean == self.corrupted:
            raise PairError(f"Pair {self.pair_id}: the corrupted prompt is the clean one; replace its subject.")
        if not self.answer or not self.foil or self.answer[0] == self.foil[0]:
            raise PairError(
                f"Pair {self.pair_id}: the answer {self.answer} and the foil {self.foil} need first tokens that differ."
            )
        for name, tokens in (("answer_set", self.answer_set), ("foil_set", self.foil_set)):
            if repeated := sorted(token for token in set(tokens) if tokens.count(token) > 1):
                raise PairError(
                    f"Pair {self.pair_id}: the token {repeated[0]} stands twice in its {name}, and would count twice; "
                    "name every token once."
                )
        if both := set(self.right) & set(self.wrong):
            raise PairError(
                f"Pair {self.pair_id}: the token {min(both)} is among the right answers and the wrong ones."
            )
        if unknown := sorted(set(self.roles) - {*ROLES, *TASK_ROLES, ANSWER}):
            raise PairError(
                f"Pair {self.pair_id}: unknown roles {', '.join(unknown)}; the roles are "
                f"{', '.join(ROLES + TASK_ROLES)}."
            )

    @property
    def positions(self) -> int:
        """Tokens of each prompt."""
        return len(self.clean)

    @property
    def right(self) -> tuple[int, ...]:
        """The tokens any of which answers the clean prompt."""
        return self.answer_set or self.answer[:1]

    @property
    def wrong(self) -> tuple[int, ...]:
        """The tokens any of which is wrong there."""
        return self.foil_set or self.foil[:1]

    @property
    def first_difference(self) -> int:
        """The first position at which the prompts have different tokens."""
        return next(i for i, (a, b) in enumerate(zip(self.clean, self.corrupted, strict=True)) if a != b)


def make_pair(
    tokenizer,
    *,
    pair_id: str,
    clean: str,
    corrupted: str,
    answer: str,
    foil: str,
    clean_subject: tuple[int, int],
    corrupted_subject: tuple[int, int],
    donor_id: str | None = None,
) -> PromptPair:
    """Tokenise and align a pair; subjects are given as character spans (start, stop) of their prompts.

    Answers are tokenised with a leading space, as they stand in running text. Raises PairError when a prompt ends with
    a space or a span holds no token, when lengths or the positions of the subjects differ, and for all that PromptPair
    refuses; the message shows the tokens.
    """
    clean_ids, clean_span = tokenise(tokenizer, pair_id, clean, clean_subject)
    corrupted_ids, corrupted_span = tokenise(tokenizer, pair_id, corrupted, corrupted_subject)

    def both() -> str:
        return (
            f"\n  clean     ({len(clean_ids)}): {_show(tokenizer, clean_ids)}"
            f"\n  corrupted ({len(corrupted_ids)}): {_show(tokenizer, corrupted_ids)}"
        )

    if len(clean_ids) != len(corrupted_ids):
        raise PairError(
            f"Pair {pair_id}: the clean prompt has {len(clean_ids)} tokens and the corrupted one {len(corrupted_ids)}; "
            f"choose a corrupted subject of the same token length.{both()}"
        )
    if clean_ids == corrupted_ids:
        raise PairError(
            f"Pair {pair_id}: both prompts are the same tokens; replace the subject in one of them.{both()}"
        )
    if clean_span != corrupted_span:
        raise PairError(
            f"Pair {pair_id}: the subject is at {token_range(clean_span)} of the clean prompt and at "
            f"{token_range(corrupted_span)} of the corrupted one; choose a subject at the same positions.{both()}"
        )
    answer_ids, foil_ids = answer_tokens(tokenizer, answer), answer_tokens(tokenizer, foil)
    if answer_ids and foil_ids and answer_ids[0] == foil_ids[0]:
        raise PairError(
            f"Pair {pair_id}: the answer {answer!r} and the foil {foil!r} begin with the same token "
            f"{tokenizer.convert_ids_to_tokens(answer_ids[0])!r}, so no metric tells them apart; choose another foil."
        )
    roles = token_roles(len(clean_ids), subject=clean_span)
    return PromptPair(pair_id, clean_ids, corrupted_ids, answer_ids, foil_ids, roles, donor_id)


def bucket_by_length(pairs: Iterable[PromptPair]) -> dict[int, list[PromptPair]]:
    """Pairs by their number of positions, shortest first, so that no batch needs padding; order is kept within each."""
    buckets: dict[int, list[PromptPair]] = {}
    for pair in pairs:
        buckets.setdefault(pair.positions, []).append(pair)
    return dict(sorted(buckets.items()))


def token_roles(positions: int, *, subject: Sequence[int]) -> tuple[str, ...]:
    """The role of each of `positions` tokens, when the subject covers the token positions `subject`."""
    first, last = subject[0], subject[-1]
    roles = ["prefix"] * first + ["subject_middle"] * (last - first + 1) + ["relation"] * (positions - last - 1)
    roles[first], roles[last] = "subject_first", "subject_last"  # in this order: a one-token subject is subject_last
    roles[-1] = "last"
    return tuple(roles)


def answer_tokens(tokenizer, answer: str) -> tuple[int, ...]:
    """Token ids of an answer that continues a prompt: with the space before it, and no special token."""
    return tuple(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"])


def token_texts(tokenizer, ids: Sequence[int]) -> list[str]:
    """Each token as text; one that is only a part of a character is shown by its own name."""
    texts = ((tokenizer.decode([token]), token) for token in ids)
    return [tokenizer.convert_ids_to_tokens(token) if "\ufffd" in text else text for text, token in texts]


def tokenise(tokenizer, pair_id: str, prompt: str, subject: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a prompt, and the positions whose characters overlap the subject.

    Overlap of characters is the one rule that holds for byte-level BPE: a token may bring the space before the subject,
    and several tokens may share one multi-byte character.
    """
    start, stop = subject
    if prompt != prompt.rstrip():
        raise PairError(
            f"Pair {pair_id}: the prompt {prompt!r} ends with a space, which belongs to the answer; remove it."
        )
    encoding = tokenizer(prompt, return_offsets_mapping=True)
    ids = tuple(encoding["input_ids"])
    offsets = encoding["offset_mapping"]
    if offsets and offsets[-1][0] == offsets[-1][1]:
        raise PairError(
            f"Pair {pair_id}: the tokenizer puts {tokenizer.convert_ids_to_tokens(ids[-1])!r} behind the prompt, where "
            "its answer would be read; turn that off."
        )
    span = tuple(i for i, (begin, end) in enumerate(offsets) if begin < end and begin < stop and end > start)
    if not 0 <= start < stop <= len(prompt) or not span:
        raise PairError(
            f"Pair {pair_id}: the subject's characters {start} to {stop} cover no token of {prompt!r} "
            f"({len(prompt)} characters); give the span as (start, stop)."
        )
    return ids, span


def token_range(span: Sequence[int]) -> str:
    """Token positions in words."""
    return f"tokens {span[0]} to {span[-1]}" if len(span) > 1 else f"token {span[0]}"


def _show(tokenizer, ids: Sequence[int]) -> str:
    return " | ".join(token_texts(tokenizer, ids))
