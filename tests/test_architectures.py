"""The table of architectures: what it names, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from oracle import COMPONENTS, NAMES
from tiny import FAMILIES, OWN_ATTENTION, shared_model
from torch import nn
from transformers import GPT2Config, GPT2Model

from helpers.architectures import (
    ARCHITECTURES,
    SITES,
    ArchitectureError,
    architecture_of,
    attention,
    has_parallel_residual,
    head_count,
    layer_count,
)


def test_the_table_names_the_families_and_sites_that_the_oracle_does():
    assert set(ARCHITECTURES) == set(NAMES) and SITES == COMPONENTS
    for model_type, row in ARCHITECTURES.items():
        inner = (row.attention, row.head_projection, row.mlp)
        assert (row.embedding, row.blocks, *inner) == NAMES[model_type]
    with pytest.raises(TypeError):
        ARCHITECTURES["bert"] = ARCHITECTURES["gpt2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_counts(family):
    model = shared_model(family, 0)
    assert architecture_of(model) is ARCHITECTURES[model.config.model_type]
    assert (layer_count(model), head_count(model)) == (3, 4 if family == "llama-grouped" else 2)
    assert has_parallel_residual(model) is (family in ("neox-parallel", "gptj"))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_attention_is_put_in_place_or_refused(family):
    """The model's own choice is there again afterwards; what it would not call is refused in a sentence."""
    model, called = shared_model(family, 0), []

    def attend(module, query, *others, **settings):
        called.append(module.layer_idx)
        return query.transpose(1, 2), None

    before = model.config._attn_implementation
    if family in OWN_ATTENTION:
        with pytest.raises(ArchitectureError, match="GPTJForCausalLM computes its attention itself"):
            attention(model, attend).__enter__()
    else:
        with attention(model, attend):
            model(torch.tensor([[1, 2, 3]]))
        assert called == [0, 1, 2]
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("model", [nn.Linear(2, 2), SimpleNamespace(config=SimpleNamespace(model_type="mamba"))])
def test_unknown_model_type_is_one_sentence(model):
    with pytest.raises(ArchitectureError, match="knows the model types gpt2.*not (None|'mamba')") as error:
        architecture_of(model)
    assert "\n" not in str(error.value)


def test_a_model_without_its_head_is_refused():
    headless = GPT2Model(GPT2Config(vocab_size=9, n_layer=1, n_embd=8, n_head=2, bos_token_id=0, eos_token_id=0))
    with pytest.raises(ArchitectureError, match="AutoModelForCausalLM"):
        architecture_of(headless)
