"""Models and tokenizers: the embedded base checkpoint, a local folder, the hub, or random weights.

Every model is returned in float32 and in evaluation mode, on the device the caller names.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2TokenizerFast,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from helpers.artifacts import new_folder, sha256_bytes
from helpers.config import Model, Paths
from helpers.memory import free_memory


class ModelError(ValueError):
    """A model that cannot be found, pinned, or read."""


def load_base(settings: Model, paths: Paths):
    """The model that fine-tuning starts from, and its tokenizer.

    `embedded` is the committed checkpoint; `random` has the embedded tokenizer and untrained weights; a path with a
    config.json is a local folder; anything else is a hub name and needs its 40-hex revision.
    """
    name = settings.name_or_path
    if name == "embedded":
        return load_model(paths.embedded / "models" / "base")
    if name == "random":
        tokenizer = load_tokenizer(paths.embedded / "models" / "base")
        model = random_model(
            len(tokenizer),
            layers=settings.random_layers,
            width=settings.random_width,
            heads=settings.random_heads,
            positions=128,
            seed=0,
        )
        return model, tokenizer
    if _is_folder(name):
        return load_model(Path(name).expanduser())
    model = AutoModelForCausalLM.from_pretrained(name, revision=_pinned(settings), dtype=torch.float32)
    return model.eval(), load_base_tokenizer(settings, paths)


def base_folder(settings: Model, paths: Paths) -> list[Path]:
    """The local folder the base model is read from, for fingerprints; none for a hub name, which its revision pins."""
    name = settings.name_or_path
    if name in ("embedded", "random"):
        return [paths.embedded / "models" / "base"]
    return [Path(name).expanduser()] if _is_folder(name) else []


def load_base_tokenizer(settings: Model, paths: Paths) -> PreTrainedTokenizerFast:
    """The tokenizer of the model that fine-tuning starts from, without its weights."""
    name = settings.name_or_path
    if name in ("embedded", "random"):
        return load_tokenizer(paths.embedded / "models" / "base")
    if _is_folder(name):
        return load_tokenizer(Path(name).expanduser())
    return _complete(AutoTokenizer.from_pretrained(name, revision=_pinned(settings)))


def memory_holds(settings: Model) -> bool:
    """Whether a hub model's weights, in single precision and with half as much again to compute in, fit into memory."""
    configuration = AutoConfig.from_pretrained(settings.name_or_path, revision=_pinned(settings))
    with torch.device("meta"):
        numbers = AutoModelForCausalLM.from_config(configuration).num_parameters()
    return 1.5 * numbers * torch.float32.itemsize < free_memory(accelerator())


def load_model(folder: Path):
    """A model and its tokenizer from a local folder; raises ModelError when the folder does not hold one."""
    disable_progress_bar()
    tokenizer = load_tokenizer(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no model (no config.json): give the folder of a saved GPT-2, or run `make base-model`."
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    return model.eval(), tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a local folder, with end-of-text as its padding token, as the study had it."""
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}: give the folder of a saved GPT-2, or run `make base-model`.")
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise ModelError(f"{folder} holds no tokenizer (no tokenizer.json, no vocab.json): save one beside the model.")
    # GPT-2's two files alone do not say what they are, and AutoTokenizer must be told.
    named = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "config.json"))
    return _complete((AutoTokenizer if named else GPT2TokenizerFast).from_pretrained(folder, local_files_only=True))


def _is_folder(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).is_dir()


def _pinned(settings: Model) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", settings.revision or ""):
        raise ModelError(
            f"{settings.name_or_path!r} is not a folder, so it is taken for a hub name, and model.revision must be "
            f"the 40-hex commit it is pinned to, not {settings.revision!r}."
        )
    return settings.revision


def _complete(tokenizer):
    if not tokenizer.is_fast:
        raise ModelError("The tokenizer is not a fast one, and only those say which characters a token covers.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_model(model, tokenizer, folder: Path, *, half: bool = False) -> None:
    """Save weights (safetensors), configuration and tokenizer into `folder`, whole or not at all."""
    disable_progress_bar()  # a bar for every saved file would fill the executed notebook
    with new_folder(folder) as temporary:
        saved = copy.deepcopy(model).half() if half else model
        saved.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def model_digest(model) -> str:
    """Digest of a model's parameters: names, shapes and values in single precision."""
    state = {name: parameter.detach().float().cpu().contiguous() for name, parameter in model.named_parameters()}
    return sha256_bytes(save(dict(sorted(state.items()))))


def accelerator() -> torch.device:
    """Where models are run: the accelerator, or the processor where there is none."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def random_model(vocabulary: int, *, layers: int, width: int, heads: int, positions: int, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 with untrained weights; the global random state is left as it was."""
    configuration = GPT2Config(
        vocab_size=vocabulary,
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        n_positions=positions,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(configuration).eval()


def untrained_twin(model, *, seed: int):
    """The same architecture with untrained weights: the null of every claim about a trained one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(copy.deepcopy(model.config)).to(model.device).eval()
