"""Readings: what notebook 04's tables say, in sentences that are computed from them and hold for any run."""

from __future__ import annotations

import pandas as pd

from helpers.localisation import signature
from helpers.report import percent, with_interval

NAMES = {"resid_pre": "the residual stream", "attn_out": "attention output", "mlp_out": "MLP output"}
APART, SLIGHT = 0.1, 0.01  # of a recovery: less than the first is not called a difference, less than the other nothing


def sites(cells: pd.DataFrame) -> str:
    """The sites that recover most, and whether any stands out; `cells` is that of experiment.role_recovery."""
    denoised = cells[cells["direction"] == "denoising"]
    inner = denoised[denoised["component"] != "resid_pre"]
    best = inner.loc[inner.groupby("kind", sort=True)["recovery"].idxmax()]
    tops = [
        f"{r.component} {r.layer} at {r.role.replace('_', ' ')} for {r.kind} items ({r.recovery:.2f})"
        for r in best.itertuples()
    ]
    seen = [
        signature(part["recovery"].dropna()).explained(NAMES.get(component, component)).strip()
        for component, part in denoised.groupby("component", sort=False)
    ]
    return f"""Of {len(inner) // inner["kind"].nunique()} attention and MLP sites the one that recovers most, chosen on
        these same items, is {" and ".join(tops)}. As a whole: {
        " ".join(f"{text[0].upper()}{text[1:]}" for text in seen)
    } The residual stream holds everything that later blocks can
        read: patched at all positions together it recovers 1 by construction, and by role it shows where in the
        sentence the information stands at each depth."""


def directions(cells: pd.DataFrame) -> str:
    """How far sufficiency and necessity agree over attention and MLP sites."""
    inner = cells[cells["component"] != "resid_pre"]
    both = inner.pivot_table("recovery", ["kind", "component", "layer", "role"], "direction", observed=True)
    gap = (both["denoising"] - both["noising"]).abs()
    (kind, component, layer, role), widest = gap.idxmax(), both.loc[gap.idxmax()]
    rank = both.corr(method="spearman").iloc[0, 1]
    lesson = (
        "sufficient and necessary are two questions"
        if gap.max() > APART
        else "in this model, what is sufficient is also necessary"
    )
    return f"""Over all attention and MLP sites the two directions correlate at {rank:.2f} (Spearman). They differ most
        for {kind} items at {component} {layer}, {role.replace("_", " ")} ({widest["denoising"]:.2f} recovered,
        {widest["noising"]:.2f} destroyed): {lesson}."""


def networks(curves: pd.DataFrame, own: pd.DataFrame) -> str:
    """Where the fine-tuned model peaks, how far the nulls come, and which of them have a recovery of their own.

    `curves` are intervals by place, kind, network and layer in one unit; `own` those of MLP 0 in each network's own.
    """
    tuned, nulls = curves[curves["network"] == "fine-tuned"], curves[curves["network"] != "fine-tuned"]
    peaks = tuned.loc[tuned.groupby(["component", "kind"], sort=False)["recovery"].idxmax()]
    said = [f"{r['component']}, {r['kind']}: layer {r['layer']} with {with_interval(r)}" for _, r in peaks.iterrows()]
    most = nulls.loc[nulls.groupby("network")["recovery"].idxmax()]
    reach = [f"{r.network} {r.recovery:.2f} ({r.component} {r.layer}, {r.kind})" for r in most.itertuples()]
    apart = ", ".join(f"{r['network']}, {r['kind']}: {with_interval(r)}" for _, r in own.iterrows())
    strangers = own.loc[own["network"] == "shuffled donor", "high"].max()
    return f"""The share recovered peaks as follows (the largest of {curves["layer"].nunique()} layers, chosen on these
        same items). {"; ".join(said)}. The most that a null recovers anywhere, in the
        fine-tuned model's unit: {", ".join(reach)}. In each network's own unit, MLP 0 recovers: {apart}. What
        shuffled donors recover is the loss of the wrong answer, not the return of the right one: at MLP 0 a share of up
        to {strangers:.2f} is no evidence that the site carries the answer. The study reports 56 % for it,
        from one item."""


def metrics(cells: pd.DataFrame) -> str:
    """How far the metrics agree; `cells` has metric, component, layer, kind, recovery at all positions."""
    grid = cells.pivot_table("recovery", ["kind", "component", "layer"], "metric", observed=True)
    first = grid["logit_difference"]
    said = []
    for name in grid.columns.drop("logit_difference"):
        gap = (grid[name] - first).abs()
        kind, component, layer = gap.idxmax()
        said.append(
            f"{name.replace('_', ' ')} (rank correlation {grid[name].corr(first, method='spearman'):.2f}; largest gap "
            f"{gap.max():.2f}, {component} {layer} of {kind} items: {grid.loc[gap.idxmax(), name]:.2f} against "
            f"{first[gap.idxmax()]:.2f})"
        )
    top = {name: "{1} {2}".format(*grid[name].idxmax()) for name in grid}
    agree = (
        "All metrics name the same top site" if len(set(top.values())) == 1 else "The top site depends on the metric"
    )
    return f"""{agree} ({", ".join(f"{name.replace('_', ' ')}: {site}" for name, site in top.items())}). Beside the
        first-token logit difference: {"; ".join(said)}."""


def heads(strength: pd.DataFrame, knocked: pd.DataFrame) -> str:
    """The strongest and the negative heads, and what the strongest do together.

    `strength` are intervals by direction, layer and head; `knocked` those of joint over added, by group.
    """
    strongest = strength.loc[strength.groupby("direction")["recovery"].idxmax()]
    said = [f"{r['layer']}.{r['head']} by {r['direction']} ({with_interval(r)})" for _, r in strongest.iterrows()]
    noising = strength[strength["direction"] == "noising"]
    negative = noising[(noising["high"] < 0) & (noising["recovery"] <= -SLIGHT)].sort_values("recovery")
    against = "No head works against the answer by a hundredth or more"
    if len(negative):
        lead = negative.iloc[0]
        against = f"""{len(negative)} of {len(noising)} heads work against the answer (knocking one out helps it, by a
            hundredth or more), most of all {lead["layer"]}.{lead["head"]} ({with_interval(lead)})"""
    together = "; ".join(f"{r['group']}: {with_interval(r)}" for _, r in knocked.iterrows())
    repair = {
        "more": "More is lost together than one by one: when one is lost alone, another stands in for it",
        "less": "Less is lost together than one by one: each alone already breaks what they do together",
        "mixed": "Some groups lose more together than one by one, and some less",
        "adds": "They add up within a tenth: there is no sign of self-repair among them",
        "open": "It is not decided whether single knock-outs are repaired",
    }[_added_up(knocked)]
    return f"""Of {len(noising)} heads the strongest is {" and ".join(said)}. {against}. Knocked out together, over the
        sum of single ones (heads chosen on exploratory items): {together}. {repair}."""


def change(curves: pd.DataFrame) -> str:
    """What fine-tuning changed; `curves` are intervals by direction, component and layer of cross-model effects."""
    said = []
    for direction, verb in (("denoising", "tuned into base recovers"), ("noising", "base into tuned destroys")):
        part = curves[(curves["direction"] == direction) & curves["component"].isin(["attn_out", "mlp_out"])]
        top = part.loc[part["recovery"].idxmax()]
        said.append(f"{verb} most at {top['component']} {top['layer']} ({with_interval(top)})")
    stream = curves[(curves["direction"] == "denoising") & (curves["component"] == "resid_post")].sort_values("layer")
    first, last = stream.iloc[0], stream.iloc[-1]
    return f"""Of {len(part)} single outputs, {" and ".join(said)}. Of the whole stream, tuned into base recovers
        {with_interval(first)} after block {first["layer"]} and {with_interval(last)} after block {last["layer"]};
        what is missing there is the change of the last normalisation and the unembedding."""


def streams(parts: pd.DataFrame, distances: pd.DataFrame) -> str:
    """What speaks to the answer directly, and where the runs differ; the tables are those of helpers.streams."""
    means = (
        parts[parts["component"].isin(["attn_out", "mlp_out"])].groupby(["component", "layer"])["contribution"].mean()
    )
    whole = parts[parts["component"] != "head_out"].groupby(["pair", "seed"])["contribution"].sum().mean()
    (component, layer), top = means.idxmax(), means.max()
    at_last = distances[distances["role"] == "last"].groupby("layer")["relative"].mean()
    apart = at_last[at_last > APART]
    begins = "nowhere by a tenth of their length"
    if len(apart):
        last = apart.index.min() == at_last.index.max()  # beyond the last block, where none is entered
        begins = "in what leaves the last block alone" if last else f"first in what enters block {apart.index.min()}"
    return f"""Of a clean logit difference of {whole:.1f}, {component} {layer} writes {top:.1f} directly
        ({100 * top / whole:.0f} %). At the last position clean and corrupted runs differ {begins}; at the end they are
        {at_last.iloc[-1]:.2f} of their own length apart."""


def adding(ratios: pd.DataFrame) -> str:
    """Whether single effects add up; `ratios` are intervals of joint over added, by group and direction."""
    said = "; ".join(f"{r['group']}, {r['direction']}: {with_interval(r)}" for _, r in ratios.iterrows())
    lesson = {"adds": "So they add, within a tenth", "open": "Whether they add is not decided"}.get(_added_up(ratios))
    if lesson is None:
        found = {group: _added_up(part) for group, part in ratios.groupby("group")}
        which = " and ".join(group for group, how in found.items() if how in ("more", "less", "mixed"))
        lesson = f"So outputs of this kind do not add ({which}), and shares of single layers are not parts of one whole"
    both = ratios[(ratios["group"] == "both") & (ratios["direction"] == "denoising")]
    if (both["high"] < 1 - APART).all() and len(both):
        lesson += ". Attention and MLP outputs stand in series: what passes through both is counted twice in a sum"
    return f"All layers patched together, over the sum of each patched alone: {said}. {lesson}."


def _added_up(ratios: pd.DataFrame) -> str:
    """Of intervals of joint over added: `more`, `less`, `mixed` where clear of 1 by APART, `adds` if all are near."""
    defined = ratios[ratios["defined"]]
    more, less = (defined["low"] > 1 + APART).any(), (defined["high"] < 1 - APART).any()
    if more or less:
        return "mixed" if more and less else "more" if more else "less"
    near = (defined["low"] >= 1 - APART) & (defined["high"] <= 1 + APART)
    return "adds" if near.all() and len(defined) == len(ratios) else "open"


def contrast(table: pd.DataFrame) -> str:
    """Definitional less associative, by arm; `table` is that of localisation.index_contrasts."""
    said, differ, alike = [], [], []
    for index, part in table.groupby("index", observed=True, sort=False):
        arms = "; ".join(
            f"{r.arm} {r.difference:+.2f} [{r.low:+.2f}, {r.high:+.2f}], null {r.null_low:+.2f} to {r.null_high:+.2f}"
            for r in part.itertuples()
        )
        said.append(f"{index}: {arms}")
        above, below = part["low"] >= part["null_high"] + APART, part["high"] <= part["null_low"] - APART
        if above.all() or below.all():
            differ.append(str(index))
        elif (part["low"] > -APART).all() and (part["high"] < APART).all():
            alike.append(str(index))
    rest = table["index"].nunique() - len(differ) - len(alike)
    where = "in both arms" if table["arm"].nunique() > 1 else "in the one arm of this run, where subjects differ too,"
    lessons = [f"Beyond every null by a tenth of the level, {where} the kinds differ in {', '.join(differ) or 'none'}"]
    if alike:
        lessons.append(f"a difference of a tenth is ruled out {where} for {', '.join(alike)}")
    if rest:
        fewest = table["items"].min()
        lessons.append(
            f"for {rest} of {table['index'].nunique()} indices it is not decided (the smaller arm has {fewest} items)"
        )
    return f"""Definitional less associative, over the mean of both, with 95 % intervals over items and the widest null
        (exchanged kinds, shuffled donors, base and untrained network). {". ".join(said)}. {"; ".join(lessons)}."""


def confounds(items: pd.DataFrame, *, arms: int) -> str:
    """What else differs between the kinds; `items` are those that entered, one row each, with subject and answer."""
    initial = items["subject"].str[0].str.lower() == items["answer"].str[0].str.lower()
    means = items.assign(initial=initial).groupby("kind")[["initial", "subject_tokens", "answer_tokens"]].mean()
    first, other = (means.loc[kind] for kind in ("definitional", "associative"))
    held = "Only the made-up arm holds subject and answer fixed" if arms > 1 else "No arm of this run holds them fixed"
    return f"""The kinds differ in more than kind: the first letter of the subject begins the answer in
        {percent(first.initial)} of definitional and {percent(other.initial)} of associative items, subjects have
        {first.subject_tokens:.1f} and {other.subject_tokens:.1f} tokens, answers {first.answer_tokens:.1f} and
        {other.answer_tokens:.1f}. {held}."""


def known(shares: pd.DataFrame, donors: pd.Series) -> str:
    """Whether the right answer is preferred more often than chance; `donors` are those of the pairs that entered."""
    said = "; ".join(
        f"{r.network}, {r.kind}: {percent(r.share)} [{percent(r.low)}, {percent(r.high)}]" for r in shares.itertuples()
    )
    return f"""Preferred to the donor's answer, among all pairs that could be made (half is chance): {said}. The rule
        lets in what is above 0, so a network that guesses would keep half of the items and recover tidily on them.
        {len(donors)} pairs share {donors.nunique()} donors; intervals take items for independent."""


def claims(table: pd.DataFrame, scope: str) -> str:
    """How many statements stand, by verdict."""
    order = ("supported", "refuted", "undecided", "by construction", "not tested")
    counts = table["verdict"].value_counts()
    said = ", ".join(f"{counts[name]} {name}" for name in order if name in counts)
    listed = [
        f"{name.capitalize()}: "
        + "; ".join(f"{row['claim']} ({row['measured at']})" for _, row in table[table["verdict"] == name].iterrows())
        for name in ("supported", "refuted")
        if name in counts
    ]
    return f"Of {len(table)} readings of the study's statements: {said}. {'. '.join([*listed, f'Scope: {scope}'])}."
