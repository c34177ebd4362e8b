"""The batched sweep against the slow oracle, its identities, and that a sweep leaves no mark on the model."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import VOCABULARY, tiny_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import oracle_metrics, oracle_rank_bounds, oracle_sweep, rome_window

from helpers.metrics import METRICS, MetricError, recovery_table
from helpers.pairs import PromptPair, token_roles
from helpers.patching import measure_runs, sweep
from helpers.plans import COMPONENTS, PatchingError, make_plan, needs_run, window_layers

DIRECTIONS = ("denoising", "noising")


def random_pair(name: str, length: int, *, seed: int, subject: tuple[int, ...] | None = None) -> PromptPair:
    """A pair that differs in its subject only, at the tokens `subject`; 1 when not told."""
    generator = np.random.default_rng(seed)
    subject = subject or (1,)
    clean = generator.integers(0, VOCABULARY, length).tolist()
    corrupted = list(clean)
    for position in subject:
        corrupted[position] = (clean[position] + 1 + int(generator.integers(0, VOCABULARY - 1))) % VOCABULARY
    answer, foil = generator.choice(VOCABULARY, 2, replace=False).tolist()
    roles = token_roles(length, subject=subject)
    return PromptPair(name, tuple(clean), tuple(corrupted), (answer, 3), (foil,), roles)


@pytest.fixture(scope="module")
def pairs():
    """Four pairs of three lengths, in an order that no sorting would keep."""
    return [
        random_pair("c", 4, seed=1, subject=(1, 2)),
        random_pair("a", 3, seed=2),
        random_pair("d", 4, seed=3, subject=(2,)),
        random_pair("b", 2, seed=4),
    ]


def assert_equals_oracle(table: pd.DataFrame, expected: list[dict], pairs, metrics=METRICS) -> None:
    """The same patches in the same order, and every metric within 1e-5 of the scale of its logits."""
    assert len(table) == len(expected)
    by_name = {pair.pair_id: pair for pair in pairs}
    for row, oracle in zip(table.to_dict("records"), expected, strict=True):
        assert (row["pair"], row["component"], row["layer"]) == (oracle["pair"], oracle["component"], oracle["layer"])
        for name in ("position", "head"):
            assert pd.isna(row[name]) if oracle[name] is None else row[name] == oracle[name]
        answer, foil = by_name[row["pair"]].answer[0], by_name[row["pair"]].foil[0]
        tolerance = 1e-5 * max(1.0, float(oracle["logits"].abs().max()))
        for name, value in oracle_metrics(oracle["logits"], oracle["clean_logits"], answer, foil).items():
            if name in metrics:
                assert math.isclose(row[name], value, rel_tol=0, abs_tol=tolerance), (row, name, value)
        if "rank" in metrics:
            low, high = oracle_rank_bounds(oracle["logits"], answer, tolerance)
            assert low <= row["rank"] <= high


@pytest.mark.parametrize("positions", ["each", "all"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_component_and_metric_equals_the_oracle(gpt2, pairs, direction, positions):
    table = sweep(
        gpt2, pairs, components=COMPONENTS, positions=positions, direction=direction, metrics=METRICS, row_budget=37
    )
    expected = oracle_sweep(gpt2, pairs, components=COMPONENTS, positions=positions, direction=direction)
    assert_equals_oracle(table, expected, pairs)
    assert set(table["direction"]) == {direction} and set(table["window"]) == {1}


@pytest.mark.parametrize("positions", ["each", "all"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_windows_equal_the_oracle(gpt2, pairs, direction, positions):
    arguments = {"components": COMPONENTS, "positions": positions, "direction": direction, "window": 3}
    table = sweep(gpt2, pairs[:2], **arguments, metrics=METRICS, row_budget=50)
    assert_equals_oracle(table, oracle_sweep(gpt2, pairs[:2], **arguments), pairs)
    assert set(table["window"]) == {3}


@pytest.mark.parametrize("positions", ["each", "all"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_cross_model_equals_the_oracle(gpt2_pair, pairs, direction, positions):
    model, other = gpt2_pair
    arguments = {"components": COMPONENTS, "positions": positions, "direction": direction, "source_model": other}
    for window in (1, 2):
        table = sweep(model, pairs[:2], **arguments, window=window, metrics=METRICS, row_budget=50)
        assert_equals_oracle(table, oracle_sweep(model, pairs[:2], **arguments, window=window), pairs)


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
    components=st.lists(st.sampled_from(COMPONENTS), min_size=1, max_size=2, unique=True),
    layers=st.lists(st.integers(0, 1), min_size=1, max_size=2, unique=True),
    positions=st.sampled_from(["each", "all"]),
    direction=st.sampled_from(DIRECTIONS),
    window=st.integers(1, 3),
    row_budget=st.integers(1, 40),
)
def test_any_sweep_equals_the_oracle(lengths, seed, components, layers, positions, direction, window, row_budget):
    model = tiny_gpt2(seed, layers=2, width=8, heads=2)
    pairs = [
        random_pair(f"p{i}", length, seed=seed + i, subject=((seed + i) % length,)) for i, length in enumerate(lengths)
    ]
    sites = {"components": components, "positions": positions, "direction": direction, "window": window}
    table = sweep(model, pairs, layers=layers, metrics=METRICS, row_budget=row_budget, **sites)
    assert_equals_oracle(table, oracle_sweep(model, pairs, layers=sorted(layers), **sites), pairs)


def test_runs_equal_the_oracle(gpt2, pairs):
    runs = measure_runs(gpt2, pairs, row_budget=2)
    assert runs["pair"].tolist() == [name for name in "cadb" for _ in range(2)]
    assert runs["run"].tolist() == ["clean", "corrupted"] * 4
    assert runs.columns.tolist() == ["pair", "run", *METRICS]
    for pair in pairs:
        with torch.no_grad():
            clean, corrupted = (gpt2(torch.tensor([p])).logits[0, -1] for p in (pair.clean, pair.corrupted))
        for name, logits in (("clean", clean), ("corrupted", corrupted)):
            row = runs[(runs["pair"] == pair.pair_id) & (runs["run"] == name)].iloc[0]
            for metric, value in oracle_metrics(logits, clean, pair.answer[0], pair.foil[0]).items():
                assert row[metric] == pytest.approx(value, abs=1e-5)
            low, high = oracle_rank_bounds(logits, pair.answer[0], 1e-5)
            assert low <= row["rank"] <= high


def test_patching_a_model_with_its_own_activations_changes_nothing(gpt2, pairs):
    """The source is the same model on the same prompt: a patch of every site is a no-op."""
    runs = measure_runs(gpt2, pairs).set_index(["pair", "run"])
    for direction, run in (("denoising", "corrupted"), ("noising", "clean")):
        table = sweep(gpt2, pairs, components=COMPONENTS, direction=direction, source_model=copy.deepcopy(gpt2))
        expected = runs.loc[[(pair, run) for pair in table["pair"]], "logit_difference"].to_numpy()
        np.testing.assert_allclose(table["logit_difference"], expected, atol=1e-5)
        same_object = sweep(gpt2, pairs, components=COMPONENTS, direction=direction, source_model=gpt2)
        np.testing.assert_allclose(same_object["logit_difference"], expected, atol=1e-5)


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


def test_budget_and_order_change_nothing(gpt2, pairs):
    arguments = {"components": ("mlp_out", "head_out", "resid_pre"), "metrics": METRICS, "window": 2}
    reference = sweep(gpt2, pairs, **arguments)
    keys = ["pair", "component", "layer", "position", "role", "head", "direction", "window"]
    for row_budget in (1, 7, 4096):
        table = sweep(gpt2, pairs, **arguments, row_budget=row_budget)
        pd.testing.assert_frame_equal(table[keys], reference[keys])
        np.testing.assert_allclose(table[list(METRICS)], reference[list(METRICS)], atol=1e-5)
    reverse = sweep(gpt2, pairs[::-1], **arguments)
    assert reverse["pair"].drop_duplicates().tolist() == ["b", "d", "a", "c"]
    for pair in pairs:
        one, other = (table[table["pair"] == pair.pair_id].reset_index(drop=True) for table in (reference, reverse))
        pd.testing.assert_frame_equal(one, other, atol=1e-5, rtol=0)


def test_a_pair_alone_gives_what_it_gives_in_company(gpt2, pairs):
    together = sweep(gpt2, pairs, metrics=METRICS)
    alone = pd.concat([sweep(gpt2, [pair], metrics=METRICS) for pair in pairs], ignore_index=True)
    pd.testing.assert_frame_equal(together, alone, atol=1e-5, rtol=0)


def test_rows_are_named_and_sorted(gpt2, pairs):
    table = sweep(gpt2, pairs, components=("mlp_out", "head_out"), layers=[2, 0], positions="each")
    assert table.columns.tolist() == [
        "pair", "component", "layer", "position", "role", "head", "direction", "window", "logit_difference",
    ]  # fmt: skip
    assert str(table["position"].dtype) == str(table["head"].dtype) == "Int64"
    assert table["pair"].drop_duplicates().tolist() == ["c", "a", "d", "b"]
    first = table[table["pair"] == "a"]
    mlp, head = first[first["component"] == "mlp_out"], first[first["component"] == "head_out"]
    assert first["component"].tolist() == ["mlp_out"] * 6 + ["head_out"] * 24
    assert mlp["layer"].tolist() == [0] * 3 + [2] * 3
    assert mlp["position"].tolist() == [0, 1, 2] * 2
    assert mlp["role"].tolist() == ["prefix", "subject_last", "last"] * 2
    assert mlp["head"].isna().all()
    assert head["head"].tolist() == [0, 1, 2, 3] * 6
    together = sweep(gpt2, pairs, positions="all")
    assert together["position"].isna().all() and set(together["role"]) == {"all"}


@pytest.mark.parametrize("window", [1, 2, 3, 10])
def test_windows_are_those_of_rome(window):
    assert [list(window_layers(layer, window=window, layers=6)) for layer in range(6)] == [
        rome_window(layer, window, 6) for layer in range(6)
    ]


def test_even_windows_by_hand():
    assert list(window_layers(5, window=10, layers=12)) == list(range(0, 10))
    assert list(window_layers(0, window=2, layers=12)) == [0]
    assert list(window_layers(11, window=5, layers=12)) == [9, 10, 11]


def test_patches_that_need_no_run(gpt2):
    """By hand: prompts of 4 tokens that differ from token 2 on, 3 layers."""
    pair = random_pair("p", 4, seed=0, subject=(2,))
    plan = make_plan(gpt2, components=["resid_pre", "mlp_out"], layers=[0, 2], positions="each", window=1, length=4)
    expected = {("resid_pre", 0): (2, 3), ("resid_pre", 2): (2, 3), ("mlp_out", 0): (2, 3), ("mlp_out", 2): (3,)}
    flags = needs_run(plan, [pair], layers=3, same_model=True)[0]
    kept = {
        key: tuple(plan.position[flags & (plan.component == COMPONENTS.index(key[0])) & (plan.layer == key[1])])
        for key in expected
    }
    assert kept == expected
    assert needs_run(plan, [pair], layers=3, same_model=False)[0].sum() == 13


def test_the_model_is_left_as_it_was(pairs):
    model, other = tiny_gpt2(5), tiny_gpt2(6)
    model.train()
    model.transformer.wte.weight.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    attributes = [(name, set(vars(module)), module.training) for name, module in model.named_modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    random_state = torch.get_rng_state()
    measure_runs(model, pairs)
    sweep(model, pairs, components=COMPONENTS, source_model=other)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == gradients
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [(name, set(vars(module)), module.training) for name, module in model.named_modules()] == attributes
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()
    tokens = torch.tensor([pairs[0].clean])
    assert torch.equal(model.eval()(tokens).logits, tiny_gpt2(5)(tokens).logits)
    assert other.training is False


def test_dropout_is_off_during_a_sweep(pairs):
    """Fine-tuning leaves a model in training mode, where two runs of one prompt would differ."""
    model = tiny_gpt2(7, resid_pdrop=0.5)
    expected = sweep(model, pairs)
    pd.testing.assert_frame_equal(sweep(model.train(), pairs), expected)


def test_eager_attention_gives_the_same(pairs):
    fused, eager = (tiny_gpt2(8, attn_implementation=name) for name in ("sdpa", "eager"))
    pd.testing.assert_frame_equal(sweep(fused, pairs), sweep(eager, pairs), atol=1e-5, rtol=0)


def test_nan_names_the_pair(pairs):
    model = tiny_gpt2(9)
    odd = next(pair for pair in pairs if pair.pair_id == "a")
    token = next(t for t in odd.clean if all(t not in (*p.clean, *p.corrupted) for p in pairs if p is not odd))
    with torch.no_grad():
        model.transformer.wte.weight[token] = float("nan")
    model.lm_head.weight = torch.nn.Parameter(tiny_gpt2(9).lm_head.weight.clone())  # untie: only that prompt is hit
    for run in (measure_runs, sweep):
        with pytest.raises(PatchingError, match="of the pair a are NaN"):
            run(model, pairs)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"components": ("mlp",)}, "among resid_pre, head_out, attn_out, mlp_out, resid_post"),
        ({"components": ()}, "components must be"),
        ({"components": "mlp_out"}, "components must be"),
        ({"components": ("mlp_out", "mlp_out")}, "different names"),
        ({"layers": [3]}, "some of 0 to 2"),
        ({"layers": [-1]}, "some of 0 to 2"),
        ({"layers": []}, "some of 0 to 2"),
        ({"positions": "last"}, '"each" or "all"'),
        ({"direction": "restore"}, "denoising or noising"),
        ({"window": 0}, "at least 1, not 0"),
        ({"row_budget": 0}, "at least 1, not 0"),
        ({"source_model": tiny_gpt2(0, layers=2)}, "one number of layers; model has 3 and source_model 2"),
        ({"source_model": tiny_gpt2(0, heads=2)}, "one number of heads"),
        ({"source_model": tiny_gpt2(0).bfloat16()}, "one precision"),
    ],
)
def test_settings_out_of_range_are_one_sentence(gpt2_pair, pairs, arguments, message):
    with pytest.raises(PatchingError, match=message) as error:
        sweep(gpt2_pair[0], pairs, **arguments)
    assert "\n" not in str(error.value)


def test_pairs_that_do_not_fit_are_refused(gpt2_pair, pairs):
    model = gpt2_pair[0]
    with pytest.raises(PatchingError, match="no pair"):
        sweep(model, [])
    with pytest.raises(PatchingError, match="pair a is given twice"):
        sweep(model, [pairs[1], pairs[1]])
    with pytest.raises(PatchingError, match="17 tokens and the model reads 16"):
        measure_runs(model, [random_pair("long", 17, seed=0)])
    stranger = PromptPair("s", (1, VOCABULARY), (1, 2), (3,), (4,), ("prefix", "last"))
    with pytest.raises(PatchingError, match="token id 60.*ends at 59"):
        sweep(model, [stranger])
    with pytest.raises(MetricError, match="among logit_difference"):
        sweep(model, pairs, metrics=("accuracy",))


@pytest.mark.parametrize("row_budget", [1, 5, 64])
def test_no_forward_pass_holds_more_rows_than_the_budget(pairs, row_budget):
    model, sizes = tiny_gpt2(10), []
    for block in model.transformer.h:
        block.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    sweep(model, pairs, components=COMPONENTS, row_budget=row_budget)
    measure_runs(model, pairs, row_budget=row_budget)
    assert max(sizes) == row_budget
    assert min(sizes) == 1  # rows join: the first blocks of a pass see fewer
