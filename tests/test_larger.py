"""Larger models: which are asked for facts, and that their numbers are those of the paper's own settings."""

from dataclasses import replace

import pytest
from test_practices import FACTS, MODEL, SETTINGS, TOKENIZER

from helpers import larger
from helpers.config import Paths, load_profile
from helpers.larger import fact_numbers, larger_models, published_effects, window_numbers
from helpers.measured import NUMBERS
from helpers.practices import FACT_ROLES, mlp_effects

PINNED = replace(SETTINGS, windows=(1, 5), larger_models=("gpt2-xl@" + 40 * "a", "gpt2-large@" + 40 * "b"))
PLAIN = load_profile("mini").model
STATISTICS = {"resamples": 50, "confidence": 0.95, "seed": 0}


def test_a_model_that_memory_does_not_hold_is_left_out_and_named(monkeypatch, capsys):
    monkeypatch.setattr(larger, "memory_holds", lambda model: model.name_or_path != "gpt2-xl")
    (kept,) = larger_models(PINNED, PLAIN)
    assert (kept.name_or_path, kept.revision) == ("gpt2-large", 40 * "b")
    assert "gpt2-xl is left out" in capsys.readouterr().err


def test_every_larger_model_gives_the_numbers_of_its_facts(monkeypatch):
    monkeypatch.setattr(larger, "memory_holds", lambda model: True)
    monkeypatch.setattr(larger, "load_base", lambda model, paths: (MODEL, TOKENIZER))
    tables = fact_numbers(PINNED, PLAIN, Paths("mini"), **STATISTICS)
    assert [set(table["model"]) for table in tables] == [{"gpt2-xl"}, {"gpt2-large"}]
    assert list(tables[0].columns) == NUMBERS and set(tables[0]["task"]) == {"made-up facts"}
    assert {"none", "STR", "GN", "GN over STR"} <= set(tables[0]["corruption"])


def test_no_larger_model_gives_no_table():
    assert fact_numbers(SETTINGS, PLAIN, Paths("mini"), **STATISTICS) == []


def test_what_is_compared_is_denoised_mlps_by_the_published_tokens():
    effects = mlp_effects(MODEL, FACTS, FACT_ROLES, settings=SETTINGS)
    kept = published_effects(effects, {FACTS.name: "subject"})
    assert 0 < len(kept) < len(effects) and published_effects(effects, {"others": "subject"}).empty
    assert (kept[["component", "direction", "tokens"]] == ["mlp_out", "denoising", "subject"]).all(axis=None)
    without = window_numbers(kept[kept["role"] != "subject_middle"], **STATISTICS)
    assert "positions" not in without and "positions" in window_numbers(kept, **STATISTICS)


def test_a_profile_names_larger_models_with_their_commit():
    for pinned in load_profile("paper").tasks.larger_models:
        name, _, revision = pinned.partition("@")
        assert name and len(revision) == 40, pinned


@pytest.mark.parametrize("needed, free, holds", [(1.0, 1.0, False), (1.0, 2.0, True)])
def test_memory_must_hold_half_as_much_again(monkeypatch, needed, free, holds):
    from transformers import AutoConfig

    from helpers import models

    weights = MODEL.num_parameters() * 4
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name, revision: MODEL.config)
    monkeypatch.setattr(models, "free_memory", lambda device: free * needed * weights)
    assert models.memory_holds(replace(PLAIN, name_or_path="x", revision=40 * "a")) == holds
