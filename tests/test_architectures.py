"""The table of architectures, and that a traced model is given back as it was."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_gpt2
from oracle import record
from transformers import GPT2Config, GPT2Model

from helpers.architectures import (
    ARCHITECTURES,
    SITES,
    ArchitectureError,
    architecture_of,
    forward_arguments,
    head_count,
    last_logits,
    layer_count,
    read,
    traceable,
    write,
)

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def test_counts(gpt2):
    assert architecture_of(gpt2) is ARCHITECTURES["gpt2"]
    assert (layer_count(gpt2), head_count(gpt2)) == (3, 4)


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), SimpleNamespace(config=SimpleNamespace(model_type="mamba"))])
def test_unknown_model_type_is_one_sentence(model):
    with pytest.raises(ArchitectureError, match="knows the model types gpt2.*not (None|'mamba')") as error:
        architecture_of(model)
    assert "\n" not in str(error.value)


def test_a_model_without_its_head_is_refused():
    headless = GPT2Model(GPT2Config(vocab_size=9, n_layer=1, n_embd=8, n_head=2, bos_token_id=0, eos_token_id=0))
    with pytest.raises(ArchitectureError, match="AutoModelForCausalLM"):
        architecture_of(headless)


@pytest.mark.parametrize("site", SITES)
def test_read_gives_what_a_hook_sees_for_every_prompt_of_the_batch(gpt2, site):
    with torch.no_grad(), traceable(gpt2) as traced:
        with traced.network.trace(TOKENS, **forward_arguments(traced, 5)):
            seen = read(traced, site, 1).clone().save()
            logits = last_logits(traced).save()
    assert seen.shape == (2, 5, 32)
    for row in range(2):
        expected = record(gpt2, TOKENS[row].tolist())[site, 1][0]
        torch.testing.assert_close(seen[row], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, gpt2(TOKENS).logits[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("site", SITES)
def test_write_changes_the_rest_of_the_pass(gpt2, site):
    slope = torch.linspace(0, 2, 32)  # a shift of every coordinate alike would be lost in the next normalisation
    with torch.no_grad(), traceable(gpt2) as traced:
        with traced.network.trace(TOKENS, **forward_arguments(traced, 5)):
            write(traced, site, 1, read(traced, site, 1) + slope)
            logits = last_logits(traced).save()
    assert (logits - gpt2(TOKENS).logits[:, -1]).abs().max() > 1e-2


def test_the_mask_is_causal():
    """A position holds what it holds in the prompt cut there, whatever attention implementation reads the mask."""
    for implementation in ("sdpa", "eager"):
        model = tiny_gpt2(2, attn_implementation=implementation)
        with torch.no_grad(), traceable(model) as traced:
            with traced.network.trace(TOKENS, **forward_arguments(traced, 5)):
                middle = read(traced, "resid_post", 2)[:, 2].clone().save()
        for row in range(2):
            shorter = record(model, TOKENS[row, :3].tolist())["resid_post", 2][0, -1]
            torch.testing.assert_close(middle[row], shorter, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_on_the_model(fails):
    model = tiny_gpt2(3)
    model.train()
    model.transformer.h[0].eval()  # a mixed state must come back mixed
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    training = {name: module.training for name, module in model.named_modules()}
    try:
        with traceable(model) as traced:
            assert not any(module.training for module in model.modules())
            with traced.network.trace(TOKENS):
                last_logits(traced).save()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert {name: module.training for name, module in model.named_modules()} == training


def test_a_forward_of_the_user_survives():
    model = tiny_gpt2(4)
    own = model.transformer.h[0].mlp.forward
    model.transformer.h[0].mlp.forward = own
    with traceable(model):
        pass
    assert vars(model.transformer.h[0].mlp)["forward"] is own
