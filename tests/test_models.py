"""Models: random weights that disturb nothing, files that hold every bit, and refusals in sentences."""

import socket
from types import SimpleNamespace

import pytest
import torch
from toy import ROOT

from helpers import models
from helpers.artifacts import sha256_tree
from helpers.config import Model, Paths
from helpers.models import (
    ModelError,
    base_folder,
    load_base,
    load_base_tokenizer,
    load_model,
    load_tokenizer,
    random_model,
    save_model,
    untrained_twin,
)

PATHS = Paths("mini", ROOT)
BASE = PATHS.embedded / "models" / "base"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing here may look anything up elsewhere."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model was sought on the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BASE)


def tiny(seed=0, vocabulary=40):
    return random_model(vocabulary, layers=2, width=32, heads=2, positions=16, seed=seed)


def settings(name, revision=None):
    return Model(name, revision, random_layers=2, random_width=32, random_heads=2, plumbing=False)


def equal(one, two) -> bool:
    """Whether two models have the same parameters to the last bit."""
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_random_model_leaves_the_random_state_alone():
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    model = tiny()
    untrained_twin(model, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(8)
    assert equal(tiny(), model), "only its own seed decides its weights"


def test_a_random_model_is_what_was_asked_for():
    model = tiny()
    assert (model.config.n_layer, model.config.n_embd, model.config.n_head) == (2, 32, 2)
    assert (model.config.vocab_size, model.config.n_positions) == (40, 16)
    assert not model.training and model.dtype == torch.float32
    assert not equal(model, tiny(seed=1))


def test_an_untrained_twin_shares_the_shape_and_no_weight():
    model = tiny()
    with torch.no_grad():
        model.transformer.ln_f.weight += 1  # trained, as it were
    twin = untrained_twin(model, seed=0)
    assert equal(twin, untrained_twin(model, seed=0))
    assert not equal(twin, untrained_twin(model, seed=1))
    assert not torch.equal(
        twin.transformer.h[0].attn.c_attn.weight, untrained_twin(model, seed=1).transformer.h[0].attn.c_attn.weight
    )
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(twin.transformer.ln_f.weight, torch.ones(32)), "nothing learnt stays"
    assert not twin.training and twin.config is not model.config


def test_a_saved_model_comes_back_to_the_bit(tmp_path, tokenizer):
    model = tiny(vocabulary=len(tokenizer))
    save_model(model, tokenizer, tmp_path / "run")
    loaded, its_tokenizer = load_model(tmp_path / "run")
    assert equal(loaded, model) and loaded.dtype == torch.float32 and not loaded.training
    text = "In this report, JME denotes juvenile myoclonic epilepsy."
    assert its_tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert its_tokenizer.pad_token_id == its_tokenizer.eos_token_id
    ids = torch.arange(10)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_half_precision_is_for_the_file_alone(tmp_path, tokenizer):
    model = tiny(vocabulary=len(tokenizer))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, tokenizer, tmp_path / "half", half=True)
    save_model(model, tokenizer, tmp_path / "whole")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    loaded, _ = load_model(tmp_path / "half")
    assert loaded.dtype == torch.float32
    assert all(torch.equal(value, before[name].half().float()) for name, value in loaded.state_dict().items())
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert 1.8 < sizes[1] / sizes[0] < 2.2


def test_a_model_that_cannot_be_saved_leaves_the_old_one(tmp_path, tokenizer):
    model = tiny(vocabulary=len(tokenizer))
    save_model(model, tokenizer, tmp_path / "run")
    digest = sha256_tree([tmp_path / "run"], tmp_path / "run")
    with pytest.raises(AttributeError):
        save_model(tiny(seed=1, vocabulary=len(tokenizer)), None, tmp_path / "run")  # dies after the weights
    assert sha256_tree([tmp_path / "run"], tmp_path / "run") == digest
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_digest_tells_models_apart(tmp_path, tokenizer):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_model(tiny(seed, len(tokenizer)), tokenizer, tmp_path / name)
    one, same, other = (sha256_tree([tmp_path / name], tmp_path / name) for name in "abc")
    assert one == same
    assert {name for name in one if one[name] != other[name]} == {"model.safetensors"}


def test_a_folder_without_a_model_is_refused(tmp_path, tokenizer):
    with pytest.raises(ModelError, match=r"There is no folder .*nowhere: give the folder of a saved GPT-2"):
        load_model(tmp_path / "nowhere")
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="bare holds no model"):
        load_model(tmp_path / "bare")
    with pytest.raises(ModelError, match="There is no folder .*missing"):
        load_base(settings(str(tmp_path / "missing")), PATHS)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    tiny().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"holds no tokenizer \(no tokenizer.json, no vocab.json\): save one beside"):
        load_model(tmp_path)


def test_a_folder_of_gpt2s_two_files_is_a_tokenizer(tmp_path):
    """As GPT-2's tokenizer is often passed on: a vocabulary and merges, and nothing that names the class."""
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("abba") == [2, 1, 0] and tokenizer.pad_token == "<|endoftext|>"


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(ModelError, match="not a fast one"):
        models._complete(SimpleNamespace(is_fast=False))


@pytest.mark.parametrize("revision", [None, "main", "e7da7f2", "E7DA7F221D5BF496A48136C0CD264E630FE9FCC8", "0" * 41])
@pytest.mark.parametrize("load", [load_base, load_base_tokenizer])
def test_a_hub_name_is_refused_unless_it_is_pinned(load, revision):
    with pytest.raises(
        ModelError, match="'gpt2-nowhere' is not a folder, .* must (then )?be the 40-hex commit"
    ) as caught:
        load(settings("gpt2-nowhere", revision), PATHS)
    assert repr(revision) in str(caught.value)


def test_a_pinned_hub_name_is_asked_for_at_its_revision(monkeypatch):
    asked = []
    monkeypatch.setattr(
        models.AutoTokenizer,
        "from_pretrained",
        lambda name, **options: asked.append((name, options)) or load_tokenizer_stub(),
    )
    load_base_tokenizer(settings("someone/gpt2", "0123456789" * 4), PATHS)
    assert asked == [("someone/gpt2", {"revision": "0123456789" * 4})]


def load_tokenizer_stub():
    return SimpleNamespace(is_fast=True, pad_token=None, eos_token="<|endoftext|>")


def test_a_local_folder_may_be_the_base(tmp_path, tokenizer, monkeypatch):
    model = tiny(vocabulary=len(tokenizer))
    save_model(model, tokenizer, tmp_path / "mine")
    loaded, _ = load_base(settings(str(tmp_path / "mine")), PATHS)
    assert equal(loaded, model)
    assert base_folder(settings(str(tmp_path / "mine")), PATHS) == [tmp_path / "mine"]
    monkeypatch.chdir(tmp_path)
    assert equal(load_base(settings("./mine"), PATHS)[0], model)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert equal(load_base(settings("~/mine"), PATHS)[0], model)
    assert len(load_base_tokenizer(settings("~/mine"), PATHS)) == len(tokenizer)


def test_the_embedded_base_is_whole(tokenizer):
    model, its_tokenizer = load_base(settings("embedded"), PATHS)
    assert model.config.vocab_size == len(its_tokenizer) == len(tokenizer)
    assert model.dtype == torch.float32 and not model.training
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert its_tokenizer.pad_token_id == its_tokenizer.eos_token_id == model.config.eos_token_id


def test_the_random_base_reads_the_embedded_tokens(tokenizer):
    model, its_tokenizer = load_base(settings("random"), PATHS)
    assert (model.config.n_layer, model.config.n_embd) == (2, 32)
    assert model.config.vocab_size == len(its_tokenizer)
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()


def test_a_base_is_fingerprinted_by_its_folder():
    assert base_folder(settings("embedded"), PATHS) == base_folder(settings("random"), PATHS) == [BASE]
    assert base_folder(settings("someone/gpt2", "0" * 40), PATHS) == []
