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
# **Question.** Through which sites does the fine-tuned model's answer flow, does that differ between definitions and
# associations, and which of the study's claims survive?
#
# Every confirmatory item that the model knows is paired with another item's prompt of the same wording, the same number
# of tokens and the same subject positions, which has another answer: *symmetric token replacement*. One activation at
# a time goes from the clean into the corrupted run (*denoising*: is it sufficient?) or from the corrupted into the
# clean run (*noising*: is it necessary?). The answer's first token is read at the last position of the prompt, where
# the answer would begin; the answer is never in the prompt.

# %% tags=["parameters"]
profile_name = "mini"
overrides = ""

# %%
from functools import partial

import pandas as pd
from IPython.display import display

from helpers import readings
from helpers.architectures import layer_count
from helpers.artifacts import read_table, write_json, write_table, write_tables
from helpers.claims import claims_table, no_verdict, scope_of
from helpers.clap import gathered, measure_change, measure_heads, measure_nulls, measure_tuned
from helpers.config import Paths, load_profile
from helpers.experiment import (
    head_recovery,
    in_units_of,
    role_recovery,
    select_pairs,
    shares_known,
    why_excluded,
)
from helpers.figures import save_figure
from helpers.items import taught_items
from helpers.localisation import index_contrasts
from helpers.models import accelerator, load_base, load_model
from helpers.pairs import ROLES
from helpers.progress import step
from helpers.quantities import corrected_estimates, published_numbers, seed_ranges, whole_layers
from helpers.report import paragraph, save_findings, table
from helpers.stats import recovery_intervals
from helpers.training import ANALYSED

profile = load_profile(profile_name, overrides)
paths, seeds = Paths(profile.name), profile.finetune.corrected_2.seeds
items, output = read_table(paths.data / "items" / "items.parquet"), paths.data / "clap"
statistics, patching = vars(profile.statistics), profile.patching
intervals = partial(recovery_intervals, item="item_id", **statistics)
draw = partial(save_figure, paths=paths, plumbing=profile.model.plumbing, seed=statistics["seed"], inputs=[output])

# %% [markdown]
# ## What is measured
#
# The pairs of a seed are fixed by its fine-tuned model. For the first seed, the base model, untrained networks, and the
# fine-tuned model with *shuffled donors* (activations of an unrelated item) are patched on the very same pairs:
# whatever they show is not knowledge from fine-tuning.

# %%
base, parts, excluded = load_base(profile.model, paths)[0].to(accelerator()), [], []
for seed in seeds:
    model, tokenizer = load_model(paths.data / "models" / f"{ANALYSED}-seed{seed}")
    model.to(accelerator())
    taught, first = taught_items(items, seed=seed), seed == seeds[0]
    selection = select_pairs(model, tokenizer, taught, settings=profile.items)
    excluded.append(selection.excluded.assign(seed=seed))
    step(f"seed {seed}: {len(selection.pairs)} pairs")
    found = [measure_tuned(model, selection, settings=patching, all_metrics=first)]
    step(f"seed {seed}: heads, and the base model")
    heads = measure_heads(model, tokenizer, taught, selection, rule=profile.items, settings=patching)
    found.append({"heads": heads, "change": measure_change(model, base, selection, settings=patching)})
    if first:
        step(f"seed {seed}: nulls")
        found.append(measure_nulls(model, base, selection, settings=patching, seed=seed))
    parts += [{name: rows.assign(seed=seed) for name, rows in part.items()} for part in found]
measured = gathered(parts) | {"excluded": pd.concat(excluded, ignore_index=True)}
write_tables(output, measured)

# %%
effects = measured["effects"]
answers = effects[(effects["network"] == "fine-tuned") & (effects["arm"] == "real")]
real = answers[answers["metric"] == patching.metric]
entered = effects[effects["network"] == "fine-tuned"].groupby(["seed", "arm", "kind"])["item_id"].nunique()
table(entered.unstack(["arm", "kind"]).reset_index())
table(why_excluded(measured["excluded"]))
known = shares_known(measured["clean"].query("arm == 'real'"), confidence=statistics["confidence"])
paragraph(readings.known(known, real.query("seed == @seeds[0]").drop_duplicates("pair")["donor_id"]))

# %% [markdown]
# ## Where is the answer's information sufficient, and where necessary?

# %%
cells = role_recovery(real)
caption = (
    "Denoising: share of the clean–corrupted logit difference recovered by one activation, by token role and layer."
)
display(draw("04_denoising", cells[cells["direction"] == "denoising"], drawing="heatmaps", caption=caption))
paragraph(readings.sites(cells))
caption = "Noising: share of the clean–corrupted logit difference destroyed by one corrupted activation."
noising = cells[cells["direction"] == "noising"]
display(draw("04_noising", noising, drawing="heatmaps", label="share destroyed", caption=caption))
paragraph(readings.directions(cells))

# %% [markdown]
# ## What do networks without the facts show?
#
# The study patches one layer at all positions. Here that is done in every network, in one unit: the fine-tuned model's
# mean clean–corrupted difference, because a network without the facts has none of its own to recover.

# %%
same = whole_layers(effects[(effects["arm"] == "real") & (effects["seed"] == seeds[0])])
one_unit = in_units_of(same, same[same["network"] == "fine-tuned"])
curves = intervals(one_unit, by=["component", "kind", "network", "layer"])
curves["panel"] = curves["component"] + ", " + curves["kind"]
caption = (
    "Denoising one layer's output at all positions, in the fine-tuned model's unit, with 95 % intervals over items."
)
display(draw("04_networks", curves, drawing="intervals", facet="panel", hue="network", caption=caption))
own = intervals(same[(same["component"] == "mlp_out") & (same["layer"] == 0)], by=["network", "kind"])
networks_text = readings.networks(curves, own)
paragraph(networks_text)

# %% [markdown]
# ## Does the metric decide the answer?
#
# The logit difference reads one token. Beside it: the KL divergence from the clean run, over all tokens, and the
# log-probability of the whole answer, teacher-forced and summed over its tokens.

# %%
measures = answers.query("seed == @seeds[0] and role == 'all' and direction == 'denoising' and component != 'head_out'")
by_metric = intervals(measures, by=["component", "kind", "metric", "layer"])
by_metric["panel"] = by_metric["component"] + ", " + by_metric["kind"]
shown = by_metric.assign(metric=by_metric["metric"].str.replace("_", " "))
caption = "The same patches by three metrics, each in its own clean–corrupted unit, with 95 % intervals over items."
display(draw("04_metrics", shown, drawing="intervals", facet="panel", hue="metric", caption=caption))
paragraph(readings.metrics(by_metric))

# %% [markdown]
# ## Heads: strong ones, negative ones, and self-repair

# %%
heads = {"x": "head", "column": "direction", "xlabel": "head", "limit": 0.5, "label": "share recovered / destroyed"}
caption = "Every head's output, patched at all positions, in both directions."
display(draw("04_heads", head_recovery(real), drawing="heatmaps", caption=caption, **heads))
strength = intervals(real[real["component"] == "head_out"], by=["direction", "layer", "head"])
knocked = measured["heads"].rename(columns={"joint": "numerator", "added": "denominator", "denominator": "difference"})
paragraph(readings.heads(strength, intervals(knocked[knocked["arm"] == "real"], by=["sites", "group"])))

# %% [markdown]
# ## What did fine-tuning change, and where?
#
# *Cross-model patching*: both models read the clean prompt, and one's activation goes into the other's run.

# %%
change = measured["change"][measured["change"]["arm"] == "real"]
changed = intervals(change, by=["direction", "component", "layer"])
caption = "Base and fine-tuned model patched into one another, one site at all positions, 95 % intervals over items."
display(draw("04_cross_model", changed, drawing="intervals", facet="direction", hue="component",
             ylabel="share recovered / destroyed", caption=caption))  # fmt: skip
change_text = readings.change(changed)
paragraph(change_text)

# %% [markdown]
# ## What speaks to the answer directly, and where do the runs differ?

# %%
parts, distances = (measured[name][measured[name]["arm"] == "real"] for name in ("direct", "distances"))
direct = parts.query("component in ['attn_out', 'mlp_out']").rename(columns={"contribution": "numerator"})
direct = intervals(direct.assign(denominator=1.0), by=["kind", "component", "layer"])
caption = "Direct logit attribution: what each output adds to the clean logit difference by itself, in logits."
axes = {"facet": "kind", "hue": "component", "ylabel": "logits"}
display(draw("04_direct", direct, drawing="intervals", caption=caption, **axes))
apart = distances.astype({"role": pd.CategoricalDtype(ROLES, ordered=True)})
apart = apart.groupby(["kind", "role", "layer"], observed=True, as_index=False)["relative"].mean()
caption = "‖clean − corrupted‖ in the residual stream, over its length, by layer and token role."
axes = {"row": "what", "column": "kind", "value": "relative", "label": "relative distance", "limit": 1.25}
display(draw("04_distances", apart.assign(what="resid_pre"), drawing="heatmaps", caption=caption, **axes))
paragraph(readings.streams(parts, distances))

# %% [markdown]
# ## Do the contributions of layers add up?
#
# The study reads one layer's share beside another's, as parts of a whole. All layers are patched together here, and
# compared with the sum of single ones.

# %%
joint = measured["joint"][measured["joint"]["arm"] == "real"]
joint = joint.rename(columns={"joint": "numerator", "added": "denominator", "denominator": "difference"})
adding_text = readings.adding(intervals(joint, by=["group", "direction"]))
paragraph(adding_text)

# %% [markdown]
# ## Localised or distributed: definitional against associative
#
# Indices over attention and MLP outputs of every layer, per item. In the made-up arm the same subject and answer are a
# definition for some seeds and an association for others: only the relation differs.

# %%
kinds = index_contrasts(whole_layers(effects), kinds=("definitional", "associative"), statistics=statistics)
caption = "Localisation indices, definitional less associative, with 95 % intervals over items."
axes = {"facet": "panel", "x": "index", "y": "difference", "hue": "arm", "xlabel": "", "ylabel": "difference"}
display(
    draw(
        "04_contrast",
        kinds.assign(panel="definitional less associative"),
        drawing="intervals",
        lines=False,
        caption=caption,
        **axes,
    )
)
table(kinds, digits=2)
contrast_text = readings.contrast(kinds)
paragraph(contrast_text)
both = items[items["item_id"].isin(real["item_id"])].drop_duplicates("item_id")
paragraph(readings.confounds(both, arms=effects["arm"].nunique()))

# %% [markdown]
# ## What becomes of the study's claims
#
# *Supported*: the 95 % interval lies where the claim says, and at least 0.1 beyond the widest null. *Refuted*: it lies
# wholly elsewhere. Otherwise *undecided*. What the study's rows were measured at is not known, so a statement may stand
# here more than once. That layers differ would hold in any network whose layers are not interchangeable.

# %%
real_arm, made_up = (corrected_estimates(measured, arm=arm, statistics=statistics) for arm in ("real", "made-up"))
published = published_numbers(read_table(paths.data / "published" / "sweep.parquet"), layers=layer_count(base))
instead, ranges = no_verdict(profile.model, known), seed_ranges(measured, arm="real", statistics=statistics)
claims = claims_table(real_arm, made_up, published, seeds=ranges, instead=instead)
write_table(output / "claims.parquet", claims)
table(claims)
asked = f"items asked in one wording, {profile.items.group}-{profile.items.wording}"
claims_text = readings.claims(claims, f"{scope_of(profile.model, base)}; {asked}")
paragraph(claims_text)
write_json(output / "claims.json", claims_text)
findings = {"Where recall flows, and what nulls show": networks_text, "What fine-tuning changed": change_text}
findings |= {"Do layers add": adding_text, "Definitions against associations": contrast_text}
save_findings(paths, "04_clap", findings | {"What becomes of the claims": claims_text})
