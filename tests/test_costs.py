"""Costs: work counted by hand, under nnsight's traces, backwards, and with nothing left behind."""

import copy

import pytest
import torch
from tiny import LAYERS, random_pair, shared_model, tiny_model

from helpers.attribution import attribute
from helpers.costs import attentions, counted
from helpers.patching import measure_runs, sweep

POSITIONS = 5
TOKENS = torch.arange(2 * POSITIONS).reshape(2, POSITIONS)


def hooks_of(model):
    return [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox-parallel", "gptj"])
def test_a_pass_of_two_prompts_counts_as_two(family):
    model = shared_model(family, 0)
    with counted([model], positions=POSITIONS) as cost, torch.no_grad():
        assert cost.seconds != cost.seconds
        model(TOKENS)
    assert cost.passes == cost.forward == pytest.approx(2) and cost.backward == 0 and cost.seconds > 0
    model(TOKENS)
    assert cost.passes == pytest.approx(2) and not hooks_of(model)


def test_models_count_together_and_once_each():
    one, other = shared_model("gpt2", 0), shared_model("gpt2", 1)
    with counted([one, other, one], positions=POSITIONS) as cost, torch.no_grad():
        one(TOKENS[:1])
        other(TOKENS)
        copy.deepcopy(other)(TOKENS[:1])
    assert cost.passes == pytest.approx(4)


def test_a_part_of_the_blocks_is_a_part_of_a_pass():
    model = shared_model("gpt2", 0)
    with counted([model], positions=POSITIONS) as cost, torch.no_grad():
        model.transformer.h[1](model.transformer.wte(TOKENS))
    assert cost.passes == pytest.approx(2 / LAYERS)


def test_a_backward_pass_counts_twice_where_it_goes():
    model = tiny_model("gpt2", 0)
    with counted([model], positions=POSITIONS) as cost:
        model(TOKENS).logits.sum()  # with gradients, but none is asked for
        model(TOKENS, output_hidden_states=True).logits.sum().backward()
    assert cost.forward == pytest.approx(4) and cost.backward == pytest.approx(2)
    assert cost.passes == pytest.approx(8)
    with counted([model], positions=POSITIONS) as partial:
        states = model(TOKENS, output_hidden_states=True)
        torch.autograd.grad(states.logits.sum(), states.hidden_states[2])  # through the last block alone
    assert partial.backward == pytest.approx(2 / LAYERS)


def test_hooks_are_gone_after_an_error():
    model = tiny_model("gpt2", 0)
    with pytest.raises(IndexError), counted([model], positions=POSITIONS) as cost:
        assert len(hooks_of(model)) == LAYERS == len(attentions(model))
        model(torch.full((1, 2), 10**6))
    assert not hooks_of(model) and cost.seconds > 0


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel"])
def test_a_sweep_counts_what_its_rows_compute(family):
    """Patching resid_pre at one position: a row runs from its layer on, for its token and those after it."""
    model, pair = tiny_model(family, 0), random_pair("p", POSITIONS, seed=0, subject=(0, 1))
    untouched = {name: list(vars(module)) for name, module in model.named_modules()}
    plain = sweep(model, [pair], components=["resid_pre"], positions="each")
    with counted([model], positions=POSITIONS) as cost:
        counted_sweep = sweep(model, [pair], components=["resid_pre"], positions="each")
    assert counted_sweep.equals(plain) and not hooks_of(model)
    assert {name: list(vars(module)) for name, module in model.named_modules()} == untouched
    with counted([model], positions=POSITIONS) as runs:
        measure_runs(model, [pair], metrics=("logit_difference",))
    assert runs.passes == pytest.approx(2)
    # The embeddings differ at tokens 0 and 1, so that only these rows join at block 0, and the others at their own.
    rows = sum((POSITIONS - token) * LAYERS for token in (0, 1))
    rows += sum((POSITIONS - token) * (LAYERS - layer) for token in range(POSITIONS) for layer in range(1, LAYERS))
    opening = sum(POSITIONS - token for token in (2, 3, 4))  # one prompt brings these passes to block 1
    assert cost.passes == pytest.approx(2 + (rows + opening) / (LAYERS * POSITIONS))


def test_single_mlps_that_a_sweep_calls_by_itself_are_no_blocks():
    """An attention patch at block 0 or 1 joins the next block; the MLP of its own is run for its token alone."""
    model, pair = shared_model("gpt2", 0), random_pair("p", POSITIONS, seed=0, subject=(0, 1))
    with counted([model], positions=POSITIONS) as cost:
        sweep(model, [pair], components=["attn_out"], positions="each")
    tokens = sum(POSITIONS - token for token in range(POSITIONS))
    rows, opening = tokens * (2 + 1), tokens
    assert cost.passes == pytest.approx(2 + (rows + opening) / (LAYERS * POSITIONS))


def test_attribution_counts_its_gradients():
    model, pair = tiny_model("gpt2", 0), random_pair("p", POSITIONS, seed=0)
    with counted([model], positions=POSITIONS) as cost:
        attribute(model, [pair], components=["mlp_out"], positions="all", direction="denoising")
    assert cost.forward == pytest.approx(2) and cost.backward == pytest.approx(1)
