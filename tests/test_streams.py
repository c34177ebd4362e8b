"""What each part writes to the answer directly, and how far runs are apart: sums, and literal numbers in float64."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from oracle import patched_logits, places, record
from tiny import FAMILIES, HEADS, LAYERS, random_pair, shared_model
from torch import nn

from helpers.streams import direct_attribution, run_distances

FINAL_NORM = {
    "gpt2": "transformer.ln_f",
    "gptj": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
}
PARTS = ["embedding", "attn_out", "mlp_out", "bias"]


@pytest.fixture(scope="module")
def pairs():
    """Three of two lengths, of which one has a set of right answers and a set of wrong ones."""
    several = random_pair("c", 5, seed=3)
    others = [token for token in range(60) if token not in (several.answer[0], several.foil[0])]
    sets = {"answer_set": (several.answer[0], *others[:3]), "foil_set": (several.foil[0], others[-1])}
    return [random_pair("b", 5, seed=1, subject=(2, 3)), random_pair("a", 3, seed=2), replace(several, **sets)]


def logit_difference(model, pair, prompt="clean") -> float:
    with torch.no_grad():
        logits = patched_logits(model, getattr(pair, prompt), {}, [])
    return float(logits[list(pair.right)].sum() - logits[list(pair.wrong)].sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_sum_to_the_logit_difference_and_heads_to_attention_less_its_bias(pairs, family):
    model = shared_model(family, 0)
    table = direct_attribution(model, pairs, row_budget=1)
    heads = model.config.num_attention_heads
    assert len(table) == len(pairs) * (2 + LAYERS * (2 + heads))
    sums = table[table["component"] != "head_out"].groupby("pair")["contribution"].sum()
    for pair in pairs:
        assert sums[pair.pair_id] == pytest.approx(logit_difference(model, pair), abs=2e-5)
    written = table.set_index(["component", "pair", "layer"])["contribution"]
    of_heads = table[table["component"] == "head_out"].groupby(["pair", "layer"])["contribution"].sum()
    for (pair, layer), value in of_heads.items():
        bias = constant_of_attention(model, next(p for p in pairs if p.pair_id == pair), layer)
        assert value + bias == pytest.approx(written["attn_out", pair, layer], abs=2e-5)


def direction_and_norm(model, pair, final):
    """γ · (W_r − W_r′), whether the mean is taken off, and 1/σ: in float64."""
    norm = model.get_submodule(FINAL_NORM.get(model.config.model_type, "model.norm"))
    weight = model.get_output_embeddings().weight.detach().double()
    towards, x = weight[list(pair.right)].sum(0) - weight[list(pair.wrong)].sum(0), final.double()
    centred = isinstance(norm, nn.LayerNorm)
    x = x - x.mean() if centred else x
    epsilon = norm.eps if centred else norm.variance_epsilon
    return towards, towards * norm.weight.detach().double(), centred, 1 / (x.pow(2).mean() + epsilon).sqrt(), norm


def said(part, scaled, centred, scale) -> float:
    part = part.double()
    return float(((part - part.mean() if centred else part) * scale * scaled).sum())


def constant_of_attention(model, pair, layer) -> float:
    """What the bias of the output projection says; none where there is none."""
    run = record(model, pair.clean)
    _, scaled, centred, scale, _ = direction_and_norm(model, pair, run["resid_post", LAYERS - 1][0, -1].detach())
    bias = places(model)[1][layer][2].bias
    return 0.0 if bias is None else said(bias.detach(), scaled, centred, scale)


@pytest.mark.parametrize("prompt, number", [("clean", 0), ("corrupted", 0), ("clean", 2)])
@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama", "qwen3-narrow-heads"])
def test_every_contribution_equals_its_formula(pairs, family, prompt, number):
    model, pair = shared_model(family, 1), pairs[number]
    table = direct_attribution(model, [pair], prompt=prompt)
    run = {site: value[0, -1].detach() for site, value in record(model, getattr(pair, prompt)).items()}
    towards, scaled, centred, scale, norm = direction_and_norm(model, pair, run["resid_post", LAYERS - 1])
    blocks, head = places(model)[1], model.get_output_embeddings()
    expected = {("embedding", 0, None): said(run["resid_pre", 0], scaled, centred, scale)}
    bias = float((towards * norm.bias.detach().double()).sum()) if centred else 0.0
    bias += 0.0 if head.bias is None else float(head.bias[list(pair.right)].sum() - head.bias[list(pair.wrong)].sum())
    expected["bias", 0, None] = bias
    for layer, (_, _, projection, _) in enumerate(blocks):
        matrix = projection.weight.detach()  # a Linear's is transposed; the Conv1D of GPT-2 has it as it is used
        matrix = matrix if family == "gpt2" else matrix.T
        width = len(matrix) // HEADS
        for name in ("attn_out", "mlp_out"):
            expected[name, layer, None] = said(run[name, layer], scaled, centred, scale)
        for number in range(HEADS):
            own = slice(number * width, (number + 1) * width)
            written = run["head_out", layer][own] @ matrix[own]
            expected["head_out", layer, number] = said(written, scaled, centred, scale)
    found = {
        (row["component"], row["layer"], None if pd.isna(row["head"]) else row["head"]): row["contribution"]
        for row in table.to_dict("records")
    }
    assert found == pytest.approx(expected, abs=2e-5)
    assert table.columns.tolist() == ["pair", "component", "layer", "head", "contribution", "scale"]
    assert table["scale"].tolist() == pytest.approx([float(scale)] * len(table))
    assert str(table["head"].dtype) == "Int64"


def test_an_unembedding_with_a_bias_says_it_in_the_bias(pairs):
    model = shared_model("gpt2", 0)
    head = model.lm_head
    plain = direct_attribution(model, pairs).set_index(["pair", "component", "layer", "head"])["contribution"]
    try:
        head.bias = nn.Parameter(torch.arange(60.0))
        biased = direct_attribution(model, pairs).set_index(["pair", "component", "layer", "head"])["contribution"]
    finally:
        head.bias = None
    added = (biased - plain).rename("added").reset_index()
    for pair in pairs:
        own = added[added["pair"] == pair.pair_id].set_index("component")["added"]
        assert own["bias"] == pytest.approx(sum(pair.right) - sum(pair.wrong), abs=1e-4)
        assert own.drop("bias").abs().max() == 0


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel"])
def test_distances_by_hand(pairs, family):
    model = shared_model(family, 0)
    table = run_distances(model, pairs, row_budget=1)
    assert table.columns.tolist() == ["pair", "layer", "position", "role", "distance", "relative"]
    assert len(table) == (LAYERS + 1) * sum(pair.positions for pair in pairs)
    found = table.set_index(["pair", "layer", "position"])
    for pair in pairs:
        runs = [record(model, prompt) for prompt in (pair.clean, pair.corrupted)]
        for layer in range(LAYERS + 1):
            site = ("resid_pre", layer) if layer < LAYERS else ("resid_post", LAYERS - 1)
            for position in range(pair.positions):
                one, other = (run[site][0, position].tolist() for run in runs)
                apart = sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
                size = (sum(a * a for a in one) ** 0.5 + sum(b * b for b in other) ** 0.5) / 2
                row = found.loc[(pair.pair_id, layer, position)]
                assert (row["distance"], row["relative"]) == pytest.approx((apart, apart / size), abs=1e-4)
                assert row["role"] == pair.roles[position]


def test_runs_are_equal_before_the_first_difference_and_beside_it_until_attention_carries_it_on(pairs):
    for family in ("gpt2", "mistral-sliding"):
        table = run_distances(shared_model(family, 0), pairs)
        for pair in pairs:
            own = table[table["pair"] == pair.pair_id].set_index(["layer", "position"])["distance"]
            before = own[own.index.get_level_values("position") < pair.first_difference]
            assert len(before) and before.max() < 1e-5
            differ = [p for p in range(pair.positions) if pair.clean[p] != pair.corrupted[p]]
            entering = own[0]
            assert [position for position, value in entering.items() if value > 1e-5] == differ
            assert own[LAYERS][pair.first_difference :].min() > 1e-3
