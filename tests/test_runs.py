"""Recorded runs: every site as a hook sees it, and the keys and values that a later pass continues from."""

import itertools

import numpy as np
import pytest
import torch
from nnsight import save
from oracle import COMPONENTS, record
from tiny import FAMILIES, LAYERS, random_pair, shared_model

from helpers import runs
from helpers.runs import prefix_cache, prompt_tokens
from helpers.tracing import forward_arguments, read, traceable

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]])
SITES = [("embedding", 0), *itertools.product(COMPONENTS[1:], range(LAYERS))]
EXACT = {"rtol": 0, "atol": 1e-5}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_is_what_hooks_see(family):
    """Sites are given backwards and come in any order; only the asked ones are kept."""
    model = shared_model(family, 0)
    with torch.no_grad(), traceable(model) as traced:
        run = runs.record(traced, TOKENS, SITES[::-1])
        assert runs.record(traced, TOKENS).sites == {}
    assert set(run.sites) == set(SITES)
    for row, prompt in enumerate(TOKENS.tolist()):
        seen = record(model, prompt)
        for site in SITES:
            torch.testing.assert_close(run.sites[site][row], seen[site][0], **EXACT)
        torch.testing.assert_close(run.final[row], seen["resid_post", LAYERS - 1][0, -1], **EXACT)
    key_heads = getattr(model.config, "num_key_value_heads", model.config.num_attention_heads)
    assert len(run.keys) == len(run.values) == LAYERS
    assert {tensor.shape[:3] for tensor in (*run.keys, *run.values)} == {(3, key_heads, 5)}


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "qwen3-narrow-heads"])
def test_noise_is_added_to_the_embeddings(family):
    model, noise = shared_model(family, 0), torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), traceable(model) as traced:
        run = runs.record(traced, TOKENS, SITES, noise=noise)
    for row, prompt in enumerate(TOKENS.tolist()):
        seen = record(model, prompt, noise[row])
        for site in SITES:
            torch.testing.assert_close(run.sites[site][row], seen[site][0], **EXACT)
        table = model.get_input_embeddings().weight
        torch.testing.assert_close(run.sites["embedding", 0][row], table[TOKENS[row]] + noise[row], **EXACT)


@pytest.mark.parametrize("length", [1, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_over_the_rest_continues_a_run(family, length):
    """Each row continues its own pair's beginning: rows may repeat, and stand in any order."""
    rows = np.array([2, 0, 2, 1])
    with torch.no_grad(), traceable(shared_model(family, 1)) as traced:
        whole = runs.record(traced, TOKENS, SITES)
        arguments = forward_arguments(traced, 5, first=length)
        arguments["past_key_values"] = prefix_cache(whole, [rows] * LAYERS, length)
        with traced.trace(TOKENS[rows][:, length:], **arguments):
            seen = save([])
            for layer in range(LAYERS):
                seen.append(read(traced, "resid_post", layer).clone())
    for layer in range(LAYERS):
        torch.testing.assert_close(seen[layer], whole.sites["resid_post", layer][rows, length:], **EXACT)


def test_prompts_of_pairs_of_one_length():
    pairs = [random_pair("a", 3, seed=0), random_pair("b", 3, seed=1)]
    for prompt in ("clean", "corrupted"):
        tokens = prompt_tokens(pairs, prompt, torch.device("cpu"))
        assert tokens.tolist() == [list(getattr(pair, prompt)) for pair in pairs]
