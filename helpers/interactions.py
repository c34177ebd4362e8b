"""Interactions: what sites do together, against the sum of what each does alone.

The study adds up layers. Effects add only where sites neither repeat nor need one another:

    denoising   joint < sum   redundant: each site alone already brings back what they bring together (an OR)
                joint > sum   they need one another (an AND)
    noising     joint < sum   each alone already breaks what they do together (an AND, or one path in series)
                joint > sum   one stands in for another that is lost alone (an OR: redundancy, backup, self-repair)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from helpers.architectures import layer_count
from helpers.metrics import with_effects
from helpers.pairs import PromptPair
from helpers.patching import measure_runs, sweep_sets
from helpers.plans import Site
from helpers.tracing import module_of


def joint_effects(
    model,
    pairs: Sequence[PromptPair],
    groups: Mapping[str, Sequence[Site]],
    *,
    directions: Sequence[str],
    row_budget: int | None = None,
) -> pd.DataFrame:
    """Every group of sites patched together, beside the sum of its sites patched one by one, in logits.

    One row per pair, direction and group: pair, direction, group, sites (how many), joint, added, denominator.
    """
    alone = {_name(site): [site] for sites in groups.values() for site in sites}
    together = {f"together {name}": list(sites) for name, sites in groups.items()}
    runs = measure_runs(model, pairs, metrics=("logit_difference",), row_budget=row_budget)
    tables = []
    for direction in directions:
        swept = sweep_sets(model, pairs, alone | together, direction=direction, row_budget=row_budget)
        effects = with_effects(swept, runs)
        grid = effects.pivot(index="pair", columns="sites", values="numerator")
        denominator = effects.drop_duplicates("pair").set_index("pair")["denominator"]
        for name, sites in groups.items():
            columns = {"joint": grid[f"together {name}"], "added": grid[[_name(site) for site in sites]].sum(axis=1)}
            table = pd.DataFrame(columns | {"denominator": denominator}).rename_axis("pair").reset_index()
            tables.append(table.assign(direction=direction, group=name, sites=len(sites)))
    return pd.concat(tables, ignore_index=True)


def all_layers(model, component: str) -> list[Site]:
    """The component of every layer, each at all positions."""
    return [Site(component, layer, "all") for layer in range(layer_count(module_of(model)))]


def top_heads(effects: pd.DataFrame, *, direction: str, count: int) -> list[Site]:
    """The `count` heads with the largest mean effect in one direction, strongest first, each at all positions.

    `effects` are those of experiment.measure_effects. Choose them on other items than those they are then measured on.
    """
    heads = effects[(effects["component"] == "head_out") & (effects["direction"] == direction)]
    means = heads.groupby(["layer", "head"])["numerator"].mean().sort_values(ascending=False, kind="stable")
    return [Site("head_out", int(layer), "all", int(head)) for layer, head in means.index[:count]]


def _name(site: Site) -> str:
    return f"{site.component} {site.layer} {site.position} {site.head}"
