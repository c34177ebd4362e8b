"""Verdicts: which conclusions of the papers hold in this run, by the rules of `helpers.recommendations`, in words.

The evidence is one tidy table, a row per key, task and detail: key (one of recommendations.KEYS), task, estimate, low
and high (a 95 % interval over prompts; NaN where the quantity is not defined), and detail, a text that says where it
was measured (heads, layers, the window, the metric). Only tasks that the model does belong in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from helpers.recommendations import KEYS, RECOMMENDATIONS, Recommendation

EVIDENCE = ["key", "task", "estimate", "low", "high", "detail"]
HOLDS, FAILS, UNDECIDED, UNTESTED = VERDICTS = ("holds here", "does not hold here", "undecided", "not tested")
_DIRECTIONS = ({"denoising"}, {"noising"}, {"denoising", "noising"})
SIDES = ("for", "against", "open")
VERDICT_COLUMNS = ["recommendation", "conclusion", "advice", "source", "verdict", *SIDES, "missing", "sentence"]
SETTING_COLUMNS = ["setting", "value", "for", "against", "silent"]


class EvidenceError(ValueError):
    """Evidence that no verdict can be read from."""


def readings(evidence: pd.DataFrame) -> pd.DataFrame:
    """Every row of the evidence under each recommendation that reads it: a row says for, against, or nothing yet.

    Columns: recommendation, key, task, detail, estimate, low, high, asked (where the interval must lie to speak for
    it), side. Sorted as the recommendations are, then by task and detail. Raises EvidenceError for a missing column, a
    key that nobody reads, an interval without its estimate, or a row that is there twice.
    """
    _check(evidence)
    ordered = evidence[EVIDENCE].sort_values(["task", "detail"], kind="stable").to_dict("records")
    rows = [
        {"recommendation": name, **row, "asked": str(reading), "side": reading.side(row["low"], row["high"])}
        for name, recommendation in RECOMMENDATIONS.items()
        for reading in recommendation.readings
        for row in ordered
        if row["key"] == reading.key
    ]
    columns = ["recommendation", "key", "task", "detail", "estimate", "low", "high", "asked", "side"]
    return pd.DataFrame(rows, columns=columns)


def verdicts(evidence: pd.DataFrame, *, plumbing: bool) -> pd.DataFrame:
    """One row per recommendation, VERDICT_COLUMNS: a verdict by rule, and the numbers for and against it in words.

    `missing` names the keys without evidence. On `plumbing`, weights without training, nothing is tested and no number
    speaks. Raises EvidenceError as `readings` does.
    """
    read = readings(evidence.head(0) if plumbing else evidence).to_dict("records")
    rows = []
    for name, recommendation in RECOMMENDATIONS.items():
        own = [row for row in read if row["recommendation"] == name]
        missing = [key for key in recommendation.keys if key not in {row["key"] for row in own}]
        said = {side: _numbers([row for row in own if row["side"] == side]) for side in SIDES}
        verdict = UNTESTED if missing else _verdict(recommendation, own)
        why = "weights without training" if plumbing else f"not measured: {'; '.join(KEYS[key] for key in missing)}"
        row = {"recommendation": name, "verdict": verdict, "missing": ", ".join(missing), **said}
        row |= {part: getattr(recommendation, part) for part in ("conclusion", "advice", "source")}
        rows.append(row | {"sentence": _sentence(recommendation, verdict, said, own, why)})
    return pd.DataFrame(rows, columns=VERDICT_COLUMNS)


def overview(verdicts: pd.DataFrame) -> str:
    """How many of the conclusions hold, and which, in one sentence."""
    parts = []
    for verdict in VERDICTS:
        named = verdicts.loc[verdicts["verdict"] == verdict, "conclusion"]
        if len(named):
            names = "; ".join(f"{text[0].lower()}{text[1:]}" for text in named)
            parts.append(f"**{len(named)} {_plural(verdict, len(named))}** ({names})")
    return f"Of {len(verdicts)} conclusions of the papers, {', '.join(parts)}."


def settings_check(
    verdicts: pd.DataFrame, *, corruption: str, metric: str, directions: Sequence[str], window: int
) -> pd.DataFrame:
    """What this run's evidence says about the settings of notebook 04: a report, which changes none of them.

    One row per setting, SETTING_COLUMNS: the conclusions that speak for its value and against it, and those that would
    speak but are undecided, not tested, or give no advice as they came out. `corruption` is "STR" or "GN", `window` a
    number of layers. Raises EvidenceError for a corruption, direction or window that does not exist.
    """
    if corruption not in ("STR", "GN") or window < 1 or set(directions) not in _DIRECTIONS:
        raise EvidenceError(
            f"Settings are a corruption STR or GN, directions among denoising and noising, and a window of at least 1 "
            f"layer, not {corruption!r}, {directions!r} and {window!r}."
        )
    values = {
        "corruption": corruption,
        "metric": metric,
        "directions": "both" if len(set(directions)) == 2 else " ".join(directions),
        "window": "single layers" if window == 1 else "windows",
    }
    found = verdicts.set_index("recommendation")["verdict"]
    rows = []
    for setting, value in values.items():
        said = {"for": [], "against": [], "silent": []}
        for name, recommendation in RECOMMENDATIONS.items():
            if recommendation.setting == setting:
                said[_says(recommendation, found[name], value)].append(f"{recommendation.conclusion} ({found[name]})")
        rows.append({"setting": setting, "value": value} | {side: "; ".join(parts) for side, parts in said.items()})
    return pd.DataFrame(rows, columns=SETTING_COLUMNS)


def settings_statement(check: pd.DataFrame) -> str:
    """Which settings of notebook 04 this run's evidence backs, contradicts, or leaves open, in sentences."""
    backed, contradicted = check["for"] != "", check["against"] != ""
    groups = {
        "The evidence of this run speaks for": check[backed & ~contradicted],
        "It speaks against": check[contradicted & ~backed],
        "It speaks both for and against": check[backed & contradicted],
        "It says nothing about": check[~backed & ~contradicted],
    }
    named = {lead: part["setting"] + " = " + part["value"].str.replace("_", " ") for lead, part in groups.items()}
    said = [f"{lead} {', '.join(part)}." for lead, part in named.items() if len(part)]
    return " ".join(["Of the settings of notebook 04, which stand in the profile and are not changed here:", *said])


def _verdict(recommendation: Recommendation, own: list[dict]) -> str:
    keys = {_pooled(_sides(own, key)) for key in recommendation.keys}
    if "against" in keys:
        return FAILS
    return HOLDS if keys == {"for"} else UNDECIDED


def _sides(own: list[dict], key: str) -> set[str]:
    return {row["side"] for row in own if row["key"] == key}


def _pooled(sides: set[str]) -> str:
    """What tasks say together: one that is open leaves it to the others, contradiction leaves it open."""
    decided = sides - {"open"}
    return decided.pop() if len(decided) == 1 else "open"


def _numbers(rows: list[dict]) -> str:
    each = {}
    for row in rows:
        each.setdefault(f"{KEYS[row['key']]} (asked: {row['asked']})", []).append(_number(row))
    return "; ".join(f"{what}: {', '.join(said)}" for what, said in each.items())


def _number(row: dict) -> str:
    where = f"{row['task']}, {row['detail']}" if row["detail"] else row["task"]
    if math.isnan(row["low"]) or math.isnan(row["high"]):
        return f"undefined ({where})"
    return f"{row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}] ({where})"


def _sentence(recommendation: Recommendation, verdict: str, said: dict[str, str], own: list[dict], why: str) -> str:
    parts = [f"{recommendation.conclusion}: {verdict}{f' ({why})' if verdict == UNTESTED else ''}."]
    parts += [f"{side.capitalize()}: {said[side]}." for side in SIDES if said[side]]
    split = any({"for", "against"} <= _sides(own, key) for key in recommendation.keys)
    if split and verdict == UNDECIDED:
        parts.append("It depends on where it is asked.")
    return " ".join(parts)


def _says(recommendation: Recommendation, verdict: str, value: str) -> str:
    advised = {HOLDS: recommendation.advised, FAILS: recommendation.otherwise}.get(verdict, ())
    return ("for" if value in advised else "against") if advised else "silent"


def _plural(verdict: str, count: int) -> str:
    return verdict if count == 1 else {HOLDS: "hold here", FAILS: "do not hold here"}.get(verdict, verdict)


def _check(evidence: pd.DataFrame) -> None:
    if missing := [name for name in EVIDENCE if name not in evidence]:
        raise EvidenceError(f"The evidence lacks {', '.join(missing)}; it needs {', '.join(EVIDENCE)}.")
    if unknown := sorted(set(evidence["key"]) - set(KEYS)):
        raise EvidenceError(f"Nothing reads the key {unknown[0]!r}: use one of {', '.join(KEYS)}.")
    if evidence.duplicated(["key", "task", "detail"]).any():
        twice = evidence.loc[evidence.duplicated(["key", "task", "detail"]), ["key", "task", "detail"]].iloc[0]
        raise EvidenceError(f"{', '.join(twice)} is there twice: say in `detail` what differs, or average.")
    crossed = evidence[(evidence["low"] > evidence["high"]) | (evidence["estimate"].isna() & evidence["low"].notna())]
    if len(crossed):
        raise EvidenceError(
            f"{crossed['key'].iloc[0]} has an interval whose ends are crossed, or that has no estimate."
        )
