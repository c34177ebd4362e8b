"""Rules of the notebooks: short, free of logic, figures explained, and no more read than their stage declares."""

import ast
import re

import pytest
from toy import HEADER, PARAMETERS, ROOT

from helpers.notebooks import NotebookError, parameter_names, read_source
from helpers.stages import BASE_MODEL, KNOWLEDGE, LABELS, STAGES, TASKS, Stage

CELLS, CODE_LINES, FUNCTION_LINES = 25, 150, 10
SHARED_FOLDERS = ("findings",)
INTERACTIVE = ("explore",)  # for JupyterLab alone: no profile, no stage, and not run by `make reproduce`
# What these functions read below data/embedded: whoever calls them depends on it.
EMBEDDED = {
    "load_base": BASE_MODEL,
    "load_base_tokenizer": BASE_MODEL,
    "base_folder": BASE_MODEL,
    "collect": KNOWLEDGE,
    "collect_items": KNOWLEDGE,
    "read_labels": LABELS,
    "load_words": TASKS,
    "task_list": TASKS,
    "task_model": BASE_MODEL + TASKS,
    "plant_digests": ("plants",),
    "rescore": BASE_MODEL + KNOWLEDGE + ("plants",),
    "read_standings": ("leaderboard",),
    "read_edits": ("edits", "plants"),
}


def code_cells(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def calls(tree, *names) -> list[ast.Call]:
    """Calls of functions with one of these names, in the order of the text."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names]
    return sorted(found, key=lambda call: (call.lineno, call.col_offset))


def figure_functions(trees) -> set[str]:
    """`save_figure` and the names that a notebook gives to partial applications of it."""
    names = {"save_figure"}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args:
                if getattr(node.value.func, "id", "") == "partial" and getattr(node.value.args[0], "id", "") in names:
                    names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def breaches(path, stage: Stage, stages=STAGES) -> list[str]:
    """Every rule that a notebook source does not keep, one phrase each."""
    try:
        notebook = read_source(path)
        parameters = parameter_names(notebook)
    except NotebookError as error:
        return [str(error)]
    sources = code_cells(notebook)
    found = [f"magic: {line}" for text in sources for line in text.splitlines() if re.match(r"\s*[%!]", line)]
    if found:
        return found
    trees = [ast.parse(text) for text in sources]
    lines = sum(bool(line.strip()) for text in sources for line in text.splitlines())
    rules = {
        f"{len(notebook.cells)} cells": len(notebook.cells) > CELLS,
        f"{lines} lines of code": lines > CODE_LINES,
        "an empty cell": any(not cell.source.strip() for cell in notebook.cells),
        "a kernel other than python3": notebook.metadata.kernelspec.name != "python3",
        f"parameters {parameters}": sorted(parameters) != ["overrides", "profile_name"],
    }
    found += [rule for rule, broken in rules.items() if broken]
    for tree in trees:
        found += function_breaches(tree) + reading_breaches(tree, stage, stages)
    return found + figure_breaches(trees, stage)


def function_breaches(tree) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
            found.append(f"function {node.name} is longer than {FUNCTION_LINES} lines")
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "trace":
            found.append("a trace: it belongs in helpers")
    return found


def reading_breaches(tree, stage, stages) -> list[str]:
    """Sections of the profile and folders of earlier stages that the stage does not declare."""
    folders = {folder: other.name for other in stages for folder in other.outputs}
    read = {name for call in calls(tree, *EMBEDDED) for name in EMBEDDED[call.func.id]}
    found = [
        f"reads data/embedded/{name}, which its stage does not declare" for name in sorted(read - {*stage.embedded})
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "profile":
            if node.attr not in (*stage.sections, "name"):
                found.append(f"reads the section {node.attr}, which its stage does not declare")
        if isinstance(node, ast.Call) and any(getattr(a, "id", "") == "profile" for a in node.args):
            found.append("hands the whole profile on, so that nobody sees which sections are read")
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and getattr(node.left, "attr", "") == "data":
            folder = getattr(node.right, "value", None)
            owner = folders.get(folder)
            if folder not in SHARED_FOLDERS and owner != stage.name and owner not in stage.inputs:
                found.append(f"reads or writes data/{folder}, which its stage does not declare")
    return found


def figure_breaches(trees, stage) -> list[str]:
    """Figures named after another notebook, and figures without a computed paragraph in their cell or the next."""
    found = []
    draws = figure_functions(trees)
    for position, tree in enumerate(trees):
        figures = [call for call in calls(tree, *draws) if call.args and isinstance(call.args[0], ast.Constant)]
        for call in figures:
            name = call.args[0].value
            if not str(name).startswith(f"{stage.number}_"):
                found.append(f"figure {name} is not named after its notebook, {stage.number}_…")
            after = [p for p in calls(tree, "paragraph") if p.lineno > call.lineno]
            after += [p for following in trees[position + 1 : position + 2] for p in calls(following, "paragraph")]
            if not any(p.args and not isinstance(p.args[0], ast.Constant) for p in after):
                found.append(f"figure {name} is not followed by a paragraph computed in this run")
    return found


def test_every_stage_has_its_notebook_and_every_other_notebook_is_for_jupyterlab_alone():
    found = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
    assert found == [*(stage.name for stage in STAGES), *INTERACTIVE]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_notebook_keeps_the_rules(stage):
    assert breaches(ROOT / "notebooks" / f"{stage.name}.py", stage) == []


@pytest.mark.parametrize("name", [*(stage.name for stage in STAGES), *INTERACTIVE])
def test_a_notebook_names_the_questions_it_answers(name):
    first = read_source(ROOT / "notebooks" / f"{name}.py").cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and "**Question.**" in first.source


@pytest.mark.parametrize("name", INTERACTIVE)
def test_an_interactive_notebook_keeps_all_rules_but_those_of_a_stage(tmp_path, name):
    # With the parameters of a stage put in, what is left of the rules holds for it too.
    text = (ROOT / "notebooks" / f"{name}.py").read_text()
    head, cells = text.split("# %% [markdown]", 1)
    path = tmp_path / f"{name}.py"
    path.write_text(f"{head}{PARAMETERS}# %% [markdown]{cells}")
    assert breaches(path, Stage(name, sections=()), ()) == []


OTHER = Stage("01_other", sections=("corpus",), outputs=("other",))
FAR = Stage("02_far", sections=(), outputs=("far",))
HERE = Stage("04_here", sections=("model",), inputs=("01_other",), outputs=("here",))
GOOD = (
    'draw = partial(save_figure, paths=paths)\nx = profile.model.seed + len(profile.name)\npaths.data / "here" / "a"\n'
    'paths.data / "other"\n\n# %%\ndraw("04_map", x)\n\n# %%\nparagraph(f"It is {x}.")\n'
)


def written(tmp_path, code, start=HEADER + PARAMETERS):
    path = tmp_path / "04_here.py"
    path.write_text(f"{start}# %%\n{code}")
    return breaches(path, HERE, (OTHER, FAR, HERE))


def test_a_good_notebook_has_no_breach(tmp_path):
    assert written(tmp_path, GOOD) == []
    assert written(tmp_path, 'save_figure("04_map", x)\nparagraph(text)\n') == []


@pytest.mark.parametrize(
    "code, breach",
    [
        ("\n# %%\n".join(f"x = {n}" for n in range(30)), "31 cells"),
        ("x = 1\n" * 151, "153 lines of code"),
        ("def f():\n" + "    x = 1\n" * 10, "function f is longer than 10 lines"),
        ("with model.trace(prompt):\n    pass\n", "a trace: it belongs in helpers"),
        ("%%time\nx = 1\n", "magic: %%time"),
        ("!ls\n", "magic: !ls"),
        ("x = 1\n\n# %%\n\n# %%\ny = 1\n", "an empty cell"),
        ("profile.corpus.seed\n", "reads the section corpus, which its stage does not declare"),
        ("f(profile)\n", "hands the whole profile on, so that nobody sees which sections are read"),
        ('paths.data / "far" / "a"\n', "reads or writes data/far, which its stage does not declare"),
        ('paths.data / "nowhere"\n', "reads or writes data/nowhere, which its stage does not declare"),
        ("load_base(profile.model, paths)\n", "reads data/embedded/models/base, which its stage does not declare"),
        ('save_figure("04_map", x)\n', "figure 04_map is not followed by a paragraph computed in this run"),
        (
            'save_figure("04_map", x)\n\n# %%\nparagraph("It is high.")\n',
            "figure 04_map is not followed by a paragraph computed in this run",
        ),
        (
            'save_figure("04_map", x)\n\n# %%\n1\n\n# %%\nparagraph(text)\n',
            "figure 04_map is not followed by a paragraph computed in this run",
        ),
        ('save_figure("map", x)\nparagraph(text)\n', "figure map is not named after its notebook, 04_…"),
    ],
)
def test_every_rule_can_be_broken(tmp_path, code, breach):
    assert written(tmp_path, code) == [breach]


@pytest.mark.parametrize(
    "start, breach",
    [
        (PARAMETERS, "no kernelspec"),
        (HEADER, "this one has 0"),
        (HEADER + PARAMETERS * 2, "this one has 2"),
        (HEADER + PARAMETERS.replace("overrides =", "fast ="), "parameters ['profile_name', 'fast']"),
        (HEADER.replace("name: python3", "name: ir") + PARAMETERS, "a kernel other than python3"),
    ],
)
def test_every_rule_of_the_header_can_be_broken(tmp_path, start, breach):
    found = written(tmp_path, "x = 1\n", start)
    assert len(found) == 1 and breach in found[0]
