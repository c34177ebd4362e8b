"""Knocked-out heads against plain hooks, and the arithmetic of repair by hand."""

import pandas as pd
import pytest
import torch
from ioi import ioi_pairs
from oracle import keep_input, oracle_runs, oracle_sets, places
from tiny import LAYERS, shared_model, tiny_model

from helpers.attended import AttendedError
from helpers.backup import TOGETHER, backups, knockouts, repaired, risers, self_repair
from helpers.streams import direct_attribution

PAIRS = ioi_pairs(4)
FINAL_NORMS = ("transformer.ln_f", "gpt_neox.final_layer_norm", "model.norm")
HEADS = [(0, 1), (1, 0)]
GROUPS = {"0.1": [(0, 1)], "1.0": [(1, 0)], TOGETHER: HEADS}


def test_knockouts_equal_plain_hooks():
    model = shared_model("gpt2", 0)
    table = knockouts(model, PAIRS, HEADS, row_budget=9).set_index(["pair", "group"])
    sets = {name: [("head_out", layer, "all", head) for layer, head in heads] for name, heads in GROUPS.items()}
    runs = {(row["pair"], row["run"]): row["metrics"]["logit_difference"] for row in oracle_runs(model, PAIRS)}
    swept = oracle_sets(model, PAIRS, sets, direction="noising")
    lost = {
        (row["pair"], row["sites"]): runs[row["pair"], "clean"] - row["metrics"]["logit_difference"] for row in swept
    }
    assert len(table) == len(lost) == 3 * len(PAIRS)
    for (pair, group), row in table.iterrows():
        added = sum(lost[pair, name] for name in GROUPS if name != TOGETHER and group in (name, TOGETHER))
        whole = runs[pair, "clean"] - runs[pair, "corrupted"]
        assert (row["joint"], row["added"], row["denominator"]) == pytest.approx(
            (lost[pair, group], added, whole), abs=5e-5
        )
        assert row["sites"] == len(GROUPS[group])


@torch.no_grad()
def last_outputs(model, prompt, written):
    """Every layer's head outputs at the last token and the last logits, with some heads' outputs as `written`."""
    held, hooks = {}, []
    width = model.config.hidden_size // model.config.num_attention_heads
    for layer, (_, _, projection, _) in enumerate(places(model)[1]):

        def replace(module, inputs, layer=layer):
            value = inputs[0].clone()
            for (of_layer, head), output in written.items():
                if of_layer == layer:
                    value[0, -1, head * width : (head + 1) * width] = output
            return (value,)

        hooks.append(projection.register_forward_pre_hook(replace))
        hooks.append(projection.register_forward_pre_hook(keep_input(held, layer)))
    logits = model(torch.tensor([prompt]), use_cache=False).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return {layer: value[0, -1].unflatten(0, (-1, width)) for layer, value in held.items()}, logits


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama-grouped"])
def test_the_parts_of_an_ablated_run_are_those_of_plain_hooks(family):
    model = shared_model(family, 0)
    table = self_repair(model, PAIRS, HEADS, row_budget=3)
    columns = ["group", "pair", "component", "layer", "head", "intact", "without", "knocked_out", "later"]
    assert table.columns.tolist() == columns and table["group"].unique().tolist() == list(GROUPS)
    clean = [last_outputs(model, pair.clean, {})[0] for pair in PAIRS]
    means = {head: torch.stack([each[head[0]][head[1]] for each in clean]).mean(0) for head in HEADS}
    for group, heads in GROUPS.items():
        part = table[(table["group"] == group) & (table["component"] != "head_out")]
        parts = part[part["component"] != "bias"].groupby("pair")[["intact", "without"]].sum()
        bias = part[part["component"] == "bias"].set_index("pair")["intact"]
        for pair in PAIRS:
            runs = [last_outputs(model, pair.clean, {head: means[head] for head in own})[1] for own in ([], heads)]
            expected = [float(logits[pair.answer[0]] - logits[pair.foil[0]]) for logits in runs]
            scale = held_scale(model, pair, {head: means[head] for head in heads})
            here = parts.loc[pair.pair_id].to_numpy() * [1, scale] + bias[pair.pair_id]
            assert here.tolist() == pytest.approx(expected, abs=5e-5) and abs(scale - 1) > 1e-4
            assert abs(expected[0] - expected[1]) > 1e-4


def held_scale(model, pair, means):
    """1/σ of the ablated run over that of the intact one, from plain hooks."""
    held, scales = {}, []
    name, norm = next((n, m) for n, m in model.named_modules() if n in FINAL_NORMS)
    hook = norm.register_forward_pre_hook(keep_input(held, name))
    for written in ({}, means):
        last_outputs(model, pair.clean, written)
        final = held[name][0, -1]
        scales.append(rsqrt_of(norm, final))
    hook.remove()
    return scales[1] / scales[0]


def rsqrt_of(norm, final):
    centred = isinstance(norm, torch.nn.LayerNorm)
    spread = final.var(correction=0) if centred else final.square().mean()
    return float((spread + (norm.eps if centred else norm.variance_epsilon)).rsqrt())


@torch.no_grad()
def test_a_later_head_says_what_it_writes_after_the_ablation():
    """Of GPT-2: its output times the projection, on the scale of the intact run's last residual."""
    model = tiny_model("gpt2", 1)
    table = self_repair(model, PAIRS, HEADS).set_index(["group", "pair", "layer", "head"])
    clean = [last_outputs(model, pair.clean, {})[0] for pair in PAIRS]
    means = {head: torch.stack([each[head[0]][head[1]] for each in clean]).mean(0) for head in HEADS}
    held: dict = {}
    hook = model.transformer.ln_f.register_forward_pre_hook(keep_input(held, "final"))
    for pair in PAIRS:
        last_outputs(model, pair.clean, {})
        final = held["final"][0, -1]
        outputs, _ = last_outputs(model, pair.clean, means)
        towards = model.lm_head.weight[pair.answer[0]] - model.lm_head.weight[pair.foil[0]]
        for layer, head in [(2, 0), (2, 1), (1, 0)]:
            width = outputs[layer].shape[-1]
            matrix = model.transformer.h[layer].attn.c_proj.weight[head * width : (head + 1) * width]
            written = outputs[layer][head] @ matrix
            scale = (final.var(correction=0) + model.transformer.ln_f.eps).rsqrt()
            said = float(((written - written.mean()) * scale * model.transformer.ln_f.weight * towards).sum())
            assert table.loc[(TOGETHER, pair.pair_id, layer, head), "without"] == pytest.approx(said, abs=2e-5)
    hook.remove()


def test_heads_are_marked_and_the_intact_run_is_the_clean_one():
    model = shared_model("gpt2", 0)
    table = self_repair(model, PAIRS, HEADS)
    heads = table[(table["component"] == "head_out") & (table["pair"] == "p0")]
    for group, chosen in GROUPS.items():
        own = heads[heads["group"] == group].set_index(["layer", "head"])
        assert own.index[own["knocked_out"]].tolist() == chosen
        later = [layer for layer in range(LAYERS) if layer > chosen[0][0]]
        assert sorted(set(own.index[own["later"]].get_level_values(0))) == later
    assert not table.loc[table["component"] != "head_out", "knocked_out"].any()
    keys = ["pair", "component", "layer", "head"]
    both = table[table["group"] == "0.1"].merge(direct_attribution(model, PAIRS), on=keys)
    earlier = table[~table["knocked_out"] & ~table["later"] & (table["component"] == "head_out")]
    assert (earlier["without"] - earlier["intact"]).abs().max() < 1e-5 and len(earlier)  # nothing reaches them
    assert (both["intact"] - both["contribution"]).abs().max() < 1e-5 and len(both) == len(table) / 3


def by_hand() -> pd.DataFrame:
    """One mover, 1.0, which says 3 instead of 5 logits; its bias-free block, a later head and an MLP."""
    rows = [
        ("head_out", 1, 0, 5.0, 3.0, True, False),
        ("attn_out", 1, pd.NA, 5.0, 3.0, False, False),
        ("head_out", 2, 0, 1.0, 1.5, False, True),
        ("head_out", 2, 1, 1.0, 0.8, False, True),
        ("attn_out", 2, pd.NA, 2.0, 2.3, False, True),
        ("mlp_out", 2, pd.NA, 0.0, 0.2, False, True),
        ("head_out", 0, 1, 0.0, 9.0, False, False),
    ]
    names = ["component", "layer", "head", "intact", "without", "knocked_out", "later"]
    table = pd.DataFrame(rows, columns=names).astype({"head": "Int64"})
    less = table.assign(without=table["without"].where(table["layer"] != 2, table["intact"]))
    return pd.concat([table.assign(pair="a"), less.assign(pair="b")]).assign(group="1.0")


def test_repair_by_hand():
    found = repaired(by_hand()).set_index("pair")
    # a: 2 logits are lost, 0.3 + 0.2 come back, so the difference falls by 1.5; b: nothing comes back.
    assert found.loc["a", ["lost", "drop", "numerator", "denominator"]].tolist() == pytest.approx([2, 1.5, 0.5, 2])
    assert found.loc["b", ["lost", "drop", "numerator", "denominator"]].tolist() == pytest.approx([2, 2, 0, 2])


def test_risers_by_hand():
    found = risers(by_hand(), resamples=200, confidence=0.95, seed=0)
    assert found[["layer", "head"]].to_numpy().tolist() == [[2, 0], [2, 1]]  # neither the mover nor an earlier head
    assert found["change"].tolist() == pytest.approx([0.25, -0.1])
    assert found["share"].tolist() == pytest.approx([0.125, -0.05])  # of the 2 logits that are lost
    assert found.loc[0, ["low", "high"]].tolist() == pytest.approx([0, 0.25]) and found["defined"].all()
    assert risers(by_hand().assign(later=False), resamples=9, confidence=0.95, seed=0).empty


def test_a_backup_makes_up_for_more_than_a_twentieth_when_all_are_silent():
    rows = [(TOGETHER, 0.06, True), (TOGETHER, 0.05, True), (TOGETHER, 0.9, False), ("1.0", 0.9, True)]
    found = pd.DataFrame(rows, columns=["group", "low", "defined"])
    assert backups(found).index.tolist() == [0]


def test_no_head_is_no_change_and_a_strange_one_a_sentence():
    model = shared_model("gpt2", 0)
    table = self_repair(model, PAIRS, [])
    assert (table["intact"] == table["without"]).all() and not table[["knocked_out", "later"]].any(axis=None)
    assert (repaired(table)[["lost", "drop"]] == 0).all(axis=None)
    assert (knockouts(model, PAIRS, [])["joint"] == 0).all()
    with pytest.raises(AttendedError, match=r"no head 0\.7"):
        self_repair(model, PAIRS, [(0, 7)])
