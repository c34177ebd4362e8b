"""Gate scores: every way of patching and every metric, on models of which the right answer is known (helpers.gates)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from helpers.gates import ANSWER, BOTH, FOIL, VOCABULARY, WAYS, Gate, exact_values
from helpers.metrics import score, with_effects
from helpers.patching import measure_runs, sweep_sets
from helpers.values import OTHER_RUN, Mean, Resample, Value, Zero

METRICS = ("logit_difference", "probability", "log_probability", "kl_divergence")
FOUND = 0.1  # of clean − corrupted: a head that does less is not found
EXACT = 1e-4  # in any metric's unit: what is closer differs by rounding only

FIGURE = {"drawing": "heatmaps", "x": "sites", "y": "way", "value": "share", "row": "metric", "column": "gate"}
FIGURE |= {"annotated": True, "xlabel": "patched", "ylabel": "", "label": "share of clean − corrupted"}


def gate_scores(gates: Sequence[Gate], *, threshold: float = FOUND) -> pd.DataFrame:
    """Every way of patching every gate, measured by a sweep and derived on paper: a row per gate, way, metric, sites.

    Columns: gate, confidence, way (WAYS), metric (METRICS), sites (SITES), effect, exact, clean, corrupted, share,
    found, reversed. `effect` is what denoising restores and what the other ways destroy, in the metric's own unit, a
    mean over pairs and draws, and `exact` its right value; `clean` and `corrupted` are the right values of the
    unpatched runs. `share` is the measured effect over the measured clean − corrupted, and `found` says whether it is
    `threshold` or more of it, either way. `reversed`: what is found has the wrong sign, as if a head that helps worked
    against the answer, or the other way round.
    """
    tables = []
    for gate in gates:
        runs = measure_runs(gate.model, gate.pairs, metrics=METRICS)
        measured = _means({way: _measured(gate, way) for way in WAYS}, runs)
        table = _means({way: _exact(gate, way) for way in WAYS}, _exact_runs(gate))
        table = table.rename(columns={"numerator": "exact"}).drop(columns="denominator")
        table = table.assign(effect=measured["numerator"], share=measured["numerator"] / measured["denominator"])
        tables.append(table.reset_index().assign(gate=gate.name, confidence=gate.confidence))
    scores = pd.concat(tables, ignore_index=True)
    against = (scores["gate"] == "NEGATIVE") & (scores["sites"] == "B")
    scores["found"] = scores["share"].abs() >= threshold
    scores["reversed"] = scores["found"] & (scores["sites"] != "idle") & ((scores["share"] < 0) != against)
    columns = ["gate", "confidence", "way", "metric", "sites", "effect", "exact", "clean", "corrupted", "share"]
    return scores[[*columns, "found", "reversed"]]


def figure_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores as they are drawn with the options FIGURE."""
    return scores.assign(metric=scores["metric"].map(_words))


def components(scores: pd.DataFrame) -> str:
    """Which ways find both heads of which gate, by metric, and where they are wrong about a head."""
    heads, idle = scores[scores["sites"].isin(["A", "B"])], scores[scores["sites"] == "idle"]
    keys = ["metric", "gate", "way"]
    found = heads.groupby(keys)["found"].all()
    ways = found.unstack("way")[scores["way"].unique()].apply(_ways, axis=1)
    (first, *others), gates = scores["metric"].unique(), scores["gate"].unique()
    said = [f"By {_words(first)}, both heads are found {_phrases({gate: ways[first, gate] for gate in gates})}."]
    for metric in others:
        differ = {gate: ways[metric, gate] for gate in gates if ways[metric, gate] != ways[first, gate]}
        said.append(f"By {_words(metric)}, the same{', but ' + _phrases(differ) if differ else ''}.")
    taken = {
        f"{gate}'s {head} in {_words(metric)}": _ways(part.set_index("way")["reversed"])
        for (metric, gate, head), part in heads.groupby(["metric", "gate", "sites"], sort=False)
        if part["reversed"].any()
    }
    opposite = "; ".join(f"{what} {ways}" for what, ways in taken.items()) or "none, in any way"
    nothing = _ways(idle.groupby("way", sort=False)["found"].any())
    sound = found & ~heads.groupby(keys)["reversed"].any() & ~idle.set_index(keys)["found"]
    right = sound.groupby(level=["way", "metric"]).all()
    order = scores[["way", "metric"]].drop_duplicates().itertuples(index=False, name=None)
    best = [f"{way} by {_words(metric)}" for way, metric in order if right[way, metric]]
    return f"""{_agreement(scores)} {" ".join(said)} The idle head, which says nothing, is found {nothing}. Heads taken
        for their opposite: {opposite}. Right about every head of every gate: {_listed(best) if best else "no way"}."""


def backup(scores: pd.DataFrame) -> str:
    """What each direction sees of a head that has a backup, and of the backup."""
    gate = scores[(scores["gate"] == "BACKUP") & (scores["metric"] == "logit_difference")]
    share = gate.set_index(["way", "sites"])["share"].round(6) + 0.0  # no "-0.00"
    a, b, both = (share["noising", sites] for sites in ("A", "B", BOTH))
    return f"""Noising head A of BACKUP destroys {a:.2f} of the logit difference, its backup B alone {b:.2f}, and both
        together {both:.2f}: {both - a - b:.2f} is compensated, and shows only when both are lost. Denoising A restores
        {share["denoising", "A"]:.2f}, and denoising B {share["denoising", "B"]:.2f}: in the clean run B is silent."""


def negative(scores: pd.DataFrame) -> str:
    """What each metric makes of the head that works against the answer, where P(r) of the corrupted run goes to 0.

    `scores` are those of NEGATIVE gates of different confidences.
    """
    head = scores[(scores["gate"] == "NEGATIVE") & (scores["sites"] == "B") & (scores["way"] == "denoising")]
    steps = [
        f"{row.effect:.2g} (floor {-row.corrupted:.2g}, {'found' if row.found else 'not found'})"
        for row in head[head["metric"] == "probability"].sort_values("confidence").itertuples()
    ]
    others = [
        f"{_words(metric)} in {rows['found'].sum()} of {len(rows)} (shares {_range(rows['share'])})"
        for metric, rows in head[head["metric"] != "probability"].groupby("metric", sort=False)
    ]
    return f"""Denoising head B of NEGATIVE cannot bring P(r) below 0, so its effect on the probability has a floor:
        −P(r) of the corrupted run. From the least confident gate to the most the effect is {", ".join(steps)}. The
        other metrics have no such floor, and the head is found by {"; ".join(others)}."""


def _values(gate: Gate, way: str) -> list[Value]:
    """What is written, draw by draw: a resampled prompt is each of the references once, so that the mean is exact."""
    if way == "resample":
        return [Resample([prompt], seed=0) for prompt in gate.references]
    return [{"zero": Zero(), "mean": Mean(gate.references)}.get(way, OTHER_RUN)]


def _direction(way: str) -> str:
    return "denoising" if way == "denoising" else "noising"


def _measured(gate: Gate, way: str) -> pd.DataFrame:
    options = {"direction": _direction(way), "metrics": METRICS}
    return pd.concat(sweep_sets(gate.model, gate.pairs, gate.sets, value=v, **options) for v in _values(gate, way))


def _exact(gate: Gate, way: str) -> pd.DataFrame:
    """The table that a sweep of one pair should give."""
    rows = [(sites, value) for sites, drawn in exact_values(gate.name, way).items() for value in drawn]
    scores = _exact_metrics(gate, [value for _, value in rows])
    return scores.assign(pair="exact", direction=_direction(way), sites=[sites for sites, _ in rows])


def _exact_runs(gate: Gate) -> pd.DataFrame:
    return _exact_metrics(gate, [1, 0]).assign(pair="exact", run=["clean", "corrupted"])


def _exact_metrics(gate: Gate, values: Sequence[float]) -> pd.DataFrame:
    """Every metric where the gate has these values, from all logits, in double precision."""
    value = torch.tensor([1.0, *values], dtype=torch.float64)  # the clean run first
    logits = torch.zeros(len(value), VOCABULARY, dtype=torch.float64)
    logits[:, ANSWER] = gate.confidence * (2 * value - 1) / 2
    logits[:, FOIL] = -logits[:, ANSWER]
    answer, foil = (torch.full((len(value),), token) for token in (ANSWER, FOIL))
    clean = logits[:1].expand_as(logits)
    scores = score(logits, answer=answer, foil=foil, clean_logits=clean, metrics=METRICS)
    return pd.DataFrame({name: column[1:].numpy() for name, column in scores.items()})


def _means(swept: Mapping[str, pd.DataFrame], runs: pd.DataFrame) -> pd.DataFrame:
    """Means over pairs and draws of numerator, denominator, clean, corrupted: by way, metric and sites."""
    parts, every = (
        ["numerator", "denominator", "clean", "corrupted"],
        pd.concat(swept, names=["way"]).reset_index("way"),
    )
    tables = {
        metric: with_effects(every, runs, metric=metric).groupby(["way", "sites"], sort=False)[parts].mean()
        for metric in METRICS
    }
    return pd.concat(tables, names=["metric"]).swaplevel("metric", "way").loc[list(swept)]


def _agreement(scores: pd.DataFrame) -> str:
    gap = (scores["effect"] - scores["exact"]).abs()
    if not (off := int((~(gap <= EXACT)).sum())):
        return f"All {len(scores)} measured effects are the exact ones, to {EXACT:g}."
    worst = scores.loc[gap.idxmax()]
    return f"""{off} of {len(scores)} measured effects differ from the exact ones by more than {EXACT:g}, most of all in
        {worst["gate"]} ({worst["way"]}, {worst["sites"]}, {_words(worst["metric"])}: {worst["effect"]:.3g} against
        {worst["exact"]:.3g}): either the gate or the patching is broken, and what follows says nothing."""


def _range(values: pd.Series) -> str:
    low, high = (f"{round(value, 2) + 0.0:.2f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _words(name: str) -> str:
    return name.replace("kl_", "KL ").replace("_", " ")


def _ways(chosen: pd.Series) -> str:
    """The ways, which are the index, for which a boolean is true."""
    ways = list(chosen.index[chosen])
    return "by every way" if len(ways) == len(chosen) else f"by {_listed(ways)}" if ways else "by no way"


def _phrases(ways: Mapping[str, str]) -> str:
    return "; ".join(f"of {gate} {way}" for gate, way in ways.items())


def _listed(names: Sequence[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last
