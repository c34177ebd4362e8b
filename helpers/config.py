"""Profiles: every setting of a run, as frozen dataclasses loaded strictly from YAML.

The dataclasses are the schema; `profiles/NAME.yaml` are its instances. A key the schema does not know, or a value of
another type, stops the run with the key, the expected type and the nearest valid name: papermill would only warn.
Nothing heavy is imported here, so the freshness check of `make reproduce` stays fast.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

ROOT = Path(__file__).resolve().parent.parent


class SettingsError(ValueError):
    """A profile or an override that does not fit the schema."""


@dataclass(frozen=True)
class Domain:
    """A field of medicine: what PubMed is asked for, and the terms that are counted in the abstracts."""

    query: str | None
    mentions: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """Where the abstracts come from: `embedded` (generated from the knowledge base) or `pubmed`.

    Of a query's hits the `selection` takes `max_records` (null: all of them): the `first` that PubMed lists, or a
    `sample` of them all. The E-utilities key and e-mail come from NCBI_API_KEY and NCBI_EMAIL in the environment, never
    from a file.
    """

    source: str
    base_url: str | None
    domain: str
    domains: dict[str, Domain]
    selection: str
    max_records: int | None
    batch_size: int
    requests_per_second: float
    timeout_seconds: float
    tries: int
    deadline_minutes: float
    facts_per_relation: int | None
    facts_per_record: int
    repeats: int
    seed: int

    @property
    def asked(self) -> Domain:
        """The domain that is collected; raises SettingsError when it has no entry."""
        if self.domain not in self.domains:
            known = sorted(self.domains)
            raise SettingsError(
                f"corpus.domains has no entry {self.domain!r}, it has {', '.join(known)}{_nearest(self.domain, known)}."
            )
        return self.domains[self.domain]


@dataclass(frozen=True)
class Model:
    """The model that is fine-tuned: `embedded`, `random`, a local folder, or a hub name with its 40-hex revision."""

    name_or_path: str
    revision: str | None
    random_layers: int
    random_width: int
    random_heads: int
    plumbing: bool


@dataclass(frozen=True)
class Configuration:
    """One fine-tuning configuration: how texts become rows, how it is optimised, and what stops it.

    `rows` is `padded`, `chunked` or `packed` (see `helpers.examples`), `stop_on` the signal that stops training and
    chooses the epoch: the validation `loss`, or the `development` wordings of the probe.
    """

    max_length: int
    rows: Literal["padded", "chunked", "packed"]
    epochs: int
    patience: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    batch_size: int
    gradient_accumulation: int
    eval_batch_size: int
    precision: Literal["fp32", "fp16", "bf16"]
    stop_on: Literal["loss", "development"]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class FineTuning:
    """Every configuration that notebook 02 trains, and what they share.

    `compiled` lets torch compile the corrected configurations where there is CUDA; on a CPU that gains nothing.
    """

    configuration_1: Configuration
    configuration_2: Configuration
    corrected_1: Configuration
    corrected_2: Configuration
    validation_share: float
    test_share: float
    split_seed: int
    max_steps: int
    checkpoint_steps: int
    compiled: bool
    probe_batch_size: int


@dataclass(frozen=True)
class Items:
    """Which items enter the analysis. The rule stands here, before anything is looked at."""

    exploratory_share: float
    minimum_clean_logit_difference: float | None
    wording: int
    group: str
    max_pairs_per_kind: int | None
    seed: int


@dataclass(frozen=True)
class Patching:
    """What is swept, and how many rows one forward pass may hold; what the free memory allows when that is null.

    `corruption` is symmetric token replacement, and `metric` what recovery is told by: notebook 05 compares them with
    others. `window` is how many adjacent layers are patched together.
    """

    corruption: Literal["STR"]
    metric: Literal["logit_difference"]
    components: tuple[str, ...]
    directions: tuple[str, ...]
    window: int
    untrained_networks: int
    row_budget: int | None


@dataclass(frozen=True)
class Tasks:
    """The tasks of notebook 05: who does them, what they are made of, and how their prompts are corrupted.

    `model` is the embedded `task` model, or the `base` model that is fine-tuned; `words` are lists of `tasks.yaml`;
    `facts` is `embedded`, a JSON-lines file or a dataset of the hub with its 40-hex revision. `noise` is the standard
    deviation of Gaussian noise in those of the embeddings, with `draws` of it per choice of tokens. `larger_models` are
    asked for facts alone, each NAME@REVISION, where there is memory for them. More than one of `processes` is for small
    models on a processor.
    """

    model: Literal["task", "base"]
    larger_models: tuple[str, ...]
    words: tuple[Literal["seen", "unseen"], ...]
    operations: tuple[Literal["+", "-", "*"], ...]
    facts: str
    facts_revision: str | None
    prompts: int
    noise: float
    draws: int
    windows: tuple[int, ...]
    processes: int
    seed: int


@dataclass(frozen=True)
class Calibration:
    """What notebook 06 does anew; all else it reads from the committed leaderboard.

    `planted` is planted live, in `steps` (null: those of the recipe). Of the committed plants so many `plants` are
    scored (null: all) by `methods` (none: all there are), asked about so many `facts` (null: all that were taught).
    """

    planted: str
    steps: int | None
    plants: int | None
    methods: tuple[str, ...]
    facts: int | None
    processes: int


@dataclass(frozen=True)
class Statistics:
    """Resamples of the bootstrap, its confidence level and its seed."""

    resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True)
class Profile:
    """All settings of one run; `name` is the file's stem and the name of its folders under data/ and figures/."""

    name: str
    corpus: Corpus
    model: Model
    finetune: FineTuning
    items: Items
    patching: Patching
    tasks: Tasks
    calibration: Calibration
    statistics: Statistics


@dataclass(frozen=True)
class Paths:
    """Every place on disk a run of one profile reads or writes."""

    profile: str
    root: Path = ROOT

    @property
    def data(self) -> Path:
        """Generated artifacts of this profile (ignored by git)."""
        return self.root / "data" / self.profile

    @property
    def embedded(self) -> Path:
        """Committed inputs: the knowledge base and the base checkpoint."""
        return self.root / "data" / "embedded"

    @property
    def figures(self) -> Path:
        """Figures of this profile, as pdf, svg, png, csv and json."""
        return self.root / "figures" / self.profile

    @property
    def appendix(self) -> Path:
        """Executed notebooks and the HTML site: the default profile's are committed at the top."""
        top = self.root / "appendix"
        return top if self.profile == "mini" else top / self.profile


def load_profile(name: str, overrides: str = "", *, folder: Path | None = None) -> Profile:
    """Read `profiles/NAME.yaml` and apply overrides such as `"model.name_or_path=/m corpus.batch_size=50"`.

    Raises SettingsError for an unknown profile, an unknown key, a missing key or a value of another type.
    """
    folder = folder or ROOT / "profiles"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise SettingsError(
            f"There is no profile {name!r}; the profiles are {', '.join(known)}{_nearest(name, known)}."
        )
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for key, text in _split_overrides(overrides):
        _set(tree, key, yaml.safe_load(text), key)
    if "name" in tree:
        raise SettingsError(f"{path.name} must not set `name`: a profile is named by its file.")
    return _build(Profile, {"name": name, **tree}, "")


def section(profile: Profile, name: str) -> dict:
    """One top-level section as plain data, for fingerprints and sidecars."""
    value = getattr(profile, name)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def _split_overrides(overrides: str) -> list[tuple[str, str]]:
    pairs = []
    for word in overrides.split():
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise SettingsError(
                f"An override is written section.key=value, without a space, not {word!r}: a value that needs one goes "
                "into the profile."
            )
        pairs.append((key, text))
    return pairs


def _set(tree: dict, key: str, value: object, full: str) -> None:
    head, dot, rest = key.partition(".")
    if not dot:
        _check_known(Profile, full)
        tree[head] = value
        return
    node = tree.setdefault(head, {})
    if not isinstance(node, dict):
        raise SettingsError(f"{full}: {head!r} is a single value and has no keys below it.")
    _set(node, rest, value, full)


def _check_known(kind: type, key: str) -> None:
    """Walk the schema along a dotted key, so that a misspelt override names the nearest valid one."""
    walked = []
    for word in key.split("."):
        if typing.get_origin(kind) is dict:  # its keys are the profile's own
            kind = typing.get_args(kind)[1]
            walked.append(word)
            continue
        names = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
        if word not in names or (not walked and word == "name"):
            raise SettingsError(_unknown(".".join([*walked, word]), word, [n for n in names if n != "name"]))
        kind = typing.get_type_hints(kind)[word]
        walked.append(word)


def _unknown(key: str, word: str, names: list[str]) -> str:
    return f"There is no setting {key!r}; valid here: {', '.join(names) or 'nothing'}{_nearest(word, names)}."


def _nearest(word: str, names: list[str]) -> str:
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; the nearest is {near[0]!r}" if near else ""


def _build(kind: type, tree: object, where: str):
    if not isinstance(tree, dict):
        raise SettingsError(f"{where or 'The profile'} must be a mapping of settings, not {tree!r}.")
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in hints:
            raise SettingsError(_unknown(f"{where}{key}", key, list(hints)))
    missing = [name for name in hints if name not in tree]
    if missing:
        raise SettingsError(
            f"{where}{missing[0]} is missing: a profile sets every key ({', '.join(missing)} are absent)."
        )
    return kind(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in tree.items()})


def _convert(hint, value: object, key: str):
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{key}.")
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is Literal:
        known = typing.get_args(hint)
        if value in known:
            return value
        near = _nearest(str(value), list(known))
        raise SettingsError(f"{key} must be one of {', '.join(known)}, not {value!r}{near}.")
    if typing.get_origin(hint) is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(typing.get_args(hint)[0], v, key) for v in value)
    elif typing.get_origin(hint) is dict:
        if isinstance(value, dict):
            return {name: _convert(typing.get_args(hint)[1], v, f"{key}.{name}") for name, v in value.items()}
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif type(value) is hint:
        return value
    expected = str(hint) if typing.get_origin(hint) else hint.__name__
    raise SettingsError(f"{key} must be {expected}, not {value!r} ({type(value).__name__}).")
