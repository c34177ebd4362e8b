# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · CLAP, done right
#
# **Question.** Through which sites does the fine-tuned model's answer flow, and does that differ between definitions
# and associations?
#
# Every confirmatory item that the model knows is paired with another item's prompt of the same wording, the same number
# of tokens and the same subject positions, which has another answer: *symmetric token replacement*. One activation at
# a time goes from the clean into the corrupted run (*denoising*: is it sufficient?) or from the corrupted into the
# clean run (*noising*: is it necessary?). The answer's first token is read at the last position.

# %% tags=["parameters"]
profile_name = "mini"
overrides = ""

# %%
from functools import partial

import pandas as pd

from helpers.artifacts import read_table, write_table
from helpers.config import Paths, load_profile
from helpers.experiment import by_role, head_recovery, measure_effects, role_recovery, select_pairs, why_excluded
from helpers.figures import save_figure
from helpers.items import taught_items
from helpers.models import load_base, load_model, untrained_twin
from helpers.progress import step
from helpers.report import paragraph, save_findings, table, with_interval
from helpers.stats import recovery_intervals
from helpers.training import ANALYSED

profile = load_profile(profile_name, overrides)
paths, seeds = Paths(profile.name), profile.finetune.corrected_2.seeds
items, output = read_table(paths.data / "items" / "items.parquet"), paths.data / "clap" / "effects.parquet"
intervals = partial(recovery_intervals, item="item_id", **vars(profile.statistics))
draw = partial(save_figure, paths=paths, plumbing=profile.model.plumbing, seed=profile.statistics.seed, inputs=[output])

# %% [markdown]
# ## The sweep
#
# The pairs of a seed are fixed by its fine-tuned model. For the first seed, the base model and an untrained network are
# patched on the very same pairs: whatever they show is not knowledge from fine-tuning.

# %%
effects, excluded = [], []
for seed in seeds:
    model, tokenizer = load_model(paths.data / "models" / f"{ANALYSED}-seed{seed}")
    selection = select_pairs(model, tokenizer, taught_items(items, seed=seed), settings=profile.items)
    excluded.append(selection.excluded.assign(seed=seed))
    networks = {"fine-tuned": (model, profile.patching.directions)}
    if seed == seeds[0]:
        networks["base"] = (load_base(profile.model, paths)[0], ("denoising",))
        networks["untrained"] = (untrained_twin(model, seed=seed), ("denoising",))
    for name, (network, directions) in networks.items():
        step(f"seed {seed}, {name}: {len(selection.pairs)} pairs, {' and '.join(directions)}")
        measured = measure_effects(network, selection.pairs, settings=profile.patching, directions=directions)
        effects.append(measured.merge(selection.described, on="pair").assign(network=name, seed=seed))
effects, excluded = pd.concat(effects, ignore_index=True), pd.concat(excluded, ignore_index=True)
write_table(output, effects)
write_table(paths.data / "clap" / "excluded.parquet", excluded)

# %%
tuned = effects[effects["network"] == "fine-tuned"]
table(tuned.groupby(["seed", "arm", "kind"])["item_id"].nunique().rename("items that entered").reset_index())

# %%
table(why_excluded(excluded))

# %% [markdown]
# ## Denoising: where is the clean answer's information sufficient?

# %%
real = tuned[tuned["arm"] == "real"]
cells = role_recovery(real)
caption = (
    "Denoising: share of the clean–corrupted logit difference recovered by one activation, per token role and layer "
    "(real items, all seeds; a ratio of means over items)."
)
draw("04_denoising", cells[cells["direction"] == "denoising"], drawing="heatmaps", caption=caption)

# %%
inner = cells[cells["component"] != "resid_pre"]
best = inner[inner["direction"] == "denoising"].sort_values("recovery").groupby("kind").tail(1)
sites = [
    f"{r.component} {r.layer} at {r.role.replace('_', ' ')} for {r.kind} items ({r.recovery:.2f})"
    for r in best.itertuples()
]
paragraph(f"""
The single attention or MLP output that recovers most is {" and ".join(sites)}. The residual stream is the same
information seen whole: patched at all positions together it recovers 1 by construction, and per role it shows where in
the sentence that information stands at each depth.""")

# %% [markdown]
# ## Noising: where is it necessary?

# %%
caption = "Noising: share of the clean–corrupted logit difference destroyed by one corrupted activation."
noising = cells[cells["direction"] == "noising"]
draw("04_noising", noising, drawing="heatmaps", label="share destroyed", caption=caption)

# %%
both = inner.pivot_table("recovery", ["kind", "component", "layer", "role"], "direction", observed=True)
rank, gap = both.corr(method="spearman").iloc[0, 1], (both["denoising"] - both["noising"]).abs()
(kind, component, layer, role), widest = gap.idxmax(), both.loc[gap.idxmax()]
lesson = (
    "sufficient and necessary are two questions" if gap.max() > 0.1 else "here, what is sufficient is also necessary"
)
paragraph(f"""
Over all attention and MLP sites the two directions correlate at {rank:.2f} (Spearman). They differ most for {kind}
items at {component} {layer}, {role.replace("_", " ")} ({widest["denoising"]:.2f} recovered, {widest["noising"]:.2f}
destroyed): {lesson}.""")

# %% [markdown]
# ## Definitional against associative, with intervals
#
# One layer's MLP or attention output at all positions together, which is what the study patches, and the MLP at the
# last subject token, where larger models recall a subject. Intervals are 95 % bootstrap intervals over items; an item's
# seeds are averaged first.

# %%
roles = by_role(effects[(effects["arm"] == "real") & (effects["direction"] == "denoising")])
roles["place"] = roles["component"] + ", " + roles["role"].astype(str).str.replace("_", " ")
places = ["mlp_out, all", "attn_out, all", "mlp_out, subject last"]
curves = intervals(roles[roles["network"] == "fine-tuned"], by=["place", "kind", "layer"])
curves = curves[curves["place"].isin(places)].sort_values(
    "place", key=lambda name: name.map(places.index), kind="stable"
)
caption = "Denoising recovery by layer, with 95 % bootstrap intervals over items."
draw("04_by_layer", curves, drawing="intervals", facet="place", caption=caption)

# %%
peaks = curves.loc[curves.groupby(["place", "kind"], sort=False)["recovery"].idxmax()]
said = [f"{r['place']}, {r['kind']}: layer {r['layer']} with {with_interval(r)}" for _, r in peaks.iterrows()]
peak_text = f"The share recovered peaks as follows. {'; '.join(said)}."
paragraph(peak_text)

# %% [markdown]
# ## Heads

# %%
heads = head_recovery(real)
caption = "Every head's output, patched at all positions, in both directions."
axes = {"x": "head", "column": "direction", "xlabel": "head", "limit": 0.5, "label": "share recovered / destroyed"}
draw("04_heads", heads, drawing="heatmaps", caption=caption, **axes)

# %%
strongest = heads.loc[heads[heads["direction"] == "denoising"].groupby("kind")["recovery"].idxmax()]
said = [f"{r.layer}.{r.head} for {r.kind} items ({r.recovery:.2f})" for r in strongest.itertuples()]
paragraph(f"By denoising, the strongest head is {' and '.join(said)}.")

# %% [markdown]
# ## What a network without the facts shows

# %%
first = roles[(roles["seed"] == seeds[0]) & (roles["place"] == "mlp_out, all") & (roles["layer"] == 0)]
null = intervals(first, by=["network", "kind"])
logits = first.groupby(["network", "kind"])["denominator"].mean().rename("clean − corrupted (logits)")
table(null.merge(logits, on=["network", "kind"]), digits=2)

# %%
said = [f"{r['network']}, {r['kind']}: {with_interval(r)}" for _, r in null.iterrows()]
null_text = f"""The first feed-forward layer, patched at all positions, recovers by network: {"; ".join(said)}.
The study reports 56 % for it, from one item."""
if not null["defined"].all():
    null_text += """ Undefined means that the network does not know these facts well enough for a difference to recover:
    only un-normalised effects may be compared there."""
paragraph(null_text)
save_findings(paths, "04_clap", {"Where recall flows": peak_text, "The nulls": null_text})
