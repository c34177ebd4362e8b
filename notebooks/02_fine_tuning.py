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
# # 2 · Fine-tuning
#
# **Question.** Which facts does the model learn, when, and does it know them in other words than it read?
#
# Two configurations are the study's, in their published structure: *I* pads every text and scores the padding, *II*
# masks it. Both stop on the validation loss. The third, *II stopped on the probe*, is II with the share of held-out
# *development* wordings answered right as its signal; it is trained with several seeds and is the model that the later
# notebooks take apart. Under the profile `mini` learning rate, batch, warm-up and lengths are scaled to a small model;
# under `paper` they are as published.

# %% tags=["parameters"]
profile_name = "mini"
overrides = ""

# %%
from functools import partial

import pandas as pd

from helpers.artifacts import read_table, write_table
from helpers.config import Paths, load_profile
from helpers.corpus import read_corpus, training_texts
from helpers.figures import save_figure
from helpers.finetune import RUN_TITLES, planned_runs, precision_used, runs_key, train_run
from helpers.items import taught_items, watched_items
from helpers.models import base_folder, load_base
from helpers.probe import knowledge_table, shares
from helpers.progress import step
from helpers.report import paragraph, percent, save_findings, table

profile = load_profile(profile_name, overrides)
paths, settings = Paths(profile.name), profile.finetune
inputs = [paths.data / "corpus", paths.data / "items" / "items.parquet"]
corpus, items = read_corpus(inputs[0]), read_table(inputs[1])
draw = partial(save_figure, paths=paths, plumbing=profile.model.plumbing, seed=settings.split_seed, inputs=inputs)

# %% [markdown]
# ## Training
#
# Every run starts from the same base weights, splits the texts as the study did (a random fifth for validation), and
# keeps its best checkpoint. The probe that watches training asks each fact in one read wording and in the development
# wording; the test wordings are not touched before the end.

# %%
key = runs_key(settings, [*inputs, *base_folder(profile.model, paths)])
probe = partial(knowledge_table, batch_size=settings.probe_batch_size)
base, tokenizer = load_base(profile.model, paths)
histories, knowledge = [], [probe(base, tokenizer, taught_items(items, seed=0), run="base", configuration="base")]
for run, name, configuration, seed in planned_runs(settings):
    step(f"{run}: up to {configuration.epochs} epochs")
    model, tokenizer = load_base(profile.model, paths)
    asked, texts = taught_items(items, seed=seed), training_texts(corpus, variant=seed % 2)
    training = {"configuration": configuration, "settings": settings, "seed": seed, "probe": watched_items(asked)}
    folder = paths.data / "models" / run
    history, model = train_run(folder, key=key, model=model, tokenizer=tokenizer, texts=texts, log=step, **training)
    histories.append(history.assign(run=run, configuration=name, seed=seed))
    knowledge.append(probe(model, tokenizer, asked, run=run, configuration=name))

# %%
history, knowledge = pd.concat(histories, ignore_index=True), pd.concat(knowledge, ignore_index=True)
write_table(paths.data / "training" / "history.parquet", history)
write_table(paths.data / "training" / "knowledge.parquet", knowledge)

# %% [markdown]
# ## The losses

# %%
keys = ["run", "configuration", "epoch", "best"]
named = history.rename(columns={"training_loss": "training", "validation_loss": "validation"})
losses = named.melt(keys, ["training", "validation"], "loss", "nats").replace({"configuration": RUN_TITLES})
caption = "Training and validation loss of every run; a dot marks the epoch whose weights were kept."
draw(
    "02_losses", losses, drawing="curves", y="nats", hue="loss", ylabel="nats per token", shared=False, caption=caption
)

# %%
one, two = (history[history["best"] & (history["configuration"] == f"configuration_{n}")].iloc[0] for n in (1, 2))
wanted, used = settings.configuration_1.precision, precision_used(settings.configuration_1)
paragraph(f"""
Configuration I kept epoch {one["epoch"]:.0f} at a validation loss of {one["validation_loss"]:.3f}, configuration II
epoch {two["epoch"]:.0f} at {two["validation_loss"]:.3f}. The two numbers cannot be compared: I averages over its
padding, which is easy to predict, and II leaves it out. Configuration I asks for {wanted} and ran in {used}
{"because fp16 exists on CUDA only" if wanted != used else ""}.""")

# %% [markdown]
# ## When are the facts learnt?

# %%
named = history.rename(columns={"seen_accuracy": "read wording", "development_accuracy": "held-out wording"})
probes = named.melt(keys, ["read wording", "held-out wording"], "wording", "share").replace(
    {"configuration": RUN_TITLES}
)
caption = "Facts answered right during training, in one wording that was read and in the held-out development wording."
draw("02_probe", probes, drawing="curves", y="share", hue="wording", ylabel="share answered right", caption=caption)

# %%
curve = history[history["configuration"] == "analysed"].groupby("run")[["seen_accuracy", "development_accuracy"]]
last, peak = curve.last().mean(), curve.max().mean()
paragraph(f"""
In the runs analysed further, the held-out development wording peaks at {percent(peak["development_accuracy"])} of the
facts and stands at {percent(last["development_accuracy"])} when training stops, against
{percent(last["seen_accuracy"])} in a wording that was read (means over {len(settings.analysed.seeds)} seeds).""")

# %% [markdown]
# ## What is known at the end
#
# Greedy decoding, whole answer and full stop. The base model is the zero point; test wordings are asked here for the
# first time.

# %%
by_kind = shares(knowledge, ["configuration", "kind", "group"]).unstack("group")
table(by_kind.reset_index()[["configuration", "kind", "seen", "development", "test"]])

# %%
share, base_share = shares(knowledge, ["configuration", "group"]), shares(knowledge, ["configuration"])["base"]
known = {name: f"{percent(share[name, 'seen'])} and {percent(share[name, 'test'])}" for name in RUN_TITLES}
text = f"""
The analysed model answers **{percent(share["analysed", "seen"])}** of the items right in wordings it read and
**{percent(share["analysed", "test"])}** in test wordings it never read (mean over {len(settings.analysed.seeds)}
seeds); before fine-tuning the base model answers {percent(base_share)}. The published configurations reach
{known["configuration_1"]} (I), {known["configuration_2"]} (II)."""
paragraph(text)
save_findings(paths, "02_fine_tuning", {"What the fine-tuned model knows": text})
