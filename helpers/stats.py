"""Statistics whose unit is the item: bootstrap intervals, and one mixed-effects model with seeds as a factor."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf


class StatisticsError(ValueError):
    """Data that cannot carry the statistic asked of it."""


def bootstrap_interval(
    values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of a `statistic` of column means over resampled rows of `values` (items, columns).

    `statistic` maps means (resamples, columns) to (resamples,). Raises StatisticsError for no items or NaN.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or not len(values):
        raise StatisticsError(f"A bootstrap needs items as rows; it was given an array of shape {values.shape}.")
    if not np.isfinite(values).all():
        raise StatisticsError(f"{(~np.isfinite(values).all(1)).sum()} of {len(values)} items are not finite numbers.")
    items = len(values)
    drawn = np.random.default_rng(seed).integers(0, items, size=(resamples, items))
    places = drawn + items * np.arange(resamples)[:, None]
    times = np.bincount(places.ravel(), minlength=resamples * items).reshape(resamples, items)  # each item was drawn
    low, high = np.nanquantile(statistic(times @ values / items), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def ratio(means: np.ndarray) -> np.ndarray:
    """The first column over the second, `(…, columns)`: of means over items, recovery as a ratio of means."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a resampled denominator may be 0; quantiles pass over it
        return means[..., 0] / means[..., 1]


def recovery_intervals(
    effects: pd.DataFrame, *, by: list[str], item: str, resamples: int, confidence: float, seed: int
) -> pd.DataFrame:
    """Recovery per group with a bootstrap interval over items.

    `effects` has columns `by`, `item`, `numerator`, `denominator`, one row per patch; rows of one item (its seeds, its
    wordings) are averaged first, because the item is the unit. Returns by-columns, recovery, low, high, items, and
    `defined`: False where the interval of the mean denominator includes 0, or is that of a single item, so that a ratio
    has no meaning. Raises StatisticsError for no row, or NaN in any row.
    """
    _check_rows(effects, [item, "numerator", "denominator"])
    rows = []
    for key, group in effects.groupby(by, observed=True, dropna=False, sort=True):
        items = group.groupby(item)[["numerator", "denominator"]].mean().to_numpy()
        options = {"resamples": resamples, "confidence": confidence, "seed": seed}
        low, high = bootstrap_interval(items, ratio, **options)
        floor, ceiling = bootstrap_interval(items[:, 1:], lambda means: means[..., 0], **options)
        values = key if isinstance(key, tuple) else (key,)
        rows.append(
            dict(zip(by, values, strict=True))
            | {
                "recovery": float(ratio(items.mean(0))),
                "low": low,
                "high": high,
                "items": len(items),
                "defined": len(items) > 1 and not floor <= 0 <= ceiling,
            }
        )
    return pd.DataFrame(rows)


def contrasts(
    table: pd.DataFrame,
    *,
    by: list[str],
    item: str,
    kinds: tuple[str, str],
    resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """The first kind's ratio of means less the second's, with an interval over items and what chance would give.

    `table` has the columns `by`, `item`, kind, numerator, denominator (1 for a plain mean); rows of one item and kind
    are averaged first. An item may be of both kinds (the made-up arm), and is then drawn with both. Returns by-columns,
    the two ratios (by the kinds' own names), difference, low, high, items, and null_low, null_high: the central part of
    the differences when the kinds are exchanged at random, between items that are of one kind, within those that are of
    both. Raises StatisticsError for NaN, and where a group lacks one of the kinds.
    """
    _check_rows(table, [item, "kind", "numerator", "denominator"])
    rows, chooser = [], np.random.default_rng(seed)
    for key, group in table.groupby(by, observed=True, sort=True):
        wide = group.groupby([item, "kind"], observed=True)[["numerator", "denominator"]].mean().unstack("kind")
        if missing := [kind for kind in kinds if kind not in wide.columns.get_level_values("kind")]:
            raise StatisticsError(f"A contrast needs items of both kinds, and {key} has none that is {missing[0]}.")
        columns = [(part, kind) for kind in kinds for part in ("numerator", "denominator")]
        items = wide[columns].fillna(0).to_numpy()  # (items, 4): the two parts of each kind; absent ones add nothing
        low, high = bootstrap_interval(items, _difference, resamples=resamples, confidence=confidence, seed=seed)
        exchanged = [float(_difference(_exchange(items, chooser).mean(0))) for _ in range(resamples)]
        null = np.nanquantile(exchanged, [(1 - confidence) / 2, (1 + confidence) / 2])
        means = items.mean(0)
        found = {kinds[0]: float(ratio(means[:2])), kinds[1]: float(ratio(means[2:]))}
        found |= {"difference": float(_difference(means)), "low": low, "high": high, "items": len(items)}
        found |= {"null_low": float(null[0]), "null_high": float(null[1])}
        rows.append(dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True)) | found)
    return pd.DataFrame(rows)


def _difference(means: np.ndarray) -> np.ndarray:
    """The ratio of columns 0 and 1 less that of columns 2 and 3, `(…, columns)`."""
    return ratio(means[..., :2]) - ratio(means[..., 2:])


def _exchange(items: np.ndarray, chooser: np.random.Generator) -> np.ndarray:
    """Kinds exchanged at random: as many items of each kind as before."""
    swapped, both = items.copy(), (items[:, 1] != 0) & (items[:, 3] != 0)
    flip = both & (chooser.random(len(items)) < 0.5)
    single = np.flatnonzero(~both)
    first = items[single, 1] != 0
    flip[single] = chooser.permutation(first) != first
    swapped[flip] = items[flip][:, [2, 3, 0, 1]]
    return swapped


def layer_range(effects: pd.DataFrame, *, item: str, resamples: int, confidence: float, seed: int) -> dict[str, float]:
    """How far the layer that recovers most is above the one that recovers least, and what chance would give.

    `effects` has one row or more per item and layer, with numerator and denominator; every item has every layer.
    Returns estimate, low, high (over items), null_low and null_high (layers exchanged at random within each item).
    """
    _check_rows(effects, [item, "layer", "numerator", "denominator"])
    values = effects.pivot_table(index=item, columns="layer", values="numerator", aggfunc="mean", observed=True)
    scale = effects.groupby(item, observed=True)["denominator"].mean().reindex(values.index).to_numpy()
    items = np.column_stack([values.to_numpy(), scale])

    def spread(means: np.ndarray) -> np.ndarray:
        return (means[..., :-1].max(-1) - means[..., :-1].min(-1)) / means[..., -1]

    low, high = bootstrap_interval(items, spread, resamples=resamples, confidence=confidence, seed=seed)
    chooser = np.random.default_rng(seed)
    exchanged = [chooser.permuted(values.to_numpy(), axis=1).mean(0) for _ in range(resamples)]
    ranges = spread(np.column_stack([exchanged, np.full(resamples, scale.mean())]))
    null = np.quantile(ranges, [(1 - confidence) / 2, (1 + confidence) / 2])
    found = {"estimate": float(spread(items.mean(0))), "low": low, "high": high}
    return found | {"null_low": float(null[0]), "null_high": float(null[1])}


def mixed_model(table: pd.DataFrame, formula: str, *, item: str) -> pd.DataFrame:
    """Linear mixed model with a random intercept per item, by restricted maximum likelihood.

    Returns one row per fixed effect: term, estimate, standard_error, low, high (95 %), p_value, `converged`.
    """
    fit = _fit(table, formula, item)
    interval = fit.conf_int()
    return pd.DataFrame(
        {
            "term": fit.fe_params.index,
            "estimate": fit.fe_params.to_numpy(),
            "standard_error": fit.bse_fe.to_numpy(),
            "low": interval.loc[fit.fe_params.index, 0].to_numpy(),
            "high": interval.loc[fit.fe_params.index, 1].to_numpy(),
            "p_value": fit.pvalues.loc[fit.fe_params.index].to_numpy(),
            "converged": bool(fit.converged),
        }
    )


def layer_effects(effects: pd.DataFrame) -> pd.DataFrame:
    """One response per item, layer, kind and seed: its effect over the mean denominator of its arm, kind and seed.

    Dividing by the mean, and not item by item, keeps items with a small clean–corrupted difference from dominating.
    """
    groups = ["arm", "kind", "seed"]
    means = effects.groupby([*groups, "item_id"])["denominator"].first().groupby(groups).mean().rename("scale")
    table = effects.join(means, on=groups)
    if (table["scale"] == 0).any():
        raise StatisticsError("A mean clean–corrupted difference is exactly 0, so effects have no unit.")
    return table.assign(effect=table["numerator"] / table["scale"])[[*groups, "item_id", "layer", "effect"]]


def layer_formula(effects: pd.DataFrame, *, coding: str = "Treatment") -> str:
    """`effect` by layer, kind, their interaction and seed; a factor that has one level in this run is left out."""
    factors = {name: f"C({name}, {coding})" for name in ("layer", "kind", "seed") if effects[name].nunique() > 1}
    crossed = " * ".join(factors[name] for name in ("layer", "kind") if name in factors)
    terms = [term for term in (crossed, factors.get("seed")) if term]
    if not terms:
        raise StatisticsError("Layer, kind and seed all have a single level, so there is nothing to compare.")
    return f"effect ~ {' + '.join(terms)}"


def wald_tests(table: pd.DataFrame, formula: str, *, item: str) -> pd.DataFrame:
    """Joint Wald χ² test of every term of a mixed model with a random intercept per item: term, chi2, df, p_value."""
    fit = _fit(table, formula, item)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit.wald_test_terms(skip_single=False, scalar=True).table
    rows = found.drop(index=[term for term in found.index if term.endswith(" Var")])  # the variance is no fixed effect
    return pd.DataFrame(
        {
            "term": rows.index,
            "chi2": rows["statistic"].astype(float).to_numpy(),
            "df": rows["df_constraint"].astype(float).to_numpy(),
            "p_value": rows["pvalue"].astype(float).to_numpy(),
        }
    )


def readable_terms(coefficients: pd.DataFrame) -> pd.DataFrame:
    """Terms as a reader says them: `C(layer, Sum)[S.3]` becomes `layer 3`, and a product gets a ×."""
    terms = coefficients["term"].str.replace(r"C\((\w+), \w+\)(?:\[(?:[TS]\.)?([^\]]+)\])?", r"\1 \2", regex=True)
    return coefficients.assign(term=terms.str.replace(r"\s*:\s*", " × ", regex=True).str.strip())


def _fit(table: pd.DataFrame, formula: str, item: str):
    if table[item].nunique() < 3:
        raise StatisticsError(f"A mixed model needs at least 3 items, not {table[item].nunique()}.")
    _check_rows(table, [name for name in table.columns if name in formula or name == item])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence is reported in the table, where a reader sees it
        return smf.mixedlm(formula, table, groups=table[item]).fit(reml=True)


def _check_rows(table: pd.DataFrame, columns: list[str]) -> None:
    """A mean skips NaN in silence, and an item that is NaN is no group: neither may happen unseen."""
    if table.empty:
        raise StatisticsError("There is no row to compute from: an earlier step has left nothing over.")
    if broken := int(table[columns].isna().any(axis=1).sum()):
        raise StatisticsError(
            f"{broken} of {len(table)} rows are NaN in {', '.join(columns)}: find what gave no number."
        )
