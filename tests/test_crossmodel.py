"""One model's activations in another's run of the same prompt: against plain hooks, and where the answer is known."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import VOCABULARY
from oracle import oracle_metrics, oracle_sweep, patched_logits, record
from tiny import LAYERS, random_pair, shared_model, tiny_model

from helpers.crossmodel import COMPONENTS, cross_model_effects
from helpers.experiment import EFFECTS
from helpers.plans import PatchingError

PLACE = ["pair", "component", "layer", "position", "role"]


@pytest.fixture(scope="module")
def pairs():
    return [random_pair("b", 4, seed=1, subject=(1, 2)), random_pair("a", 3, seed=2)]


def clean_difference(model, pair) -> float:
    with torch.no_grad():
        logits = patched_logits(model, pair.clean, {}, [])
    return oracle_metrics(logits, logits, pair.right, pair.wrong)["logit_difference"]


def means(effects: pd.DataFrame) -> pd.Series:
    """Recovery by direction, component and layer, as a ratio of means."""
    sums = effects.groupby(["direction", "component", "layer"])[["numerator", "denominator"]].sum()
    return sums["numerator"] / sums["denominator"]


@pytest.mark.parametrize(
    "family, positions", [("gpt2", "all"), ("neox-parallel", "roles"), ("qwen3-narrow-heads", "each")]
)
def test_effects_equal_plain_hooks(pairs, family, positions):
    tuned, base = shared_model(family, 0), shared_model(family, 1)
    effects = cross_model_effects(tuned, base, pairs, positions=positions, row_budget=17)
    assert effects.columns.tolist() == EFFECTS and set(effects["metric"]) == {"logit_difference"}
    ends = {(model, pair.pair_id): clean_difference(model, pair) for model in (tuned, base) for pair in pairs}
    for direction, model, other in (("denoising", base, tuned), ("noising", tuned, base)):

        def held_by_other(pair, prompt, noise, other=other):
            return record(other, pair.clean)

        options = {"components": COMPONENTS, "positions": positions, "direction": "noising", "value": held_by_other}
        expected = oracle_sweep(model, pairs, **options)
        found = effects[effects["direction"] == direction]
        lines = [tuple(None if pd.isna(value) else value for value in line) for line in found[PLACE].to_numpy()]
        assert lines == [tuple(row[name] for name in PLACE) for row in expected]
        for row, literal in zip(found.to_dict("records"), expected, strict=True):
            whole = ends[tuned, row["pair"]] - ends[base, row["pair"]]
            patched, start = literal["metrics"]["logit_difference"], ends[model, row["pair"]]
            moved = patched - start if direction == "denoising" else start - patched
            assert (row["numerator"], row["denominator"]) == pytest.approx((moved, whole), abs=5e-5)


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama"])
def test_where_one_mlp_was_changed_it_recovers_all_and_what_lies_below_nothing(pairs, family):
    base = shared_model(family, 0)
    tuned, changed = copy.deepcopy(base), 1
    mlp = [module for name, module in tuned.named_modules() if name.endswith(".mlp")][changed]
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.mul_(-1.5)
    effects = cross_model_effects(tuned, base, pairs)
    assert effects["denominator"].abs().min() > 0.01
    recovery = means(effects)
    for direction in ("denoising", "noising"):
        found = recovery[direction]
        assert found["mlp_out", changed] == pytest.approx(1, abs=1e-4)
        assert found["resid_post", changed] == pytest.approx(1, abs=1e-4)
        assert found["resid_pre"].tolist() == pytest.approx([0, 0, 1], abs=1e-4)
        assert [found["attn_out", 0], found["attn_out", 1], found["mlp_out", 0]] == pytest.approx([0, 0, 0], abs=1e-4)
        assert found["resid_post", 0] == pytest.approx(0, abs=1e-4)
        # What the blocks above write has changed because their input has.
        assert abs(found["attn_out", 2]) > 1e-3 and abs(found["mlp_out", 2]) > 1e-3


def test_a_model_and_its_copy_have_nothing_to_tell_apart(pairs):
    model = shared_model("gpt2", 0)
    effects = cross_model_effects(model, copy.deepcopy(model), pairs)
    assert len(effects) == 2 * 2 * 4 * LAYERS
    assert effects["numerator"].abs().max() < 1e-5 and effects["denominator"].abs().max() < 1e-5


def test_where_the_unembedding_alone_was_changed_no_site_recovers_anything(pairs):
    base = shared_model("llama", 0)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.lm_head.weight.mul_(-1)
    assert not torch.equal(tuned.lm_head.weight, tuned.model.embed_tokens.weight)
    effects = cross_model_effects(tuned, base, pairs)
    assert {(component, LAYERS - 1) for component in COMPONENTS} <= set(
        effects[["component", "layer"]].itertuples(index=False, name=None)
    )
    assert effects["numerator"].abs().max() < 1e-5
    ends = [-2 * clean_difference(base, pair) for pair in pairs]
    assert effects.groupby("pair")["denominator"].first().reindex(["b", "a"]).tolist() == pytest.approx(ends, abs=1e-4)
    assert effects["denominator"].abs().min() > 0.1


def test_the_corrupted_prompt_is_never_read(pairs):
    tuned, base = shared_model("gpt2", 0), shared_model("gpt2", 1)
    other = [replace(pair, corrupted=tuple((token + 1) % VOCABULARY for token in pair.clean)) for pair in pairs]
    pd.testing.assert_frame_equal(cross_model_effects(tuned, base, pairs), cross_model_effects(tuned, base, other))


def test_models_of_two_shapes_are_refused(pairs):
    with pytest.raises(PatchingError, match="two models of one width"):
        cross_model_effects(shared_model("gpt2", 0), tiny_model("gpt2", 0, width=8), pairs)
