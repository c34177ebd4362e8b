"""Attention by role against transformers' own eager attention, and restored values against plain hooks."""

import numpy as np
import pandas as pd
import pytest
import torch
from ioi import ioi_pair, ioi_pairs
from oracle import noise_hooks, places
from tiny import HEADS, LAYERS, OWN_ATTENTION, VARIANTS, shared_model, tiny_model

from helpers.architectures import ArchitectureError
from helpers.attended import AttendedError, attended_run, attention_shares
from helpers.conditions import CLEAN, STR, Condition, corrupted_conditions
from helpers.noise import GaussianNoise
from helpers.restoration import restored_differences
from helpers.tracing import traceable

NOISES = [GaussianNoise(0.7, seed, ("S2",)) for seed in (3, 8)]
PAIRS = ioi_pairs(3)
ROWS = ["pair", "corruption", "draw", "restored", "layer", "head", "role"]


def inputs(model, pair, corruption, draw):
    """The prompt of a run, and the noise on its embeddings: of S2 only."""
    if corruption != "GN":
        return (pair.corrupted if corruption == "STR" else pair.clean), None
    (noise,) = (noise for noise in NOISES if noise.seed == draw)
    return pair.clean, noise.draw([pair], width=model.config.hidden_size)[0]


@torch.no_grad()
def eager_run(model, prompt, noise, given=(), heads=()):
    """Logits at the last token, every block's pattern, and every block's values: by hooks, one prompt at a time.

    `given` are the values of another run, by layer, which the `heads` read instead.
    """
    embedding, blocks = places(model)
    hooks, values = noise_hooks(embedding, noise), {}
    for layer, (_, attention, _, _) in enumerate(blocks):
        gpt2 = model.config.model_type == "gpt2"  # whose one projection makes queries, keys and values
        module, first = (attention.c_attn, 2 * model.config.hidden_size) if gpt2 else (attention.v_proj, 0)
        width = model.config.hidden_size // model.config.num_attention_heads
        shared = model.config.num_attention_heads // getattr(model.config, "num_key_value_heads", HEADS)

        def hook(module, inputs, output, layer=layer, first=first, width=width, shared=shared):
            values[layer], output = output.clone(), output.clone()
            for head in {head // shared for of_layer, head in heads if of_layer == layer}:
                own = slice(first + head * width, first + (head + 1) * width)
                output[..., own] = given[layer][..., own]
            return output

        hooks.append(module.register_forward_hook(hook))
    model.set_attn_implementation("eager")
    result = model(torch.tensor([prompt]), output_attentions=True, use_cache=False)
    for hook in hooks:
        hook.remove()
    return result.logits[0, -1], result.attentions, values


def eager_shares(model, pair, corruption, draw, restored=()):
    prompt, noise = inputs(model, pair, corruption, draw)
    _, _, given = eager_run(model, pair.clean, None)
    _, patterns, _ = eager_run(model, prompt, noise, given, restored)
    found = {}
    for layer, pattern in enumerate(patterns):
        for head in range(pattern.shape[1]):
            row = pattern[0, head, -1].tolist()
            names = ["other" if role in ("prefix", "relation", "last") else role for role in pair.roles]
            for name in ("IO", "S1", "S2", "other"):
                share = sum(value for value, own in zip(row, names, strict=True) if own == name)
                found[layer, head, name] = share, names[row.index(max(row))] == name
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama-grouped"])
def test_shares_equal_eager_attention_in_every_run(family):
    model = tiny_model(family, 0)
    every = [(layer, head) for layer in range(LAYERS) for head in range(model.config.num_attention_heads)]
    restoring = [(0, 0), (0, 1), (1, 0), (1, 1)]  # of grouped heads, whole groups: what the hook can replace
    table = attention_shares(model, PAIRS, every, noises=NOISES, restoring=restoring, row_budget=2)
    assert table.columns.tolist() == [*ROWS, "share", "most"]
    assert len(table) == len(PAIRS) * len(every) * 4 * (4 + 3) and not table.duplicated(ROWS).any()
    restored = table[table["restored"]]
    assert set(zip(restored["corruption"], restored["draw"], strict=True)) == {("STR", 0), ("GN", 3), ("GN", 8)}
    pairs = {pair.pair_id: pair for pair in PAIRS}
    for (name, corruption, draw, back), part in table.groupby(["pair", "corruption", "draw", "restored"]):
        expected = eager_shares(model, pairs[name], corruption, draw, restoring if back else ())
        for row in part.to_dict("records"):
            share, most = expected[row["layer"], row["head"], row["role"]]
            assert row["share"] == pytest.approx(share, abs=2e-6) and row["most"] == most
    assert (table.groupby(ROWS[:-1])["most"].sum() == 1).all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "llama-grouped"])
def test_restored_differences_equal_plain_hooks(family):
    model, heads = tiny_model(family, 1), [(0, 0), (0, 1), (2, 0), (2, 1)]
    table = restored_differences(model, PAIRS, heads, noises=NOISES, row_budget=2)
    assert len(table) == 3 * len(PAIRS) and table["numerator"].abs().min() > 1e-4
    pairs = {pair.pair_id: pair for pair in PAIRS}
    for row in table.to_dict("records"):
        pair = pairs[row["pair"]]
        prompt, noise = inputs(model, pair, row["corruption"], row["draw"])
        clean, _, given = eager_run(model, pair.clean, None)
        corrupted, _, _ = eager_run(model, prompt, noise)
        patched, _, _ = eager_run(model, prompt, noise, given, heads)
        expected = [float(logits[pair.answer[0]] - logits[pair.foil[0]]) for logits in (clean, corrupted, patched)]
        assert [row[name] for name in ("clean", "corrupted", "patched")] == pytest.approx(expected, abs=2e-5)
        assert row["numerator"] == row["patched"] - row["corrupted"]
        assert row["denominator"] == row["clean"] - row["corrupted"]


def test_restoring_one_of_two_grouped_heads_leaves_the_other_its_own_values():
    model = shared_model("llama-grouped", 0)
    with torch.no_grad(), traceable(model) as traced:
        chunk = [PAIRS[0]]
        runs = [
            attended_run(traced, chunk, STR, restoring=heads)[0].final for heads in ([], [(2, 0)], [(2, 0), (2, 1)])
        ]
    assert not torch.equal(runs[0], runs[1]) and not torch.equal(runs[1], runs[2])


@pytest.mark.parametrize("family", OWN_ATTENTION)
def test_a_family_that_computes_its_own_attention_is_refused_with_a_sentence(family):
    with pytest.raises(ArchitectureError, match="computes its attention itself"):
        restored_differences(shared_model(family, 0), PAIRS[:2], [], noises=NOISES)


@pytest.mark.parametrize("family", ["gpt2", *(family for family in VARIANTS if family not in OWN_ATTENTION)])
def test_nothing_restored_and_clean_into_clean_change_nothing(family):
    model = shared_model(family, 0)
    table = restored_differences(model, PAIRS[:2], [], noises=NOISES)
    assert (table["numerator"] == 0).all() and table["denominator"].abs().min() > 0
    every = [(layer, head) for layer in range(LAYERS) for head in range(model.config.num_attention_heads)]
    with torch.no_grad(), traceable(model) as traced:
        for condition in (CLEAN, Condition("GN", GaussianNoise(0.0, 0, ("S2",)))):
            for heads in ([], every):
                run, _ = attended_run(traced, [PAIRS[0]], condition, restoring=heads)
                plain = CLEAN.record(traced, [PAIRS[0]])
                torch.testing.assert_close(run.final, plain.final, atol=1e-5, rtol=0)


def test_values_of_every_head_are_no_whole_restoration_and_the_model_is_left_as_it_was():
    model = tiny_model("gpt2", 0)
    before = model.config._attn_implementation
    every = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    table = restored_differences(model, PAIRS, every)
    assert (table["patched"] - table["clean"]).abs().max() > 1e-3  # patterns and the last token's own stream stay
    assert set(table["corruption"]) == {"STR"} and model.config._attn_implementation == before
    again = restored_differences(model, PAIRS, every, row_budget=1)
    pd.testing.assert_frame_equal(
        again.sort_values("pair", ignore_index=True), table.sort_values("pair", ignore_index=True), atol=1e-5
    )


def test_conditions_name_their_corruption_and_draw():
    assert [(each.corruption, each.draw) for each in (CLEAN, *corrupted_conditions(NOISES))] == [
        ("clean", 0), ("STR", 0), ("GN", 3), ("GN", 8)
    ]  # fmt: skip
    shares = attention_shares(shared_model("gpt2", 0), PAIRS, [(1, 1)], noises=NOISES)
    means = shares[shares["role"] == "S2"].groupby(["corruption", "draw"])["share"].mean()
    assert len(means) == 4 and len(np.unique(means)) == 4 and not shares["restored"].any()
    assert attention_shares(shared_model("gpt2", 0), PAIRS, []).empty


def test_mistakes_end_in_a_sentence():
    model = shared_model("gpt2", 0)
    with pytest.raises(AttendedError, match="no head 1.2: the model has the layers 0 to 2 with the heads 0 to 1"):
        attention_shares(model, PAIRS, [(1, 2)])
    with pytest.raises(AttendedError, match="no head 3.0"):
        restored_differences(model, PAIRS, [(3, 0)])
    nameless = ioi_pair("n", seed=9)
    object.__setattr__(nameless, "roles", tuple("relation" if role == "S1" else role for role in nameless.roles))
    with pytest.raises(AttendedError, match="The pair n has no token with the role S1"):
        attention_shares(model, [PAIRS[0], nameless], [(0, 0)])
