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
# # 6 · Planted knowledge: who finds what we wrote?
#
# **Question.** Can activation patching, or any other method, say in which block knowledge is stored? Where nobody knows
# the right answer nobody can tell. Here it is known: new facts are written into one place of a model that already
# recalls others, so that every weight that changed is there. Every method is scored on whether it points to it.
#
# What is true of these plants need not be true of what a model learns when all its weights are free; it is the least
# that a method should be able to do.

# %% tags=["parameters"]
profile_name = "mini"
overrides = ""

# %%
from functools import partial

from IPython.display import display

from helpers import board_readings, edit_readings, first_mlp
from helpers.artifacts import write_tables
from helpers.circuit_scores import circuit_scores, reading
from helpers.compiled import compiled_recall
from helpers.config import Paths, load_profile
from helpers.edits import FOLDER as EDITED
from helpers.edits import planted_blocks, read_edits
from helpers.figures import save_figure
from helpers.localisers import METHODS
from helpers.plants import plant_digests
from helpers.report import box, paragraph, save_findings, table
from helpers.rescoring import against_committed, rescore
from helpers.standings import (
    FLOORS,
    FOLDER,
    board,
    figure_table,
    pointing_matrix,
    read_standings,
    reliabilities,
    trust,
)

profile = load_profile(profile_name, overrides)
paths, statistics = Paths(profile.name), vars(profile.statistics)
output = paths.data / "calibration"
made = {"inputs": [FOLDER / "scores.parquet", FOLDER / "places.parquet"], "plumbing": profile.model.plumbing}
draw = partial(save_figure, paths=paths, seed=profile.statistics.seed, **made)

# %% [markdown]
# ## What is planted, and where?
#
# A plant is the embedded base model, taught 56 facts that it did not know: 24 real ones, and 32 made-up ones whose
# answers are, over seeds, as often definitional as associative. Only one block's MLP may change (or one attention, two
# MLPs with known shares, all MLPs), while old facts are replayed. *Drifted* plants were then trained on in all weights,
# on texts about other things, so that no two activations are equal any more. *Nulls* were taught nothing new: they are
# the base itself, or the base after training one MLP on facts that it knew. The *all* plants were taught in all
# weights, so that their place is unknown. A plant counts if it has learnt 95% of the new facts (nulls have none) and
# kept 95% of the old ones, replayed or not.

# %%
standings = read_standings(plants=plant_digests(paths.embedded / "plants"))
table(board_readings.plants_table(standings.plants))
paragraph(board_readings.plants_sentence(standings.plants))
paragraph(board_readings.drift_sentence(standings.scores, standings.places))
paragraph(standings.note)

# %% [markdown]
# ## Are the plants and the leaderboard what they are said to be?
#
# One plant is planted again, beside its embedded twin, and the embedded plants (seed 0) are scored again.

# %%
again = rescore(profile.calibration, paths, resamples=profile.statistics.resamples)
compared = against_committed(again, standings)
write_tables(output, {"twin": again.twin.table, "rescored": again.scores, "first_mlp": again.first_mlp})
table(again.twin.table)
paragraph(again.twin.sentence)
table(compared.table, digits=6)
paragraph(compared.sentence)

# %% [markdown]
# ## Who finds the block?
#
# Blind methods see the taught model alone, as whoever studies a model that others have trained. Informed ones see it as
# it was before, too. Where an answer is given by algebra (patching between two models that differ in one place, or the
# norm of the change) it is drawn as a ring and not ranked. Two floors ask the model nothing: random scores, and the
# norm of a place's weights, since what was trained grows. Intervals resample seeds, then plants, and are never narrower
# than Wilson's; they are of other plants in this one base model, not of other models, and rather too short: seeds are
# three, two of them share the made-up facts, and a first place is the best of many.

# %%
ranks = board(standings.scores)
write_tables(output, {"board": ranks})
caption = "Is the block with the highest score a planted one? Means over all plants that count."
display(draw("06_leaderboard", figure_table(standings.scores, ranks), drawing="leaderboard", caption=caption))
first = {group: board_readings.best_sentence(standings.scores, ranks, group) for group in ("blind", "informed")}
advice = {group: board_readings.recommendation(ranks, group) for group in first}
winners = board_readings.winners(ranks)
shown = list(dict.fromkeys([*board_readings.TOLD, *winners]))
floor, order = board_readings.floor_sentence(ranks), board_readings.seeds_sentence(standings.scores)
trained = board_readings.trained_nulls_sentence(standings.scores, [*winners, "weight norm"])
given = board_readings.by_construction_sentence(standings.scores)
cost = board_readings.cost_sentence(ranks, [*winners, "CLAP as published"])
for sentence in (*first.values(), *advice.values(), floor, trained, order, given, cost):
    paragraph(sentence)

# %% [markdown]
# ## Storage or mediation?
#
# A method that patches between two subjects, or takes something away, asks through which activations the answer flows:
# *mediation*. One that compares two models asks what was written: *storage*; and so do, because their authors do, two
# that see one model, CLAP as published and causal tracing (denoising from Gaussian noise). To point to another block
# than the planted one is wrong for *storage* only; the best method above is the best of both.
#
# `skill` is hit@1 from chance (0) to always (1); chance is 1/6 for one planted block and 1/3 for two. `hit_at_1`,
# `reciprocal_rank` and `recall_at_2` (of two-block plants) ask for the block, `auroc` for the place; `rank_correlation`
# is of the two-block plants with unequal shares, and of two numbers a sign. `claims` are answers that the method stands
# by (`helpers.pointing`), `claims_right` the share of them that is right, `false_alarms` those on `nulls` (for informed
# methods the trained ones, for the others all). `stable_…` is over resampled facts and over seeds: a method that always
# names one block is stable, too. A *difference of models* is a score of the taught model less that of the base.

# %%
for question, lines in board_readings.by_question(ranks).items():
    paragraph(f"**{question.capitalize()}**")
    table(lines[board_readings.COLUMNS], digits=2)
table(board_readings.hits_by_kind(standings.scores, ranks), digits=2)

# %% [markdown]
# ## Where do they point?

# %%
matrices = pointing_matrix(standings.scores, standings.places)
asking = [method for method in shown if method not in FLOORS]
few, caption = matrices[matrices["method"].isin(asking)], "Single plants, MLP and attention, three seeds."
display(draw("06_matrices", few, drawing="pointing_matrices", caption=caption))
display(draw("06_all_matrices", matrices, drawing="pointing_matrices", columns=6, caption=f"Every method. {caption}"))
paragraph(board_readings.diagonal_sentence(board_readings.not_given(matrices, standings.scores)))

# %% [markdown]
# ## When a method says 0.8, how often is it right?
#
# A recovery is no probability; the curve asks whether it can be read as one. Norms have no such scale: they are left
# out.

# %%
curves = reliabilities(standings.scores, standings.places)
scaled = [method for method in asking if not method.startswith("weight change")]
caption = "Places of all plants on which a method is ranked, by the score that it gives them."
chosen = curves[curves["method"].isin(scaled)]
display(draw("06_reliability", chosen, drawing="calibration_curves", caption=caption))
worth = trust(standings.scores, standings.places, scaled, high=board_readings.HIGH)
table(worth)
paragraph(board_readings.trust_sentence(worth))

# %% [markdown]
# ## The first MLP
#
# Patching between two subjects finds that the first MLP restores much of the answer, and the study reads from it where
# definitional and associative knowledge is: of all modules the first feed-forward layer stands out in the study. Here
# the place is known. Kinds are compared on plants whose facts are all in one place, outside block 0; a kind's relations
# and wordings are its own, so that a difference can be theirs.

# %%
everywhere, at_subject = (f"denoising MLP and attention, {where}" for where in ("all positions", "last subject token"))
known = first_mlp.with_truth(standings.scores, standings.places)
by_block = first_mlp.recovery_by_block(known, method=everywhere)
as_published = first_mlp.recovery_by_block(known, method="CLAP as published")
of_facts = first_mlp.outside_block_0(again.first_mlp, known, methods=[everywhere, at_subject])
apart = first_mlp.kinds_apart(of_facts, **statistics)
alone = first_mlp.subject_alone(known, everywhere=everywhere, subject=at_subject)
repaired = first_mlp.against_base(standings.scores, differences=board_readings.DIFFERENCES)
answers = [by_block, as_published, apart, alone, repaired]
for answer in answers:
    table(answer.table)
    paragraph(answer.sentence)

# %% [markdown]
# **What this touches.** Where the numbers above say that MLP 0 recovers much of an answer whose facts are elsewhere, it
# does not follow from such a recovery that the first MLP stores them, nor from a difference between kinds of facts in
# it that these kinds are stored in two places.
#
# **What it does not touch.** That the first MLP *mediates* the answer: the subject has to be read somewhere, and what a
# later block looks up depends on it. Nor what patching finds about circuits, which is a question of mediation; nor
# where a model that was trained in all its weights keeps what it knows. The plants are small, their facts of one form,
# and the base is one model. Plants are asked about what was planted alone, so that a method may find all that the
# trained block does rather than these facts: the trained nulls above answer a part of that.

# %% [markdown]
# ## Does localisation inform editing?
#
# Of three plants and of the model that was taught in all weights, 50 facts are edited at every block in turn: by
# fine-tuning that block's MLP alone, and by a rank-one update of its output. Hase et al. (arXiv 2301.04213) find that
# where tracing points says nothing of where edits succeed. The study says that efficacy depends on the type of fact.
# How strongly to edit was chosen on one plant, so that edits neither all succeed nor all fail, before any method's
# score was looked at. Plants of one base share much of what makes a block easy to edit: a correlation counts where it
# is beyond that of blocks exchanged at random, in all plants alike.

# %%
edits = read_edits()
paragraph(edits.note)
edited, planted = edits.tables["edits"], planted_blocks(paths.embedded / "plants")
where = edit_readings.by_block(edited, planted=planted)
drawn = edit_readings.figure_table(edited, planted=planted)
caption = "50 facts edited at every block; a dot is where they were planted."
display(draw("06_editing", drawn, caption=caption, inputs=[EDITED / "edits.parquet"], **edit_readings.FIGURE))
paragraph(where.sentence)
told = edit_readings.told_by_scores(edited, standings.places, published="CLAP as published", **statistics)
types = edit_readings.by_kind(edited, **statistics)
write_tables(output, {"edits_by_block": where.table, "edits_told": told.table, "edits_by_kind": types.table})
for answer in (told, types):
    table(answer.table)
    paragraph(answer.sentence)

# %% [markdown]
# ## A circuit that was wired by hand
#
# In a network whose weights were set by hand one MLP stores the facts, and one attention carries the answer on. No
# training stands between what a method says and what is true, so that this checks the methods, not the plants.

# %%
circuit = circuit_scores(METHODS, compiled_recall(layers=4, lookup=1, move=3, facts=6))
write_tables(output, {"circuit": circuit})
table(circuit, digits=2)
paragraph(reading(circuit))

# %%
held = [standings.note, *first.values(), *advice.values(), floor, trained, by_block.sentence, told.sentence]
box("What holds here", held)
findings = {f"Who finds the block, {group}": f"{first[group]} {advice[group]}" for group in first}
findings |= {"Who asks the model nothing": f"{floor} {trained}", "Leaderboard": f"{standings.note} {compared.sentence}"}
findings["The first MLP"] = " ".join(answer.sentence for answer in answers)
findings["How far scores can be trusted"] = board_readings.trust_sentence(worth)
findings["Does localisation inform editing"] = f"{where.sentence} {told.sentence} {types.sentence}"
save_findings(paths, "06_calibration", findings)
