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
from helpers.corpus import collect, count_mentions, fact_exposures, read_corpus, read_plan, training_texts
from helpers.datacard import LICENCE, STUDY_RECORDS, by_year, common, mention_table, outline, reach, rule_table
from helpers.donors import donor_table
from helpers.figures import save_figure
from helpers.items import balance_table, collect_items, taught_items
from helpers.mining import mine, outcome_table, precision_table, read_labels, relation_table
from helpers.models import load_base_tokenizer
from helpers.progress import step
from helpers.report import paragraph, percent, save_findings, table

profile = load_profile(profile_name, overrides)
paths = Paths(profile.name)
outputs = [paths.data / "corpus", paths.data / "items" / "items.parquet"]
draw = partial(save_figure, paths=paths, plumbing=profile.model.plumbing, seed=profile.corpus.seed, inputs=outputs[:1])

# %% [markdown]
# ## The records

# %%
counts = collect(profile.corpus, paths, outputs[0], progress=step)
corpus = read_corpus(outputs[0])
write_json(paths.data / "card" / "counts.json", counts)
beginnings = corpus.assign(abstract=corpus["abstract"].str.slice(0, 90) + " …")
table(beginnings[["pmid", "title", "abstract", "journal", "year"]].head(3))

# %%
texts = training_texts(corpus, variant=0)
mentions = mention_table(count_mentions(texts, profile.corpus.asked.mentions), len(texts))
caption = "Mentions of the domain's terms per record, here and in the study."
draw("01_mentions", mentions.assign(what="mentions of a term"), drawing="bars", x="term", y="per_record", hue="source",
     facet="what", ylabel="per record", caption=caption)  # fmt: skip

# %%
here, study = (mentions[mentions["source"] == name].set_index("term")["mentions"] for name in ("this run", "published"))
found = ", ".join(f"{term} {n:,}" + (f" ({study[term]:,})" if term in study else "") for term, n in here.items())
beside = f"""In brackets are the study's own counts on its {STUDY_RECORDS:,} abstracts; it does not say what it counts
as a mention, so the two are neighbours and not a comparison."""
paragraph(f"""
This run holds **{len(corpus):,} records**. {len(texts):,} of them are for training and validating a model: where the
records carry a made-up arm, each seed reads one of its two variants. A mention is a whole word of title or abstract, in
any case, its plural in -s included. Found here: {found}. {beside if len(study) else ""}""")

# %% [markdown]
# ## What was asked, and what was left out

# %%
planned = read_plan(profile.corpus, paths)
if planned:
    table(rule_table(counts))
    notes = " ".join(planned["notes"])
    asked = f"""The query `{planned["query"]}` was put to {planned["base_url"]} on {planned["retrieved_at"][:10]} and
        matches {planned["count"]:,} records; {counts["asked"]:,} were asked for, and {counts["kept"]:,} are in the
        corpus. {notes} {LICENCE}"""
else:
    asked = """PubMed was not asked: every record is generated, by the rules of `helpers.corpus`, and their years and
        journals are drawn at random. `make collect PROFILE=paper` collects
        abstracts from PubMed, by a query of ours, because the study does not publish its own."""
paragraph(asked)

# %%
years = by_year(corpus, "PubMed" if planned else "generated")
caption = "Records of the corpus by year of publication."
draw("01_years", years, drawing="curves", x="year", xlabel="year", y="records", ylabel="records", hue="source",
     facet="source", unit=None, mark=None, from_zero=True, caption=caption)  # fmt: skip

# %%
languages = common(corpus, "language", most=3)
spoken = ", ".join(f"{row.language} {percent(row.share)}" for row in languages.itertuples())
paragraph(f"""
The records are from {years["year"].min()} to {years["year"].max()}, {percent(corpus["year"].isna().mean())} of them
without a year and {percent(corpus["journal"].isna().mean())} without a journal. Languages: {spoken}. The most common
journals are in the table.""")
table(common(corpus, "journal", most=5))

# %% [markdown]
# ## What a cap on the hits does to the sample
#
# ESearch hands out 9,999 hits and no more. Whoever takes what it lists first takes what it likes to list first. The
# alternative asks by slices of the date of entry until every hit is known, and draws from all of them.

# %%
taken = reach(planned)
share = {"x": "entered", "xlabel": "entered into PubMed", "y": "share", "ylabel": "share taken", "hue": "selection"}
caption = "Share of the hits that each selection takes, slice by slice of the date of entry (a level is a whole slice)."
draw("01_cap", outline(taken).assign(domain=profile.corpus.domain), drawing="curves", **share, facet="domain",
     unit=None, mark=None, from_zero=True, caption=caption) if len(taken) else None  # fmt: skip

# %%
if planned is None:
    cap = "Not run: PubMed was not asked."
elif taken.empty:
    cap = f"Nothing in this run: all {planned['count']:,} hits are taken, or all are known without slices."
else:
    first, sample = (taken[taken["selection"] == name] for name in ("first", "sample"))
    reached, missed = first[first["taken"] > 0], first[first["taken"] == 0]
    cap = f"""The first {first["taken"].sum():,} of {planned["count"]:,} hits are all in slices that begin in
        {int(reached["begin"].min())} or later; at least {percent(missed["hits"].sum() / first["hits"].sum())} of the
        hits were entered before any of them. The sample takes between {percent(sample["share"].min())} and
        {percent(sample["share"].max())} of every slice. This run uses the selection `{planned["selection"]}`."""
paragraph(cap)

# %% [markdown]
# ## What the abstracts state
#
# Abstracts that were collected are also what is asked about: definitions of abbreviations and terms, associations, and
# causes are mined from their sentences, by patterns and word lists, and what is not certain is left out.

# %%
if planned:
    mined = mine(corpus)
    checked = precision_table(read_labels(paths.embedded), mined.facts)
    table(outcome_table(mined.statements))
    table(checked)
    related = relation_table(mined.facts)
    kinds, each = related.groupby("kind")["facts"].sum(), related.set_index("relation")["facts"]
    whole = checked[checked["pattern"] == "all"]
    right = "; ".join(
        f"of {row.checked} {row.kind} ones {row.right} are right ({row.precision:.2f} [{row.low:.2f}, {row.high:.2f}])"
        for row in whole.itertuples()
    )
    stated = f"""{len(mined.statements):,} statements were found and {len(mined.facts):,} kept as facts, each with its
        PMID and sentence: {kinds["definitional"]:,} definitional and {kinds["associative"]:,} associative ones, by
        relation {", ".join(f"{name} {n:,}" for name, n in each.items())}. A difference between the kinds here is thus
        one between definitions and the relations that have facts. Statements drawn at random from another corpus,
        PubMedQA's abstracts, were read by hand: {right}. These shares are in-sample: the rules were written while
        reading the same 1,000 abstracts, of all medicine and hardly any about epilepsy, so expect less here. No
        abstract says a fact in our wordings, so of mined items those called seen are not read either."""
else:
    mined = None
    stated = """Nothing was mined: no abstract was collected, and the items are those of the embedded knowledge base.
        The records say them in the wordings called seen."""
paragraph(stated)

# %% [markdown]
# ## The items
#
# An item is one question with its answer and a foil: a wrong answer of the same kind, of the same token length where
# there is one, of the nearest frequency in the texts, which begins with another token. *Definitional* items ask what a
# term means, *associative* ones what goes with it, causes it or treats it. Every item is asked in several wordings, in
# three groups: seen, one for early stopping, and one that is asked once, at the end. A fifth of the items is set aside
# as exploratory before anything has been looked at.

# %%
tokenizer = load_base_tokenizer(profile.model, paths)
facts = mined and mined.facts
items = collect_items(profile.corpus, profile.items, paths, tokenizer, records=corpus, mined=facts)
write_table(outputs[1], items)
sample = items[items["group"] == "seen"].drop_duplicates("item_id").groupby("relation").head(2)
table(sample[["item_id", "kind", "arm", "prompt", "answer", "foil"]])

# %%
donors = donor_table(taught_items(items, seed=0), tokenizer)
table(donors)
alike = donors["pairs"].sum() - donors["differing"].sum()
paragraph(f"""Patching needs pairs: two items of one relation, asked in one wording, whose prompts are equally long and
whose subjects stand at the same positions. Of {donors["pairs"].sum():,} such pairs {alike:,} are of no use, because
their answers begin with the same token; the least share of useful ones is {100 * donors["share"].min():.1f} %
({donors.set_index("relation")["share"].idxmin()}).""")

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
columns |= {"exposures": "times said in the texts", "facts_per_answer": "facts per answer"}
tidy = balance.rename(columns=columns).melt(["arm", "kind"], list(columns.values()), "what", "mean").dropna()
caption = "Balance of definitional and associative facts, in the real and the made-up arm."
draw("01_balance", tidy, drawing="bars", x="arm", y="mean", hue="kind", facet="what", ylabel="mean", inputs=outputs,
     caption=caption)  # fmt: skip

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
save_findings(
    paths,
    "01_data_collection",
    {"What was read and is asked": size, "What a cap on the hits does": cap, "Balance of the two kinds": text},
)
