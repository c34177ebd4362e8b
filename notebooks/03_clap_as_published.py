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
# # 3 · CLAP as published
#
# **Question.** What does the study's own protocol measure, and what would it measure in a network that knows nothing?
#
# The protocol: put the answer *inside* the prompt, run a clean and a corrupted version, replay one module's output at
# all positions from one run into the other, and read, after the final full stop, the mean logit of the tokens of one
# phrase minus that of another. The study's abstract describes clean activations put into the corrupted run
# (*denoising*); a summary of it describes the reverse (*noising*). Both are run here.

# %% tags=["parameters"]
profile_name = "mini"
overrides = ""

# %%
import pandas as pd

from helpers.artifacts import write_table
from helpers.config import Paths, load_profile
from helpers.figures import save_figure
from helpers.models import load_base, load_model, untrained_twin
from helpers.progress import track
from helpers.published import PUBLISHED_ITEMS, describe_items, published_comparison, published_sweep, visited_modules
from helpers.report import paragraph, save_findings, table
from helpers.training import planned_runs

profile = load_profile(profile_name, overrides)
paths, networks_drawn = Paths(profile.name), profile.patching.untrained_networks

# %% [markdown]
# ## The items
#
# The associative item is the study's, verbatim. The prompts of its definitional item are not available; what stands
# here is *reconstructed* from the two phrases that its metric scores.

# %%
base, tokenizer = load_base(profile.model, paths)
table(describe_items(tokenizer))

# %% [markdown]
# ## The modules
#
# The published script visits modules that are `nn.Linear`. In GPT-2 nearly everything else is a `Conv1D`: the library's
# name for a linear layer stored transposed. It is no convolution, and nothing in GPT-2 is.

# %%
modules = pd.Series(visited_modules(base))
linear, transposed = modules[modules == "Linear"].index, (modules == "Conv1D").sum()
paragraph(f"""
This model has {len(linear)} `nn.Linear` module ({", ".join(linear)}) and {transposed} `Conv1D` modules. Taken
literally, the published script therefore patches **one** module: the unembedding, whose output *is* the logits. Here
every `Conv1D` is patched too, each under its own name, and so are the bottlenecks that the whole pass goes through.""")

# %% [markdown]
# ## The sweep, on trained and untrained networks

# %%
networks = {("base", "base"): base}
for run in planned_runs(profile.finetune):
    networks["fine-tuned", run.name] = load_model(paths.data / "models" / run.name)[0]
for number in range(networks_drawn):
    networks["untrained", f"untrained-{number}"] = untrained_twin(base, seed=number)
sweeps = []
for (group, name), network in track(networks.items(), "published protocol", total=len(networks)):
    for item in PUBLISHED_ITEMS:
        sweeps.append(published_sweep(network, tokenizer, item).assign(group=group, network=name))
sweep = pd.concat(sweeps, ignore_index=True)
write_table(paths.data / "published" / "sweep.parquet", sweep)

# %%
denoised = sweep[(sweep["direction"] == "denoising") & ~sweep["by_construction"]].dropna(subset="recovery")
shown = denoised.assign(site=denoised["site"].str.removeprefix("transformer."))
caption = (
    "The published protocol, module by module: every fine-tuned run and the base model, over the spread of untrained "
    "networks (grey: central 95 %). Triangles lie beyond the axis."
)
save_figure(
    "03_published_protocol",
    shown[["item", "site", "group", "network", "recovery"]],
    drawing="null_bars",
    xlabel="recovery, clean → corrupted",
    caption=caption,
    paths=paths,
    plumbing=profile.model.plumbing,
    seed=0,
    inputs=[paths.data / "published" / "sweep.parquet"],
)

# %%
untrained, tuned = (denoised[denoised["group"] == group] for group in ("untrained", "fine-tuned"))
null = untrained.groupby(["item", "site"])["recovery"].quantile([0.025, 0.975]).unstack()
compared = tuned.join(null, on=["item", "site"])
inside = compared["recovery"].between(compared[0.025], compared[0.975]).mean()
low, middle, high = untrained["recovery"].quantile([0.025, 0.5, 0.975])
null_text = f"""
Across modules, {networks_drawn} untrained networks of the same shape “recover” between {low:.2f} and {high:.2f}
(central 95 %, median {middle:.2f}). **{100 * inside:.0f} %** of the fine-tuned models' values lie inside the untrained
networks' central 95 % for the same module and item. Where they do, one item per category cannot tell knowledge from
weights drawn at random."""
paragraph(null_text)

# %% [markdown]
# ## By construction
#
# Where a single module's output at all positions fixes everything that follows, replaying it reproduces the other run.
# The result is 1 for any weights and any question. It is a unit test of the code and no finding about knowledge.

# %%
identities = sweep[sweep["by_construction"]].dropna(subset="recovery")
error, sites = (identities["recovery"] - 1).abs().max(), sweep["site"].nunique()
construction_text = f"""
{identities["site"].nunique()} of the {sites} modules are such sites: embedding, every block, the last layer norm and
the unembedding. Over {identities["network"].nunique()} networks, trained and untrained, and both directions, the
largest deviation of their recovery from 1 is {error:.0g}. The study reports 100 % at the final output layer and reads
it as “definitional knowledge is localised”; the same 100 % is found here in networks that were never trained."""
paragraph(construction_text)

# %% [markdown]
# ## Beside the published figures
#
# Which module of which layer the published rows speak of cannot be settled from what is public, so each figure stands
# beside every module it may mean. Published numbers are claims to be tested, not targets. Ours are medians over
# networks.

# %%
comparison = published_comparison(sweep, layers=base.config.n_layer)
write_table(paths.data / "published" / "comparison.parquet", comparison)
table(comparison, digits=2)

# %%
failed = sweep[sweep["note"] == "shape error"]["item"].unique()
shapes = "Both items give prompts of equal length with this tokenizer, so no module fails on its shape."
if len(failed):
    shapes = f"For the {' and the '.join(failed)} item the prompts differ in length: inside, all reads “shape error”."
paragraph(f"""
{shapes} A module and the projection that follows it (c_attn and c_proj, c_fc and c_proj) share one value: at all
positions they are one causal cut, not two layers.""")
findings = {"The published protocol has no null": null_text, "100 % by construction": construction_text}
save_findings(paths, "03_clap_as_published", findings)
