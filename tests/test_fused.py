"""Fused training maths: the same loss and gradients as the plain model, and the model as it was afterwards."""

import pytest
import torch
from torch.nn import GELU
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import NewGELUActivation

from helpers import fused
from helpers.examples import UNSCORED, collate
from helpers.fused import fused_gelu, fused_loss
from helpers.packing import texts_apart


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_layer=2, n_embd=16, n_head=2, n_positions=32, attn_pdrop=0, resid_pdrop=0,
                        embd_pdrop=0, bos_token_id=0, eos_token_id=0)  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # untrained weights are too small for a wrong GELU to matter
    return model


def inputs():
    """Two packed texts, some tokens of which are not scored."""
    ids = torch.randint(0, 97, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    positions = [*range(12), *range(28)]
    labels = [UNSCORED if position in (0, 5, 6, 9) else token for token, position in zip(ids, positions, strict=True)]
    return collate([{"input_ids": ids, "position_ids": positions, "labels": labels}])


def loss_and_gradients(model, loss):
    model.zero_grad()
    value = loss()
    value.backward()
    return value.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("slice_size", [512, 7, 1])
@pytest.mark.parametrize("divisor", [None, torch.tensor(100)])
def test_the_fused_loss_and_its_gradients_are_the_models_own(model, monkeypatch, slice_size, divisor):
    sliced = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=slice_size, chunking_method=None)
    monkeypatch.setattr(fused, "SLICES", sliced)
    batch = inputs()
    with texts_apart(model):
        plain, expected = loss_and_gradients(model, lambda: model(**batch, num_items_in_batch=divisor).loss)
        with fused_gelu(model):
            loss, gradients = loss_and_gradients(
                model, lambda: fused_loss(model, model.lm_head, batch, divisor=divisor)
            )
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)
    assert min(gradient.abs().max() for gradient in gradients) > 0


def test_the_gelu_is_put_back(model):
    before = [type(block.mlp.act) for block in model.transformer.h]
    assert before == [NewGELUActivation] * 2
    with pytest.raises(KeyboardInterrupt), fused_gelu(model):
        assert [type(block.mlp.act) for block in model.transformer.h] == [GELU] * 2
        raise KeyboardInterrupt
    assert [type(block.mlp.act) for block in model.transformer.h] == before


def test_another_activation_is_left_alone(model):
    model.transformer.h[0].mlp.act = kept = torch.nn.ReLU()
    with fused_gelu(model):
        assert model.transformer.h[0].mlp.act is kept
    assert model.transformer.h[0].mlp.act is kept
