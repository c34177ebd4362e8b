"""Items of the published protocol for tests, and the tokenizers that the study's own items meet."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from toy import ROOT

from helpers.models import load_tokenizer
from helpers.published import PublishedItem

QUESTION = "w11 w12 w13 w14"
EQUAL = PublishedItem(
    "equal",
    QUESTION,
    "w21 w22 w23",
    "w31 w22 w33",
    "w5 w6 w7",
    "w8 w9",
    "made up",
    "w13",
    ("w40 w41", "w42", "w43"),
    ("w31 w32", "w31 w32 w23", "w31 w33 w23"),
)
UNEQUAL = replace(EQUAL, name="unequal", corrupted_answer="w31 w32")
TOKENIZERS = [
    "embedded",
    pytest.param("gpt2", marks=pytest.mark.skipif("CLAP_REAL_DATA" not in os.environ, reason="needs GPT-2's own")),
]


def real_tokenizer(name: str):
    """The embedded byte-pair encoding, or GPT-2's own."""
    if name == "embedded":
        return load_tokenizer(ROOT / "data" / "embedded" / "models" / "base")
    return load_tokenizer(Path(os.environ["CLAP_REAL_DATA"]) / "gpt2_tokenizer")
