"""Gaussian noise on embeddings: whose, how much, and that a draw can be repeated."""

import numpy as np
import pytest
import torch
from conftest import tiny_gpt2
from tiny import random_pair

from helpers.noise import SUBJECT, GaussianNoise, embedding_deviation
from helpers.patching import measure_runs

PAIR = random_pair("p", 6, seed=0, subject=(1, 2, 3))
LIKE_IT = random_pair("q", 6, seed=0, subject=(1, 2, 3))


def test_only_the_chosen_roles_are_noised():
    noise = GaussianNoise(2.0, seed=0).draw([PAIR, LIKE_IT], width=5000)
    assert noise.shape == (2, 6, 5000)
    assert (noise != 0).any(-1).tolist() == [[role in SUBJECT for role in PAIR.roles]] * 2
    relation = GaussianNoise(2.0, seed=0, roles=("relation", "prefix"))
    assert (relation.draw([PAIR], width=8) != 0).any(-1).tolist() == [[True, False, False, False, True, False]]
    assert relation.first_position(PAIR) == 0
    assert GaussianNoise(2.0, seed=0).first_position(PAIR) == 1
    assert GaussianNoise(2.0, seed=0, roles=("last",)).first_position(PAIR) == 5
    assert GaussianNoise(2.0, seed=0, roles=()).first_position(PAIR) == 6


@pytest.mark.parametrize("deviation", [0.5, 3.0])
def test_noise_has_its_standard_deviation_and_no_mean(deviation):
    noise = GaussianNoise(deviation, seed=1).draw([PAIR], width=20000)[0, 1:4]
    assert noise.std().item() == pytest.approx(deviation, rel=0.02)
    assert abs(noise.mean().item()) < 0.02 * deviation
    assert abs(np.corrcoef(noise.numpy())[np.triu_indices(3, 1)]).max() < 0.03  # tokens are noised on their own


def test_a_draw_depends_on_the_seed_and_the_name_of_the_pair_only():
    noise = GaussianNoise(1.0, seed=1)
    both = noise.draw([PAIR, LIKE_IT], width=8)
    assert torch.equal(both, noise.draw([LIKE_IT, PAIR], width=8).flip(0))
    assert torch.equal(both[:1], noise.draw([PAIR], width=8))
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(both, GaussianNoise(1.0, seed=2).draw([PAIR, LIKE_IT], width=8))
    assert torch.equal(2 * both, GaussianNoise(2.0, seed=1).draw([PAIR, LIKE_IT], width=8))


def test_no_noise_is_the_clean_run_and_more_noise_leads_away_from_it():
    model = tiny_gpt2(0)
    runs = {
        deviation: measure_runs(model, [PAIR], corruption=GaussianNoise(deviation, seed=0)) for deviation in (0, 0.1, 1)
    }
    divergence = [table.loc[table["run"] == "corrupted", "kl_divergence"].item() for table in runs.values()]
    assert divergence[0] < 1e-6 < 1e-4 < divergence[1] < divergence[2]


def test_the_deviation_of_embeddings_by_hand():
    model = tiny_gpt2(0, layers=1, width=4, heads=1)
    with torch.no_grad():
        model.transformer.wte.weight.copy_(torch.tensor([1.0, 3.0]).repeat(60, 2))
    assert embedding_deviation(model) == pytest.approx(np.std([1.0, 3.0] * 120, ddof=1), abs=1e-6)
    assert embedding_deviation(model.bfloat16()) == pytest.approx(1.0, abs=0.01)
