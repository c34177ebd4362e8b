"""One freely written pair: recovery as patching gives it, what limits it, and what is kept of it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import VOCABULARY, tiny_gpt2
from toy import ROOT
from words import word_tokenizer

from helpers import exploration
from helpers.artifacts import read_table
from helpers.config import Paths
from helpers.exploration import Question, explore, item_of
from helpers.models import ModelError
from helpers.pairs import make_pair
from helpers.patching import sweep

WORDS = word_tokenizer()
QUESTION = Question("w1 w2 w3 w4 w5", "w1 w6 w3 w7 w5", "w50", "w51")


def logits(model, words: str) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([WORDS(words)["input_ids"]])).logits[0, -1]


def patched_stream(model, *, layer: int, position: int) -> float:
    """Logit difference of the corrupted run with the clean stream before one block at one position: plain hooks."""
    kept = {}

    def keep(block, arguments):
        kept["clean"] = arguments[0].clone()

    def put(block, arguments):
        stream = arguments[0].clone()
        stream[:, position] = kept["clean"][:, position]
        return (stream, *arguments[1:])

    for words, hook in ((QUESTION.clean, keep), (QUESTION.corrupted, put)):
        handle = model.transformer.h[layer].register_forward_pre_hook(hook)
        found = logits(model, words)
        handle.remove()
    return float(found[50] - found[51])


def test_the_effects_are_those_of_plain_hooks(gpt2):
    finding = explore(gpt2, WORDS, QUESTION, model_name="tiny")
    clean, corrupted = (
        float(run[50] - run[51]) for run in map(logits, [gpt2] * 2, (QUESTION.clean, QUESTION.corrupted))
    )
    np.testing.assert_allclose(finding.runs["logit_difference"], [clean, corrupted], rtol=1e-4)
    assert len(finding.effects) == 3 * 5
    names = ["0 w1", "1 w2 → w6", "2 w3", "3 w4 → w7", "4 w5"]
    assert finding.effects["place"].tolist() == names * 3
    for layer, position in ((0, 1), (1, 1), (2, 4), (1, 2)):
        recovery = (patched_stream(gpt2, layer=layer, position=position) - corrupted) / (clean - corrupted)
        row = finding.effects.query("layer == @layer and place == @names[@position]")
        assert row["recovery"].item() == pytest.approx(recovery, rel=1e-3, abs=1e-4)
    assert set(finding.effects["quantity"]) == {"recovered"}
    assert finding.tokens["role"].tolist() == ["prefix", "subject_first", "subject_middle", "subject_last", "last"]


@pytest.mark.parametrize("component", exploration.COMPONENTS)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_every_component_is_swept_in_both_directions(gpt2, component, direction):
    question = replace(QUESTION, component=component, direction=direction, metric="log_probability")
    finding = explore(gpt2, WORDS, question, model_name="tiny")
    heads = component == "head_out"
    ends = finding.runs.set_index("run")["log_probability"]
    table = sweep(
        gpt2, [finding.pair], components=[component], positions="all" if heads else "each", direction=direction,
        metrics=["log_probability"],
    )  # fmt: skip
    change = table["log_probability"] - ends["corrupted"] if direction == "denoising" else ends["clean"] - table[
        "log_probability"
    ]  # fmt: skip
    np.testing.assert_allclose(
        finding.effects["recovery"], change / (ends["clean"] - ends["corrupted"]), rtol=1e-4, atol=1e-6
    )
    assert len(finding.effects) == 3 * (4 if heads else 5)
    if heads:
        assert finding.effects["place"].tolist() == [0, 1, 2, 3] * 3


def test_the_likeliest_tokens_are_the_first_of_the_softmax(gpt2):
    found = explore(gpt2, WORDS, QUESTION, model_name="tiny").likeliest
    for run, words in (("clean", QUESTION.clean), ("corrupted", QUESTION.corrupted)):
        best = logits(gpt2, words).softmax(-1).sort(descending=True)
        part = found[found["run"] == run]
        assert part["token"].tolist() == [f"w{number}" for number in best.indices[:5].tolist()]
        np.testing.assert_allclose(part["probability"], best.values[:5], rtol=1e-4)
        assert part["rank"].tolist() == [1, 2, 3, 4, 5]


def test_a_larger_model_says_how_far_it_is_and_finds_the_same(gpt2, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    at_once = explore(gpt2, WORDS, QUESTION, model_name="tiny", advance=seen.append)
    assert seen == pytest.approx([0.1, 1.0]) and used == [1, 3]
    monkeypatch.setattr(exploration, "LARGER", 0)
    monkeypatch.setattr(exploration, "STEPS", 2)
    seen.clear()
    in_steps = explore(gpt2, WORDS, QUESTION, model_name="tiny", advance=seen.append)
    assert seen == pytest.approx([0.1, 0.1 + 0.9 * 2 / 3, 1.0])
    pd.testing.assert_frame_equal(in_steps.effects, at_once.effects, rtol=1e-4, atol=1e-5)
    assert used == [1, 3, 3, 3]


def finding_with(clean: float, corrupted: float, *, name: str = "tiny", question: Question = QUESTION):
    """A finding of the tiny model in which the two runs have these logit differences."""
    finding = explore(tiny_gpt2(0), WORDS, question, model_name=name)
    return replace(finding, runs=finding.runs.assign(logit_difference=[clean, corrupted]))


@pytest.mark.parametrize(
    "clean, corrupted, words",
    [
        (3.0, -2.0, []),
        (-0.5, -2.0, ["prefers “w51” to “w50” (logit difference -0.50)"]),
        (0.0, -2.0, ["prefers “w51” to “w50”"]),
        (1.0, 3.0, ["favours the answer no less than the clean one (3.00 against 1.00)"]),
        (3.0, 2.9, ["hardly differ in logit difference"]),
        (0.0, 0.0, ["prefers “w51”", "no less than", "hardly differ"]),
    ],
)
def test_what_limits_a_finding_is_said(clean, corrupted, words):
    found = exploration.remarks(finding_with(clean, corrupted))
    assert len(found) == len(words) and all(word in text for word, text in zip(words, found, strict=True))


def test_one_differing_token_and_random_weights_are_said():
    one = replace(QUESTION, corrupted="w1 w6 w3 w4 w5")
    assert ["by construction" in text for text in exploration.remarks(finding_with(3, -2, question=one))] == [True]
    assert exploration.remarks(finding_with(3, -2, question=replace(one, component="mlp_out"))) == []
    assert ["weights are random" in text for text in exploration.remarks(finding_with(3, -2, name="random"))] == [True]


def test_a_saved_item_makes_the_same_pair_again(gpt2):
    question = replace(QUESTION, clean="w1 w2 w3 w4 w5", corrupted="w1 w26 w3 w7 w5", answer=" w50 ")
    finding = explore(gpt2, WORDS, question, model_name="tiny")
    row = item_of(finding, WORDS).iloc[0]
    assert (row["subject"], row["subject_start"], row["answer"], row["subject_tokens"]) == ("w2 w3 w4", 3, "w50", 3)
    pair = make_pair(
        WORDS, pair_id="typed", clean=row["prompt"], corrupted=row["corrupted"], answer=row["answer"], foil=row["foil"],
        clean_subject=(row["subject_start"], row["subject_start"] + len(row["subject"])),
        corrupted_subject=(
            row["corrupted_subject_start"], row["corrupted_subject_start"] + len(row["corrupted_subject"])
        ),
    )  # fmt: skip
    assert pair == finding.pair
    assert row["clean_logit_difference"] == finding.runs["logit_difference"].iloc[0]


def test_items_are_added_each_once_and_an_interrupted_write_loses_none(gpt2, tmp_path, monkeypatch):
    paths = Paths("explore", tmp_path)
    questions = [QUESTION, replace(QUESTION, answer="w49"), replace(QUESTION, component="mlp_out")]
    items = [item_of(explore(gpt2, WORDS, question, model_name="tiny"), WORDS) for question in questions]
    for item in items:
        path = exploration.save_item(item, paths)
    assert path == tmp_path / "data" / "explore" / "items.parquet"
    # The third asks of the same prompts and answers as the first.
    assert read_table(path)["answer"].tolist() == ["w49", "w50"]
    before = path.read_bytes()

    def broken(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk is full"):
        exploration.save_item(items[0].assign(item_id="another"), paths)
    assert path.read_bytes() == before and not list(path.parent.glob(".items*"))


def test_a_saved_heatmap_is_a_figure_as_every_other(gpt2, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "embedded").symlink_to(ROOT / "data" / "embedded")
    finding = explore(gpt2, WORDS, replace(QUESTION, direction="noising"), model_name="random")
    png = exploration.save_heatmap(finding, Paths("explore", tmp_path))
    assert png.parent == tmp_path / "figures" / "explore"
    assert png.name == f"{finding.item_id}_resid_pre_noising_logit_difference.png"
    assert {path.suffix for path in png.parent.iterdir()} == {".csv", ".json", ".pdf", ".png", ".svg"}
    saved = pd.read_csv(png.with_suffix(".csv"))
    np.testing.assert_allclose(saved["recovery"], finding.effects["recovery"], rtol=1e-5)
    assert '"plumbing": true' in png.with_suffix(".json").read_text()
    assert finding.drawing["title"] == "resid_pre, noising: share destroyed in logit difference"


def test_names_of_models(tmp_path):
    paths = Paths("explore", tmp_path)
    folder = tmp_path / "data" / "mini" / "models" / "tuned"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert exploration.known_models(paths) == ["embedded", "data/mini/models/tuned"]
    for name in ("data/mini/models/tuned", str(folder), " data/mini/models/tuned "):
        assert exploration.settings_of(name, paths).name_or_path == str(folder)
    revision = "0123456789abcdef" * 2 + "01234567"
    hub = exploration.settings_of(f"owner/name@{revision}", paths)
    assert (hub.name_or_path, hub.revision) == ("owner/name", revision)
    for name in ("", " ", "gpt2", "owner/name@main", "./absent", "/absent"):
        with pytest.raises(ModelError, match="There is no folder"):
            exploration.settings_of(name, paths)


def test_the_embedded_model_is_loaded_by_its_name():
    model, tokenizer = exploration.load_named("embedded", Paths("explore"))
    assert not model.training and len(tokenizer) == model.config.vocab_size != VOCABULARY
