"""Processes: the same results beside each other as in place, in order, and errors that arrive."""

import os

import pytest
import torch

from helpers.models import random_model
from helpers.processes import as_finished, measure_each, pool_of

MODELS = [random_model(11, layers=1, width=8, heads=2, positions=8, seed=seed) for seed in range(3)]


def logits(model, tokens, *, scale):
    """What is measured here, with the process and its threads."""
    if not tokens:
        raise ValueError("There is no token to read.")
    with torch.no_grad():
        found = scale * model(torch.tensor([tokens])).logits
    return found.numpy(), os.getpid(), torch.get_num_threads(), model.training


@pytest.fixture(scope="module")
def pool():
    with pool_of(2, warm="helpers.models") as pool:
        yield pool


def test_one_process_is_no_pool_and_measures_in_place():
    assert pool_of(1, warm="helpers.models") is None
    ((_, process, *_),) = measure_each(logits, [(MODELS[0], [1, 2])], pool=None, scale=2.0)
    assert process == os.getpid()


def test_a_pool_measures_the_same_in_the_order_of_the_jobs(pool):
    jobs = [(model, [1, 2, number]) for number, model in enumerate(MODELS)]
    here, there = (measure_each(logits, jobs, pool=where, scale=2.0) for where in (None, pool))
    for (one, *_), (other, process, threads, training) in zip(here, there, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other))
        assert process != os.getpid() and threads == 1 and not training


def test_what_a_job_raises_is_raised_here_and_the_pool_goes_on(pool):
    with pytest.raises(ValueError, match="no token to read"):
        measure_each(logits, [(MODELS[0], [1]), (MODELS[1], [])], pool=pool, scale=1.0)
    assert len(measure_each(logits, [(MODELS[0], [1])], pool=pool, scale=1.0)) == 1


def doubled(number):
    """What is finished here."""
    if number < 0:
        raise ValueError("A number is not below 0.")
    return 2 * number, os.getpid()


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_as_they_are_finished_until_something_is_raised(processes):
    found = {}
    with pytest.raises(ValueError, match="not below 0"):
        for result, process in as_finished(doubled, [(1,), (2,), (-1,)], processes=processes, warm="os"):
            found[result] = process
    here = {2: os.getpid(), 4: os.getpid()}
    assert found == here if processes == 1 else found.keys() <= here.keys() and os.getpid() not in found.values()
