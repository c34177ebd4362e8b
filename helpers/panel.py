"""The panel of notebook `explore`: widgets to ask a question, and what a model answers to it.

Everything it shows comes from `helpers.exploration`; here is only what a person types, clicks and reads. What went
wrong stands in the panel as a sentence. A finding that no longer fits what is typed is taken away, so that nothing is
saved under another question's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import ipywidgets as widgets
import pandas as pd

from helpers.alignment import align, visible
from helpers.config import Paths
from helpers.execution import one_line
from helpers.exploration import (
    COMPONENTS,
    Finding,
    Question,
    explore,
    item_of,
    known_models,
    load_named,
    remarks,
    save_heatmap,
    save_item,
    spoken,
)
from helpers.metrics import METRICS
from helpers.plans import DIRECTIONS

# Two facts that the embedded base model was taught about made-up drugs.
EXAMPLE = {
    "clean": "In practice, kamzemid is treated with",
    "corrupted": "In practice, velborora is treated with",
    "answer": "sparse ripple",
    "foil": "functional hemispherectomy",
}
# JupyterLab's own colours, light and dark, and plain ones elsewhere.
STYLE = """<style>
.clap-tokens {display: flex; flex-wrap: wrap; row-gap: 8px; font-family: var(--jp-code-font-family, monospace)}
.clap-tokens div {border-right: 1px solid var(--jp-border-color2, #ccc); text-align: center}
.clap-tokens span {display: block; padding: 0 6px; white-space: pre; height: 20px; line-height: 20px}
.clap-tokens .small {font-size: 80%; opacity: 0.7; font-family: var(--jp-ui-font-family, sans-serif)}
.clap-tokens .other {background: rgba(213, 94, 0, 0.25)}
.clap-tokens .gap {background: repeating-linear-gradient(45deg, rgba(213, 94, 0, 0.45) 0 4px, transparent 4px 8px)}
.clap-note {border-left: 3px solid #0072b2; padding: 2px 10px; margin: 2px 0; line-height: 1.45}
.clap-note.wrong {border-color: #d55e00}
.clap-table {border-collapse: collapse; margin: 4px 0}
.clap-table td, .clap-table th {padding: 3px 12px 3px 0; text-align: left; line-height: 1.35; vertical-align: top}
</style>"""


def panel(paths: Paths | None = None) -> widgets.VBox:
    """The panel, ready to be shown; `paths` says where items and figures are saved, by default in `explore` folders."""
    return Panel(paths or Paths("explore")).view


class Panel:
    """One panel: its widgets, the models it has loaded, and its last finding, None when nothing fits what is typed."""

    def __init__(self, paths: Paths):
        self.paths = paths
        self.models: dict[str, tuple] = {}
        self.finding: Finding | None = None
        wide = {"layout": widgets.Layout(width="49%"), "style": {"description_width": "80px"}}
        texts = {name: widgets.Textarea(EXAMPLE[name], description=name, rows=2, **wide) for name in EXAMPLE}
        texts |= {name: widgets.Text(EXAMPLE[name], description=name, **wide) for name in ("answer", "foil")}
        choices = {"component": COMPONENTS, "direction": DIRECTIONS, "metric": METRICS}
        self.inputs = texts | {
            "model": widgets.Combobox(
                value="embedded", options=known_models(paths), placeholder="folder, or owner/name@revision",
                description="model", ensure_option=False, **wide,
            )
        }  # fmt: skip
        for name, options in choices.items():
            spoken_options = [(spoken(option) if name == "metric" else option, option) for option in options]
            self.inputs[name] = widgets.Dropdown(options=spoken_options, description=name, **wide)
        self.run = widgets.Button(description="Run", button_style="primary")
        self.save_item = widgets.Button(description="Save item", disabled=True)
        self.save_figure = widgets.Button(description="Save figure", disabled=True)
        self.progress = widgets.FloatProgress(max=1.0, layout=widgets.Layout(width="180px", visibility="hidden"))
        self.status = widgets.Label()
        self.notes, self.tokens, self.runs = (widgets.HTML() for _ in range(3))
        self.heatmap = widgets.Image(format="png", width=680, layout=widgets.Layout(display="none"))
        for widget in self.inputs.values():
            widget.observe(self._changed, "value")
        self.run.on_click(lambda _: self._answer())
        self.save_item.on_click(lambda _: self._keep("item"))
        self.save_figure.on_click(lambda _: self._keep("figure"))
        rows = [list(self.inputs)[start:stop] for start, stop in ((0, 2), (2, 4), (4, 6), (6, 8))]
        boxes = [widgets.HBox([self.inputs[name] for name in row]) for row in rows]
        buttons = widgets.HBox([self.run, self.save_item, self.save_figure, self.progress, self.status])
        style = widgets.HTML(STYLE)
        self.view = widgets.VBox([style, *boxes, buttons, self.notes, self.tokens, self.heatmap, self.runs])

    def _answer(self) -> None:
        """Ask what is typed, and show the answer."""
        from helpers.figures import preview

        with self._working("Loading the model …"):
            name = self.inputs["model"].value.strip()
            model, tokenizer = self._model(name)
            self._show_tokens()
            self.status.value = "Patching …"
            values = {key: widget.value for key, widget in self.inputs.items() if key != "model"}
            finding = explore(model, tokenizer, Question(**values), model_name=name, advance=self._advance)
            self.heatmap.value = preview(finding.effects, plumbing=finding.plumbing, **finding.drawing)
            self.heatmap.layout.display = ""
            self.tokens.value = token_columns(finding.tokens)
            self.runs.value = run_table(finding)
            self.notes.value = "".join(map(note, remarks(finding)))
            self.finding = finding

    def _keep(self, what: str) -> None:
        """Save the last finding as an item or as a figure."""
        with self._working("Saving …"):
            finding = self.finding
            if what == "item":
                path = save_item(item_of(finding, self._model(finding.model_name)[1]), self.paths)
            else:
                path = save_heatmap(finding, self.paths)
            self.notes.value += note(f"Saved: {path.relative_to(self.paths.root)}")

    def _model(self, name: str) -> tuple:
        if name not in self.models:
            self.models[name] = load_named(name, self.paths)
        return self.models[name]

    def _changed(self, change) -> None:
        self.finding = None
        self.save_item.disabled = self.save_figure.disabled = True
        self.heatmap.layout.display, self.runs.value, self.notes.value = "none", "", ""
        self._show_tokens()

    def _show_tokens(self) -> None:
        """Both prompts side by side, once the model that reads them is there."""
        loaded = self.models.get(self.inputs["model"].value.strip())
        table = align(loaded[1], self.inputs["clean"].value, self.inputs["corrupted"].value) if loaded else None
        self.tokens.value = "" if table is None or table.empty else token_columns(table)

    def _advance(self, share: float) -> None:
        self.progress.value = share

    @contextmanager
    def _working(self, text: str) -> Iterator[None]:
        """Keep the buttons still while something is done, and end every error in a sentence."""
        for button in (self.run, self.save_item, self.save_figure):
            button.disabled = True
        self.status.value, self.progress.value, self.progress.layout.visibility = text, 0.0, "visible"
        try:
            yield
        except Exception as error:
            self.notes.value = note(sentence(error), wrong=True)
        finally:
            self.status.value, self.progress.layout.visibility = "", "hidden"
            self.run.disabled = False
            self.save_item.disabled = self.save_figure.disabled = self.finding is None


def sentence(error: Exception) -> str:
    """What an error says to the person at the panel: our own in their words, others with their kind."""
    ours = type(error).__module__.partition(".")[0] == "helpers"
    # A pair's tokens follow in further lines, and the panel shows them better.
    return str(error).partition("\n")[0] if ours else f"{type(error).__name__}: {one_line(str(error))}"


def note(text: str, *, wrong: bool = False) -> str:
    """One sentence as HTML."""
    return f'<div class="clap-note{" wrong" if wrong else ""}" role="status">{escape(text)}</div>'


def token_columns(table: pd.DataFrame) -> str:
    """An alignment as HTML: a column per token with position, clean and corrupted token, and role if there is one."""
    columns = []
    for row in table.itertuples():
        sides = [
            f'<span class="{"" if row.same else "gap" if pd.isna(text) else "other"}">'
            f"{'' if pd.isna(text) else escape(visible(text))}</span>"
            for text in (row.clean, row.corrupted)
        ]
        position = "–" if pd.isna(row.position) else row.position
        role = getattr(row, "role", "").replace("_", " ")
        under = f'<span class="small">{role}</span>' if role else ""
        columns.append(f'<div><span class="small">{position}</span>{"".join(sides)}{under}</div>')
    heads = "".join(f'<span class="small">{name}</span>' for name in ("position", "clean", "corrupted"))
    return f'<div class="clap-tokens"><div>{heads}</div>{"".join(columns)}</div>'


def run_table(finding: Finding) -> str:
    """The un-patched runs as HTML: metrics of the answer's first token, and the likeliest next tokens."""
    rows = []
    for run in finding.runs.itertuples():
        likely = finding.likeliest[finding.likeliest["run"] == run.run]
        words = ", ".join(f"{escape(visible(r.token))} {r.probability:.3f}" for r in likely.itertuples())
        numbers = f"<td>{run.logit_difference:.2f}</td><td>{run.probability:.3f}</td><td>{run.rank:.0f}</td>"
        rows.append(f"<tr><th>{run.run}</th>{numbers}<td>{words}</td></tr>")
    heads = (
        "run, un-patched",
        "logit difference",
        "P(answer’s first token)",
        "its rank (0: top)",
        "likeliest next tokens",
    )
    return f'<table class="clap-table"><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>{"".join(rows)}</table>'
