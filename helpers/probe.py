"""Whether a model knows a fact: the greedy continuation of a prompt must be the whole answer and its full stop."""

from __future__ import annotations

import pandas as pd
import torch


def probe_accuracy(model, tokenizer, items: pd.DataFrame, *, batch_size: int) -> pd.Series:
    """For every item (columns prompt, answer) whether greedy decoding gives the whole answer, as a boolean Series.

    One teacher-forced forward decides it: greedy decoding yields the answer if and only if, given the answer so far,
    each next token is the most probable one. Rows are padded on the right, which a causal model cannot see.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    prompts, answers = prompt_and_answer_tokens(tokenizer, items)
    order = sorted(range(len(items)), key=lambda row: len(prompts[row]) + len(answers[row]))
    right = [False] * len(items)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        texts = [prompts[row] + answers[row] for row in rows]
        ids = torch.full((len(rows), max(map(len, texts))), tokenizer.pad_token_id)
        for line, text in enumerate(texts):
            ids[line, : len(text)] = torch.tensor(text)
        with torch.no_grad():
            predicted = model(input_ids=ids.to(device)).logits.argmax(-1).cpu()
        for line, row in enumerate(rows):
            begin, end = len(prompts[row]), len(texts[line])
            right[row] = predicted[line, begin - 1 : end - 1].tolist() == answers[row]
    model.train(training)
    return pd.Series(right, index=items.index)


def prompt_and_answer_tokens(tokenizer, items: pd.DataFrame) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of every item's prompt, and of what should follow it: the answer and its full stop."""
    return (
        tokenizer(items["prompt"].tolist())["input_ids"],
        tokenizer([f" {answer}." for answer in items["answer"]])["input_ids"],
    )


def probe_shares(model, tokenizer, items: pd.DataFrame, *, batch_size: int) -> dict[str, float]:
    """Share of items a model answers right, by `GROUP_accuracy` and `KIND_GROUP_accuracy`."""
    asked = items.assign(right=probe_accuracy(model, tokenizer, items, batch_size=batch_size))
    by_group = {f"{group}_accuracy": share for group, share in asked.groupby("group")["right"].mean().items()}
    by_kind = asked.groupby(["kind", "group"])["right"].mean().items()
    return by_group | {f"{kind}_{group}_accuracy": share for (kind, group), share in by_kind}


def knowledge_table(model, tokenizer, items: pd.DataFrame, *, batch_size: int, **labels) -> pd.DataFrame:
    """Share of items a model answers right, per kind, arm and group of wordings, with `labels` as further columns."""
    right = probe_accuracy(model, tokenizer, items, batch_size=batch_size)
    grouped = items.assign(right=right.to_numpy()).groupby(["kind", "arm", "group"], as_index=False)
    return grouped.agg(asked=("right", "size"), right=("right", "mean")).assign(**labels)


def shares(knowledge: pd.DataFrame, by: list[str]) -> pd.Series:
    """Share answered right per group of a knowledge table, every asked item counting once."""
    counts = knowledge.assign(count=knowledge["asked"] * knowledge["right"]).groupby(by, sort=False)
    totals = counts[["count", "asked"]].sum()
    return totals["count"] / totals["asked"]
