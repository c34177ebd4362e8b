"""Tiny random models of every family that patching knows, and random pairs for them to answer."""

from functools import cache

import numpy as np
import torch
from conftest import VOCABULARY, tiny_gpt2
from transformers import (
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from helpers.pairs import PromptPair, token_roles

LAYERS, WIDTH, HEADS = 3, 16, 2
# Name: model class, configuration class, and what sets it apart from the family's default.
VARIANTS = {
    "neox-parallel": (GPTNeoXForCausalLM, GPTNeoXConfig, {"use_parallel_residual": True}),
    "neox-sequential": (GPTNeoXForCausalLM, GPTNeoXConfig, {"use_parallel_residual": False}),
    "llama": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama-grouped": (LlamaForCausalLM, LlamaConfig, {"num_attention_heads": 4, "num_key_value_heads": 2}),
    # A window shorter than the prompts; the next but one mixes full attention with a sliding window.
    "mistral-sliding": (MistralForCausalLM, MistralConfig, {"sliding_window": 3}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-mixed": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1},
    ),
    "qwen3-narrow-heads": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 6}),
    "gptj": (GPTJForCausalLM, GPTJConfig, {"n_inner": 24, "rotary_dim": 4}),
}
FAMILIES = ("gpt2", *VARIANTS)
OWN_ATTENTION = ("gptj",)  # computes its attention itself, in one way only


def tiny_model(family: str, seed: int, **settings):
    """A model of three layers, width 16 and two heads (but for llama-grouped, four); every call gives a new one."""
    if family == "gpt2":
        return tiny_gpt2(seed, **{"layers": LAYERS, "width": WIDTH, "heads": HEADS, **settings})
    network, configuration, own = VARIANTS[family]
    grouped = HEADS if family == "llama" else HEADS // 2
    shape = {
        "vocab_size": VOCABULARY,
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        **({} if family.startswith(("neox", "gptj")) else {"num_key_value_heads": grouped}),
        "intermediate_size": 24,
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    config = configuration(**{**shape, **own, **settings})
    model = network(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = ("norm" in name or ".ln_" in name) and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if gain else 0.3 * noise)
    return model


@cache
def shared_model(family: str, seed: int):
    """The model of a family and seed, made once: for tests that leave it as it is."""
    return tiny_model(family, seed)


def random_pair(name: str, length: int, *, seed: int, subject: tuple[int, ...] = (1,)) -> PromptPair:
    """A pair that differs at the tokens `subject` only."""
    generator = np.random.default_rng(seed)
    clean = generator.integers(0, VOCABULARY, length).tolist()
    corrupted = list(clean)
    for position in subject:
        corrupted[position] = (clean[position] + 1 + int(generator.integers(0, VOCABULARY - 1))) % VOCABULARY
    answer, foil = generator.choice(VOCABULARY, 2, replace=False).tolist()
    roles = token_roles(length, subject=subject)
    return PromptPair(name, tuple(clean), tuple(corrupted), (answer, 3), (foil,), roles)


def plain_pair(**changes) -> PromptPair:
    """Three tokens, of which the middle one differs; `changes` are other fields."""
    fields = {
        "pair_id": "p",
        "clean": (1, 2, 3),
        "corrupted": (1, 4, 3),
        "answer": (5, 6),
        "foil": (7,),
        "roles": ("prefix", "subject_last", "last"),
    }
    return PromptPair(**{**fields, **changes})
