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
# # 5 · Best practices of activation patching
#
# **Question.** Zhang & Nanda (arXiv 2309.16042) advise how to patch: which corruption, which metric, how many layers.
# Does their evidence come out again in the model at hand, how sure is it, and what did they leave open?
#
# The tasks have a known solution: who receives the gift (IOI), which year can follow (greater-than), which parameter is
# next (docstring), a sum after two examples, and paired facts. By default a small model that was trained on such
# sentences does them; it is asked with names, templates and operands that it never met in them.

# %% tags=["parameters"]
profile_name = "mini"
overrides = ""

# %%
from functools import partial

import pandas as pd
from IPython.display import display

from helpers import comparison, gatescores, head_figures, lessons, off_distribution, verdicts, window_readings
from helpers.agreement import agreement
from helpers.artifacts import write_table, write_tables
from helpers.choices import QUARTILES, caption, spread, with_choices
from helpers.config import Paths, load_profile
from helpers.detection import detect, found_heads, head_scores, threshold_sweep
from helpers.drafts import ioi_drafts, load_words
from helpers.figures import save_figure
from helpers.floors import floor_dots, probability_floor
from helpers.gates import GATES, make_gate
from helpers.known_items import known_items
from helpers.larger import BY, fact_numbers, published_effects, window_numbers
from helpers.measured import compared_heads, compared_numbers
from helpers.mechanism import measure_mechanism
from helpers.practices import FACT_ROLES, head_effects, mlp_effects, noises, stand_ins, task_list, task_model
from helpers.processes import measure_each, pool_of
from helpers.report import box, paragraph, save_findings, table
from helpers.stats import recovery_intervals
from helpers.tasks import baseline, does, make_task
from helpers.testimony import gather_evidence
from helpers.windows import joint_and_sum, peaks

profile = load_profile(profile_name, overrides)
paths, settings, statistics = Paths(profile.name), profile.tasks, vars(profile.statistics)
output, budget, metric = paths.data / "tasks", profile.patching.row_budget, profile.patching.metric
draw = partial(save_figure, paths=paths, plumbing=profile.model.plumbing, seed=profile.statistics.seed)
sweeping = {"settings": settings, "row_budget": budget}
sweeping["pool"] = pool_of(settings.processes, warm="helpers.practices")

# %% [markdown]
# ## What can patching say at all? Four gates with known answers
#
# Two heads of a hand-made network decide the answer together: both are needed (AND), either is enough (OR), one stands
# in for the other (BACKUP), or works against it (NEGATIVE). A third head is idle. The right effect of every patch is
# derived on paper, so that what a way of patching cannot see is seen here.

# %%
gates = gatescores.gate_scores([make_gate(name) for name in GATES])
write_table(output / "gates.parquet", gates)
made = {"inputs": [output / "gates.parquet"], "caption": "Every way of patching, on gates of two heads of three."}
display(draw("05_gates", gatescores.figure_table(gates), **made, **gatescores.FIGURE))
gates_text = gatescores.components(gates)
paragraph(gates_text)
paragraph(gatescores.backup(gates))
paragraph(gatescores.negative(gatescores.gate_scores([make_gate("NEGATIVE", confidence=c) for c in (1, 2, 4, 8)])))

# %% [markdown]
# ## Does the model do the tasks?
#
# Before anything is patched: does the model at hand prefer the right answer, and what is left of it in each corrupted
# run? The items of notebook 04 are asked of the fine-tuned model. It does them by construction: those that it does not
# know were left out.

# %%
model, tokenizer = task_model(settings, profile.model, paths)
words = load_words(paths.embedded, lists=settings.words)
*head_tasks, facts = task_list(settings, words, tokenizer, paths.embedded)
seed = profile.finetune.corrected_2.seeds[0]
tuned, items = known_items(paths, seed=seed, rule=profile.items, count=settings.prompts // 2)
asked = [(model, task) for task in (*head_tasks, facts)] + [(tuned, task) for task in items]
baselines = pd.concat(baseline(one, task, **statistics, row_budget=budget) for one, task in asked)
write_table(output / "baselines.parquet", baselines)
table(baselines.pivot(index=["task", "run", "prompts"], columns="quantity", values="estimate").reset_index())
paragraph(lessons.tasks(baselines, {task.name: task.refused for _, task in asked}))

# %% [markdown]
# ## Which heads are found, and by which method?
#
# Every head's output is patched at all positions, under symmetric replacement (STR) and Gaussian noise (GN) on the same
# tokens, in both directions. A head is detected at 2 standard deviations from the mean over heads, as in the paper.

# %%
measured = measure_each(head_effects, [(model, task) for task in head_tasks], **sweeping)
effects, runs = (pd.concat(parts, ignore_index=True) for parts in zip(*measured, strict=True))
by = ["task", "tokens", "corruption", "direction", "metric"]
of_head = [*by, "layer", "head"]
scores = head_scores(effects, by=by, **statistics)
detected = detect(scores)
published = {task.name: task.corruptions[0].tokens for task in head_tasks}
chosen = detected[(detected["tokens"] == detected["task"].map(published)) & (detected["direction"] == "denoising")]
of_prompts = spread(effects, by=of_head).drop(columns="pairs").rename(columns={"score": "share"})
write_tables(output, {"heads": detected.merge(of_prompts, on=of_head), "runs": runs})
ioi = chosen[chosen["task"] == "IOI"]
which = caption(effects.query("task == 'IOI' and tokens == 'S2' and direction == 'denoising'"))
made = {"inputs": [output / "heads.parquet"], "caption": f"IOI. {which}"}
display(draw("05_heads", head_figures.head_map(ioi), **made, **head_figures.HEAD_MAP))
paragraph(lessons.detection(ioi, by=["corruption", "metric"]))
table(found_heads(chosen, by=["task", "corruption", "metric"]))

# %% [markdown]
# A score is a ratio of means, and single prompts lie around it. Of the heads that logit difference detects, in shares
# of what the corruption takes in the mean: the score, the quartiles of the prompts, and the one that is furthest away.

# %%
found = ioi[(ioi["detected"] != 0) & (ioi["metric"] == metric)][of_head]
table(found.merge(of_prompts)[["corruption", "layer", "head", "share", *QUARTILES, "worst"]])

# %% [markdown]
# ## How much hangs on the threshold, and on the draw?

# %%
sweep = threshold_sweep(scores).merge(chosen[by].drop_duplicates(), on=by)
lines = head_figures.threshold_lines(sweep[sweep["task"] == "IOI"])
display(draw("05_thresholds", lines, **made, **head_figures.THRESHOLDS))
paragraph(lessons.thresholds(sweep[sweep["metric"] == metric], by=["task", "corruption"]))
paragraph(lessons.draws(chosen[chosen["metric"] == metric], by=["task", "corruption"]))

# %% [markdown]
# ## Do the methods agree?

# %%
agreed = agreement(scores, methods=["corruption", "metric", "direction"]).query("tokens in @published.values()")
matrix = agreed[(agreed["task"] == "IOI") & ~(agreed["first"] + agreed["second"]).str.contains("log prob")]
made["caption"] = "IOI, S2 corrupted: rank correlation over heads (above), Jaccard index of detected sets (below)."
display(draw("05_agreement", matrix, drawing="agreement_matrix", **made))
agreement_text = lessons.agreement(agreed, by=["task"])
paragraph(agreement_text)

# %% [markdown]
# ## What the probability cannot show

# %%
floors = probability_floor(detected, runs, by=by[:3])
names = floors[(floors["task"] == "IOI") & floors["tokens"].isin(["S2", "all names"])]
denoised = detected[detected["direction"] == "denoising"].merge(names[by[:3]], on=by[:3])
made["caption"] = "IOI, denoising: every head by probability, with its floor, and by logit difference."
display(draw("05_floor", floor_dots(denoised, names, by=by[1:3]), drawing="head_dots", **made))
floor_text = lessons.floor(names, by=by[1:3])
paragraph(floor_text)

# %% [markdown]
# ## Does noise take the model off its distribution?
#
# The heads that move the name to the end, and those that tell them which, are found by rule, on other prompts. What do
# they attend to in each corrupted run, and does the answer come back with the values of the latter?

# %%
others = make_task("IOI", ioi_drafts(words, seed=settings.seed + 1), tokenizer, count=settings.prompts).pairs
options = {"noises": noises(model, settings, ("S2",), draws=settings.draws), "row_budget": budget}
name = comparison.published_name(profile.model) if settings.model == "base" else "the embedded task model"
mechanism = measure_mechanism(model, head_tasks[0].pairs, others, gpt2_small=name == "gpt2", **options)
write_tables(output, mechanism)
attention = off_distribution.attention_by_run(mechanism["shares"], **statistics)
restored = recovery_intervals(mechanism["restored"], by=["corruption"], item="pair", **statistics)
inhibiting = int((mechanism["parts"]["part"] == "S-inhibition").sum())
paragraph(off_distribution.said_of_parts(mechanism["parts"]))
shown = off_distribution.restoration_figure(attention, restored.assign(defined=restored["defined"] & (inhibiting > 0)))
made = {"inputs": [output / "shares.parquet", output / "restored.parquet"]}
made["caption"] = "IOI: attention of the movers, and the logit difference with the S-inhibition heads' clean values."
display(draw("05_off_distribution", shown, **made, **off_distribution.FIGURE))
off_text = off_distribution.said_of_attention(attention)
off_text += f" {off_distribution.said_of_restoration(restored, attention, inhibiting)}"
paragraph(off_text)
paragraph(off_distribution.said_of_strangeness(mechanism["strangeness"], **statistics))
paragraph(off_distribution.said_of_knockouts(mechanism["knockouts"], **statistics))
paragraph(off_distribution.said_of_repair(mechanism["repair"], **statistics))

# %% [markdown]
# ## One layer or a window of layers?
#
# First single layers: the largest effect of an MLP and of the residual stream before a block, at every token, for
# paired facts, for the items of notebook 04 in the fine-tuned model, and at the last token of a sum. Then MLPs of
# adjacent layers patched together at one token, beside the sum of what each does alone.

# %%
places = [(model, facts, FACT_ROLES), *((tuned, task, FACT_ROLES) for task in items)]
places.append((model, head_tasks[-1], ("last",)))
layers = pd.concat(measure_each(mlp_effects, places, **sweeping))
published |= {task.name: task.corruptions[0].tokens for _, task, _ in places}
tops = peaks(layers[layers["metric"] == metric], by=BY, **statistics)
write_tables(output, {"layers": layers, "tops": with_choices(tops)})
tops, mlp = tops[tops["tokens"] == tops["task"].map(published)], published_effects(layers, published)
table(window_readings.single_layers(tops))
of_facts = mlp[mlp["task"] == facts.name]
at_subject = of_facts[(of_facts["role"] == "subject_last") & (of_facts["metric"] == metric)]
made = {"inputs": [output / "layers.parquet"], "caption": f"Facts, last subject token. {caption(at_subject)}"}
lines = window_readings.window_lines(joint_and_sum(at_subject, by=BY, **statistics))
display(draw("05_windows", lines, **made, **window_readings.FIGURE))
roles = {task.name: own[-2:][0] for _, task, own in places}
denoised = tops[(tops["component"] == "mlp_out") & (tops["direction"] == "denoising")]
for task, rows in denoised[denoised["role"] == denoised["task"].map(roles)].groupby("task", sort=False):
    paragraph(f"**{task}.** {window_readings.single(rows)} {window_readings.joint(rows)}")
ratios = window_numbers(of_facts, **statistics)
about = window_readings.positions(ratios.get("positions"))
paragraph(f"{about} {window_readings.corruptions(ratios['over_noise'])}")

# %% [markdown]
# ## The published cells, beside ours
#
# A cell is compared only where the same model was measured; everything else is not run. A published number is never
# shown as ours.

# %%
numbers = compared_numbers(
    model=name, published=published, baselines=baselines, noised=runs[runs["corruption"] == "GN"],
    attention=attention, restored=restored if inhibiting else None, **ratios, **statistics,
)  # fmt: skip
larger = fact_numbers(settings, profile.model, paths, **statistics, row_budget=budget)
cells = comparison.comparison(pd.concat([numbers, *larger]), compared_heads(scores, detected, model=name, role="all"))
write_table(output / "comparison.parquet", cells)
table(cells.drop(columns="why"))
cells_text = comparison.agreement(cells)
paragraph(cells_text)

# %% [markdown]
# ## Which conclusions hold here?
#
# The rules were written down before anything was measured: each conclusion names the numbers it needs, and the values
# of them that speak against it. Only tasks that the model does are asked.

# %%
ranked = [stand_ins(model, task, row_budget=budget) for task in head_tasks]
methods = head_scores(pd.concat(ranked), by=["task", "method"], **statistics)
evidence = gather_evidence(scores, methods, floors, mechanism, mlp, published=published, roles=roles, **statistics)
held = verdicts.verdicts(evidence[evidence["task"].isin(does(baselines))], plumbing=profile.model.plumbing)
write_tables(output, {"methods": methods.table, "evidence": evidence, "verdicts": held})
box("What holds here", held["sentence"])
used = {name: getattr(profile.patching, name) for name in ("corruption", "metric", "directions", "window")}
check = verdicts.settings_check(held, **used)
table(check)
held_text = f"{verdicts.overview(held)} {verdicts.settings_statement(check)}"
paragraph(held_text)
findings = {"Gates: what patching can see": gates_text, "Do methods agree": agreement_text, "Noise": off_text}
findings |= {"Probability": floor_text, "Published cells": cells_text, "Which conclusions hold": held_text}
save_findings(paths, "05_best_practices", findings)
