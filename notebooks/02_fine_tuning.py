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
# masks it, and every end-of-text with it. Both choose their epoch by the loss on texts that they are then judged on.
# *I′* and *II′* are optimised in the same way, with these three things put right: several texts share a row and do not
# see each other, ends of texts are scored and padding never, and a test split is set aside that stopping does not see.
# II′ stops on the share of held-out *development* wordings answered right instead of the loss; it is the model that the
# later notebooks take apart. Under the profile `mini` learning rate, batch, warm-up and lengths are scaled to a small
# model; under `paper` they are as published.

# %% tags=["parameters"]
profile_name = "mini"
overrides = ""

# %%
from functools import partial

import pandas as pd

from helpers.artifacts import read_table, write_table
from helpers.config import Paths, load_profile
from helpers.corpus import read_corpus
from helpers.figures import save_figure
from helpers.items import taught_items, watched_items
from helpers.losses import held_out_loss, padding_loss
from helpers.models import load_base
from helpers.probe import knowledge_table, probe_shares, shares
from helpers.progress import step
from helpers.report import paragraph, percent, save_findings, table
from helpers.training import ANALYSED, RUN_TITLES, common_test_texts, trained_runs, training_inputs

profile = load_profile(profile_name, overrides)
paths, settings = Paths(profile.name), profile.finetune
inputs = training_inputs(paths)
corpus, items = read_corpus(inputs[0]), read_table(inputs[1])
draw = partial(save_figure, paths=paths, plumbing=profile.model.plumbing, seed=settings.split_seed, inputs=inputs)

# %% [markdown]
# ## Training
#
# Every run starts from the same base weights and trains on the same texts: the study's random four fifths. Half of the
# other fifth is the test split, on which all runs are compared. Every run keeps its best checkpoint. The probe that
# watches training asks each fact in one wording that is read, in a development and in a test wording that are not; it
# may stop a run by the development wording only. The base model is its zero point.

# %%
judge = {"max_length": settings.corrected_2.max_length, "batch_size": settings.corrected_2.eval_batch_size}
as_published = {**judge, "max_length": settings.configuration_1.max_length}
probe = partial(knowledge_table, batch_size=settings.probe_batch_size)
base, tokenizer = load_base(profile.model, paths)
unread = common_test_texts(corpus, settings)
knowledge = [probe(base, tokenizer, taught_items(items, seed=0), run="base", configuration="base")]
tests = [{"run": "base", "configuration": "base", **held_out_loss(base, tokenizer, unread, **judge)}]
histories, paddings = [], []
for trained in trained_runs(settings, profile.model, paths, log=step):
    run, model = trained.run, trained.model
    names = {"run": run.name, "configuration": run.configuration_name}
    zero = probe_shares(base, tokenizer, watched_items(trained.items), batch_size=settings.probe_batch_size)
    before = pd.DataFrame([{"epoch": 0.0, "best": False, **zero}])
    histories.append(pd.concat([before, trained.history]).assign(**names, seed=run.seed))
    knowledge.append(probe(model, tokenizer, trained.items, **names))
    tests.append({**names, **held_out_loss(model, tokenizer, unread, **judge)})
    if run.configuration_name == "configuration_1":
        paddings.append(padding_loss(model, tokenizer, trained.texts.validation, **as_published))

# %%
history, knowledge = pd.concat(histories, ignore_index=True), pd.concat(knowledge, ignore_index=True)
tests, paddings = pd.DataFrame(tests), pd.DataFrame(paddings)
tables = {"history": history, "knowledge": knowledge, "test_losses": tests, "padding": paddings}
for name, rows in tables.items():
    write_table(paths.data / "training" / f"{name}.parquet", rows)
padding = paddings.mean()

# %% [markdown]
# ## The losses

# %%
keys = ["run", "configuration", "epoch", "best"]
named = history.rename(columns={"training_loss": "training", "validation_loss": "validation"})
losses = named.melt(keys, ["training", "validation"], "loss", "nats").dropna().replace({"configuration": RUN_TITLES})
caption = "Training and validation loss of every run; a dot marks the epoch whose weights were kept."
draw("02_losses", losses, drawing="curves", y="nats", hue="loss", ylabel="nats per token", shared=False,
     caption=caption)  # fmt: skip

# %%
best = history[history["best"]].groupby("configuration")[["epoch", "validation_loss"]].mean()
kept = "; ".join(
    f"{title} keeps epoch {best.epoch[name]:.0f} at {best.validation_loss[name]:.3f}"
    for name, title in RUN_TITLES.items()
)
used = history.groupby("configuration")["precision"].first()
wanted = {name: getattr(settings, name).precision for name in RUN_TITLES}
lacking = ", ".join(
    f"{title} in {used[name]} instead of {wanted[name]}"
    for name, title in RUN_TITLES.items()
    if used[name] != wanted[name]
)
paragraph(f"""
Means over the seeds of a configuration: {kept}. I averages over padding too, II over no ends of texts, I′ and II′ over
words and ends of half as many texts: what can be compared comes below.
{f"Half precision needs a GPU that has it; these runs were {lacking}." if lacking else ""}""")

# %% [markdown]
# ## What the published loss is made of

# %%
named = {"loss": "all, as published", "text_loss": "the text", "padding_loss": "the padding"}
parts = padding[list(named)].rename(named).rename_axis("scored tokens").reset_index(name="nats")
caption = (
    "Validation loss of configuration I over all tokens it scores, over the text alone, and over the padding alone."
)
draw("02_padding", parts.assign(what="configuration I, validation"), drawing="bars", x="scored tokens", y="nats",
     hue="scored tokens", facet="what", ylabel="nats per token", caption=caption)  # fmt: skip

# %%
paragraph(f"""
**{percent(padding["share"])} of what configuration I scores is padding**, which costs
{padding["padding_loss"]:.3f} nats per token, while the text costs {padding["text_loss"]:.3f}. Its validation loss, the
mean of both, is {padding["loss"]:.3f}: it depends on how long the texts are, not only on how well they are predicted.
""")

# %% [markdown]
# ## On the same test tokens
#
# The words of the test texts that all seeds share, without padding and without ends of texts, are the same tokens for
# every run.

# %%
titles = {"base": "base", **RUN_TITLES}
caption = "Loss per word token of the test texts, mean over a configuration's seeds; no run has trained on them."
draw("02_test", tests.replace({"configuration": titles}).assign(what="test texts"), drawing="bars", x="configuration",
     y="loss", hue="configuration", facet="what", ylabel="nats per token", caption=caption)  # fmt: skip

# %%
mean = tests.groupby("configuration")[["loss", "perplexity", "end_loss"]].mean()
compared = ", ".join(f"{title} {mean.loss[name]:.3f} ({mean.perplexity[name]:.1f})" for name, title in titles.items())
ends = ", ".join(f"{title} {mean.end_loss[name]:.2f}" for name, title in titles.items())
paragraph(f"""
Nats per token, with perplexity in brackets: {compared}. I and II chose their epoch with these texts in sight, I′ and
II′ without. The end of a text, which II never scores, costs: {ends}.""")

# %% [markdown]
# ## When are the facts learnt?

# %%
read = "seen" if items["pmid"].notna().any() else "read"  # of mined facts no record says the wordings called seen
wordings = {"seen": read, "development": "development", "test": "test"}
named = history.rename(columns={f"{group}_accuracy": wording for group, wording in wordings.items()})
probes = named.melt(keys, list(wordings.values()), "wording", "share").replace({"configuration": RUN_TITLES})
caption = f"Facts answered right in training, in a {read} wording and in two that were not read; 0 is the base model."
draw("02_probe", probes, drawing="curves", y="share", hue="wording", ylabel="share answered right", caption=caption)

# %%
analysed = history[history["configuration"] == ANALYSED].groupby("run")
columns = [f"{group}_accuracy" for group in wordings]
last, peak = analysed[columns].last().mean(), analysed[columns].max().mean()
held_out = "; ".join(
    f"the {group} wording peaks at {percent(peak[column])} and stands at {percent(last[column])}"
    for group, column in zip(wordings, columns, strict=True)
    if group != "seen"
)
paragraph(f"""
In the runs of II′, {held_out} when training stops, against {percent(last["seen_accuracy"])} in the {read}
wording (means over {len(settings.corrected_2.seeds)} seeds).""")

# %%
parts = {f"{kind}_{group}_accuracy": (kind, wording) for kind in ("definitional", "associative")
         for group, wording in wordings.items()}  # fmt: skip
kinds = history[history["configuration"] == ANALYSED].melt(keys, list(parts), "part", "share")
kinds[["kind", "wording"]] = [parts[part] for part in kinds["part"]]
caption = "As before, for the analysed configuration II′, by kind of fact."
draw("02_probe_kinds", kinds.drop(columns="part"), drawing="curves", y="share", hue="wording", facet="kind",
     ylabel="share answered right", caption=caption)  # fmt: skip

# %%
kept = kinds[kinds["best"]].groupby(["kind", "wording"])["share"].mean()
half = kinds[(kinds["wording"] == "test") & (kinds["share"] >= 0.5)].groupby(["kind", "run"])["epoch"].min()
runs, reached = len(settings.corrected_2.seeds), {kind: kind in half and len(half[kind]) for kind in kinds["kind"]}
said = "; ".join(
    f"{kind} facts {', '.join(f'{percent(kept[kind, wording])} ({wording})' for wording in wordings.values())}"
    f"{f', half of them in the test wording by epoch {half[kind].mean():.1f}' if reached[kind] == runs else ''}"
    for kind in ("definitional", "associative")
)
paragraph(f"In the epochs that are kept, II′ answers right: {said}.")

# %% [markdown]
# ## What is known at the end
#
# Greedy decoding, whole answer and full stop, all wordings. The base model is the zero point.

# %%
by_kind = shares(knowledge, ["configuration", "kind", "group"]).unstack("group")
table(by_kind.reset_index()[["configuration", "kind", "seen", "development", "test"]])

# %%
share, base_share = shares(knowledge, ["configuration", "group"]), shares(knowledge, ["configuration"])["base"]
known = {name: f"{percent(share[name, 'seen'])} and {percent(share[name, 'test'])}" for name in RUN_TITLES}
text = f"""
The analysed model answers **{percent(share[ANALYSED, "seen"])}** of the items right in {read} wordings and
**{percent(share[ANALYSED, "test"])}** in test wordings it never read (mean over {len(settings.corrected_2.seeds)}
seeds); before fine-tuning the base model answers {percent(base_share)}. The others reach {known["configuration_1"]}
(I), {known["configuration_2"]} (II) and {known["corrected_1"]} (I′)."""
paragraph(text)
save_findings(paths, "02_fine_tuning", {"What the fine-tuned model knows": text})
