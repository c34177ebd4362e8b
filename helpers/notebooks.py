"""Notebooks as files: from the percent source to the executed notebook that readers see, one way only."""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from helpers.artifacts import write_bytes

PARAMETERS = "parameters"  # the tag papermill looks for
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class NotebookError(ValueError):
    """A notebook source that does not keep to the form, or is given parameters it does not have."""


def read_source(path: Path) -> NotebookNode:
    """Read a jupytext percent source; raises NotebookError without a kernelspec, which papermill needs."""
    notebook = jupytext.read(path, fmt="py:percent")
    if "kernelspec" not in notebook.metadata:
        raise NotebookError(f"{path.name} has no kernelspec in its header: copy the header of another notebook.")
    return notebook


def parameter_names(notebook: NotebookNode) -> list[str]:
    """The names that the one cell tagged `parameters` assigns; raises NotebookError unless there is one such cell."""
    cells = [cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(f"A notebook has exactly one cell tagged `{PARAMETERS}`; this one has {len(cells)}.")
    names = []
    for node in ast.parse(cells[0].source).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def check_parameters(name: str, notebook: NotebookNode, parameters: Iterable[str]) -> None:
    """Raise NotebookError for a parameter the notebook lacks: papermill would warn, and run with the default."""
    known = parameter_names(notebook)
    for parameter in parameters:
        if parameter not in known:
            near = difflib.get_close_matches(parameter, known, n=1)
            raise NotebookError(
                f"{name} has no parameter {parameter!r}; it has {', '.join(known) or 'none'}"
                f"{f'; the nearest is {near[0]!r}' if near else ''}."
            )


def cleaned(notebook: NotebookNode, *, root: Path) -> NotebookNode:
    """The executed notebook without what differs between two equal runs: timings, machine paths, addresses, warnings.

    Execution counts stay. Equal results then give equal bytes.
    """
    clean = nbformat.from_dict(notebook)
    kernel = clean.metadata.get("kernelspec", {})
    clean.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for position, cell in enumerate(clean.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell.id = f"cell-{position:02d}"
        if cell.cell_type == "code":
            cell.outputs = [_cleaned_output(o, root) for o in cell.outputs if o.get("name") != "stderr"]
        cell.source = _without_paths(cell.source, root)
    return clean


def write_notebook(path: Path, notebook: NotebookNode) -> None:
    """Write a notebook atomically, with a final newline."""
    nbformat.validate(notebook)
    write_bytes(path, (nbformat.writes(notebook).rstrip("\n") + "\n").encode())


def _cleaned_output(output: NotebookNode, root: Path) -> NotebookNode:
    if "text" in output:
        output.text = _without_paths(output.text, root)
    data = output.get("data", {})
    for kind, value in data.items():
        if isinstance(value, str) and (kind.startswith("text/") or kind.endswith("svg+xml")):
            data[kind] = _without_paths(value, root)
    return output


def _without_paths(text: str, root: Path) -> str:
    for path, name in ((str(root), "."), (sys.prefix, "<environment>"), (str(Path.home()), "~")):
        # Only as a whole path: a root such as /r must not eat the beginning of /results.
        text = re.sub(rf"{re.escape(path)}(?![\w-])", name, text) if len(path) > 1 else text
    return ADDRESS.sub("", text)
