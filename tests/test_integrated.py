"""Integrated gradients: against plain gradients, on a linear model, and complete where they must be."""

import copy

import pandas as pd
import pytest
import torch
from tiny import LAYERS, random_pair, shared_model
from torch import nn

from helpers.attribution import attribute
from helpers.integrated import EMBEDDING, integrated_attributions, path_effects
from helpers.methods import COMPONENTS, PER_PAIR, MethodError
from helpers.recoveries import recoveries

PAIRS = [random_pair("b", 5, seed=1, subject=(1, 2)), random_pair("a", 4, seed=2), random_pair("c", 5, seed=3)]
SITES = [("attn_out", 1), ("mlp_out", 0)]


def plain(model, pair, embeddings):
    """The logit difference of a run from `embeddings`, `(positions, width)`, and each site's value and slope."""
    seen, hooks = {}, []
    for component, layer in SITES:
        module = getattr(model.transformer.h[layer], "attn" if component == "attn_out" else "mlp")

        def keep(module, inputs, output, key=(component, layer)):
            seen[key] = output[0] if isinstance(output, tuple) else output
            seen[key].retain_grad()

        hooks.append(module.register_forward_hook(keep))
    logits = model(inputs_embeds=embeddings[None]).logits[0, -1]
    for hook in hooks:
        hook.remove()
    difference = logits[pair.answer[0]] - logits[pair.foil[0]]
    difference.backward()
    return difference.item(), {key: (value.detach()[0], value.grad[0]) for key, value in seen.items()}


def test_estimates_equal_plain_gradients():
    model, steps = copy.deepcopy(shared_model("gpt2", 0)), 3
    found = {pair: (effects, apart) for pair, effects, apart in path_effects(model, PAIRS, SITES, steps=steps)}
    assert list(found) == ["b", "a", "c"]
    for pair in PAIRS:
        clean, corrupted = (
            model.transformer.wte.weight.detach()[list(prompt)] for prompt in (pair.clean, pair.corrupted)
        )
        (top, high), (bottom, low) = (plain(model, pair, embeddings) for embeddings in (clean, corrupted))
        middles = [corrupted + part * (clean - corrupted) for part in (1 / 6, 3 / 6, 5 / 6)]
        path = [plain(model, pair, embeddings)[1] for embeddings in middles]
        effects, apart = found[pair.pair_id]
        assert apart == pytest.approx(top - bottom, abs=1e-4)
        for key in SITES:
            slope = sum(run[key][1] for run in path) / steps
            assert effects[key] == pytest.approx(((high[key][0] - low[key][0]) * slope).sum().item(), abs=1e-4)


def test_over_the_embeddings_the_sum_is_complete():
    errors = []
    for steps in (4, 64):
        found = path_effects(shared_model("gpt2", 0), PAIRS, [EMBEDDING], steps=steps)
        errors.append(max(abs(effects[EMBEDDING] - apart) / abs(apart) for _, effects, apart in found))
    assert errors[1] < 0.01 < errors[0]


def linear_model():
    """A GPT-2 whose logits are linear in its embeddings: uniform attention, and nothing that bends or normalises."""
    model = copy.deepcopy(shared_model("gpt2", 0))
    width = model.config.n_embd
    for block in model.transformer.h:
        block.ln_1, block.ln_2, block.mlp.act = nn.Identity(), nn.Identity(), nn.Identity()
        with torch.no_grad():
            block.attn.c_attn.weight[:, : 2 * width] = 0
            block.attn.c_attn.bias[: 2 * width] = 0
    model.transformer.ln_f = nn.Identity()
    return model


def test_on_a_linear_model_they_are_plain_attribution_and_the_exact_patch():
    model = linear_model()
    place = ["pair", "component", "layer"]
    found = integrated_attributions(model, PAIRS, steps=2).set_index(place)
    assert found["numerator"].abs().min() > 1e-3
    plain_effect = attribute(model, PAIRS, components=COMPONENTS, positions="all").set_index(place)["effect"]
    exact = recoveries(model, PAIRS, direction="denoising").set_index(place)
    pd.testing.assert_series_equal(
        found["numerator"].sort_index(), plain_effect.sort_index(), rtol=1e-3, atol=1e-3, check_names=False
    )
    pd.testing.assert_frame_equal(found.sort_index(), exact.sort_index(), rtol=1e-3, atol=1e-3)


def test_lines_are_per_pair_and_place():
    found = integrated_attributions(shared_model("gpt2", 0), PAIRS)
    assert list(found) == PER_PAIR and len(found) == len(PAIRS) * 2 * LAYERS
    assert found.groupby("pair")["denominator"].nunique().eq(1).all()
    small = integrated_attributions(shared_model("gpt2", 0), PAIRS, row_budget=1)
    pd.testing.assert_frame_equal(small, found, rtol=1e-3, atol=1e-4)


def test_a_path_of_no_step_is_refused():
    with pytest.raises(MethodError, match="at least 1 step, not 0"):
        integrated_attributions(shared_model("gpt2", 0), PAIRS, steps=0)
