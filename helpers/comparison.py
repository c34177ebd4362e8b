"""Comparison: every cell that Zhang & Nanda publish, beside what was measured here on the same model, and whether they
agree, by rule. What is published stands in `helpers.zhang_nanda`; `ours` is only ever taken from measured tables.

    number    agrees where it lies in our interval, or where our estimate rounds to the digits that are printed
    range     agrees where our interval, or our estimate, has a value in common with it
    found     how many heads of a class: agrees like a number; our interval reaches from the heads found in more than
              97.5 % of the resamples to those found in at least 2.5 %
    heads     agree where the two sets are equal (but for heads that the paper leaves out of print); else every missing
              or extra head is named, with the share of resamples that find it: *borderline* from 2.5 to 97.5 %

A cell is "not run" where nothing was measured, or only on other models: a number of the small embedded model says
nothing of one that GPT-2 gave. It is "undefined" where what was measured gives no number.
"""

from __future__ import annotations

import math

import pandas as pd

from helpers.config import Model
from helpers.zhang_nanda import CELLS, CLASSES, Cell, Found, Heads, Number, Range

KEYS = ["model", "task", "corruption", "tokens", "metric"]
NUMBERS = [*KEYS, "quantity", "estimate", "low", "high"]
HEADS = [*KEYS, "role", "sign", "layer", "head", "detected", "stability"]
COLUMNS = ["source", *KEYS, "quantity", "published", "ours", "low", "high", "agrees", "why"]
SELDOM, ALWAYS = 0.025, 0.975
NONE = "–"
_OF_NUMBERS = (Number, Range)
HUB = {"openai-community/gpt2": "gpt2", "openai-community/gpt2-large": "gpt2-large"}
HUB |= {"openai-community/gpt2-xl": "gpt2-xl", "EleutherAI/gpt-j-6b": "gptj", "EleutherAI/gpt-j-6B": "gptj"}


class ComparisonError(ValueError):
    """Measurements that cannot be put beside published cells."""


def published_name(model: Model) -> str:
    """The name under which the paper speaks of a profile's model, or the model's own; what a folder holds is unknown.

    Weights without training are never a published model, whatever their shape.
    """
    return "random weights" if model.plumbing else HUB.get(model.name_or_path, model.name_or_path)


def comparison(numbers: pd.DataFrame, heads: pd.DataFrame) -> pd.DataFrame:
    """One row per published cell, COLUMNS, all of them text; `agrees` is yes, no, undefined or not run.

    `numbers` has NUMBERS: an estimate with its 95 % interval over prompts (NaN where it has none), `quantity` one of
    those of the cells. `heads` has HEADS: a row for every patched head and sign ("positive", "negative"), whether it is
    detected, and the share of bootstrap resamples that detect it with that sign; `role` is that of the patched tokens,
    or "all". Either may be empty, and hold what is not published. For head sets, low and high are the heads found in
    more than 97.5 % and in at least 2.5 % of the resamples. Raises ComparisonError for a missing column, a quantity or
    sign that no cell knows, a share that is none, or a value that is measured twice.
    """
    _check(numbers, NUMBERS, [*KEYS, "quantity"])
    _check(heads, HEADS, [*KEYS, "role", "sign", "layer", "head"])
    _check_names(numbers, "quantity", {cell.quantity for cell in CELLS if isinstance(cell.published, _OF_NUMBERS)})
    _check_names(heads, "sign", {"positive", "negative"})
    heads = heads.astype({"detected": bool})
    if not heads["stability"].between(0, 1).all():
        raise ComparisonError("`stability` is a share of resamples, from 0 to 1: count those that detect the head.")
    numbers, heads = _by_cell(numbers, ["quantity"]), _by_cell(heads, ["role", "sign"])
    rows = [_where(cell) | _compared(cell, numbers, heads) for cell in CELLS]
    return pd.DataFrame(rows, columns=COLUMNS)


def agreement(table: pd.DataFrame) -> str:
    """How many cells of a comparison agree, disagree and were not run, in sentences."""
    count = table["agrees"].value_counts()
    run = len(table) - count.get("not run", 0)
    if not run:
        return f"None of the {len(table)} published cells was run: {_reasons(table)}."
    undefined = f", and {count['undefined']} are undefined here" if "undefined" in count else ""
    apart = table[table["agrees"] == "no"]
    marginal = apart["why"].str.contains("borderline") & ~apart["why"].str.contains("not borderline")
    close = ""
    if len(apart):
        close = f" Of those that disagree, {marginal.sum()} do so by nothing but heads that are borderline here."
    rest = f" {len(table) - run} were not run: {_reasons(table)}." if run < len(table) else ""
    return (
        f"Of {len(table)} published cells {run} were run: {count.get('yes', 0)} agree and {len(apart)} do not"
        f"{undefined}.{close}{rest}"
    )


def _reasons(table: pd.DataFrame) -> str:
    reasons = table.loc[table["agrees"] == "not run", "why"].value_counts(sort=False)
    return "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def _where(cell: Cell) -> dict[str, str]:
    names = ["source", *KEYS, "quantity"]
    return {name: getattr(cell, name) for name in names} | {"published": str(cell.published)}


def _by_cell(table: pd.DataFrame, names: list[str]) -> dict[tuple, pd.DataFrame]:
    """The rows of every cell, of whatever model."""
    return dict(iter(table.groupby([*KEYS[1:], *names])))


def _compared(cell: Cell, numbers: dict[tuple, pd.DataFrame], heads: dict[tuple, pd.DataFrame]) -> dict[str, str]:
    said = cell.published
    if isinstance(said, _OF_NUMBERS):
        found, reason = _measured(cell, numbers, cell.quantity)
    else:
        found, reason = _patched(cell, heads, CLASSES[said.group] if isinstance(said, Found) else said)
    if reason:
        return {"ours": "not run", "low": NONE, "high": NONE, "agrees": "not run", "why": reason}
    if isinstance(said, _OF_NUMBERS):
        return _number(said, *found[["estimate", "low", "high"]].iloc[0].astype(float))
    return _heads(said, found) if isinstance(said, Heads) else _found(said, found)


def _patched(cell: Cell, heads: dict[tuple, pd.DataFrame], known: Heads) -> tuple[pd.DataFrame | None, str]:
    """The rows of a cell by the heads' names, and why there are none, or not all that it speaks of."""
    found, reason = _measured(cell, heads, known.role, known.sign)
    if reason:
        return found, reason
    names = found["layer"].astype(str) + "." + found["head"].astype(str)
    absent = [name for name in known.names if name not in set(names)]
    return found.set_index(names), f"not patched here: {' '.join(absent)}" if absent else ""


def _measured(cell: Cell, measured: dict[tuple, pd.DataFrame], *names: str) -> tuple[pd.DataFrame | None, str]:
    """The rows of a cell, or why there are none."""
    found = measured.get((*(getattr(cell, key) for key in KEYS[1:]), *names))
    if found is None:
        return None, f"not measured on {cell.model}"
    own = found[found["model"] == cell.model]
    others = ", ".join(sorted(found["model"].unique()))
    return own, "" if len(own) else f"measured on {others}, published of {cell.model}"


def _number(said, estimate: float, low: float, high: float) -> dict[str, str]:
    first, last = (said.value, said.value) if isinstance(said, Number) else (said.low, said.high)
    digits = (said.decimals if isinstance(said, Number) else 1) + 1
    ours = {name: f"{value:.{digits}f}" for name, value in (("ours", estimate), ("low", low), ("high", high))}
    ours = {name: NONE if text == "nan" else text for name, text in ours.items()}
    if math.isnan(estimate):
        return ours | {"agrees": "undefined", "why": "what was measured gives no number"}
    inside = low <= last and high >= first
    half = 0.5 * 10.0**-said.decimals if isinstance(said, Number) else 0.0
    rounds = first - half - 1e-12 <= estimate <= last + half + 1e-12
    side = "above" if estimate > last else "below"
    why = "in our interval" if inside else "our estimate rounds to it" if half else "our estimate lies in it"
    if not (inside or rounds):
        why = f"our interval lies {side} it" if not math.isnan(low) else f"our estimate lies {side} it, no interval"
    elif inside and high - low > abs(last):
        why += ", which is wider than the number itself: that says little"
    return ours | {"agrees": "yes" if inside or rounds else "no", "why": why}


def _found(said: Found, found: pd.DataFrame) -> dict[str, str]:
    group = CLASSES[said.group]
    members = found.loc[list(group.names)]
    count, size = int(members["detected"].sum()), len(members)
    low, high = int((members["stability"] > ALWAYS).sum()), int((members["stability"] >= SELDOM).sum())
    ours = {"ours": f"{count}/{size}", "low": f"{low}/{size}", "high": f"{high}/{size}"}
    equal, inside = count == said.count, low <= said.count <= high
    why = "the same number" if equal else f"{'in' if inside else 'outside'} our interval"
    which = " ".join(members.index[members["detected"]]) or "none"
    return ours | {"agrees": "yes" if equal or inside else "no", "why": f"{why} (ours: {which})"}


def _heads(said: Heads, found: pd.DataFrame) -> dict[str, str]:
    found = found.sort_values(["layer", "head"])
    detected = list(found.index[found["detected"]])
    ours = {
        "ours": " ".join(detected) or "none",
        "low": " ".join(found.index[found["stability"] > ALWAYS]) or "none",
        "high": " ".join(found.index[found["stability"] >= SELDOM]) or "none",
    }
    missing = [name for name in said.names if name not in detected]
    extra = [name for name in detected if name not in said.names]
    if not missing and len(extra) <= said.omitted:
        return ours | {"agrees": "yes", "why": "the same heads" + (f", and {' '.join(extra)}" if extra else "")}
    parts = [
        f"{what}: {', '.join(_in_resamples(name, found.loc[name, 'stability']) for name in names)}"
        for what, names in (("missing", missing), ("extra", extra))
        if names
    ]
    return ours | {"agrees": "no", "why": "; ".join(parts)}


def _in_resamples(name: str, share: float) -> str:
    kind = "borderline" if SELDOM <= share <= ALWAYS else "not borderline"
    return f"{name} ({kind}, in {100 * share:.1f} % of resamples)"


def _check(table: pd.DataFrame, columns: list[str], identity: list[str]) -> None:
    if missing := [name for name in columns if name not in table]:
        raise ComparisonError(f"The measured table lacks {', '.join(missing)}; it needs {', '.join(columns)}.")
    if table.duplicated(identity).any():
        twice = table.loc[table.duplicated(identity), identity].iloc[0].to_dict()
        raise ComparisonError(f"{twice} is measured more than once: average draws and seeds before comparing.")


def _check_names(table: pd.DataFrame, column: str, known: set[str]) -> None:
    if unknown := sorted(set(table[column]) - known):
        raise ComparisonError(f"No published cell has the {column} {unknown[0]!r}: use one of {sorted(known)}.")
