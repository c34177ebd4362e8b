"""Shared fixtures: tiny random models and a tiny tokenizer, made in memory in milliseconds."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks: bitwise claims are for the CPU

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

VOCABULARY = 60

# Tiny tensors gain nothing from a second thread, and on a busy machine threads that spin while waiting cost minutes.
torch.set_num_threads(1)


def tiny_gpt2(seed: int, *, layers: int = 3, width: int = 32, heads: int = 4, **settings) -> GPT2LMHeadModel:
    """A GPT-2 whose every parameter is random and large, so that each site has an effect that a test can see."""
    configuration = GPT2Config(
        vocab_size=VOCABULARY,
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
        **settings,
    )
    model = GPT2LMHeadModel(configuration).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Normalisation gains stay near 1; a zero bias would hide a forgotten one.
            parameter.copy_(1 + 0.1 * noise if ".ln_" in name and name.endswith("weight") else 0.2 * noise)
    return model


@pytest.fixture(scope="session")
def gpt2_pair():
    """Two tiny GPT-2 of one shape and different weights."""
    return tiny_gpt2(0), tiny_gpt2(1)


@pytest.fixture(params=[0, 1], ids=["seed0", "seed1"])
def gpt2(request, gpt2_pair):
    """A tiny GPT-2, once for each of two seeds."""
    return gpt2_pair[request.param]


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE as GPT-2's, learnt from a few sentences: tokens bring the space before them."""
    text = [
        "In this report, JME denotes juvenile myoclonic epilepsy.",
        "In this report, TLE denotes temporal lobe epilepsy.",
        "Dravet syndrome is treated with stiripentol and valproate.",
    ]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
