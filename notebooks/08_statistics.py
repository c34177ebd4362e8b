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
# # 8 · Statistics and plots
#
# **Question.** Do layers differ, do the two kinds differ, and does either difference survive a test whose unit is the
# item?
#
# The study reports “significant layer-specific effects (p < 0.01)” without naming the test or its unit. With one item
# per category the only units are layers or tokens of the same prompt, which are not independent. Here the unit is the
# item: one linear mixed model with a random intercept for each item.

# %% tags=["parameters"]
profile_name = "mini"
overrides = ""

# %%
from functools import partial

from helpers.artifacts import read_json, read_table, write_table
from helpers.config import Paths, load_profile
from helpers.experiment import by_role
from helpers.figures import save_figure
from helpers.report import chi_square, paragraph, save_findings, table, with_interval
from helpers.stats import layer_effects, layer_formula, mixed_model, readable_terms, recovery_intervals, wald_tests

profile = load_profile(profile_name, overrides)
paths = Paths(profile.name)
source = paths.data / "clap" / "effects.parquet"
effects = read_table(source)
tuned = by_role(effects[(effects["network"] == "fine-tuned") & (effects["metric"] == "logit_difference")])
intervals = partial(recovery_intervals, item="item_id", **vars(profile.statistics))
draw = partial(save_figure, paths=paths, plumbing=profile.model.plumbing, seed=profile.statistics.seed, inputs=[source])

# %% [markdown]
# ## One mixed model
#
# Response: the denoising effect of one layer's MLP output at all positions together, in units of the mean
# clean–corrupted difference of its kind. Fixed effects: layer, kind, their interaction, and the training seed.
# Random: the item.

# %%
denoised = tuned[tuned["direction"] == "denoising"]
sites = denoised[(denoised["component"] == "mlp_out") & (denoised["role"] == "all")]
responses = layer_effects(sites[sites["arm"] == "real"])
coefficients = mixed_model(responses, layer_formula(responses), item="item_id")
tests = wald_tests(responses, layer_formula(responses, coding="Sum"), item="item_id")  # sums: main effects are means
write_table(paths.data / "statistics" / "mixed_model.parquet", coefficients)
write_table(paths.data / "statistics" / "wald_tests.parquet", tests)
table(tests)

# %%
shown = readable_terms(coefficients[coefficients["term"] != "Intercept"])
label = "difference in share recovered, against layer 0 of associative items"
caption = "Fixed effects of the mixed model with their 95 % intervals; the unit is the item."
draw("08_mixed_model", shown, drawing="forest", xlabel=label, caption=caption)

# %%
tested = readable_terms(tests[tests["term"] != "Intercept"])
said = [f"{row['term']} {chi_square(row)}" for _, row in tested.iterrows()]
settled = "" if coefficients["converged"].all() else "The fit did not converge, so these numbers are provisional."
mixed_text = f"""
Over {responses["item_id"].nunique()} real items and {responses["seed"].nunique()} seeds, the joint tests say:
{"; ".join(said)}. {settled} A layer effect says that depth matters in this model; it would be there in any network
whose layers are not interchangeable, and by itself says nothing about where knowledge is stored."""
paragraph(mixed_text)

# %% [markdown]
# ## The kinds, with subject and answer held fixed
#
# Real definitions and associations differ in length, wording and frequency. In the made-up arm one and the same pair is
# a definition for some seeds and an association for others.

# %%
arms = intervals(sites, by=["arm", "kind", "layer"])
caption = "MLP outputs at all positions: definitional against associative items, in the real and the made-up arm."
draw("08_arms", arms, drawing="intervals", facet="arm", caption=caption)

# %%
first = arms[arms["layer"] == 0]
said = [f"{r['arm']}, {r['kind']}: {with_interval(r)} ({r['items']} items)" for _, r in first.iterrows()]
arms_text = f"Share recovered by MLP 0 at all positions: {'; '.join(said)}."
paragraph(arms_text)

# %% [markdown]
# ## All components at a glance

# %%
overview = intervals(
    tuned[(tuned["arm"] == "real") & (tuned["role"] != "all")], by=["direction", "component", "kind", "role"]
)
overview["panel"] = overview["component"] + ", " + overview["direction"]
overview["role"] = overview["role"].astype(str).str.replace("_", " ")
caption = "Every component in both directions, averaged over layers, by token role."
axes = {"x": "role", "xlabel": "", "ylabel": "share, mean over layers", "facet": "panel", "lines": False}
draw("08_overview", overview, drawing="intervals", caption=caption, **axes)

# %%
inner = overview[overview["component"] != "resid_pre"]
largest = inner.loc[inner.groupby(["direction", "kind"])["recovery"].idxmax()]
said = [
    f"{r['component']} at {r['role']} ({r['direction']}, {r['kind']}: {with_interval(r)})"
    for _, r in largest.iterrows()
]
overview_text = f"Averaged over layers, the largest share belongs to {'; '.join(said)}."
paragraph(overview_text)

# %% [markdown]
# ## The study's claims, one by one
#
# Each is a region in which a quantity should lie, and each has a null; how they are computed stands in
# `helpers.claims`, the measurements in notebook 4. Whether editing depends on the kind of knowledge is for notebook 6.

# %%
table(read_table(paths.data / "clap" / "claims.parquet"))
paragraph(read_json(paths.data / "clap" / "claims.json"))

# %%
findings = {"Layers and kinds, with the item as unit": mixed_text, "Subject and answer held fixed": arms_text}
save_findings(paths, "08_statistics", findings)
