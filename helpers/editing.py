"""Editing: a fact's answer exchanged by changing one part of a model alone, and what that did, graded.

Fine-tuning trains one part, such as the MLP of one block, on all new answers together, while old facts are replayed;
`helpers.rank_one` changes one matrix, for one fact at a time. Either outcome is graded as in Hase et al. (arXiv
2301.04213), with p the probability of the whole new answer and its full stop:

    rewrite     (p_after − p_before) / (1 − p_before), in the wordings edited with
    success     share of these wordings in which the new answer is what greedy decoding gives
    paraphrase  the rewrite score in other wordings
    damage      accuracy on other facts before, less that after

The caller's model has its own weights again afterwards, to the bit, also after an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.draws import draw_rank
from helpers.finetune import Writing, write_knowledge
from helpers.pairs import tokenise

KEYS = ("subject_last", "last")
OUTCOMES = ("rewrite", "success", "paraphrase", "damage")


class EditingError(ValueError):
    """An edit that cannot be made, or that gave no number."""


@dataclass(frozen=True)
class Question:
    """A prompt, the answer it should get (token ids), and the position of its subject's last token."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    subject_last: int

    def position(self, key: str) -> int:
        """The key token: one of KEYS."""
        if key not in KEYS:
            raise EditingError(f"The key token is {' or '.join(KEYS)}, not {key!r}.")
        return self.subject_last if key == "subject_last" else len(self.prompt) - 1


@dataclass(frozen=True)
class Request:
    """A fact to edit: its new answer in the wordings that it is edited with, and in others."""

    item_id: str
    kind: str
    questions: tuple[Question, ...]
    paraphrases: tuple[Question, ...] = ()


def with_new_answers(items: pd.DataFrame, tokenizer, *, seed: int) -> pd.DataFrame:
    """Items with a column new_answer: another item's answer, of the same relation, that begins with another token.

    The draw depends on the seed and the item alone. Raises EditingError where a relation has no such answer.
    """
    facts = items.drop_duplicates("item_id")
    first = {answer: tokenizer(f" {answer}")["input_ids"][0] for answer in facts["answer"]}
    pools = {relation: sorted(set(answers)) for relation, answers in facts.groupby("relation")["answer"]}
    chosen = {}
    for fact in facts.itertuples():
        candidates = [answer for answer in pools[fact.relation] if first[answer] != first[fact.answer]]
        if not candidates:
            raise EditingError(f"{fact.item_id}: no other {fact.relation} answer begins unlike {fact.answer!r}.")
        chosen[fact.item_id] = min(candidates, key=lambda answer, item=fact.item_id: draw_rank(seed, item, answer))
    return items.assign(new_answer=items["item_id"].map(chosen))


def requests_of(items: pd.DataFrame, tokenizer, *, group: str = "seen", wordings: int = 2) -> list[Request]:
    """A request per item: its first `wordings` of `group` are edited with, as many of the other groups are paraphrases.

    `items` has the columns item_id, kind, wording_id, group, prompt, subject, subject_start, new_answer. In the
    order of item_id; raises EditingError for an item without a wording of the group.
    """
    requests = []
    for (item, kind), rows in items.sort_values("wording_id").groupby(["item_id", "kind"], sort=True):
        asked = questions_of(rows.assign(answer=rows["new_answer"]), tokenizer)
        edited = [question for question, own in zip(asked, rows["group"], strict=True) if own == group]
        others = [question for question, own in zip(asked, rows["group"], strict=True) if own != group]
        if not edited:
            raise EditingError(f"{item} has no wording of the group {group!r}, so there is nothing to edit it with.")
        requests.append(Request(item, kind, tuple(edited[:wordings]), tuple(others[:wordings])))
    return requests


def questions_of(items: pd.DataFrame, tokenizer) -> list[Question]:
    """A question per row of items, with the row's answer and a full stop; columns as in `requests_of`, and answer."""
    questions = []
    for row in items.itertuples():
        prompt, subject = tokenise(
            tokenizer, row.item_id, row.prompt, (row.subject_start, row.subject_start + len(row.subject))
        )
        answer = tuple(tokenizer(f" {row.answer}.", add_special_tokens=False)["input_ids"])
        questions.append(Question(prompt, answer, subject[-1]))
    return questions


def answered(model, questions: Sequence[Question], *, batch_size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """The probability of every question's whole answer, and whether greedy decoding gives it, both `(questions,)`."""
    probability, right = np.zeros(len(questions)), np.zeros(len(questions), dtype=bool)
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt) + len(questions[i].answer))
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            log_probability, best = scored(model, [questions[i] for i in rows])
            probability[rows] = log_probability.double().exp().cpu().numpy()
            right[rows] = best.cpu().numpy()
    return probability, right


def rewrite_score(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(after − before) / (1 − before): 1 where the new answer became certain, 0 where nothing changed."""
    return (after - before) / (1 - before)


def fine_tuning_outcomes(
    model, tokenizer, items: pd.DataFrame, old: pd.DataFrame, others: Sequence[Question], *, writing: Writing,
    group: str = "seen", wordings: int = 2,
) -> pd.DataFrame:  # fmt: skip
    """Train one part of the model on all new answers together, grade it, and put the old weights back.

    `items` are as for `requests_of`, `old` (prompt, answer) is replayed, `others` are questions with their right
    answers. One row per item: item_id, kind, OUTCOMES; damage is of all edits together. Raises FineTuningError as
    `write_knowledge` does.
    """
    requests = requests_of(items, tokenizer, group=group, wordings=wordings)
    edited = items[items["group"] == group].sort_values(["item_id", "wording_id"])
    edited = edited[edited.groupby("item_id").cumcount() < wordings]
    before = Grading.of(model, requests, others)
    new = edited[["prompt"]].assign(answer=edited["new_answer"])
    with restored(model.parameters()), evaluating(model):  # the flags come back too
        write_knowledge(model, tokenizer, new, old, writing)
        return pd.DataFrame(before.outcomes(model, range(len(requests))))


@contextmanager
def restored(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Give the parameters their values back when the block ends, to the bit."""
    before = [(parameter, parameter.detach().clone()) for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)


@dataclass(frozen=True)
class Grading:
    """What the unedited model answers, by request, and its accuracy on other facts: edits are graded against it."""

    requests: Sequence[Request]
    others: Sequence[Question]
    edited: list[np.ndarray]
    paraphrased: list[np.ndarray]
    accuracy: float

    @classmethod
    def of(cls, model, requests: Sequence[Request], others: Sequence[Question]) -> Grading:
        """Ask the unedited model; raises EditingError for no request, or no other question."""
        if not requests or not others:
            raise EditingError(f"An edit needs facts and others to damage, not {len(requests)} and {len(others)}.")
        edited = [answered(model, request.questions)[0] for request in requests]
        paraphrased = [answered(model, request.paraphrases)[0] for request in requests]
        return cls(requests, others, edited, paraphrased, float(answered(model, others)[1].mean()))

    def outcomes(self, model, numbers: Iterable[int]) -> list[dict[str, object]]:
        """The outcomes of these requests in a model as it is now; paraphrase is NaN for a request without any."""
        damage = self.accuracy - float(answered(model, self.others)[1].mean())
        rows = []
        for number in numbers:
            request = self.requests[number]
            probability, right = answered(model, request.questions)
            other, _ = answered(model, request.paraphrases)
            scores = {
                "rewrite": float(rewrite_score(self.edited[number], probability).mean()),
                "success": float(right.mean()),
                "paraphrase": float(rewrite_score(self.paraphrased[number], other).mean()) if len(other) else np.nan,
                "damage": damage,
            }
            if not np.isfinite([scores["rewrite"], damage]).all():
                raise EditingError(
                    f"The edit of {request.item_id} has no rewrite score: its new answer was certain before, or the "
                    "edited model gives no probabilities."
                )
            rows.append({"item_id": request.item_id, "kind": request.kind, **scores})
        return rows


def padded(model, texts: Sequence[Sequence[int]]) -> dict[str, object]:
    """Arguments for texts, `(texts, longest)` token ids, filled up on the right, which a causal model does not see."""
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for line, text in enumerate(texts):
        ids[line, : len(text)] = torch.tensor(text)
    # Without a mask transformers warns of padding; one that hides nothing is taken for none.
    return {
        "input_ids": ids.to(model.device),
        "attention_mask": torch.ones_like(ids).to(model.device),
        "use_cache": False,
    }


def scored(model, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
    """The log-probability of every whole answer, and whether each token of it is the most probable: `(questions,)`."""
    texts = [question.prompt + question.answer for question in questions]
    hidden = model.base_model(**padded(model, texts)).last_hidden_state
    places = [
        (line, len(question.prompt) - 1 + i, token)
        for line, question in enumerate(questions)
        for i, token in enumerate(question.answer)
    ]
    line, position, token = torch.tensor(places, device=hidden.device).T
    logits = model.get_output_embeddings()(hidden[line, position])
    said = logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
    total = torch.zeros(len(questions), dtype=said.dtype, device=said.device).index_add(0, line, said)
    missed = torch.zeros_like(total).index_add(0, line, (logits.argmax(-1) != token).to(said.dtype))
    return total, missed == 0


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module's training flag comes back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
