"""Off distribution: what the noised runs of the IOI task show beside the replaced ones, in tables, a figure, and words.

The intervals are over pairs: a pair's heads and draws are averaged first. Every sentence is computed from its table and
says what holds there, also where a model has no movers or nothing to restore.
"""

from __future__ import annotations

import pandas as pd

from helpers.attended import NAMES, OTHER
from helpers.backup import STEPS_IN, TOGETHER, backups, repaired, risers
from helpers.head_parts import MOVER, NEGATIVE_MOVER, S_INHIBITION
from helpers.report import percent, with_interval
from helpers.stats import recovery_intervals

APART = 0.1  # shares and recoveries that differ by less are not told apart
CLEAN_RUN, CORRUPTED_RUN, RESTORED_RUN = "clean", "corrupted", "corrupted, with clean values"
RUNS = {
    ("clean", False): "clean",
    ("STR", False): "STR",
    ("STR", True): "STR, restored",
    ("GN", False): "GN",
    ("GN", True): "GN, restored",
}
FIGURE = {
    "drawing": "intervals",
    "facet": "corruption",
    "x": "place",
    "y": "share",
    "hue": "run",
    "xlabel": "movers' attention to …; LD restored",
    "ylabel": "share",
    "lines": False,
}


def attention_by_run(shares: pd.DataFrame, *, resamples: int, confidence: float, seed: int) -> pd.DataFrame:
    """Mean shares with intervals: run (the values of RUNS), role, share, low, high, in that order.

    `shares` is that of attended.attention_shares; without heads there is no row.
    """
    columns = ["run", "role", "share", "low", "high"]
    if shares.empty:
        return pd.DataFrame(columns=columns)
    keys = zip(shares["corruption"], shares["restored"], strict=True)
    table = shares.assign(run=[RUNS[key] for key in keys], numerator=shares["share"], denominator=1.0)
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    found = recovery_intervals(table, by=["run", "role"], item="pair", **options).rename(columns={"recovery": "share"})
    order = {"run": list(RUNS.values()), "role": [*NAMES, OTHER]}
    return found.sort_values(["run", "role"], key=lambda of: of.map(order[of.name].index), ignore_index=True)[columns]


def restoration_figure(attention: pd.DataFrame, restored: pd.DataFrame) -> pd.DataFrame:
    """The rows of one figure, drawn with the options FIGURE: corruption, place, run, share, low, high.

    A place is a name that the movers attend to, or LD: the share of the logit difference that is there, 1 in the clean
    and 0 in the corrupted run by definition. `attention` is that of `attention_by_run`, `restored` the recovery
    intervals of restoration.restored_differences by corruption; one that is undefined is left out.
    """
    columns, tables = ["corruption", "place", "run", "share", "low", "high"], []
    for corruption in restored["corruption"].sort_values(ascending=False):  # STR, then GN
        runs = {"clean": CLEAN_RUN, corruption: CORRUPTED_RUN, RUNS[corruption, True]: RESTORED_RUN}
        own = attention[attention["run"].isin(runs)].rename(columns={"role": "place"})
        tables.append(own.assign(run=own["run"].map(runs), corruption=corruption))
        found = restored[(restored["corruption"] == corruption) & restored["defined"]]
        ends = [(CLEAN_RUN, 1.0, 1.0, 1.0), (CORRUPTED_RUN, 0.0, 0.0, 0.0)]
        ends += [(RESTORED_RUN, *row) for row in found[["recovery", "low", "high"]].itertuples(index=False)]
        answers = pd.DataFrame(ends, columns=["run", "share", "low", "high"])
        tables.append(answers.assign(place="LD", corruption=corruption))
    return pd.concat([table[columns] for table in tables if len(table)], ignore_index=True)


def said_of_parts(parts: pd.DataFrame) -> str:
    """Which heads play which part; `parts` is that of head_parts.head_parts."""
    movers, negative, inhibition = (parts[parts["part"] == name] for name in (MOVER, NEGATIVE_MOVER, S_INHIBITION))
    said = [
        _listed("Movers", movers, "direct", "{:+.2f} logits"),
        _listed("Negative movers", negative, "direct", "{:+.2f} logits"),
        _listed("S-inhibition heads", inhibition, "score", "score {:.2f}"),
    ]
    if len(movers):
        said.append(f"To IO the movers pay {percent(movers['IO'].mean())} of their attention, to S1 and S2 "
                    f"{percent(movers['S1'].mean())} and {percent(movers['S2'].mean())}.")  # fmt: skip
    return f"Of {len(parts)} heads: {' '.join(said)}"


def said_of_attention(attention: pd.DataFrame) -> str:
    """Whether the movers' attention goes with the names under STR, and what becomes of it under GN."""
    if attention.empty:
        return "No head is a mover by the rule, so there is no attention to follow."
    share = attention.set_index(["run", "role"])["share"]
    runs = [run for run in ("clean", "STR", "GN") if run in share.index.get_level_values("run")]
    numbers = "; ".join(f"{run}: {share[run, 'IO']:.2f} to IO, {share[run, 'S1']:.2f} to S1" for run in runs)
    clean = share["clean"]
    if clean["IO"] - clean["S1"] < APART:
        return f"""{numbers}. In the clean run the movers do not prefer IO to S1 by {APART}, so there is no preference
            that a corruption could move."""
    swapped = max(abs(share["STR", "S1"] - clean["IO"]), abs(share["STR", "IO"] - clean["S1"]))
    moved = "IO and S1 have changed places" if swapped < APART else "IO and S1 have not simply changed places"
    lessons = [f"Under STR {moved} (they are off by {swapped:.2f} at most)"]
    if "GN" in runs:
        noised, lost = share["GN"], clean["IO"] - share["GN", "IO"]
        if lost < APART:
            lesson = "leaves the movers with IO"
        elif abs(noised["IO"] - noised["S1"]) < APART:
            lesson = "splits what the movers give to names between the two, a pattern that neither prompt has"
        elif noised["S1"] > noised["IO"]:
            lesson = "turns the movers to S1, as a replaced token does"
        else:
            lesson = "weakens the movers' preference for IO without ending it"
        lessons.append(f"noise {lesson}")
    return f"{numbers}. {'; '.join(lessons)}."


def said_of_restoration(restored: pd.DataFrame, attention: pd.DataFrame, heads: int) -> str:
    """What the restored values of `heads` heads bring back, of the answer and of the movers' pattern."""
    if not heads:
        return "No head is an S-inhibition head by the rule, so there are no values to restore."
    numbers = "; ".join(f"{row['corruption']}: {with_interval(row)}" for _, row in restored.iterrows())
    said = [f"With the clean values of {heads} heads, the logit difference comes back by: {numbers}"]
    by = {row["corruption"]: row for _, row in restored[restored["defined"]].iterrows()}
    if {"STR", "GN"} <= set(by):
        if by["STR"]["low"] > by["GN"]["high"]:
            said.append("Under noise less comes back: more is broken there than what these heads read")
        elif by["GN"]["low"] > by["STR"]["high"]:
            said.append("Under noise more comes back than under STR: this test finds nothing against noise")
        else:
            said.append("The intervals overlap: by this test the two corruptions are not told apart")
    share = attention.set_index(["run", "role"])["share"]
    for name in ("STR", "GN"):
        if (RUNS[name, True], "IO") in share.index:
            before, after, clean = share[name, "IO"], share[RUNS[name, True], "IO"], share["clean", "IO"]
            back = "is back" if abs(after - clean) < APART else "is not back"
            back = back if clean - before >= APART else "was not lost"
            said.append(f"the movers' attention to IO {back} under {name} ({before:.2f}, {after:.2f} restored, "
                        f"{clean:.2f} clean)")  # fmt: skip
    return f"{'. '.join(text[0].upper() + text[1:] for text in said)}."


def said_of_strangeness(table: pd.DataFrame, *, resamples: int, confidence: float, seed: int) -> str:
    """How far the corrupted token's stream is from clean ones, and in how many layers noise takes it farther."""
    table = table.dropna(subset="nearest")
    if not (table["corruption"] == "GN").any():
        return "No noise was drawn, or all clean streams are equal, so no distance can be compared."
    means = table.groupby(["layer", "corruption"])[["norm", "nearest"]].mean().unstack("corruption")
    layers = means.index.tolist()
    said = [
        f"layer {layer}: {means.loc[layer, ('nearest', 'GN')]:.2f} (STR {means.loc[layer, ('nearest', 'STR')]:.2f}, "
        f"clean {means.loc[layer, ('nearest', 'clean')]:.2f}), at {means.loc[layer, ('norm', 'GN')]:.2f} times the "
        "clean length"
        for layer in dict.fromkeys((layers[0], layers[len(layers) // 2], layers[-1]))
    ]
    wide = table.pivot_table("nearest", ["pair", "layer"], "corruption").reset_index()
    gap = wide.assign(numerator=wide["GN"] - wide["STR"], denominator=1.0)
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    found = recovery_intervals(gap, by=["layer"], item="pair", **options)
    farther, nearer = (found["low"] > 0).sum(), (found["high"] < 0).sum()
    return f"""Distance of the noised token's stream to its nearest clean neighbour, in typical distances of two clean
        ones: {"; ".join(said)}. Noise leaves it farther from clean streams than STR does in {farther} of {len(found)}
        layers, nearer in {nearer}; in the others the interval of the difference includes 0."""


def said_of_knockouts(table: pd.DataFrame, *, resamples: int, confidence: float, seed: int) -> str:
    """What noising the movers destroys one by one and together; `table` is that of backup.knockouts."""
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    shares = recovery_intervals(table.assign(numerator=table["joint"]), by=["group"], item="pair", **options)
    sizes = table.groupby("group")["sites"].first()
    single = shares[shares["group"].map(sizes) == 1]
    joint = table[table["sites"] > 1]
    if joint.empty:
        return f"""There are fewer than two movers, so nothing to knock out together.
            {" ".join(f"{row['group']} alone destroys {with_interval(row)}." for _, row in single.iterrows())}"""
    together = shares[shares["group"].map(sizes) > 1].iloc[0]
    sums = joint.assign(numerator=joint["joint"], denominator=joint["added"])
    ratio = recovery_intervals(sums, by=["group"], item="pair", **options).iloc[0]
    if not ratio["defined"]:
        lesson = "what they destroy one by one adds up to nothing that could be compared"
    elif ratio["low"] > 1:
        lesson = "more together than one by one: when one is lost alone, others stand in for it"
    elif ratio["high"] < 1:
        lesson = "less together than one by one: they do not stand in for one another"
    else:
        lesson = "together about what they destroy one by one"
    alone = "; ".join(f"{row['group']} {with_interval(row)}" for _, row in single.iterrows())
    return f"""Of the logit difference that the corruption takes, noising destroys: {alone}; all together
        {with_interval(together)}, {with_interval(ratio)} times the sum of the single effects: {lesson}."""


def said_of_repair(table: pd.DataFrame, *, resamples: int, confidence: float, seed: int) -> str:
    """How much the network makes up for when the movers are ablated; `table` is that of backup.self_repair."""
    table = table[table["group"] == TOGETHER]
    if not table["knocked_out"].any():
        return "No head is a mover by the rule, so none was ablated."
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    share = recovery_intervals(repaired(table), by=["group"], item="pair", **options).iloc[0]
    later = risers(table, **options)
    stepping, sinking = backups(later), later[later["defined"].astype(bool) & (later["high"] < 0)]
    listed = ", ".join(f"{r.layer}.{r.head} {r.share:.2f}" for r in stepping.head(5).itertuples())
    most = f" ({listed} of what was lost)" if listed else ""
    return f"""With the movers' outputs at the last token at their mean, the rest of the network makes up for this share
        of what they said themselves: {with_interval(share)}. Of the {len(later)} heads in later layers {len(stepping)}
        surely make up for more than {percent(STEPS_IN)} of it{most}, {len(sinking)} say less for the answer."""


def _listed(name: str, heads: pd.DataFrame, column: str, form: str) -> str:
    if heads.empty:
        return f"{name}: none by the rule."
    ordered = heads.sort_values(column, key=abs, ascending=False)
    said = (f"{r['layer']}.{r['head']} ({form.format(r[column])})" for _, r in ordered.iterrows())
    return f"{name}: {', '.join(said)}."
