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
# # Ask your own
#
# **Question.** Through which sites of a model does *your* answer flow?
#
# Type a clean prompt, a corrupted one that differs in its subject, and what each should be answered with (*answer* and
# *foil*). One activation at a time goes from the clean into the corrupted run (*denoising*: is it sufficient?) or from
# the corrupted into the clean run (*noising*: is it necessary?). Run the cell below, then click *Run*.

# %%
from helpers.panel import panel

panel()

# %% [markdown]
# **How to read it.**
#
# - The tokens stand in columns, those that differ in colour. Both prompts need the same number of tokens, because
#   patching copies to the same *position*; a hatched field shows which tokens make the difference.
# - A cell of the map is one patch. 1 means: it alone brings the whole logit difference back (denoising) or takes it all
#   away (noising). 0: it does nothing. Heads are patched at all positions together.
# - The table shows what the model says without any patch. Where its clean logit difference is not above 0, it does not
#   prefer your answer, and the map explains nothing.
# - One pair is an example. It shows where information flows in these two prompts, not where a fact is stored, and says
#   nothing about other facts; that takes many items, intervals and nulls, as in notebooks 04 and 08.
#
# **Models.** `embedded` (a small instrument that was taught made-up facts, such as the two above); the folder of a
# saved model, such as `data/mini/models/…` after `make reproduce`; or a hub name with its commit, `owner/name@` and 40
# hex digits, which is downloaded. `random` has untrained weights: what it shows is the null.
#
# **Keeping.** *Save item* adds the question to `data/explore/items.parquet`; *Save figure* writes the map as pdf, svg,
# png, csv and json below `figures/explore/`. Both are yours: git ignores them, and `make clean` leaves them alone.
