"""The exact sweep in every family of models: against the slow oracle, by its identities, and in other precisions."""

import copy
import itertools

import accelerate
import numpy as np
import pandas as pd
import pytest
import torch
from agreement import assert_equals_oracle
from oracle import oracle_sweep
from tiny import FAMILIES, LAYERS, OWN_ATTENTION, random_pair, shared_model, tiny_model

from helpers.metrics import METRICS
from helpers.patching import measure_runs, sweep
from helpers.plans import COMPONENTS, DIRECTIONS, POSITIONS
from helpers.values import OtherModel

# One pair per seed: with a role of two tokens that is not the subject, and with a shared beginning.
PAIRS = (random_pair("start", 4, seed=1, subject=(0,)), random_pair("middle", 4, seed=2, subject=(1,)))
BASE_RUN = {"denoising": "corrupted", "noising": "clean"}


def scale_of(model) -> float:
    """The largest logit of the clean prompts, or 1: what tolerances are relative to."""
    with torch.no_grad():
        return max(1.0, *(float(model(torch.tensor([pair.clean])).logits.abs().max()) for pair in PAIRS))


def base_values(model, table: pd.DataFrame) -> np.ndarray:
    """The un-patched logit difference that belongs to each line of a sweep."""
    runs = measure_runs(model, PAIRS).set_index(["pair", "run"])["logit_difference"]
    lines = zip(table["pair"], table["direction"], strict=True)
    return np.array([runs[pair, BASE_RUN[direction]] for pair, direction in lines])


@pytest.mark.parametrize("seed", (0, 1))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_component_direction_metric_and_window_equals_the_oracle(family, seed):
    """Three layers have no more adjacent sets than the windows to 4 reach: each model tries one more of them."""
    model, pairs, memory, number = shared_model(family, seed), [PAIRS[seed]], {}, FAMILIES.index(family)
    positions = itertools.islice(itertools.cycle(POSITIONS), number + seed, None)
    for direction, window in itertools.product(DIRECTIONS, (1, 2, 3, 4 + (number + 3 * seed) % 7)):
        sites = {"components": COMPONENTS, "positions": next(positions), "direction": direction, "window": window}
        expected = oracle_sweep(model, pairs, memory=memory, **sites)
        table = sweep(model, pairs, metrics=METRICS, **sites)
        assert_equals_oracle(table, expected)
        # Of patches without effect any engine would be right.
        assert np.ptp(table["logit_difference"]) > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_patched_with_itself_is_left_as_it_runs(family):
    """Also where every row is run: activations that differ in their last bits are not recognised as the base run's."""
    model, twin = shared_model(family, 0), copy.deepcopy(shared_model(family, 0))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter *= 1 + 2**-22
    for direction, source in itertools.product(DIRECTIONS, (model, twin)):
        table = sweep(model, PAIRS, components=COMPONENTS, direction=direction, value=OtherModel(source))
        np.testing.assert_allclose(
            table["logit_difference"], base_values(model, table), rtol=0, atol=1e-5 * scale_of(model)
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_residual_is_the_other_run_and_only_at_the_last_position(family):
    model, tolerance = shared_model(family, 1), {"rtol": 0, "atol": 1e-5 * scale_of(shared_model(family, 1))}
    runs = measure_runs(model, PAIRS, metrics=METRICS).set_index(["pair", "run"])
    for direction, (base, other) in (("denoising", ("corrupted", "clean")), ("noising", ("clean", "corrupted"))):
        settings = {"layers": [LAYERS - 1], "direction": direction, "metrics": METRICS}
        table = sweep(model, PAIRS, components=("resid_post",), **settings)
        whole = sweep(model, PAIRS, components=("resid_pre", "embedding"), positions="all", **settings)
        for row in [*table.to_dict("records"), *whole.to_dict("records")]:
            run = other if row["role"] in ("last", "all") else base
            patched = [row[metric] for metric in METRICS]
            np.testing.assert_allclose(patched, runs.loc[(row["pair"], run), list(METRICS)], **tolerance)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in OWN_ATTENTION])
def test_eager_attention_gives_the_same_as_fused(family):
    fused, eager = (
        sweep(tiny_model(family, 0, attn_implementation=name), PAIRS, components=COMPONENTS, window=2)
        for name in ("sdpa", "eager")
    )
    pd.testing.assert_frame_equal(fused, eager, atol=1e-5 * scale_of(shared_model(family, 0)), rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_as_near_to_its_single_precision_twin_as_the_oracle_is(family):
    """The weights are the same numbers; activations are rounded to 8 bits, and how far that leads is the model's."""
    half = tiny_model(family, 0).bfloat16()
    twin = copy.deepcopy(half).float()
    one, other = (sweep(model, PAIRS[1:], components=COMPONENTS)["logit_difference"] for model in (half, twin))
    literal = oracle_sweep(half, PAIRS[1:], components=COMPONENTS, positions="each", direction="denoising")
    error = np.sqrt(np.mean((one - other) ** 2))
    allowed = np.sqrt(np.mean((np.array([row["metrics"]["logit_difference"] for row in literal]) - other) ** 2))
    assert 0 < error < 1.5 * allowed < 2**-4 * scale_of(twin)


@pytest.mark.parametrize("family", ["gpt2", "neox-sequential", "qwen2-mixed"])
def test_double_precision_works(family):
    model, sites = tiny_model(family, 0).double(), {"components": COMPONENTS, "direction": "noising", "window": 2}
    expected = oracle_sweep(model, PAIRS[:1], positions="roles", **sites)
    assert_equals_oracle(sweep(model, PAIRS[:1], positions="roles", metrics=METRICS, **sites), expected, precision=2e-6)


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama-grouped", "qwen2-mixed"])
@pytest.mark.parametrize("place", ["hooked", "memory", "disk"])
def test_models_that_accelerate_dispatches_give_the_same(family, place, tmp_path):
    """Offloaded weights are on no device between two calls, also between those of modules outside a trace."""
    model = tiny_model(family, 0)
    processor = torch.device("cpu")
    if place == "hooked":
        accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    elif place == "memory":
        accelerate.cpu_offload(model, processor)
    else:
        accelerate.disk_offload(model, tmp_path, processor)
    devices = {name: parameter.device for name, parameter in model.named_parameters()}
    assert {device.type for device in devices.values()} == {"cpu" if place == "hooked" else "meta"}
    settings = {"components": COMPONENTS, "metrics": METRICS}
    expected = sweep(shared_model(family, 0), PAIRS, **settings)
    pd.testing.assert_frame_equal(sweep(model, PAIRS, **settings), expected, atol=1e-6, rtol=0)
    assert {name: parameter.device for name, parameter in model.named_parameters()} == devices
