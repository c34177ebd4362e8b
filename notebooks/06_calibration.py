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
from helpers.edits import planted_blocks, read_edits
from helpers.figures import save_figure
from helpers.localisers import METHODS
from helpers.plants import plant_digests
from helpers.report import box, paragraph, save_findings, table
from helpers.rescoring import against_committed, rescore
from helpers.standings import FOLDER, best, board, figure_table, pointing_matrix, read_standings, reliabilities

profile = load_profile(profile_name, overrides)
paths, statistics = Paths(profile.name), vars(profile.statistics)
output = paths.data / "calibration"
made = {"inputs": [FOLDER / "scores.parquet", FOLDER / "places.parquet"], "plumbing": profile.model.plumbing}
draw = partial(save_figure, paths=paths, seed=profile.statistics.seed, **made)

# %% [markdown]
# ## What is planted, and where?
#
# A plant is the embedded base model, taught 56 facts that it did not know: 24 real ones, and 32 made-up ones whose
# answers are counterbalanced between kinds. Only one block's MLP may change (or one attention, two MLPs with known
# shares, all MLPs), while old facts are replayed. *Drifted* plants were then trained on in all weights, on texts about
# other things, so that nothing holds by construction any more. *Nulls* were taught nothing new; the *all* plants
# everything in all weights, so that their place is unknown. A plant counts if it has learnt 95 % of the new facts and
# kept 95 % of the old ones, replayed or not.

# %%
standings = read_standings(plants=plant_digests(paths.embedded / "plants"))
planted = standings.plants.assign(kept=standings.plants[["kept_replayed", "kept_held_out"]].min(axis=1))
kinds = planted.groupby("kind", sort=False)
table(
    kinds.agg(
        plants=("plant", "size"), counts=("counts", "sum"), learnt=("learnt", "min"), kept=("kept", "min")
    ).reset_index()
)
paragraph(board_readings.plants_sentence(planted))
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
# norm of the change) it is drawn hollow and not ranked. Intervals resample seeds, then plants.

# %%
ranks = board(standings.scores)
write_tables(output, {"board": ranks})
caption = "Is the block with the highest score a planted one? Means over all plants that count."
display(draw("06_leaderboard", figure_table(standings.scores), drawing="leaderboard", caption=caption))
winners = {group: board_readings.first_sentences(standings.scores, ranks, group) for group in ("blind", "informed")}
advice = {group: board_readings.recommendation(ranks, group) for group in winners}
floor = board_readings.floor_sentence(ranks)
for sentence in (*winners.values(), *advice.values(), floor, board_readings.given_sentence(standings.scores)):
    paragraph(sentence)

# %% [markdown]
# ## Storage or mediation?
#
# A method that patches between two subjects, or takes something away, asks through which activations the answer flows:
# *mediation*. One that compares two models asks what was written: *storage*. Pointing to another block than the planted
# one is wrong for the second question only. All scores, and the blocks' hits by kind of plant:

# %%
for question, lines in board_readings.by_question(ranks).items():
    paragraph(f"**{question.capitalize()}**")
    table(lines[board_readings.COLUMNS], digits=2)
table(board_readings.hits_by_kind(standings.scores), digits=2)

# %% [markdown]
# ## Where do they point?

# %%
firsts = [best(ranks, group)["method"] for group in winners]
shown = list(dict.fromkeys([*board_readings.TOLD, *firsts]))
matrices = pointing_matrix(standings.scores, standings.places)
main = matrices[matrices["method"].isin(shown)]
display(
    draw("06_matrices", main, drawing="pointing_matrices", caption="Single plants, MLP and attention, three seeds.")
)
paragraph(board_readings.diagonal_sentence(main))
display(
    draw("06_all_matrices", matrices, drawing="pointing_matrices", columns=6, caption="Every method, single plants.")
)
paragraph(board_readings.diagonal_sentence(matrices))

# %% [markdown]
# ## When a method says 0.8, how often is it right?

# %%
curves = reliabilities(standings.scores, standings.places)
chosen = curves[curves["method"].isin(shown)]
caption = "Places of all plants on which a method is ranked, by the score that it gives them."
display(draw("06_reliability", chosen, drawing="calibration_curves", caption=caption))
trust = " ".join(board_readings.reliability_sentence(curves, method) for method in shown)
paragraph(trust)

# %% [markdown]
# ## The first MLP
#
# Patching between two subjects finds that the first MLP restores much of the answer, and the study reads from it where
# definitional and associative knowledge is. Here the place is known.

# %%
everywhere, at_subject = (f"denoising MLP and attention, {where}" for where in ("all positions", "last subject token"))
known = first_mlp.with_truth(standings.scores, standings.places)
by_block = first_mlp.recovery_by_block(known, method=everywhere)
between_subjects = again.first_mlp[again.first_mlp["method"].isin([everywhere, at_subject])]
apart = first_mlp.kinds_apart(between_subjects, **statistics)
repaired = first_mlp.repairs(known, differences=board_readings.DIFFERENCES)
answers = [by_block, apart, first_mlp.subject_alone(known, everywhere=everywhere, subject=at_subject), repaired]
for answer in answers:
    table(answer.table)
    paragraph(answer.sentence)

# %% [markdown]
# **What this touches.** That the first MLP recovers much of the answer is no evidence that the knowledge is stored
# there, or that one kind of it is: it does so too where the facts are known to be elsewhere. The inference from
# recovery between subjects to the place of *storage* falls, and with it that from a difference between kinds of facts
# in that recovery to two places of storage.
#
# **What it does not touch.** That the first MLP *mediates* the answer: the subject has to be read somewhere, and what a
# later block looks up depends on it. Nor what patching finds about circuits, which is a question of mediation; nor
# where a model that was trained in all its weights keeps what it knows. The plants are small and their facts of one
# form.

# %% [markdown]
# ## Does localisation inform editing?
#
# Of three plants and of the model that was taught in all weights, 50 facts are edited at every block in turn: by
# fine-tuning that block's MLP alone, and by a rank-one update of its output. Hase et al. (arXiv 2301.04213) find that
# where tracing points says nothing of where edits succeed. The study says that efficacy depends on the type of fact.

# %%
edits = read_edits()
paragraph(edits.note)
edited, lines = edits.tables["edits"], {"edits": edits.tables["edits"]}
planted = planted_blocks(paths.embedded / "plants")
where = edit_readings.by_block(edited, planted=planted)
drawn, caption = (
    edit_readings.figure_table(edited, planted=planted),
    "50 facts edited at every block; dots: where they are.",
)
display(draw("06_editing", drawn, caption=caption, **edit_readings.FIGURE))
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
box("What holds here", [*winners.values(), *advice.values(), floor, by_block.sentence, told.sentence])
findings = {"Who finds the block, blind": f"{winners['blind']} {advice['blind']}"}
findings |= {"Who finds the block, informed": f"{winners['informed']} {advice['informed']}", "Chance": floor}
findings |= {"The first MLP": " ".join(answer.sentence for answer in answers), "How far scores can be trusted": trust}
findings |= {"Does localisation inform editing": f"{where.sentence} {told.sentence} {types.sentence}"}
save_findings(paths, "06_calibration", findings | {"Leaderboard": f"{standings.note} {compared.sentence}"})
