"""Which patches are run, and where each joins: by hand, on recorded runs that are made up."""

import numpy as np
import pytest
import torch
from tiny import LAYERS, WIDTH, random_pair, shared_model

from helpers.plans import COMPONENTS, Site, plan_sets, plan_sweep
from helpers.rows import base_sites, effective_writes, patched_sites, rows_to_run
from helpers.tracing import traceable

PAIRS = [random_pair("p", 4, seed=0, subject=(2,)), random_pair("q", 4, seed=1, subject=(1,))]
SHARED = np.array([2, 1])
NOTHING = np.zeros(2, dtype=np.int64)


@pytest.fixture(scope="module")
def traced():
    with traceable(shared_model("gpt2", 0)) as traced:
        yield traced


def made_up_runs():
    """Two runs that differ in every vector: base and given, by (component, layer)."""
    sites = [(component, layer) for component in COMPONENTS for layer in range(LAYERS)]
    generator = torch.Generator().manual_seed(0)
    return ({site: torch.randn(len(PAIRS), 4, WIDTH, generator=generator) for site in sites} for _ in range(2))


def described(writes) -> list[tuple]:
    fields = (writes.patch, writes.component, writes.layer, writes.position, writes.head)
    return [(patch, COMPONENTS[c], layer, token, head) for patch, c, layer, token, head in zip(*fields, strict=True)]


def effective(traced, sets, base, given, shared, pairs=PAIRS[:1]):
    """What is left of each set, as (component, layer, position), the head after it if there is one."""
    plan = plan_sets(traced.model, pairs, {str(number): sites for number, sites in enumerate(sets)})
    left = described(effective_writes(traced, plan, base, given, shared=shared))
    return [
        [site[1:4] if site[4] < 0 else site[1:] for site in left if site[0] == patch] for patch in range(len(plan.pair))
    ]


def test_sites_before_the_first_difference_and_unread_ones_need_no_run(traced):
    """By hand: two pairs of 4 tokens that differ from token 2 and from token 1 on."""
    base, given = made_up_runs()
    plan = plan_sweep(
        traced.model, PAIRS, components=["resid_pre", "mlp_out"], layers=[0, 2], positions="each", window=1
    )
    left = effective_writes(traced, plan, base, given, shared=SHARED)
    assert [site[1:4] for site in described(left)] == [
        ("resid_pre", 0, 2), ("resid_pre", 0, 3), ("resid_pre", 2, 2), ("resid_pre", 2, 3),
        ("mlp_out", 0, 2), ("mlp_out", 0, 3), ("mlp_out", 2, 3),
        ("resid_pre", 0, 1), ("resid_pre", 0, 2), ("resid_pre", 0, 3),
        ("resid_pre", 2, 1), ("resid_pre", 2, 2), ("resid_pre", 2, 3),
        ("mlp_out", 0, 1), ("mlp_out", 0, 2), ("mlp_out", 0, 3), ("mlp_out", 2, 3),
    ]  # fmt: skip
    everything = effective_writes(traced, plan, base, given, shared=NOTHING)
    assert len(everything) == 2 * (4 + 4 + 4 + 1)


def test_of_the_last_block_only_the_last_position_and_what_attention_reads_counts(traced):
    base, given = made_up_runs()
    everywhere = [Site(component, 2, "all") for component in ("resid_pre", "attn_out", "resid_post")]
    heads = [Site("head_out", 2, "all", 1)]
    left = effective(traced, [[site] for site in everywhere] + [heads], base, given, NOTHING)
    assert left == [
        [("resid_pre", 2, token) for token in range(4)],
        [("attn_out", 2, 3)],
        [("resid_post", 2, 3)],
        [("head_out", 2, 3, 1)],
    ]


def test_the_last_residual_ends_everything_before_it(traced):
    base, given = made_up_runs()
    early = [Site("resid_pre", 0, "all"), Site("mlp_out", 2, 3)]
    left = effective(
        traced, [[*early, Site("resid_post", 2, 3)], [*early, Site("resid_post", 2, 1)]], base, given, NOTHING
    )
    assert left == [[("resid_post", 2, 3)], [*(("resid_pre", 0, token) for token in range(4)), ("mlp_out", 2, 3)]]


def test_what_the_base_run_holds_is_written_only_after_a_change(traced):
    """Equal vectors count where an earlier write stands at their token or before it, and lower in the network."""
    base, given = made_up_runs()
    given["mlp_out", 1] = base["mlp_out", 1].clone()
    same = Site("mlp_out", 1, 2)
    sets = {
        "alone": ([same], []),
        "after": ([Site("resid_pre", 1, 2), same], [("resid_pre", 1, 2), ("mlp_out", 1, 2)]),
        "after an earlier token": ([Site("attn_out", 0, 1), same], [("attn_out", 0, 1), ("mlp_out", 1, 2)]),
        "before": ([same, Site("resid_pre", 2, 2)], [("resid_pre", 2, 2)]),
        "before a later token": ([Site("resid_pre", 1, 3), same], [("resid_pre", 1, 3)]),
        "in one block": ([Site("attn_out", 1, 2), same], [("attn_out", 1, 2), ("mlp_out", 1, 2)]),
    }
    left = effective(traced, [sites for sites, _ in sets.values()], base, given, NOTHING)
    assert dict(zip(sets, left, strict=True)) == {name: expected for name, (_, expected) in sets.items()}


def test_heads_are_compared_one_by_one(traced):
    base, given = made_up_runs()
    half = WIDTH // 2
    given["head_out", 0][:, :, half:] = base["head_out", 0][:, :, half:]
    sets = [[Site("head_out", 0, 1, 0)], [Site("head_out", 0, 1, 1)], [Site("head_out", 0, 1, h) for h in (0, 1)]]
    # In one site nothing comes before anything, so the equal head is left out beside the other one too.
    assert effective(traced, sets, base, given, NOTHING) == [[("head_out", 0, 1, 0)], [], [("head_out", 0, 1, 0)]]


def test_what_is_not_a_number_is_never_taken_for_the_base_run(traced):
    base, given = made_up_runs()
    for run in (base, given):
        run["mlp_out", 0][:] = torch.nan
    assert effective(traced, [[Site("mlp_out", 0, 3)]], base, given, NOTHING) == [[("mlp_out", 0, 3)]]


@pytest.mark.parametrize(
    "sites, start, join",
    [
        ([Site("embedding", 0, 1)], 1, 0),
        ([Site("resid_pre", 0, 2)], 2, 0),
        ([Site("resid_pre", 2, 2)], 2, 2),
        ([Site("head_out", 0, 3, 1)], 3, 1),
        ([Site("attn_out", 1, 0)], 0, 2),
        ([Site("mlp_out", 1, 3)], 3, 2),
        ([Site("mlp_out", 2, 3)], 3, 3),
        ([Site("resid_post", 0, 1)], 1, 1),
        ([Site("resid_post", 2, 3)], 3, 3),
        ([Site("mlp_out", 0, 3), Site("resid_pre", 2, 1)], 1, 1),  # first in depth, and first in reading order
        ([Site("attn_out", 1, "all")], 0, 2),
    ],
)
def test_where_a_row_starts_and_joins(traced, sites, start, join):
    plan = plan_sets(traced.model, PAIRS, {"empty": [], "s": sites})
    rows = rows_to_run(traced, plan.writes, plan.pair)
    assert (rows.patch.tolist(), rows.pair.tolist()) == ([1, 3], [0, 1])  # the empty sets need no row
    assert (rows.start.tolist(), rows.join.tolist()) == ([start] * 2, [join] * 2)


def test_rows_are_sorted_by_start_then_join(traced):
    plan = plan_sweep(
        traced.model, PAIRS, components=["mlp_out", "resid_pre"], layers=[0, 1], positions="each", window=1
    )
    rows = rows_to_run(traced, plan.writes, plan.pair)
    keys = list(zip(rows.start.tolist(), rows.join.tolist(), strict=True))
    assert keys == sorted(keys) and sorted(rows.patch.tolist()) == list(range(len(plan.pair)))
    assert len(rows.take(rows.start == 1)) == 8 and rows.take(slice(0, 2)).start.tolist() == [0, 0]


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel"])
def test_the_base_run_is_recorded_where_rows_need_it(family):
    """Attention beside a patched MLP is needed always; the MLP beside patched attention where both read one stream."""
    with traceable(shared_model(family, 0)) as traced:
        plan = plan_sets(traced.model, PAIRS, {"s": [Site("attn_out", 1, 1), Site("head_out", 1, 2, 0)]})
        assert patched_sites(plan.writes) == {("attn_out", 1), ("head_out", 1)}
        needed = base_sites(traced, plan.writes)
    assert needed >= {("attn_out", 1), ("head_out", 1), ("resid_pre", 1), ("resid_pre", 2)}
    assert (("mlp_out", 1) in needed) == (family == "neox-parallel")
