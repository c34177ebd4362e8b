"""What patches write in the place of the other run's activation."""

import numpy as np
import pytest
import torch
from oracle import record
from tiny import random_pair, shared_model

from helpers import runs
from helpers.patching import sweep
from helpers.plans import PatchingError
from helpers.runs import prompt_tokens
from helpers.tracing import traceable
from helpers.values import Mean, OtherModel, OtherRun, Resample, Zero, stand_in

PAIRS = [random_pair("a", 3, seed=1), random_pair("b", 3, seed=2), random_pair("c", 3, seed=3)]
PROMPTS = [[7, 1, 5], [3, 8, 9], [11, 30, 2], [4, 5], [6, 6, 6, 6], [7, 1, 5]]
FITTING = [prompt for prompt in PROMPTS if len(prompt) == 3]
SITES = {("embedding", 0), ("head_out", 1), ("resid_post", 2)}
EXACT = {"rtol": 0, "atol": 1e-5}


def written(value, pairs=PAIRS, *, family="gpt2", noise=None):
    model = shared_model(family, 0)
    with torch.no_grad(), traceable(model) as traced:
        tokens = prompt_tokens(pairs, "clean", traced.device)
        base = runs.record(traced, tokens, SITES, noise=noise)
        return stand_in(value, traced, pairs, tokens, base, SITES, noise=noise)


@pytest.mark.parametrize("pairs", [PAIRS, PAIRS[:1]])
def test_a_mean_is_over_prompts_of_the_same_length_however_many_a_pass_holds(pairs):
    seen = [record(shared_model("gpt2", 0), prompt) for prompt in FITTING]
    for site, tensor in written(Mean(PROMPTS), pairs).items():
        expected = torch.stack([run[site][0] for run in seen]).mean(0)
        torch.testing.assert_close(tensor, expected.expand(len(pairs), -1, -1), **EXACT)


def test_zeros_have_the_shape_of_the_site():
    for site, tensor in written(Zero(), family="qwen3-narrow-heads").items():
        assert tensor.shape == (3, 3, 12 if site[0] == "head_out" else 16)
        assert not tensor.any()


def test_another_model_reads_the_same_prompt_with_the_same_noise():
    noise = torch.randn(3, 3, 16, generator=torch.Generator().manual_seed(0))
    other = shared_model("gpt2", 1)
    for site, tensor in written(OtherModel(other), noise=noise).items():
        for row, pair in enumerate(PAIRS):
            torch.testing.assert_close(tensor[row], record(other, pair.clean, noise[row])[site][0], **EXACT)


def drawn(value, pairs=PAIRS) -> dict[str, tuple]:
    """The prompt that each pair was given, recognised by its embeddings."""
    table = shared_model("gpt2", 0).get_input_embeddings().weight
    embedding = written(value, pairs)["embedding", 0]
    return {
        pair.pair_id: tuple(int((table - vector).abs().sum(-1).argmin()) for vector in embedding[row])
        for row, pair in enumerate(pairs)
    }


def test_a_resampled_run_is_one_prompt_at_every_site():
    seen = written(Resample(PROMPTS, seed=4))
    for row, prompt in enumerate(drawn(Resample(PROMPTS, seed=4)).values()):
        assert list(prompt) in FITTING
        for site, tensor in seen.items():
            torch.testing.assert_close(tensor[row], record(shared_model("gpt2", 0), prompt)[site][0], **EXACT)


def test_a_draw_depends_on_the_seed_the_pair_and_the_candidates_only():
    one = drawn(Resample(PROMPTS, seed=0))
    assert one == drawn(Resample(PROMPTS[::-1], seed=0), PAIRS[::-1])
    assert all(drawn(Resample(PROMPTS, seed=0), [pair])[pair.pair_id] == one[pair.pair_id] for pair in PAIRS)
    draws = [drawn(Resample(PROMPTS, seed=seed)) for seed in range(20)]
    for pair in "abc":  # the chance that three prompts do not all come up in twenty draws is below 0.001
        assert {draw[pair] for draw in draws} == {tuple(prompt) for prompt in FITTING}
    assert len({tuple(draw.values()) for draw in draws}) > 5  # pairs draw on their own


def test_a_pair_never_draws_its_own_base_prompt():
    own = [list(pair.clean) for pair in PAIRS]
    for seed in range(10):
        draws = drawn(Resample(own, seed=seed))
        assert all(draws[pair.pair_id] != pair.clean for pair in PAIRS)
    assert drawn(Resample([own[0], FITTING[0]], seed=0))["a"] == tuple(FITTING[0])
    with pytest.raises(PatchingError, match="of 3 tokens for the pair a and not be its own; none of the 2 .* serves"):
        written(Resample([own[0], [1, 2]], seed=0))


def test_prompts_of_other_lengths_do_not_serve():
    for value, name in ((Mean([[1, 2]]), "mean"), (Resample([], seed=0), "resample")):
        with pytest.raises(
            PatchingError, match=f"'{name}' needs a reference prompt of 3 tokens for the pair a"
        ) as error:
            written(value)
        assert "\n" not in str(error.value)


def test_every_value_has_a_name_of_its_own_and_changes_the_result():
    model = shared_model("llama", 0)
    values = (OtherRun(), OtherModel(shared_model("llama", 1)), Zero(), Mean(PROMPTS), Resample(PROMPTS, seed=0))
    tables = [sweep(model, PAIRS, value=value) for value in values]
    assert [set(table["value"]) for table in tables] == [{value.name} for value in values]
    means = [table["logit_difference"].mean() for table in tables]
    assert np.abs(np.subtract.outer(means, means))[~np.eye(5, dtype=bool)].min() > 1e-3
