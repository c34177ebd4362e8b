"""Profiles are read strictly: a misspelt key or a value of another type stops with one helpful sentence."""

import dataclasses
import shutil

import pytest
import yaml
from toy import ROOT

from helpers.config import Paths, Profile, SettingsError, load_profile, section


@pytest.fixture
def folder(tmp_path):
    shutil.copy(ROOT / "profiles" / "mini.yaml", tmp_path)
    return tmp_path


def edited(folder, change) -> str:
    """Write a profile `other`, changed by `change(tree)`, and return its name."""
    tree = yaml.safe_load((folder / "mini.yaml").read_text())
    change(tree)
    (folder / "other.yaml").write_text(yaml.safe_dump(tree))
    return "other"


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_fits_the_schema(path):
    profile = load_profile(path.stem)
    assert profile.name == path.stem
    assert {field.name for field in dataclasses.fields(Profile)} > set(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "overrides, words",
    [
        ("corpus.sede=1", ["'corpus.sede'", "nearest is 'seed'"]),
        ("corpse.seed=1", ["'corpse'", "nearest is 'corpus'"]),
        ("finetune.corrected_2.epoch=1", ["'finetune.corrected_2.epoch'", "nearest is 'epochs'"]),
        ("corpus.seed=many", ["corpus.seed", "int", "'many'", "str"]),
        ("corpus.seed=1.5", ["corpus.seed", "int", "1.5", "float"]),
        ("corpus.seed=true", ["corpus.seed", "int", "True", "bool"]),
        ("model.plumbing=1", ["model.plumbing", "bool", "1"]),
        ("statistics.confidence=no", ["statistics.confidence", "float", "False"]),
        ("corpus.source=null", ["corpus.source", "str", "None"]),
        ("patching.components=resid_pre", ["patching.components", "tuple[str, ...]"]),
        ("finetune.corrected_2.seeds=[0,one]", ["finetune.corrected_2.seeds", "int", "'one'"]),
        ("finetune.configuration_1.rows=pakced", ["finetune.configuration_1.rows", "chunked", "nearest is 'packed'"]),
        ("corpus=1", ["corpus", "mapping", "1"]),
        ("corpus.seed.deeper=1", ["corpus.seed", "no keys below"]),
        ("corpus.domains.epilepsy.mention=[a]", ["'corpus.domains.epilepsy.mention'", "nearest is 'mentions'"]),
        ("corpus.domains.gout.query=gout", ["corpus.domains.gout", "mentions is missing"]),
        ("corpus.domains=all", ["corpus.domains", "'all'"]),
        ("corpus.seed", ["section.key=value", "'corpus.seed'"]),
        ("name=x", ["'name'"]),
    ],
)
def test_a_wrong_override_is_one_helpful_sentence(folder, overrides, words):
    with pytest.raises(SettingsError) as caught:
        load_profile("mini", overrides, folder=folder)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message and message.endswith(".")


def test_overrides_change_what_they_name_and_nothing_else(folder):
    plain = load_profile("mini", folder=folder)
    other = load_profile("mini", "corpus.seed=7 model.name_or_path=/some/model corpus.max_records=null", folder=folder)
    assert (other.corpus.seed, other.model.name_or_path) == (7, "/some/model")
    same = dataclasses.replace(other.corpus, seed=plain.corpus.seed)
    assert (same, other.finetune, other.items) == (plain.corpus, plain.finetune, plain.items)


def test_a_whole_number_may_stand_for_a_float_and_lists_become_tuples(folder):
    profile = load_profile("mini", "corpus.timeout_seconds=3 finetune.corrected_2.seeds=[4,5]", folder=folder)
    assert isinstance(profile.corpus.timeout_seconds, float)
    assert profile.finetune.corrected_2.seeds == (4, 5)


def test_another_domain_is_one_entry():
    """Every domain of the study's profile can be asked for, and one more by its entry alone."""
    paper = load_profile("paper").corpus
    assert set(paper.domains) >= {"epilepsy", "migraine", "stroke", "parkinson", "cardiology"}
    queries = {load_profile("paper", f"corpus.domain={name}").corpus.asked.query for name in paper.domains}
    assert len(queries) == len(paper.domains) and None not in queries
    gout = "corpus.domain=gout corpus.domains.gout.query=gout corpus.domains.gout.mentions=[gout]"
    assert load_profile("paper", gout).corpus.asked.mentions == ("gout",)
    with pytest.raises(SettingsError, match="no entry 'migrain', it has .*; the nearest is 'migraine'"):
        load_profile("paper", "corpus.domain=migrain").corpus.asked  # noqa: B018


def test_an_unknown_profile_names_those_there_are(folder):
    with pytest.raises(SettingsError, match="no profile 'mnii'.*mini.*nearest is 'mini'"):
        load_profile("mnii", folder=folder)


def test_an_unknown_key_in_the_file_is_refused(folder):
    name = edited(folder, lambda tree: tree["items"].update(sede=1))
    with pytest.raises(SettingsError, match="'items.sede'.*nearest is 'seed'"):
        load_profile(name, folder=folder)


def test_a_missing_key_is_refused(folder):
    name = edited(folder, lambda tree: tree["items"].pop("seed"))
    with pytest.raises(SettingsError, match="items.seed is missing"):
        load_profile(name, folder=folder)


def test_a_profile_does_not_name_itself(folder):
    name = edited(folder, lambda tree: tree.update(name="elsewhere"))
    with pytest.raises(SettingsError, match="named by its file"):
        load_profile(name, folder=folder)


def test_a_section_is_plain_data(folder):
    profile = load_profile("mini", folder=folder)
    assert section(profile, "items")["seed"] == profile.items.seed
    assert section(profile, "name") == "mini"


def test_only_the_default_profile_writes_to_the_committed_appendix(tmp_path):
    assert Paths("mini", tmp_path).appendix == tmp_path / "appendix"
    assert Paths("smoke", tmp_path).appendix == tmp_path / "appendix" / "smoke"
