"""The panel without a browser: buttons are clicked, and what a person would read is read."""

import pytest
from conftest import tiny_gpt2
from toy import ROOT
from words import word_tokenizer

from helpers import panel as module
from helpers.artifacts import read_json, read_table
from helpers.config import Paths
from helpers.models import ModelError
from helpers.panel import EXAMPLE, Panel, panel, sentence, token_columns

TYPED = {"clean": "w1 w2 w3", "corrupted": "w1 w6 w3", "answer": "w50", "foil": "w51", "model": "tiny"}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A panel that knows one tiny model, and the names it was asked to load."""
    asked = []

    def load(name, paths):
        asked.append(name)
        if name != "tiny":
            raise ModelError(f"There is no folder {name!r}.")
        return tiny_gpt2(0), word_tokenizer()

    monkeypatch.setattr(module, "load_named", load)
    made = Panel(Paths("explore", tmp_path))
    fill(made, **TYPED)
    return made, asked


def fill(made: Panel, **values) -> None:
    for name, value in values.items():
        made.inputs[name].value = value


def buttons(made: Panel) -> list[bool]:
    """Which of Run, Save item and Save figure can be clicked."""
    return [not button.disabled for button in (made.run, made.save_item, made.save_figure)]


def test_run_shows_tokens_runs_and_the_map(tiny):
    made, _ = tiny
    assert buttons(made) == [True, False, False] and made.heatmap.layout.display == "none"
    made.run.click()
    assert bytes(made.heatmap.value).startswith(b"\x89PNG") and made.heatmap.layout.display == ""
    assert "likeliest next tokens" in made.runs.value and made.tokens.value.count('"other"') == 2
    assert "subject last" in made.tokens.value
    assert buttons(made) == [True, True, True] and made.progress.layout.visibility == "hidden"
    assert "clap-note wrong" not in made.notes.value and "by construction" in made.notes.value


def test_a_model_is_loaded_once(tiny):
    made, asked = tiny
    for component in ("attn_out", "mlp_out"):
        fill(made, component=component)
        made.run.click()
    assert asked == ["tiny"]


def test_a_change_takes_the_finding_away_and_aligns_the_tokens_at_once(tiny):
    made, _ = tiny
    made.run.click()
    first = made.finding
    fill(made, corrupted="w1 w7 w8 w3")
    assert made.finding is None and made.heatmap.layout.display == "none" and made.runs.value == ""
    assert buttons(made) == [True, False, False] and made.tokens.value.count('"gap"') == 1
    fill(made, corrupted=TYPED["corrupted"])
    made.run.click()
    assert made.finding.item_id == first.item_id


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"corrupted": "w1 w7 w8 w3"},
            "different numbers of tokens: 1 token (w2) in the clean prompt against 2 tokens",
        ),
        ({"model": "absent"}, "There is no folder &#x27;absent&#x27;."),
        ({"answer": ""}, "The answer must not be empty"),
        ({"clean": "w1 w2 w3 "}, "ends with a space"),
        ({"clean": "w1 " * 20 + "w2", "corrupted": "w1 " * 20 + "w3"}, "has 21 tokens and the model reads 16 at most"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_the_panel_goes_on(tiny, changes, words):
    made, _ = tiny
    fill(made, **changes)
    made.run.click()
    assert words in made.notes.value and made.notes.value.count("<div") == 1 and "clap-note wrong" in made.notes.value
    assert "Traceback" not in made.notes.value and buttons(made) == [True, False, False]
    fill(made, **TYPED)
    made.run.click()
    assert made.finding is not None


def test_buttons_are_still_while_it_works(tiny, monkeypatch):
    made, _ = tiny
    seen = []

    def watching(*arguments, advance, **options):
        advance(0.5)
        seen.append((buttons(made), made.status.value, made.progress.value, made.progress.layout.visibility))
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(module, "explore", watching)
    made.run.click()
    assert seen == [([False] * 3, "Patching …", 0.5, "visible")]
    assert "RuntimeError: out of memory" in made.notes.value and made.status.value == ""
    assert buttons(made) == [True, False, False]


def test_an_item_and_a_figure_are_saved(tiny, tmp_path):
    made, _ = tiny
    fill(made, model="tiny")
    made.run.click()
    made.save_item.click()
    assert "Saved: data/explore/items.parquet" in made.notes.value
    assert read_table(tmp_path / "data" / "explore" / "items.parquet")["prompt"].tolist() == ["w1 w2 w3"]
    assert buttons(made) == [True, True, True]


def test_tokens_are_shown_as_text_and_never_as_html():
    tokenizer = word_tokenizer()
    table = module.align(tokenizer, "w1 w2", "w1 w3").assign(clean=["<b>", "&"], role=["prefix", "last"])
    assert "&lt;b&gt;" in token_columns(table) and "<b>" not in token_columns(table)


def test_other_errors_are_told_with_their_kind():
    assert sentence(ModelError("No model.\n  more")) == "No model."
    assert sentence(ValueError("two\nlines")) == "ValueError: two lines"


def test_the_example_is_known_to_the_embedded_model_and_its_figure_names_the_weights(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "embedded").symlink_to(ROOT / "data" / "embedded")
    made = Panel(Paths("explore", tmp_path))
    assert {name: made.inputs[name].value for name in EXAMPLE} == EXAMPLE
    made.run.click()
    clean, corrupted = made.finding.runs["logit_difference"]
    assert clean > 5 and corrupted < -5
    made.save_figure.click()
    (sidecar,) = (tmp_path / "figures" / "explore").glob("*.json")
    assert f"Saved: figures/explore/{sidecar.stem}.png" in made.notes.value
    assert "data/embedded/models/base/model.safetensors" in read_json(sidecar)["inputs"]


def test_the_panel_is_one_widget_and_no_other_module_needs_widgets(tmp_path):
    assert len(panel(Paths("explore", tmp_path)).children) == 10
    found = [path.name for path in (ROOT / "helpers").glob("*.py") if "import ipywidgets" in path.read_text()]
    assert found == ["panel.py"]
