"""Reading and writing in a trace, masks, and that a traced model is given back as it was."""

import pytest
import torch
from conftest import tiny_gpt2
from nnsight import NNsight, save
from oracle import record
from tiny import FAMILIES, LAYERS, OWN_ATTENTION, shared_model, tiny_model
from torch import nn
from transformers.activations import NewGELUActivation

from helpers import tracing
from helpers.architectures import SITES, ArchitectureError
from helpers.tracing import forward_arguments, module_of, read, traceable, write

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
LAST = LAYERS - 1
ENGINE = "patching rows runs staircase readout values noise memory attribution estimates patterns slopes".split()
EXACT = {"rtol": 0, "atol": 1e-5}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_read_gives_what_a_hook_sees_for_every_prompt_of_the_batch(family, site):
    model, layer = shared_model(family, 0), 0 if site == "embedding" else 1
    with torch.no_grad(), traceable(model) as traced:
        with traced.trace(TOKENS, **forward_arguments(traced, 5)):
            seen = read(traced, site, layer).clone().save()
    for row in range(2):
        torch.testing.assert_close(seen[row], record(model, TOKENS[row].tolist())[site, layer][0], **EXACT)


@pytest.mark.parametrize("site", ["embedding", "resid_pre", "head_out", "attn_out", "mlp_in", "mlp_out", "resid_post"])
@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama-grouped"])
def test_write_changes_the_rest_of_the_pass(family, site):
    model, slope = shared_model(family, 0), torch.linspace(0, 2, 16)  # a shift of all alike is lost in normalisation
    with torch.no_grad(), traceable(model) as traced:
        arguments = forward_arguments(traced, 5)
        with traced.trace(TOKENS, **arguments):
            write(traced, site, 0, read(traced, site, 0) + slope)
            changed = read(traced, "resid_post", LAST)[:, -1].clone().save()
    expected = torch.stack([record(model, row)["resid_post", LAST][0, -1] for row in TOKENS.tolist()])
    assert (changed - expected).abs().amax(-1).min() > 1e-2


def test_what_is_not_rows_by_positions_by_width_is_refused():
    """The trap: element 0 of a block's tensor is the first prompt of the batch."""
    with torch.no_grad(), traceable(tiny_gpt2(0)) as traced:
        with pytest.raises(ArchitectureError, match=r"resid_post of layer 1 has the shape \(5, 32\), not \(rows"):
            with traced.trace(TOKENS, **forward_arguments(traced, 5)):
                block = traced.network.get("transformer.h")[1]
                block.output = block.output[0]
                read(traced, "resid_post", 1).save()


ODD = {
    "qwen2 all sliding": ("qwen2-mixed", {"max_window_layers": 0}),
    "qwen2 sliding nowhere": ("qwen2-mixed", {"max_window_layers": 3}),
    "qwen2 window not in use": ("qwen2-mixed", {"use_sliding_window": False}),
    "qwen3 mixed": ("qwen3-narrow-heads", {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 2}),
    "mistral without a window": ("mistral-sliding", {"sliding_window": None}),
    "window of one": ("mistral-sliding", {"sliding_window": 1}),
    **{family: (family, {}) for family in FAMILIES},
}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ODD)
def test_masks_let_through_what_the_model_itself_does(name, implementation):
    """Any row sees its own past and, where attention slides, only the near past, at every position."""
    family, settings = ODD[name]
    if implementation == "sdpa" and family in OWN_ATTENTION:
        pytest.skip(f"transformers has no fused attention for {family}")
    model = tiny_model(family, 2, attn_implementation=implementation, **settings)
    with torch.no_grad(), traceable(model) as traced:
        with traced.trace(TOKENS, **forward_arguments(traced, 5)):
            final = read(traced, "resid_post", LAST).clone().save()
    for row, prompt in enumerate(TOKENS.tolist()):
        torch.testing.assert_close(final[row], record(model, prompt)["resid_post", LAST][0], **EXACT)
        shorter = record(model, prompt[:3])["resid_post", LAST][0, -1]
        torch.testing.assert_close(final[row, 2], shorter, **EXACT)


def attributes_of(model):
    return [(name, sorted(vars(module)), module.training, id(module)) for name, module in model.named_modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_on_the_model(fails):
    model = tiny_gpt2(3)
    model.train()
    model.transformer.h[0].eval()  # a mixed state must come back mixed
    before = attributes_of(model)
    try:
        with traceable(model) as traced:
            assert not any(module.training for module in model.modules())
            with traced.trace(TOKENS):
                read(traced, "resid_post", 1).save()
            assert attributes_of(model) != before
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert attributes_of(model) == before


def test_a_forward_of_the_user_survives():
    model = tiny_gpt2(4)
    own = model.transformer.h[0].mlp.forward
    model.transformer.h[0].mlp.forward = own
    with torch.no_grad(), traceable(model) as traced:
        with traced.trace(TOKENS):
            read(traced, "mlp_out", 0).save()
    assert vars(model.transformer.h[0].mlp)["forward"] is own


def test_the_fused_activation_is_the_same_function_and_is_taken_back():
    model = tiny_gpt2(5)
    own = [block.mlp.act for block in model.transformer.h]
    assert {type(activation) for activation in own} == {NewGELUActivation}
    x = torch.linspace(-8, 8, 4001)
    with traceable(model):
        fused = [block.mlp.act for block in model.transformer.h]
        assert {type(activation) for activation in fused} == {nn.GELU}
        torch.testing.assert_close(fused[0](x), own[0](x), rtol=0, atol=1e-6)
    assert all(block.mlp.act is activation for block, activation in zip(model.transformer.h, own, strict=True))
    exact = tiny_gpt2(5, activation_function="gelu")  # another function is left alone
    with traceable(exact):
        assert not any(type(module) is nn.GELU for module in exact.modules())


def test_a_network_of_nnsight_is_used_as_it_is():
    network = NNsight(tiny_gpt2(6))
    with traceable(network) as traced:
        assert traced.network is network and traced.model is module_of(network) is network._module
    assert module_of(traced.model) is traced.model


def test_remote_needs_a_network_of_nnsight():
    with pytest.raises(ArchitectureError, match="give nnsight's TransformersModel, not GPT2LMHeadModel") as error:
        with traceable(tiny_gpt2(7), remote=True):
            pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["mlp_norm", "mlp", "head_projection"])
@pytest.mark.parametrize("family", FAMILIES)
def test_modules_of_a_block_called_directly_do_what_they_do_in_a_pass(family, path):
    """Also for single tokens, `(tokens, width)`, and while nnsight watches the model."""
    model = shared_model(family, 0)
    with torch.no_grad(), traceable(model) as traced:
        module = traced.block_module(1, getattr(traced.architecture, path))
        with traced.trace(TOKENS, **forward_arguments(traced, 5)):
            seen = save([])
            for envoy in [traced.network.get(traced.architecture.blocks)[1].get(getattr(traced.architecture, path))]:
                seen.append((envoy.input.clone(), envoy.output.clone()))
        entering, leaving = seen[0]
        torch.testing.assert_close(module(entering[:, 2]), leaving[:, 2], **EXACT)
        torch.testing.assert_close(traced.compute(lambda traced, x: module(x), entering), leaving, **EXACT)


def test_the_only_readers_of_inputs_and_outputs_are_read_and_write():
    """nnsight's tuples are opened in one place."""
    folder = tracing.__file__.rsplit("/", 1)[0]
    for name in ENGINE:
        with open(f"{folder}/{name}.py") as file:
            text = file.read()
        assert ".output" not in text and ".input" not in text, name
