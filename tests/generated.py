"""Tasks for tests: the words of the bundle, the generators by name, and the tokenizers that cut their prompts."""

from dataclasses import replace
from functools import cache, partial
from itertools import islice

from asked import TOKENIZERS, real_tokenizer
from toy import ROOT

from helpers import task_model
from helpers.drafts import (
    LISTS,
    OPERATIONS,
    arithmetic_drafts,
    docstring_drafts,
    greater_than_drafts,
    ioi_drafts,
    load_words,
)
from helpers.pretraining import train_tokenizer
from helpers.tasks import make_task

EMBEDDED = ROOT / "data" / "embedded"
COUNT = 24
SMALL = 12  # a product of operands up to this is a token to both tokenizers, or nearly always
GENERATORS = {
    "IOI": ioi_drafts,
    "greater-than": greater_than_drafts,
    "docstring": docstring_drafts,
    **{name: partial(arithmetic_drafts, operation=sign) for sign, name in OPERATIONS.items()},
}
CUTTERS = ["task model", *TOKENIZERS[1:]]  # the task model's own tokenizer, and GPT-2's where it is there


@cache
def words_of(*lists):
    """The words of these lists, or of both."""
    return load_words(EMBEDDED, lists=lists or LISTS)


@cache
def tokenizer_of(name):
    """The tokenizer of the task model, trained here, or one of asked.TOKENIZERS."""
    if name == "task model":
        texts, vocabulary = task_model.tokenizer_texts(EMBEDDED), task_model.Recipe().vocabulary
        return train_tokenizer(texts, vocabulary, cut_after=task_model.CENTURY)
    return real_tokenizer(name)


def drafts_of(task, *, seed=0, lists=()):
    """The endless drafts of a task."""
    words = words_of(*lists)
    return GENERATORS[task](replace(words, largest=SMALL) if task == "multiplication" else words, seed=seed)


@cache
def made(task, cutter):
    """A task of COUNT prompts, and all drafts it may be made of, by name."""
    drafts = {draft.name: draft for draft in islice(drafts_of(task), 3 * COUNT)}
    return make_task(task, drafts_of(task), tokenizer_of(cutter), count=COUNT), drafts


def texts_at(tokenizer, tokens, pair):
    """The words at the tokens that decide, by role."""
    return {
        role: tokenizer.decode([token]).strip()
        for token, role in zip(tokens, pair.roles, strict=True)
        if role[0].isupper()
    }
