"""Remote runs, as far as they can be checked without the service: nnsight's local simulation of it.

The simulation serialises every trace, with whatever of ours it calls, hides our modules, and reads it back. What it
cannot show is the service itself, and a model whose weights are not on this machine.
"""

import numpy as np
import pytest
from nnsight import TransformersModel
from tiny import FAMILIES, random_pair, shared_model, tiny_model
from words import word_tokenizer

from helpers.architectures import ArchitectureError
from helpers.metrics import METRICS
from helpers.noise import GaussianNoise
from helpers.patching import measure_runs, sweep, sweep_sets
from helpers.plans import COMPONENTS, Site
from helpers.values import Mean, OtherModel

PAIRS = [random_pair("c", 4, seed=1, subject=(1, 2)), random_pair("a", 3, seed=2)]


def named(model) -> TransformersModel:
    """The model as nnsight wraps one that it could name to the service."""
    return TransformersModel(model, task="text-generation", tokenizer=word_tokenizer())


def assert_same(remote, local) -> None:
    assert len(remote) == len(local)
    np.testing.assert_allclose(remote[list(METRICS)], local[list(METRICS)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"qwen2-mixed"}))
def test_a_simulated_remote_sweep_equals_the_local_one(family):
    arguments = {"components": COMPONENTS, "window": 2, "metrics": METRICS, "row_budget": 64}
    wrapped = named(tiny_model(family, 0))
    assert_same(sweep(wrapped, PAIRS, **arguments, remote="local"), sweep(shared_model(family, 0), PAIRS, **arguments))


def test_everything_else_runs_remotely_too():
    model, wrapped = shared_model("gpt2", 0), named(tiny_model("gpt2", 0))
    assert_same(measure_runs(wrapped, PAIRS, remote="local"), measure_runs(model, PAIRS))
    sets = {"both": [Site("attn_out", 1, "last"), Site("head_out", 2, "last", head=1)], "none": []}
    assert_same(
        sweep_sets(wrapped, PAIRS, sets, metrics=METRICS, remote="local"),
        sweep_sets(model, PAIRS, sets, metrics=METRICS),
    )
    mean = {"value": Mean([pair.corrupted for pair in PAIRS]), "direction": "noising", "metrics": METRICS}
    assert_same(sweep(wrapped, PAIRS, **mean, remote="local"), sweep(model, PAIRS, **mean))
    other = {"metrics": METRICS, "corruption": GaussianNoise(0.5, seed=0)}
    assert_same(
        sweep(wrapped, PAIRS, value=OtherModel(named(tiny_model("gpt2", 1))), **other, remote="local"),
        sweep(model, PAIRS, value=OtherModel(shared_model("gpt2", 1)), **other),
    )


def test_a_remote_run_needs_a_model_that_has_a_name():
    with pytest.raises(ArchitectureError, match="TransformersModel, not GPT2LMHeadModel"):
        sweep(shared_model("gpt2", 0), PAIRS, remote=True)


def test_two_kinds_of_mask_cannot_be_sent():
    with pytest.raises(ArchitectureError, match="Qwen2ForCausalLM mixes full and sliding attention"):
        sweep(named(tiny_model("qwen2-mixed", 0)), PAIRS, remote="local")
