"""Window readings: what the tables of helpers.windows say, as lines of a figure and in sentences for any run."""

from __future__ import annotations

import pandas as pd

from helpers.readings import APART
from helpers.report import with_interval
from helpers.zhang_nanda import PUBLISHED_WINDOW

CORRUPTIONS = {"STR": "symmetric replacement", "GN": "Gaussian noise"}
FIGURE = {"drawing": "curves", "x": "layer", "y": "effect", "hue": "series", "facet": "panel", "unit": None}
FIGURE |= {"mark": None, "xlabel": "layer", "ylabel": "share recovered"}
SERIES = {"joint": "patched together", "summed": "sum of single layers"}


def window_lines(curves: pd.DataFrame) -> pd.DataFrame:
    """The lines of a figure that is drawn with the options FIGURE.

    `curves` are those of `windows.joint_and_sum`, of one metric, role and direction. Columns panel (corruption and
    window), layer, series (together, or the sum of single layers), effect. Window 1, where both are the same, is left
    out.
    """
    wider = curves[curves["window"] > 1].sort_values(["corruption", "window"], ascending=[False, True], kind="stable")
    long = wider.melt(["corruption", "window", "layer"], list(SERIES), "series", "effect")
    panel = long["corruption"] + ", " + long["window"].astype(str) + " layers"
    return long.assign(panel=panel, series=long["series"].map(SERIES))[["panel", "layer", "series", "effect"]]


def joint(tops: pd.DataFrame) -> str:
    """Whether a window does more than the sum of its layers; `tops` are those of `windows.peaks`, of one role."""
    wider = tops[tops["window"] > 1]
    if wider.empty:
        return "Only single layers were patched, so there is no window to compare with them."
    layers, role = int(tops["layers"].max()), _named(tops["role"].iat[0])
    said = [
        f"{_case(row)}, window {row['window']}: {_ratio(row)}, at layer {row['joint_layer']} and {row['summed_layer']}"
        for _, row in wider.iterrows()
    ]
    found = wider.apply(_beside_one, axis=1)
    counts = [
        f"{(found == verdict).sum()} {words}"
        for verdict, words in (
            ("more", "clearly more than the sum"),
            ("less", "clearly less"),
            ("alike", "within a tenth of it"),
            ("open", "not decided"),
        )
        if (found == verdict).any()
    ]
    cut = ""
    if (covering := sorted({window for window in wider["window"] if window > layers})) and layers:
        cut = f""" The network has {layers} layers: {_windows(covering)} cut to them, and such a window is most of
            the network wherever it stands."""
    return f"""Top of the joint effect over top of the summed single-layer effects, {role}: {"; ".join(said)} (tops of
        {layers} layers, chosen on these prompts, anew in every resample). Of {len(wider)} such ratios: {
        ", ".join(counts)
    } (a tenth is the least that is called a difference).{cut}"""


def single(tops: pd.DataFrame) -> str:
    """Where single layers have their top, and whether the widest window has another one; `tops` as in `joint`."""
    said = []
    for _, part in tops.sort_values("window", kind="stable").groupby(["corruption", "metric"], sort=False):
        alone, wide = part.iloc[0], part.iloc[-1]
        said.append(
            f"{_case(alone)}: {alone['joint']:.3g} at layer {alone['joint_layer']}, and {wide['joint']:.3g} around "
            f"layer {wide['joint_layer']} in windows of {wide['window']}"
        )
    return f"Single layers have their largest effect as follows, {_named(tops['role'].iat[0])}. {'; '.join(said)}."


def single_layers(tops: pd.DataFrame) -> pd.DataFrame:
    """The largest effect of a single layer and its layer ("0.62, layer 3"), per task, role and component.

    `tops` are those of `windows.peaks` by task, component, direction and corruption (and others); a column for every
    corruption and direction, empty where that was not patched.
    """
    alone = tops[tops["window"] == 1]
    top = alone["joint"].map("{:.2f}".format) + ", layer " + alone["joint_layer"].astype(str)
    way = alone["corruption"] + ", " + alone["direction"]
    table = alone.assign(top=top, way=way).drop_duplicates(["task", "role", "component", "way"])
    wide = table.pivot(index=["task", "role", "component"], columns="way", values="top")
    order = pd.MultiIndex.from_frame(table[["task", "role", "component"]].drop_duplicates())
    return wide.loc[order, way.unique()].fillna("").reset_index().rename_axis(columns=None)


def positions(ratios: pd.DataFrame | None) -> str:
    """Last subject token over middle ones, and whether probability leans further to the last one than logits do.

    `ratios` are those of `windows.position_ratios`, by corruption and metric, or None where no subject has a middle
    token. Of the windows the published one is told, or else the widest.
    """
    if ratios is None:
        return "No subject has a middle token, so the last one has nothing to be compared with. "
    measured = ratios["window"]
    ratios = ratios[measured == (PUBLISHED_WINDOW if (measured == PUBLISHED_WINDOW).any() else measured.max())]
    said = "; ".join(f"{_case(row)}: {_ratio(row)}" for _, row in ratios.iterrows())
    lessons = []
    for corruption, part in ratios.groupby("corruption", sort=False):
        own = part.set_index("metric")
        if {"probability", "logit_difference"} <= set(own.index):
            steep, linear = own.loc["probability"], own.loc["logit_difference"]
            if not (steep["defined"] and linear["defined"]):
                lesson = "the two metrics cannot be compared, for one of them is undefined"
            elif steep["low"] > linear["high"]:
                lesson = "probability gives the last token a larger part than the logit difference does"
            elif steep["high"] < linear["low"]:
                lesson = "probability gives the last token a smaller part than the logit difference does"
            else:
                lesson = "the intervals of probability and logit difference overlap"
            lessons.append(f"Under {CORRUPTIONS[corruption]}, {lesson}")
    return f"""Summed over layers in windows of {ratios["window"].iat[0]}, the effect at the last subject token is so
        many times that at the middle ones, among prompts that have both ({_counts(ratios["pairs"])}): {said}. {
        "".join(f"{lesson}. " for lesson in lessons)
    }"""


def corruptions(ratios: pd.DataFrame) -> str:
    """Whether noise shows a higher peak than replacement; `ratios` are those of `windows.peak_ratio`, by metric."""
    said = "; ".join(
        f"{row['metric'].replace('_', ' ')}, window {row['window']}: {_ratio(row)}" for _, row in ratios.iterrows()
    )
    found = ratios.apply(_beside_one, axis=1)
    higher, lower = int((found == "more").sum()), int((found == "less").sum())
    lesson = f"Noise has the clearly higher top in {higher} of {len(ratios)} and the clearly lower one in {lower}"
    return f"""The largest effect under Gaussian noise over the largest under symmetric replacement, {
        _named(ratios["role"].iat[0])
    }: {said}. {lesson}; a higher top is no better answer: noise also puts the model off what it was trained on."""


def _beside_one(row: pd.Series) -> str:
    """`more` or `less` where the interval is clear of 1 by APART, `alike` where it is within, else `open`."""
    if not row["defined"]:
        return "open"
    if row["low"] > 1 + APART:
        return "more"
    if row["high"] < 1 - APART:
        return "less"
    return "alike" if 1 - APART <= row["low"] and row["high"] <= 1 + APART else "open"


def _ratio(row: pd.Series) -> str:
    return with_interval({**row, "recovery": row["ratio"]})


def _case(row: pd.Series) -> str:
    return f"{row['corruption']}, {row['metric'].replace('_', ' ')}"


def _named(role: str) -> str:
    if role == "all":
        return "at all positions together"
    words = role.split("_")
    return f"at the {words[1]} subject token" if words[0] == "subject" else f"at the {' '.join(words)} token"


def _windows(windows: list[int]) -> str:
    return f"windows of {', '.join(map(str, windows))} are" if len(windows) > 1 else f"a window of {windows[0]} is"


def _counts(pairs: pd.Series) -> str:
    return f"{pairs.min()}" if pairs.nunique() == 1 else f"{pairs.min()} to {pairs.max()}"
