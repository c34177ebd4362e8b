"""Windows: adjacent layers patched together, beside the sum of what each of them does alone.

Zhang & Nanda (arXiv 2309.16042, sections 4 and 5) restore the MLPs of w adjacent layers jointly, as ROME does, and ask
how much of the result the window makes. An effect here is the published one: the logit difference over the mean clean −
corrupted difference, everything else in its own unit, and the divergence by which a patch *comes nearer* to the clean
run. What is divided by is always a mean over pairs; the draws and tokens of one pair and role are averaged first.

The top of a curve is the largest of many layers, chosen on the prompts that measure it: it is chosen anew inside every
resample, so that an interval also holds the choice, though not the gain that any choice brings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.architectures import layer_count
from helpers.metrics import with_effects
from helpers.noise import GaussianNoise
from helpers.pairs import PromptPair
from helpers.patching import measure_runs, sweep_sets
from helpers.plans import Site, window_layers
from helpers.stats import bootstrap_interval, ratio
from helpers.tracing import module_of

EFFECTS = ["corruption", "draw", "direction", "pair", "component", "layer", "head", "role", "window", "metric"]
CHOICES = ("task", "model", "tokens", "corruption", "direction", "component", "metric")


class WindowError(ValueError):
    """Effects from which no window can be compared with its layers."""


def measure_windows(
    model,
    pairs: Sequence[PromptPair],
    *,
    components: Sequence[str],
    roles: Sequence[str],
    windows: Sequence[int],
    corruptions: Sequence[GaussianNoise | None],
    directions: Sequence[str],
    metrics: Sequence[str],
    row_budget: int | None = None,
) -> pd.DataFrame:
    """Patch windows of layers, and single ones, at each of `roles` (or "all" positions), in the given directions.

    A corruption of None is the corrupted prompt of the pair (STR, draw 0), and noise is GN, its draw the seed. One row
    per patch of one pair and metric: corruption, draw, direction, pair, component, layer (the window's centre), head
    (<NA>), role, window, metric, numerator, denominator (metrics.with_effects). Window 1 is always measured; windows
    that the ends of the network cut to the same layers are patched once, and stand in the table for each. A pair has no
    rows of a role that it lacks. Raises PatchingError as `sweep_sets` does.
    """
    sets, lines = _window_sets(layer_count(module_of(model)), components, roles, windows)
    own_roles = [(pair.pair_id, role) for pair in pairs for role in (*dict.fromkeys(pair.roles), "all")]
    present = pd.DataFrame(own_roles, columns=["pair", "role"])
    tables = []
    for noise in corruptions:
        runs = measure_runs(model, pairs, corruption=noise, metrics=metrics, row_budget=row_budget)
        corruption = {"corruption": "GN" if noise else "STR", "draw": noise.seed if noise else 0}
        for direction in directions:
            options = {"direction": direction, "corruption": noise, "metrics": metrics, "row_budget": row_budget}
            swept = sweep_sets(model, pairs, sets, **options).merge(lines, on="sites").merge(present)
            tables += [
                with_effects(swept, runs, metric=metric).assign(metric=metric, head=pd.NA, **corruption)
                for metric in metrics
            ]
    table = pd.concat(tables, ignore_index=True).astype({"head": "Int64"})
    return table[[*EFFECTS, "numerator", "denominator"]]


def _window_sets(
    layers: int, components: Sequence[str], roles: Sequence[str], windows: Sequence[int]
) -> tuple[dict[str, list[Site]], pd.DataFrame]:
    """The sets to patch by name, and the lines (component, role, window, layer) that each of them stands for."""
    sets, lines = {}, []
    for component in components:
        for role in roles:
            for window in sorted({1, *windows}):
                for layer in range(layers):
                    reach = window_layers(layer, window=window, layers=layers)
                    name = f"{component} {reach.start}–{reach.stop - 1} {role}"
                    sets[name] = [Site(component, other, role) for other in reach]
                    lines.append((name, component, role, window, layer))
    return sets, pd.DataFrame(lines, columns=["sites", "component", "role", "window", "layer"])


@dataclass(frozen=True)
class _Curves:
    """The effects of one window size at one role: `joint` and `summed` are (pairs, layers), `unit` is (pairs,)."""

    role: str
    window: int
    pairs: pd.Index
    joint: np.ndarray
    summed: np.ndarray
    unit: np.ndarray


def joint_and_sum(
    effects: pd.DataFrame, *, by: Sequence[str], resamples: int, confidence: float, seed: int
) -> pd.DataFrame:
    """Every window patched together, beside the sum of the same layers patched alone.

    `effects` is a table of `measure_windows`, or any with its columns, of which those named in CHOICES must not vary
    within a group of `by`; window 1 holds every layer. Returns by-columns, role, window, layer (the centre), layers
    (how many the window holds, fewer at the ends and where the network is smaller), joint, summed (published effects),
    ratio of the two with low and high over pairs, defined, and pairs. `defined` is False where the interval of what is
    divided by includes 0, or is that of a single pair. Raises WindowError for groups that mix choices, or lack a layer.
    """
    options, rows = {"resamples": resamples, "confidence": confidence, "seed": seed}, []
    for key, group in _groups(effects, by):
        for curves in _curves(group):
            layers = curves.joint.shape[1]
            for layer in range(layers):
                items = np.column_stack([curves.joint[:, layer], curves.summed[:, layer], curves.unit])
                joint, summed = items[:, :2].mean(0) / curves.unit.mean()
                held = len(window_layers(layer, window=curves.window, layers=layers))
                found = {"role": curves.role, "window": curves.window, "layer": layer, "layers": held}
                found |= {"joint": joint, "summed": summed}
                found |= _over(items, lambda m: m[..., 0], lambda m: m[..., 1], units=(2,), **options)
                rows.append(key | found | {"pairs": len(items)})
    return pd.DataFrame(rows)


def peaks(effects: pd.DataFrame, *, by: Sequence[str], resamples: int, confidence: float, seed: int) -> pd.DataFrame:
    """The top of the joint effects and of the summed ones, over layers, and the ratio of the two.

    Returns by-columns, role, window, layers (of the network), joint_layer, joint, summed_layer, summed, ratio, low,
    high, defined, pairs; all else is as in `joint_and_sum`.
    """
    options, rows = {"resamples": resamples, "confidence": confidence, "seed": seed}, []
    for key, group in _groups(effects, by):
        for curves in _curves(group):
            layers = curves.joint.shape[1]
            items = np.column_stack([curves.joint, curves.summed, curves.unit])
            joint, summed = (items[:, i : i + layers].mean(0) / curves.unit.mean() for i in (0, layers))
            found = {"role": curves.role, "window": curves.window, "layers": layers}
            found |= {"joint_layer": int(joint.argmax()), "joint": joint.max()}
            found |= {"summed_layer": int(summed.argmax()), "summed": summed.max()}
            found |= _over(items, _top(0, layers), _top(layers, 2 * layers), units=(-1,), **options)
            rows.append(key | found | {"pairs": len(items)})
    return pd.DataFrame(rows)


def position_ratios(
    effects: pd.DataFrame, *, by: Sequence[str], resamples: int, confidence: float, seed: int
) -> pd.DataFrame:
    """Σ over layers of the joint effect at the last subject token ÷ the same at the middle ones, per window.

    Of pairs that have both roles. Middle tokens that were patched together count as one patch; patched one by one
    they are averaged, as in ROME. Returns by-columns, window, last, middle (the two sums), ratio, low, high, defined,
    pairs; all else is as in `joint_and_sum`. Raises WindowError where no pair of a group has both roles.
    """
    options, rows = {"resamples": resamples, "confidence": confidence, "seed": seed}, []
    for key, group in _groups(effects, by):
        found = {(curves.role, curves.window): curves for curves in _curves(group)}
        windows = [window for role, window in found if role == "subject_middle"]
        if not windows or not any(role == "subject_last" for role, _ in found):
            raise WindowError(f"No pair of {key} has a middle and a last subject token: its subjects are too short.")
        for window in windows:
            last, middle = found["subject_last", window], found["subject_middle", window]
            both = last.pairs.intersection(middle.pairs)
            own, other = last.pairs.get_indexer(both), middle.pairs.get_indexer(both)
            items = np.column_stack([last.joint[own].sum(1), middle.joint[other].sum(1), last.unit[own]])
            sums = dict(zip(("last", "middle"), items[:, :2].mean(0) / items[:, 2].mean(), strict=True))
            over = _over(items, lambda m: m[..., 0], lambda m: m[..., 1], units=(2,), **options)
            rows.append(key | {"window": window} | sums | over | {"pairs": len(both)})
    return pd.DataFrame(rows)


def peak_ratio(
    effects: pd.DataFrame, *, by: Sequence[str], role: str, resamples: int, confidence: float, seed: int
) -> pd.DataFrame:
    """The top of the effects under Gaussian noise ÷ the top under symmetric replacement, at one role, per window.

    `by` must not name corruption; of pairs that were measured under both. Returns by-columns, role, window, GN_layer,
    GN, STR_layer, STR (the two tops), ratio, low, high, defined, pairs; all else is as in `joint_and_sum`. Raises
    WindowError where a group lacks one of the corruptions at that role.
    """
    options, rows = {"resamples": resamples, "confidence": confidence, "seed": seed}, []
    at_role = effects[effects["role"] == role]
    found: dict[tuple, dict[str, _Curves]] = {}
    for key, group in _groups(at_role, [*by, "corruption"]):
        for curves in _curves(group):
            found.setdefault((*(key[name] for name in by), curves.window), {})[key["corruption"]] = curves
    for (*key, window), of in found.items():
        if missing := {"GN", "STR"} - set(of):
            raise WindowError(f"{', '.join(sorted(missing))} is missing at {role}, window {window}: measure both.")
        both = of["GN"].pairs.intersection(of["STR"].pairs)
        parts, tops = [], {}
        for name in ("GN", "STR"):
            rank = of[name].pairs.get_indexer(both)
            parts.append(np.column_stack([of[name].joint[rank], of[name].unit[rank]]))
            curve = parts[-1][:, :-1].mean(0) / parts[-1][:, -1].mean()
            tops |= {f"{name}_layer": int(curve.argmax()), name: curve.max()}
        layers, items = parts[0].shape[1] - 1, np.column_stack(parts)
        noised, replaced = _top(0, layers, unit=layers), _top(layers + 1, 2 * layers + 1)
        over = _over(items, noised, replaced, units=(layers, -1), **options)
        rows.append(dict(zip(by, key, strict=True)) | {"role": role, "window": window} | tops | over)
        rows[-1]["pairs"] = len(both)
    return pd.DataFrame(rows)


def _groups(effects: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[dict, pd.DataFrame]]:
    """The rows of each group of `by`, with `value` and `unit`: a published effect is mean value ÷ mean unit."""
    divergence, normalised = effects["metric"] == "kl_divergence", effects["metric"] == "logit_difference"
    value = effects["numerator"].where(~divergence, -effects["numerator"])
    rows = effects.assign(value=value, unit=effects["denominator"].where(normalised, 1.0))
    for key, group in rows.groupby(list(by), observed=True, sort=False):
        if mixed := [name for name in CHOICES if name in group and group[name].nunique() > 1]:
            raise WindowError(
                f"The effects of {key} mix {', '.join(mixed)}, whose effects must not be averaged: put them into `by`."
            )
        yield dict(zip(by, key, strict=True)), group


def _curves(group: pd.DataFrame) -> Iterator[_Curves]:
    """The curves of every role and window of one group, in the order of the roles' first rows."""
    unit = group.groupby("pair", sort=False)["unit"].mean()
    for role, rows in group.groupby("role", sort=False):
        grid = rows.pivot_table(index="pair", columns=["window", "layer"], values="value", aggfunc="mean", sort=True)
        layers = range(int(rows["layer"].max()) + 1)
        expected = [(window, layer) for window in sorted({1, *rows["window"]}) for layer in layers]
        if grid.columns.tolist() != expected or grid.isna().any(axis=None):
            raise WindowError(
                f"The effects at {role} lack a layer for some pair or window; windows are compared with every layer "
                "patched alone (window 1)."
            )
        single = grid[1].to_numpy()
        for window in grid.columns.levels[0]:
            reach = [window_layers(layer, window=window, layers=len(layers)) for layer in layers]
            summed = np.column_stack([single[:, held].sum(1) for held in reach])
            yield _Curves(role, int(window), grid.index, grid[window].to_numpy(), summed, unit[grid.index].to_numpy())


def _top(start: int, stop: int, unit: int = -1) -> Callable[[np.ndarray], np.ndarray]:
    """The largest of the effects whose values are these columns of means, `(…, columns)`, in the unit of another."""
    return lambda means: (means[..., start:stop] / means[..., unit, None]).max(-1)


def _over(
    items: np.ndarray, of: Callable, over: Callable, *, units: Sequence[int], **options: float
) -> dict[str, float | bool]:
    """One statistic of column means over another: ratio, low, high, and whether that is defined.

    `units` are the columns by which effects are divided before: they too must be told from 0.
    """

    def both(means: np.ndarray) -> np.ndarray:
        return ratio(np.stack([of(means), over(means)], axis=-1))

    divisors = [over, *(lambda means, unit=unit: means[..., unit] for unit in units)]
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = [bootstrap_interval(items, divisor, **options) for divisor in divisors]
        if np.isclose(ends[0], 0, rtol=0, atol=np.finfo(float).tiny).all():  # a site that does nothing has no ratio
            return {"ratio": np.nan, "low": np.nan, "high": np.nan, "defined": False}
        low, high = bootstrap_interval(items, both, **options)
    defined = len(items) > 1 and all(floor > 0 for floor, _ in ends)
    return {"ratio": float(both(items.mean(0))), "low": low, "high": high, "defined": defined}
