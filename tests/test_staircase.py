"""Rows on their way through the network against whole passes under hooks, one row at a time."""

import itertools

import numpy as np
import pytest
import torch
from oracle import keep_output, patched_logits, places, record
from tiny import FAMILIES, LAYERS, random_pair, shared_model

from helpers import runs
from helpers.plans import Site, plan_sets
from helpers.rows import base_sites, patched_sites, rows_to_run
from helpers.runs import prompt_tokens
from helpers.staircase import run_rows
from helpers.tracing import traceable

PAIRS = [random_pair("p", 4, seed=0, subject=(0,)), random_pair("q", 4, seed=1, subject=(1,))]
EXACT = {"rtol": 0, "atol": 1e-5}


def last_residuals(model, sets, *, row_budget=64):
    """`(patches, width)` by patch, for the clean run of PAIRS with vectors of the corrupted one."""
    with torch.no_grad(), traceable(model) as traced:
        tokens, other = (prompt_tokens(PAIRS, name, traced.device) for name in ("clean", "corrupted"))
        plan = plan_sets(model, PAIRS, {str(number): sites for number, sites in enumerate(sets)})
        base = runs.record(traced, tokens, base_sites(traced, plan.writes))
        given = runs.record(traced, other, patched_sites(plan.writes)).sites
        rows = rows_to_run(traced, plan.writes, plan.pair)
        batches = list(run_rows(traced, tokens[:1], base, given, plan.writes, rows, row_budget=row_budget))
    assert sum(len(batch) for batch, _ in batches) == len(plan.pair)
    assert max(len(batch) for batch, _ in batches) <= row_budget
    patch = np.concatenate([batch.patch for batch, _ in batches])
    return torch.cat([final for _, final in batches])[np.argsort(patch)]


def literal_residuals(model, sets):
    """The same from one hooked pass per patch."""
    finals = []
    for pair, sites in itertools.product(PAIRS, sets):
        held, block = {}, places(model)[1][-1][0]
        hook = block.register_forward_hook(keep_output(held, "last"))
        single = [(site.component, site.layer, site.position, site.head) for site in sites]
        with torch.no_grad():
            patched_logits(model, pair.clean, record(model, pair.corrupted), single)
        hook.remove()
        finals.append(held["last"][0, -1])
    return torch.stack(finals)


INSIDE = {
    "a head": [("head_out", 1)],
    "both heads": [("head_out", 0), ("head_out", 1)],
    "attention": [("attn_out", None)],
    "the MLP": [("mlp_out", None)],
    "a head and the MLP": [("head_out", 0), ("mlp_out", None)],
    "a head under attention": [("head_out", 0), ("attn_out", None)],
    "attention and the MLP": [("attn_out", None), ("mlp_out", None)],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_leaves_a_block_is_computed_outside_a_pass_as_inside_one(family):
    """In the last block nothing else is run: no attention is called, and MLPs see single tokens only."""
    model, last = shared_model(family, 0), LAYERS - 1
    sets = [[Site(component, last, 3, head) for component, head in sites] for sites in INSIDE.values()]
    shapes = []
    hooks = [
        block[3].register_forward_hook(lambda *called: shapes.append(called[2].ndim)) for block in places(model)[1]
    ]
    hooks += [block[1].register_forward_hook(lambda *called: shapes.append("attention")) for block in places(model)[1]]
    seen = last_residuals(model, sets)
    for hook in hooks:
        hook.remove()
    assert shapes[:6] == shapes[6:12] and "attention" in shapes[:6]  # two recorded runs of three blocks
    assert shapes[12:] == ([] if family in ("neox-parallel", "gptj") else [2])
    torch.testing.assert_close(seen, literal_residuals(model, sets), **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_join_everywhere_share_passes(family):
    """Several tokens that leave one block, rows that meet further patches on their way, and rows of every start."""
    model = shared_model(family, 1)
    sets = [
        [Site("embedding", 0, 0)],
        [Site("attn_out", 0, 1), Site("mlp_out", 0, 2), Site("head_out", 0, 1, 1)],
        [Site("mlp_out", 0, 1), Site("mlp_out", 1, 0), Site("mlp_out", 2, 3)],
        [Site("head_out", 1, 2, 0), Site("resid_pre", 2, 3)],
        [Site("resid_pre", 1, 0), Site("head_out", 1, 0, 1), Site("attn_out", 2, 3)],
        [Site("embedding", 0, 2), Site("resid_pre", 0, 1), Site("mlp_out", 0, 3)],
        [Site("attn_out", 2, 3)],
    ]
    expected = literal_residuals(model, sets)
    for row_budget in (1, 3, 64):
        torch.testing.assert_close(last_residuals(model, sets, row_budget=row_budget), expected, **EXACT)
