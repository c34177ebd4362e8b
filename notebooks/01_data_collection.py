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
# # 1 · Data collection
#
# **Question.** What does the model read, and what do we ask it afterwards?
#
# The study fine-tuned GPT-2 on 9,958 epilepsy abstracts from PubMed. Under the profile `paper` this notebook collects
# abstracts through the E-utilities; by default it writes abstract-like records from an embedded, hand-written
# knowledge base of epileptology, so that every fact the model can know is known to us as well.

# %% tags=["parameters"]
profile_name = "mini"
overrides = ""

# %%
from functools import partial

from helpers.artifacts import write_json, write_table
from helpers.config import Paths, load_profile
from helpers.corpus import MENTIONS, collect, count_mentions, fact_exposures, training_texts
from helpers.figures import save_figure
from helpers.items import balance_table, collect_items, taught_items
from helpers.models import load_base_tokenizer
from helpers.progress import step
from helpers.report import paragraph, percent, save_findings, table

profile = load_profile(profile_name, overrides)
paths = Paths(profile.name)
outputs = [paths.data / "corpus" / "corpus.parquet", paths.data / "items" / "items.parquet"]
draw = partial(save_figure, paths=paths, plumbing=profile.model.plumbing, seed=profile.corpus.seed, inputs=outputs)

# %% [markdown]
# ## The records

# %%
corpus, counts = collect(profile.corpus, paths, progress=step)
write_table(outputs[0], corpus)
write_json(paths.data / "corpus" / "counts.json", counts)
table(corpus[["pmid", "title", "abstract", "journal", "year"]].head(3))

# %%
texts = training_texts(corpus, variant=0)
mentions, published = count_mentions(texts), {"epilepsy": 20595, "EEG": 11674, "seizure": 13921}
read = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items())
found = ", ".join(f"{term} {mentions[term]:,} ({published[term]:,})" for term in MENTIONS)
paragraph(f"""
This run holds **{len(corpus):,} records** ({read}). A model trains on {len(texts):,} of them: where the records carry a
made-up arm, each seed reads one of its two variants. A mention is a whole word, in any case, its plural in -s included.
Found here, with the study's own counts on its 9,958 abstracts in brackets: {found}. The study does not define a
mention, so the two columns are neighbours and not a comparison.""")

# %% [markdown]
# ## The items
#
# An item is one question with its answer and a foil: a wrong answer of the same kind and token length, which begins
# with another token. *Definitional* items ask what a term means, *associative* ones what goes with it, causes it or
# treats it. Every item is asked in several wordings. Fine-tuning reads some of them; the others are held out, one
# group for early stopping and one that is asked once, at the end. A fifth of the items is set aside as exploratory
# before anything has been looked at.

# %%
tokenizer = load_base_tokenizer(profile.model, paths)
items = collect_items(profile.corpus, profile.items, paths, tokenizer)
write_table(outputs[1], items)
sample = items[items["group"] == "seen"].drop_duplicates("item_id").groupby("relation").head(2)
table(sample[["item_id", "kind", "arm", "prompt", "answer", "foil"]])

# %% [markdown]
# ## Are the two kinds comparable?
#
# If definitions had shorter answers or were read more often than associations, a difference between them would say
# nothing about the kind of knowledge.

# %%
balance = balance_table(taught_items(items, seed=0), fact_exposures(corpus, variant=0))
write_table(paths.data / "items" / "balance.parquet", balance)
table(balance)

# %%
columns = {"subject_tokens": "tokens of subject", "answer_tokens": "tokens of answer"}
columns |= {"exposures": "times read per epoch", "facts_per_answer": "facts per answer"}
tidy = balance.rename(columns=columns).melt(["arm", "kind"], list(columns.values()), "what", "mean")
caption = "Balance of definitional and associative facts, in the real and the made-up arm."
draw("01_balance", tidy, drawing="bars", x="arm", y="mean", hue="kind", facet="what", ylabel="mean", caption=caption)

# %%
real = balance[balance["arm"] == "real"].set_index("kind")
gap = real.loc["definitional", list(columns)] - real.loc["associative", list(columns)]
longer = {name: f"{abs(gap[name]):.1f} tokens {'shorter' if gap[name] < 0 else 'longer'}" for name in list(columns)[:2]}
alike, invented = items["foil_match"].ne("other length").mean(), items[items["arm"] == "made-up"]["item_id"].nunique()
text = f"""
Real definitional subjects are {longer["subject_tokens"]} on average than associative ones, and their answers
{longer["answer_tokens"]}: nature is not balanced, and no selection makes abbreviations long. {percent(alike)} of the
foils have the token length of the right answer."""
if invented:
    text += f""" That is why there is a made-up arm: {invented} invented subject–answer pairs, each taught as a
    definition in one variant of the corpus and as an association in the other. There, subject and answer are the same
    and only the relation differs."""
paragraph(text)
size = f"{len(corpus):,} records, {items['item_id'].nunique()} facts, {len(items):,} items in all their wordings."
save_findings(paths, "01_data_collection", {"What was read and is asked": size, "Balance of the two kinds": text})
