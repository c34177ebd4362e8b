"""Ablations of a place: against plain hooks, and the constant that harms the least where it is known."""

import copy

import pytest
import torch
from oracle import oracle_metrics, patched_logits, record
from tiny import WIDTH, random_pair, shared_model

from helpers.ablation import VALUES, ablations, optimal_ablations, optimal_constants
from helpers.methods import PER_PAIR, MethodError, Place
from helpers.values import Resample, _draw

PAIRS = [random_pair("b", 4, seed=1, subject=(1, 2)), random_pair("c", 4, seed=5), random_pair("a", 3, seed=2)]
CHECKED = (("attn_out", 1), ("mlp_out", 0), ("mlp_out", 2))


def answers(model, pair, component=None, layer=None, value=None):
    """Metrics of the clean run with a place overwritten by `value`, `(1, positions, width)`."""
    with torch.no_grad():
        clean = patched_logits(model, pair.clean, {}, [])
        sites = [] if component is None else [(component, layer, token, None) for token in range(pair.positions)]
        logits = patched_logits(model, pair.clean, {(component, layer): value}, sites)
    return oracle_metrics(logits, clean, pair.right, pair.wrong)


def written(model, pair, component, layer, value):
    """What an ablation writes, from its definition."""
    prompts = sorted({prompt for p in PAIRS for prompt in (p.clean, p.corrupted) if len(prompt) == pair.positions})
    held = {prompt: record(model, prompt)[component, layer] for prompt in prompts}
    if value == "zero":
        return torch.zeros(1, pair.positions, WIDTH)
    if value == "mean":
        return torch.stack([*held.values()]).mean(0)
    return held[_draw(Resample(prompts, seed=0), pair, [prompt for prompt in prompts if prompt != pair.clean])]


@pytest.mark.parametrize("value", VALUES)
def test_ablations_equal_plain_hooks(value):
    model = shared_model("gpt2", 0)
    found = ablations(model, PAIRS, value)
    assert list(found) == PER_PAIR and len(found) == 3 * 6
    lines = found.set_index(["pair", "component", "layer"])
    for pair in PAIRS:
        clean = answers(model, pair)["logit_difference"]
        for component, layer in CHECKED:
            with torch.no_grad():
                stand_in = written(model, pair, component, layer, value)
            lost = clean - answers(model, pair, component, layer, stand_in)["logit_difference"]
            assert tuple(lines.loc[(pair.pair_id, component, layer)]) == pytest.approx((lost, clean), abs=5e-5)


@torch.no_grad()
def average(model, component, layer):
    """The mean activation over all clean prompts and positions, `(width,)`."""
    return torch.cat([record(model, pair.clean)[component, layer][0] for pair in PAIRS]).mean(0)


def cost(model, component, layer, vector):
    """The mean divergence, and the logit differences, with a place overwritten by one vector."""
    runs = [answers(model, pair, component, layer, vector.expand(1, pair.positions, -1)) for pair in PAIRS]
    return sum(run["kl_divergence"] for run in runs) / len(runs), [run["logit_difference"] for run in runs]


def test_optimal_constants_start_at_the_mean_and_cost_what_plain_hooks_say():
    model = shared_model("gpt2", 0)
    start, found = optimal_constants(model, PAIRS, steps=0), optimal_constants(model, PAIRS)
    for component, layer in CHECKED:
        number = found.places.index(Place(component, layer))
        mean = average(model, component, layer)
        assert torch.allclose(start.vectors[number], mean, atol=1e-5)
        assert start.objective[number].item() == pytest.approx(cost(model, component, layer, mean)[0], rel=1e-3)
        objective, differences = cost(model, component, layer, found.vectors[number])
        assert found.objective[number].item() == pytest.approx(objective, rel=1e-3)
        assert found.ablated[number].tolist() == pytest.approx(differences, abs=1e-3)
    assert torch.equal(found.start, start.objective)
    assert found.clean.tolist() == pytest.approx([answers(model, pair)["logit_difference"] for pair in PAIRS], abs=1e-4)
    assert (found.objective <= found.start).all(), "never worse than the mean"
    assert (found.objective < 0.9 * found.start).sum() >= 4, "and mostly better"


def test_steps_that_go_astray_leave_the_mean():
    model = shared_model("gpt2", 0)
    start, found = optimal_constants(model, PAIRS, steps=0), optimal_constants(model, PAIRS, steps=2, step_size=1e3)
    astray = found.objective == found.start
    assert astray.any() and (found.objective <= found.start).all()
    assert torch.allclose(found.vectors[astray], start.vectors[astray])
    assert torch.allclose(found.ablated[astray], start.ablated[astray], atol=1e-5)


def test_what_optimal_ablation_takes_is_told_per_pair():
    model = shared_model("gpt2", 0)
    found, constants = optimal_ablations(model, PAIRS), optimal_constants(model, PAIRS)
    assert list(found) == PER_PAIR and found["pair"].drop_duplicates().tolist() == ["b", "c", "a"]
    line = found.set_index(["pair", "component", "layer"]).loc[("c", "mlp_out", 1)]
    number = constants.places.index(Place("mlp_out", 1))
    lost = constants.clean[1] - constants.ablated[number, 1]
    assert tuple(line) == pytest.approx((lost.item(), constants.clean[1].item()), abs=1e-4)


def test_a_place_that_always_says_the_same_can_be_left_to_a_constant():
    model = copy.deepcopy(shared_model("gpt2", 0))
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.zero_()  # what is left is the bias
    found = optimal_constants(model, PAIRS)
    number = found.places.index(Place("mlp_out", 1))
    assert torch.allclose(found.vectors[number], model.transformer.h[1].mlp.c_proj.bias, atol=1e-5)
    assert found.start[number].item() == pytest.approx(0, abs=1e-6)
    assert found.ablated[number].tolist() == pytest.approx(found.clean.tolist(), abs=1e-4)


def test_of_one_prompt_the_last_places_own_activation_is_the_best_constant():
    # Of the last block only the last position is read, where that vector changes nothing: the least divergence is 0.
    model = shared_model("gpt2", 0)
    found = optimal_constants(model, PAIRS[:1], steps=60, step_size=0.1)
    number = found.places.index(Place("mlp_out", 2))
    assert found.start[number] > 0.01
    assert found.objective[number] < 0.01 * found.start[number]


def test_another_value_and_negative_steps_are_refused():
    model = shared_model("gpt2", 0)
    with pytest.raises(MethodError, match="ablated by zero, mean, resample here, not 'median'"):
        ablations(model, PAIRS, "median")
    with pytest.raises(MethodError, match="0 steps or more, not -1"):
        optimal_constants(model, PAIRS, steps=-1)
