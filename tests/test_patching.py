"""Sweeps of single sites, of arbitrary sets, and the un-patched runs: against the slow oracle, and as tables."""

import ast
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from agreement import assert_equals_oracle
from conftest import VOCABULARY, tiny_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st
from nnsight import NNsight
from oracle import oracle_runs, oracle_sets, oracle_sweep, record
from tiny import FAMILIES, LAYERS, random_pair, shared_model, tiny_model

import helpers
from helpers import memory, patching
from helpers.artifacts import read_table, write_table
from helpers.metrics import METRICS, MetricError, recovery_table
from helpers.noise import GaussianNoise
from helpers.pairs import ROLES, PromptPair
from helpers.patching import measure_runs, sweep, sweep_sets
from helpers.plans import COMPONENTS, DIRECTIONS, POSITIONS, PatchingError, Site
from helpers.values import Mean, OtherModel, OtherRun, Resample, Zero

NOISE = GaussianNoise(0.5, seed=3, roles=("subject_last", "relation"))
PROMPTS = [[7, 1, 5, 2], [3, 3, 8, 9], [11, 30, 2, 58], [4, 5, 6], [9, 8, 7], [1, 2]]


@pytest.fixture(scope="module")
def pairs():
    """Four pairs of three lengths, in an order that no sorting would keep."""
    return [
        random_pair("c", 4, seed=1, subject=(1, 2)),
        random_pair("a", 3, seed=2),
        random_pair("d", 4, seed=3, subject=(2,)),
        random_pair("b", 2, seed=4),
    ]


def drawn_noise(pairs, corruption: GaussianNoise, width: int) -> dict[str, torch.Tensor]:
    return {pair.pair_id: corruption.draw([pair], width=width)[0] for pair in pairs}


def mean_of(model, prompts):
    """For the oracle: what Mean writes."""

    def value(pair, prompt, noise):
        runs = [record(model, other) for other in prompts if len(other) == len(prompt)]
        return {site: sum(run[site] for run in runs) / len(runs) for site in runs[0]}

    return value


def values_of(model, other):
    """Each value, and the same for the oracle: a function of the pair, the base prompt and its noise."""
    single = [[7, 1, 5, 2], [3, 3, 8], [9, 4]]  # one prompt of each length: no choice is left to a draw
    return {
        "other run": (OtherRun(), None),
        "other model": (OtherModel(other), lambda pair, prompt, noise: record(other, prompt, noise)),
        "zero": (Zero(), lambda pair, prompt, noise: {s: 0 * v for s, v in record(model, prompt).items()}),
        "mean": (Mean(PROMPTS), mean_of(model, PROMPTS)),
        "resample": (
            Resample(single, seed=0),
            lambda pair, prompt, noise: record(model, next(p for p in single if len(p) == len(prompt))),
        ),
    }


@pytest.mark.parametrize("corruption", [None, NOISE], ids=["prompts", "noise"])
@pytest.mark.parametrize("name", ["other run", "other model", "zero", "mean", "resample"])
def test_values_and_noise_equal_the_oracle(pairs, name, corruption):
    model, other = tiny_gpt2(0, layers=2, width=16, heads=2), tiny_gpt2(1, layers=2, width=16, heads=2)
    value, literal = values_of(model, other)[name]
    pairs, noise = pairs[:2], corruption and drawn_noise(pairs, corruption, 16)
    for direction, window in (("denoising", 1), ("noising", 2)):
        sites = {"components": COMPONENTS, "positions": "each", "direction": direction, "window": window}
        table = sweep(model, pairs, value=value, corruption=corruption, metrics=METRICS, row_budget=37, **sites)
        assert_equals_oracle(table, oracle_sweep(model, pairs, value=literal, noise=noise, **sites))
        assert (set(table["direction"]), set(table["window"]), set(table["value"])) == ({direction}, {window}, {name})


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_pairs_with_several_right_answers_equal_the_oracle(pairs, family):
    """Sets of different sizes beside pairs of one answer, in every direction and kind of corruption."""
    model = shared_model(family, 0)
    tokens = [token for token in range(VOCABULARY) if token not in (*pairs[0].answer, *pairs[0].foil)]
    sets = {"answer_set": (pairs[0].answer[0], *tokens[:20]), "foil_set": (pairs[0].foil[0], *tokens[-7:])}
    pairs = [replace(pairs[0], **sets), pairs[1], replace(pairs[2], answer_set=(pairs[2].answer[0], 11, 12))]
    for direction, corruption in (("denoising", None), ("noising", NOISE)):
        noise = corruption and drawn_noise(pairs, corruption, 16)
        sites = {"components": ("resid_pre", "head_out"), "positions": "each", "direction": direction}
        table = sweep(model, pairs, corruption=corruption, metrics=METRICS, row_budget=37, **sites)
        assert_equals_oracle(table, oracle_sweep(model, pairs, noise=noise, **sites))
        runs = measure_runs(model, pairs, corruption=corruption)
        assert_equals_oracle(runs, oracle_runs(model, pairs, noise=noise))


def test_every_width_of_window_equals_the_oracle():
    model, pairs, memory = tiny_gpt2(4, layers=6, width=8, heads=2), [random_pair("p", 3, seed=0, subject=(0,))], {}
    for window in range(1, 11):
        sites = {"components": ("mlp_out",), "positions": "roles", "direction": "noising", "window": window}
        table = sweep(model, pairs, metrics=METRICS, **sites)
        assert_equals_oracle(table, oracle_sweep(model, pairs, memory=memory, **sites))


@st.composite
def some_pairs(draw):
    lengths = draw(st.lists(st.integers(2, 6), min_size=1, max_size=3))
    pairs = []
    for number, length in enumerate(lengths):
        first = draw(st.integers(0, length - 1))
        subject = tuple(range(first, draw(st.integers(first, length - 1)) + 1))
        pairs.append(random_pair(f"p{number}", length, seed=draw(st.integers(0, 2**16)), subject=subject))
    return pairs


SETTINGS = settings(max_examples=25, deadline=None, derandomize=True, database=None)
FIXED = {
    "family": st.sampled_from(FAMILIES),
    "seed": st.integers(0, 1),
    "pairs": some_pairs(),
    "direction": st.sampled_from(DIRECTIONS),
    "corruption": st.sampled_from([None, None, NOISE]),
    "row_budget": st.integers(1, 40),
}


@SETTINGS
@given(
    **FIXED,
    components=st.lists(st.sampled_from(COMPONENTS), min_size=1, max_size=2, unique=True),
    layers=st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=2, unique=True),
    positions=st.sampled_from(POSITIONS),
    window=st.integers(1, 10),
)
def test_any_sweep_equals_the_oracle(
    family, seed, pairs, direction, corruption, row_budget, components, layers, positions, window
):
    model = shared_model(family, seed)
    noise = corruption and drawn_noise(pairs, corruption, model.config.hidden_size)
    sites = {"components": components, "positions": positions, "direction": direction, "window": window}
    table = sweep(model, pairs, layers=layers, corruption=corruption, metrics=METRICS, row_budget=row_budget, **sites)
    assert_equals_oracle(table, oracle_sweep(model, pairs, layers=sorted(layers), noise=noise, **sites))


@st.composite
def any_site(draw):
    component = draw(st.sampled_from(COMPONENTS))
    return (
        component,
        0 if component == "embedding" else draw(st.integers(0, LAYERS - 1)),
        draw(st.one_of(st.integers(0, 1), st.sampled_from([*ROLES, "all"]))),  # the shortest prompt has two tokens
        draw(st.integers(0, 1)) if component == "head_out" else None,
    )


@SETTINGS
@given(
    **FIXED,
    sets=st.dictionaries(st.sampled_from("stu"), st.lists(any_site(), max_size=6), min_size=1),
    name=st.sampled_from(["other run", "other model", "zero"]),
)
def test_any_sets_equal_the_oracle(family, seed, pairs, direction, corruption, row_budget, sets, name):
    model = shared_model(family, seed)
    value, literal = values_of(model, shared_model(family, 1 - seed))[name]
    noise = corruption and drawn_noise(pairs, corruption, model.config.hidden_size)
    expected = oracle_sets(model, pairs, sets, direction=direction, value=literal, noise=noise)
    given_sets = {key: [Site(*site) for site in sites] for key, sites in sets.items()}
    settings = {"direction": direction, "corruption": corruption, "value": value, "row_budget": row_budget}
    assert_equals_oracle(sweep_sets(model, pairs, given_sets, metrics=METRICS, **settings), expected)


def test_sets_of_several_kinds_equal_the_oracle_and_are_named(pairs):
    model, longer = shared_model("llama-grouped", 1), [pair for pair in pairs if pair.positions > 2]
    sets = {
        "path": [("resid_pre", 1, "subject_last", None), ("mlp_out", 2, "last", None)],
        "window of heads": [("head_out", layer, "all", head) for layer in (0, 1, 2) for head in (1, 3)],
        "nothing": [],
        "only of two": [("attn_out", 0, "subject_first", None)],  # the other pair has a subject of one token
        "overlapping": [("mlp_out", 0, "all", None), ("mlp_out", 0, 1, None), ("resid_post", 0, 1, None)],
        "same block": [("head_out", 1, 1, 0), ("attn_out", 1, 2, None), ("mlp_out", 1, 1, None)],
        "everything ends here": [("resid_pre", 0, "all", None), ("resid_post", 2, "last", None)],
    }
    as_sites = {name: [Site(*site) for site in sites] for name, sites in sets.items()}
    for direction in DIRECTIONS:
        table = sweep_sets(model, longer, as_sites, direction=direction, metrics=METRICS)
        assert_equals_oracle(table, oracle_sets(model, longer, sets, direction=direction))
        assert table.columns.tolist() == ["pair", "sites", "direction", "value", *METRICS]
        base = measure_runs(model, longer).set_index(["pair", "run"])["logit_difference"]
        untouched = table[(table["sites"] == "nothing") | (table["sites"] == "only of two") & (table["pair"] != "c")]
        assert untouched["logit_difference"].tolist() == [
            base[pair, "corrupted" if direction == "denoising" else "clean"] for pair in untouched["pair"]
        ]


def test_a_set_of_one_site_is_the_patch_of_that_site(pairs):
    model = shared_model("qwen2", 0)
    sets = {
        f"{component} {layer}": [Site(component, layer, 1)] for component in ("mlp_out", "attn_out") for layer in (0, 2)
    }
    single = sweep(model, pairs, components=("mlp_out", "attn_out"), layers=[0, 2])
    single = single[single["position"] == 1].reset_index()
    joint = sweep_sets(model, pairs, sets)
    np.testing.assert_allclose(joint["logit_difference"], single["logit_difference"], rtol=0, atol=1e-5)
    assert joint["sites"].tolist() == (single["component"] + " " + single["layer"].astype(str)).tolist()


@pytest.mark.parametrize("layer", [0, 1])
def test_a_write_that_equals_the_base_run_counts_after_another_write(layer):
    """The other model's MLP always gives what the base run holds there; after patched attention, that is a change."""
    pair, model = random_pair("p", 4, seed=5, subject=(0,)), tiny_gpt2(0, layers=2, width=16, heads=2)
    other = copy.deepcopy(model)
    held = record(model, pair.clean)["mlp_out", layer][0, 3]
    with torch.no_grad():
        other.transformer.h[0].attn.c_proj.weight.mul_(-1)
        other.transformer.h[layer].mlp.c_proj.weight.zero_()
        other.transformer.h[layer].mlp.c_proj.bias.copy_(held)
    sets = {
        "attention": [("attn_out", 0, 3, None)],
        "MLP": [("mlp_out", layer, 3, None)],
        "both": [("attn_out", 0, 3, None), ("mlp_out", layer, 3, None)],
    }
    expected = oracle_sets(
        model, [pair], sets, direction="noising", value=lambda pair, prompt, noise: record(other, prompt)
    )
    as_sites = {name: [Site(*site) for site in sites] for name, sites in sets.items()}
    table = sweep_sets(model, [pair], as_sites, direction="noising", value=OtherModel(other), metrics=METRICS)
    assert_equals_oracle(table, expected)
    attention, mlp, both = table["logit_difference"]
    base = measure_runs(model, [pair]).loc[0, "logit_difference"]
    assert mlp == pytest.approx(base, abs=1e-5)
    assert abs(both - attention) > 1e-2 < abs(attention - base)


def test_runs_equal_the_oracle(pairs):
    for family in ("gpt2", "neox-parallel"):
        model = shared_model(family, 0)
        runs = measure_runs(model, pairs, row_budget=2)
        assert runs.columns.tolist() == ["pair", "run", *METRICS]
        assert_equals_oracle(runs, oracle_runs(model, pairs))
        noised = measure_runs(model, pairs, corruption=NOISE)
        assert_equals_oracle(noised, oracle_runs(model, pairs, noise=drawn_noise(pairs, NOISE, 16)))
        assert (noised.loc[noised["run"] == "clean", "kl_divergence"] < 1e-6).all()


def test_what_fixes_the_rest_of_the_pass_recovers_exactly_one(gpt2, pairs):
    runs = measure_runs(gpt2, pairs)
    for direction, quantity in (("denoising", "recovered"), ("noising", "destroyed")):
        everywhere = sweep(
            gpt2, pairs, components=("resid_pre", "resid_post"), positions="all", direction=direction, metrics=METRICS
        )
        for metric in ("logit_difference", "log_probability", "probability", "kl_divergence"):
            table = recovery_table(everywhere, runs, by=["component", "layer", "pair"], metric=metric)
            # Of a pair whose runs hardly differ the ratio magnifies rounding; its two parts do not.
            np.testing.assert_allclose(table["numerator"], table["denominator"], rtol=0, atol=5e-6)
            table = recovery_table(everywhere, runs, by=["component", "layer"], metric=metric)
            np.testing.assert_allclose(table["recovery"], 1.0, atol=1e-4)
            assert set(table["quantity"]) == {quantity}
        last = sweep(gpt2, pairs, components=("resid_post",), layers=[2], direction=direction)
        table = recovery_table(last, runs, by=["role"])
        np.testing.assert_allclose(table.loc[table["role"] == "last", "recovery"], 1.0, atol=1e-5)
        np.testing.assert_allclose(table.loc[table["role"] != "last", "recovery"], 0.0, atol=1e-5)


def test_budget_order_and_company_change_nothing(pairs):
    model, arguments = shared_model("qwen2-mixed", 0), {"components": ("head_out", "resid_pre"), "metrics": METRICS}
    reference = sweep(model, pairs, **arguments)
    keys = [column for column in reference.columns if column not in METRICS]
    for row_budget in (1, 7, 4096):
        table = sweep(model, pairs, **arguments, row_budget=row_budget)
        pd.testing.assert_frame_equal(table[keys], reference[keys])
        np.testing.assert_allclose(table[list(METRICS)], reference[list(METRICS)], atol=1e-5)
    reverse = sweep(model, pairs[::-1], **arguments)
    assert reverse["pair"].drop_duplicates().tolist() == ["b", "d", "a", "c"]
    for pair in pairs:
        one, other = (table[table["pair"] == pair.pair_id].reset_index(drop=True) for table in (reference, reverse))
        pd.testing.assert_frame_equal(one, other, atol=1e-5, rtol=0)
        pd.testing.assert_frame_equal(one, sweep(model, [pair], **arguments), atol=1e-5, rtol=0)


def test_components_and_layers_asked_together_or_alone_are_the_same(pairs):
    model = shared_model("mistral-sliding", 0)
    together = sweep(model, pairs, components=("attn_out", "resid_post"))
    for component in ("attn_out", "resid_post"):
        for layer in range(3):
            alone = sweep(model, pairs, components=(component,), layers=[layer])
            rows = together[(together["component"] == component) & (together["layer"] == layer)]
            pd.testing.assert_frame_equal(rows.reset_index(drop=True), alone, atol=1e-5, rtol=0)


def test_rows_are_named_and_sorted(gpt2, pairs):
    table = sweep(gpt2, pairs, components=("mlp_out", "embedding", "head_out"), layers=[2, 0, 2], positions="each")
    assert table.columns.tolist() == [
        "pair", "component", "layer", "position", "role", "head", "direction", "window", "value", "logit_difference",
    ]  # fmt: skip
    assert str(table["position"].dtype) == str(table["head"].dtype) == "Int64"
    assert table["pair"].drop_duplicates().tolist() == ["c", "a", "d", "b"]
    assert set(table["value"]) == {"other run"}
    first = table[table["pair"] == "a"]
    mlp, head = first[first["component"] == "mlp_out"], first[first["component"] == "head_out"]
    assert first["component"].tolist() == ["mlp_out"] * 6 + ["embedding"] * 3 + ["head_out"] * 24
    assert mlp["layer"].tolist() == [0] * 3 + [2] * 3
    assert mlp["position"].tolist() == [0, 1, 2] * 2
    assert mlp["role"].tolist() == ["prefix", "subject_last", "last"] * 2
    assert mlp["head"].isna().all()
    assert head["head"].tolist() == [0, 1, 2, 3] * 6
    assert set(first.loc[first["component"] == "embedding", "layer"]) == {0}
    together = sweep(gpt2, pairs, positions="all")
    assert together["position"].isna().all() and set(together["role"]) == {"all"}
    roles = sweep(gpt2, pairs[:1], positions="roles", components=("mlp_out",), layers=[1])
    assert roles["role"].tolist() == ["prefix", "subject_first", "subject_last", "last"]
    assert roles["position"].isna().all()


def test_tables_go_to_a_file_and_come_back(gpt2, pairs, tmp_path):
    tables = (
        sweep(gpt2, pairs, components=("head_out", "mlp_out"), metrics=METRICS),
        sweep(gpt2, pairs, positions="all"),
        sweep_sets(gpt2, pairs, {"s": [Site("mlp_out", 0, "last")]}, value=Zero()),
        measure_runs(gpt2, pairs),
    )
    for number, table in enumerate(tables):
        path = tmp_path / f"{number}.parquet"
        write_table(path, table)
        pd.testing.assert_frame_equal(read_table(path), table)


def state_of(model):
    modules = list(model.named_modules())
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": {name: (parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()},
        "attributes": [(name, sorted(vars(module)), module.training, id(module)) for name, module in modules],
        "hooks": [
            sum(len(value) for name, value in vars(module).items() if name.endswith("_hooks")) for _, module in modules
        ],
    }


@pytest.mark.parametrize("family", ["gpt2", "neox-sequential", "qwen2-mixed"])
def test_models_are_left_as_they_were(pairs, family):
    model, other = tiny_model(family, 5), tiny_model(family, 6)
    model.train()
    next(model.parameters()).requires_grad_(False)
    model.get_output_embeddings().eval()  # a mixed state must come back mixed
    before, random_state = [state_of(model), state_of(other)], torch.get_rng_state()
    measure_runs(model, pairs, corruption=NOISE)
    sweep(model, pairs, components=COMPONENTS, value=OtherModel(other))
    sweep_sets(model, pairs, {"s": [Site("head_out", 1, "all", 1)]}, value=Resample(PROMPTS, seed=1), corruption=NOISE)
    for network, was in zip((model, other), before, strict=True):
        now = state_of(network)
        weights, old = now.pop("weights"), was.pop("weights")
        assert weights.keys() == old.keys() and all(torch.equal(weights[name], old[name]) for name in old)
        assert now == was
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()
    tokens = torch.tensor([pairs[0].clean])
    assert torch.equal(model.eval()(tokens).logits, tiny_model(family, 5)(tokens).logits)


def test_dropout_is_off_during_a_sweep(pairs):
    """Fine-tuning leaves a model in training mode, where two runs of one prompt would differ."""
    model = tiny_gpt2(7, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    expected = sweep(model, pairs, components=COMPONENTS), measure_runs(model, pairs)
    model.train()
    pd.testing.assert_frame_equal(sweep(model, pairs, components=COMPONENTS), expected[0])
    pd.testing.assert_frame_equal(measure_runs(model, pairs), expected[1])


def test_a_network_of_nnsight_is_swept_as_it_is(gpt2, pairs):
    expected = sweep(gpt2, pairs, components=COMPONENTS)
    network = NNsight(copy.deepcopy(gpt2))
    pd.testing.assert_frame_equal(sweep(network, pairs, components=COMPONENTS), expected, atol=1e-5, rtol=0)


def test_nan_names_the_pair(pairs):
    model = tiny_gpt2(9)
    odd = next(pair for pair in pairs if pair.pair_id == "a")
    token = next(t for t in odd.clean if all(t not in (*p.clean, *p.corrupted) for p in pairs if p is not odd))
    with torch.no_grad():
        model.transformer.wte.weight[token] = float("nan")
    model.lm_head.weight = torch.nn.Parameter(tiny_gpt2(9).lm_head.weight.clone())  # untie: only that prompt is hit
    for run in (measure_runs, sweep):
        for metric in METRICS:
            with pytest.raises(PatchingError, match="of the pair a are NaN.*that prompt alone.$"):
                run(model, pairs, metrics=[metric])
    with pytest.raises(PatchingError, match="of the pair a are NaN"):
        sweep_sets(model, pairs, {"s": [Site("mlp_out", 0, "last")]})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"components": ("mlp",)}, "among embedding, resid_pre, head_out, attn_out, mlp_out, resid_post"),
        ({"components": ()}, "components must be"),
        ({"components": "mlp_out"}, "components must be"),
        ({"components": ("mlp_out", "mlp_out")}, "different names"),
        ({"layers": [3]}, "some of 0 to 2"),
        ({"layers": [-1]}, "some of 0 to 2"),
        ({"layers": []}, "some of 0 to 2"),
        ({"positions": "last"}, "one of each, all, roles"),
        ({"direction": "restore"}, "denoising or noising"),
        ({"window": 0}, "at least 1, not 0"),
        ({"row_budget": 0}, "at least 1, not 0"),
        ({"value": OtherModel(tiny_gpt2(0, layers=2))}, "one number of layers; .* 3 .* 2"),
        ({"value": OtherModel(tiny_gpt2(0, heads=2))}, "one number of heads"),
        ({"value": OtherModel(tiny_gpt2(0, width=16))}, "one width"),
        ({"value": OtherModel(tiny_gpt2(0).bfloat16())}, "one precision"),
        ({"value": OtherModel(tiny_model("llama", 0, hidden_size=32, num_attention_heads=4))}, "one model type"),
        ({"value": Mean([[1, 2, 3]])}, "'mean' needs a reference prompt of 2 tokens for the pair b"),
        ({"value": Resample([[1, 2, 3, 4]], seed=0)}, "'resample' needs a reference prompt of 2 tokens for the pair b"),
    ],
)
def test_settings_out_of_range_are_one_sentence(gpt2_pair, pairs, arguments, message):
    with pytest.raises(PatchingError, match=message) as error:
        sweep(gpt2_pair[0], pairs, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "sets, message",
    [
        ({}, "no set of sites to patch"),
        ({"s": [Site("mlp", 0, 0)]}, "'s' has .*a component is one of embedding"),
        ({"s": [Site("mlp_out", 3, 0)]}, "layer must be 0 to 2"),
        ({"s": [Site("embedding", 1, 0)]}, "layer must be 0 to 0"),
        ({"s": [Site("mlp_out", -1, 0)]}, "layer must be 0 to 2"),
        ({"s": [Site("mlp_out", 0, 2)]}, "the pair b has the positions 0 to 1"),
        ({"s": [Site("mlp_out", 0, -1)]}, "the pair b has the positions 0 to 1"),
        ({"s": [Site("mlp_out", 0, "subject")]}, '"all", or one of prefix'),
        ({"s": [Site("mlp_out", 0, 0, 0)]}, "no other component has one"),
        ({"s": [Site("head_out", 0, 0)]}, "head_out needs a head"),
        ({"fine": [], "s": [Site("head_out", 0, 0, 4)]}, "'s' has .*head must be 0 to 3"),
    ],
)
def test_sites_that_do_not_exist_are_one_sentence(gpt2_pair, pairs, sets, message):
    with pytest.raises(PatchingError, match=message) as error:
        sweep_sets(gpt2_pair[0], pairs, sets)
    assert "\n" not in str(error.value)


def test_pairs_that_do_not_fit_are_refused(gpt2_pair, pairs):
    model, sets = gpt2_pair[0], {"s": [Site("mlp_out", 0, 0)]}
    stranger = PromptPair("s", (1, VOCABULARY), (1, 2), (3,), (4,), ("prefix", "last"))
    unknown_answer = PromptPair("s", (1, 3), (1, 2), (3,), (VOCABULARY,), ("prefix", "last"))
    for run in (sweep, measure_runs, lambda model, pairs: sweep_sets(model, pairs, sets)):
        with pytest.raises(PatchingError, match="no pair"):
            run(model, [])
        with pytest.raises(PatchingError, match="pair a is given twice"):
            run(model, [pairs[1], pairs[1]])
        with pytest.raises(PatchingError, match="17 tokens and the model reads 16"):
            run(model, [random_pair("long", 17, seed=0)])
        for pair in (stranger, unknown_answer):
            with pytest.raises(PatchingError, match="token id 60.*ends at 59"):
                run(model, [pair])
    for run in (sweep, measure_runs, lambda model, pairs, **named: sweep_sets(model, pairs, sets, **named)):
        with pytest.raises(MetricError, match="among logit_difference"):
            run(model, pairs, metrics=("accuracy",))


def seen_batches(model) -> list[int]:
    """The rows of every batch that reaches an MLP as part of whole prompts, as they come."""
    sizes = []

    def see(module, inputs, output):
        if output.ndim == 3:
            sizes.append(len(output))

    for block in model.transformer.h:
        block.mlp.register_forward_hook(see)
    return sizes


@pytest.mark.parametrize("row_budget", [1, 5])
def test_no_forward_pass_holds_more_rows_than_the_budget(pairs, row_budget):
    model, pairs = tiny_gpt2(10, layers=2), pairs[1:] if row_budget == 1 else pairs
    sizes = seen_batches(model)
    for value in (OtherRun(), Mean([[9, 8], *PROMPTS, [2, 3, 4, 5]]), Zero()):
        sweep(model, pairs, components=("embedding", "attn_out", "head_out"), row_budget=row_budget, value=value)
        assert max(sizes) == row_budget
    sizes.clear()
    measure_runs(model, pairs, row_budget=row_budget)
    assert max(sizes) == min(row_budget, len(pairs) - 2)  # of the longest prompts there are two


def test_the_budget_follows_from_the_memory_that_is_free(pairs, monkeypatch):
    model = tiny_gpt2(11)
    sizes = seen_batches(model)
    expected = sweep(model, pairs, components=COMPONENTS)
    assert max(sizes) > 6
    # For 4 tokens: 4 × (10 × 32 + 3 × 128 + 4 heads × 4) numbers of 4 bytes in a row, from a quarter of the memory.
    monkeypatch.setattr(memory, "free_memory", lambda device: 6 * 4 * 4 * (4 * (320 + 384 + 16)))
    sizes.clear()
    table = sweep(model, [pair for pair in pairs if pair.positions == 4], components=COMPONENTS)
    assert max(sizes) == 6
    rows = expected[expected["pair"].isin(["c", "d"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, rows, atol=1e-5, rtol=0)


def out_of_memory_above(model, most: int) -> list[int]:
    """Let every block fail as an accelerator does when a batch has more rows than `most`; the batches it saw."""
    sizes = []

    def fail(module, inputs, output):
        sizes.append(len(output))
        if len(output) > most:
            raise torch.OutOfMemoryError(f"Tried to allocate {len(output)} rows.")

    for block in model.transformer.h:
        block.register_forward_hook(fail)
    return sizes


@pytest.mark.parametrize("most", [1, 3])
def test_a_batch_that_does_not_fit_is_halved_and_the_result_stays(pairs, most, monkeypatch):
    monkeypatch.setattr(memory, "clear_device_cache", lambda **named: None)  # it collects garbage, which takes its time
    expected = sweep(tiny_gpt2(12), pairs, components=COMPONENTS, metrics=METRICS)
    runs = measure_runs(tiny_gpt2(12), pairs)
    model = tiny_gpt2(12)
    sizes = out_of_memory_above(model, most)
    table = sweep(model, pairs, components=COMPONENTS, metrics=METRICS, row_budget=8)
    pd.testing.assert_frame_equal(table, expected, atol=1e-5, rtol=0)
    too_many = [size for size in sizes if size > most]
    # 8 is halved to 4, 2 and 1, and is never raised again.
    assert 1 <= len(too_many) <= {3: 2, 1: 3}[most] and sorted(too_many, reverse=True) == too_many
    pd.testing.assert_frame_equal(measure_runs(model, pairs, row_budget=2), runs, atol=1e-5, rtol=0)


def test_a_single_row_that_does_not_fit_is_one_sentence_and_other_errors_are_not_touched(pairs):
    for run in (sweep, measure_runs):
        model = tiny_gpt2(13)
        out_of_memory_above(model, 0)
        attributes = [sorted(vars(module)) for module in model.modules()]
        with pytest.raises(PatchingError, match=r"single row .*\(pair b, 2 tokens\): use a device") as error:
            run(model, pairs, row_budget=2)
        assert "\n" not in str(error.value)
        assert [sorted(vars(module)) for module in model.modules()] == attributes
        broken = tiny_gpt2(13)

        def fail(module, inputs):
            raise RuntimeError("a fault of its own")

        broken.transformer.h[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="a fault of its own"):
            run(broken, pairs)


def test_no_pass_is_run_for_patches_that_change_nothing(pairs):
    """Sites before the first token that differs: two recorded runs per length, and the clean one is one of them."""
    model = tiny_gpt2(14)
    sizes = seen_batches(model)
    same = [pair for pair in pairs if pair.pair_id == "d"]
    sweep_sets(model, same, {"before": [Site("resid_pre", 0, "prefix"), Site("mlp_out", 1, 0)]}, metrics=METRICS)
    assert sizes == [1] * 6  # twice the three blocks


def test_progress_is_shown_when_asked(gpt2, pairs, monkeypatch):
    labels = []
    monkeypatch.setattr(memory, "track", lambda items, label: labels.append(label) or items)
    sweep(gpt2, pairs)
    sweep(gpt2, pairs, direction="noising", progress=True)
    assert labels == ["patching, noising"]


def test_the_engine_names_no_device():
    """Where weights are is the caller's affair; a device by name would break the others."""
    folder = Path(helpers.__file__).parent
    engine = {node.module.split(".")[1] for node in ast.walk(ast.parse(Path(patching.__file__).read_text()))
              if isinstance(node, ast.ImportFrom) and node.module.startswith("helpers.")}  # fmt: skip
    assert {"memory", "noise", "plans", "runs", "staircase", "tracing", "values"} <= engine
    for name in ("architectures", "patching", "readout", *engine):
        tree = ast.parse((folder / f"{name}.py").read_text())
        strings = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        named = {text for text in strings if text.split(":")[0] in ("cuda", "mps", "xpu", "hip", "npu")}
        assert not named, f"{name} names {named}"
        assert not {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & {"cuda", "mps"}, name
