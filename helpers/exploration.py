"""Exploration: one freely written pair, patched at every site of one component, and what came of it kept.

`explore` asks one question of one model, denoising (clean activation into the corrupted run) or noising (corrupted into
clean). One pair shows where information flows in that pair; it is no evidence about facts or models in general.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from helpers.alignment import align, pair_of_texts, subject_spans, visible
from helpers.architectures import layer_count
from helpers.artifacts import locked_file, read_table, write_table
from helpers.config import Model, Paths, load_profile
from helpers.metrics import recovery_table
from helpers.models import ModelError, accelerator, base_folder, load_base
from helpers.pairs import PromptPair
from helpers.patching import measure_runs, sweep
from helpers.stages import WITHOUT_FOLDER

COMPONENTS = ("resid_pre", "attn_out", "mlp_out", "head_out")
STEPS = 8  # of a larger model's sweep: each records the two runs anew, which few steps keep cheap
LARGER = 20_000_000  # parameters from which a sweep can take so long that one wants to see it go on
LIKELIEST = 5
NEAR_ZERO = 0.05  # of the larger of the two runs' values


@dataclass(frozen=True)
class Question:
    """Two prompts with their answers, the component to patch, in which direction, and the metric to read it by."""

    clean: str
    corrupted: str
    answer: str
    foil: str
    component: str = "resid_pre"
    direction: str = "denoising"
    metric: str = "logit_difference"


@dataclass(frozen=True)
class Finding:
    """What one model answers to one question.

    `tokens` is the alignment with the role of every position, `runs` the un-patched runs as `measure_runs` gives them,
    `likeliest` the next tokens of both runs (columns run, rank, token, probability), `effects` one row per site:
    component, direction, layer, place (the position with its tokens, or the head), quantity, recovery, numerator,
    denominator, pairs.
    """

    question: Question
    model_name: str
    pair: PromptPair
    tokens: pd.DataFrame
    runs: pd.DataFrame
    likeliest: pd.DataFrame
    effects: pd.DataFrame

    @property
    def plumbing(self) -> bool:
        """Whether the model's weights are random."""
        return self.model_name == "random"

    @property
    def item_id(self) -> str:
        """Decided by the prompts, the answers and the model alone, so that an item saved twice stands there once."""
        texts = (*astuple(self.question)[:4], self.model_name)
        return f"explored-{hashlib.sha256(repr(texts).encode()).hexdigest()[:10]}"

    @property
    def drawing(self) -> dict:
        """How the effects are drawn: the name of a drawing, and its options."""
        question, share = self.question, f"share {self.effects['quantity'].iloc[0]}"
        return {
            "drawing": "site_map",
            "title": f"{question.component}, {question.direction}: {share} in {spoken(question.metric)}",
            "xlabel": "head, all positions together" if question.component == "head_out" else "token",
            "label": share,
        }


def spoken(metric: str) -> str:
    """A metric's name in running text."""
    return metric.replace("_", " ")


def settings_of(name: str, paths: Paths) -> Model:
    """The settings of a model by its name: `embedded`, `random`, a folder, or owner/name@ and a 40-hex revision.

    A relative folder is looked for from the project's root, wherever the notebook runs. Raises ModelError for a name
    that is neither a folder nor pinned.
    """
    settings, name = load_profile("mini").model, name.strip()
    if name in WITHOUT_FOLDER:
        return replace(settings, name_or_path=name)
    folder = paths.root / Path(name).expanduser()
    if name and folder.is_dir():
        return replace(settings, name_or_path=str(folder))
    hub_name, _, revision = name.partition("@")
    if not name or name.startswith((".", "/", "~")) or len(revision) != 40:
        raise ModelError(
            f"There is no folder {name!r}, and a name on the hub is written owner/name@ and the 40 hex digits of its "
            "commit: give one of the two, or `embedded`."
        )
    return replace(settings, name_or_path=hub_name, revision=revision)


def load_named(name: str, paths: Paths):
    """The model of a name and its tokenizer, on the accelerator where there is one; raises ModelError."""
    model, tokenizer = load_base(settings_of(name, paths), paths)
    return model.to(accelerator()), tokenizer


def known_models(paths: Paths) -> list[str]:
    """Names to offer: the embedded base and every model that a run has left below data/."""
    folders = sorted(path.parent for path in paths.root.glob("data/*/models/*/config.json"))
    return ["embedded", *(str(f.relative_to(paths.root)) for f in folders if not f.is_relative_to(paths.embedded))]


def explore(
    model, tokenizer, question: Question, *, model_name: str, advance: Callable[[float], None] = lambda share: None
) -> Finding:
    """Ask a model a question: patch clean into corrupted (denoising) or corrupted into clean (noising), every site.

    `advance` is told the share done. Positions are patched one by one, heads at all positions together. Raises
    PairError for prompts that are no pair, and PatchingError as `sweep` does.
    """
    texts = {name: getattr(question, name) for name in ("clean", "corrupted", "answer", "foil")}
    pair = pair_of_texts(tokenizer, **texts)
    tokens = align(tokenizer, question.clean, question.corrupted).assign(role=pair.roles)
    with _few_threads(model):
        runs = measure_runs(model, [pair])
        advance(0.1)
        patched = _sweep(model, pair, question, advance)
        likeliest = likeliest_tokens(model, tokenizer, pair)
    place = "head" if question.component == "head_out" else "position"
    by = ["component", "direction", "layer", place]
    effects = recovery_table(patched, runs, by=by, metric=question.metric).rename(columns={place: "place"})
    if place == "position":
        effects["place"] = effects["place"].map(dict(enumerate(map(_label, tokens.itertuples()))))
    return Finding(question, model_name, pair, tokens, runs, likeliest, effects)


def likeliest_tokens(model, tokenizer, pair: PromptPair) -> pd.DataFrame:
    """What each un-patched run would say next: columns run, rank (from 1), token, probability."""
    prompts = torch.tensor([pair.clean, pair.corrupted], device=model.device)
    with torch.no_grad():
        best = model(prompts).logits[:, -1].float().softmax(-1).topk(LIKELIEST)
    return pd.DataFrame(
        {"run": run, "rank": rank, "token": tokenizer.decode([token]), "probability": probability}
        for run, tokens, probabilities in zip(
            ("clean", "corrupted"), best.indices.tolist(), best.values.tolist(), strict=True
        )
        for rank, (token, probability) in enumerate(zip(tokens, probabilities, strict=True), 1)
    )


def remarks(finding: Finding) -> list[str]:
    """One sentence for everything that limits what the numbers of a finding can mean."""
    question, ends = finding.question, finding.runs.set_index("run")
    clean, corrupted = (ends.loc[run, "logit_difference"] for run in ("clean", "corrupted"))
    found = []
    if clean <= 0:
        found.append(
            f"In the clean run the model prefers “{question.foil}” to “{question.answer}” (logit difference "
            f"{clean:.2f}): it does not know the answer, and there is nothing to trace."
        )
    if clean <= corrupted:
        found.append(
            f"The corrupted prompt favours the answer no less than the clean one ({corrupted:.2f} against "
            f"{clean:.2f}): the prompts or the answers may be the wrong way round."
        )
    low, high = sorted(abs(ends.loc[run, question.metric]) for run in ("clean", "corrupted"))
    if abs(ends.loc["clean", question.metric] - ends.loc["corrupted", question.metric]) <= NEAR_ZERO * max(low, high):
        found.append(
            f"Clean and corrupted run hardly differ in {spoken(question.metric)}: recovery divides by almost "
            "nothing, and its size means nothing."
        )
    different = (~finding.tokens["same"]).sum()
    if question.component == "resid_pre" and different == 1:
        found.append(
            "The prompts differ in one token, so the residual stream before layer 0 at that token is all that differs: "
            "1 there is by construction."
        )
    if finding.plumbing:
        found.append("The weights are random: these numbers mean nothing.")
    return found


def item_of(finding: Finding, tokenizer) -> pd.DataFrame:
    """The question as one row, in the columns of the items table where they apply, with both prompts and the model.

    Columns: item_id, prompt, subject, subject_start (characters), answer, foil, corrupted, corrupted_subject,
    corrupted_subject_start, answer_tokens, subject_tokens, model, clean_logit_difference, corrupted_logit_difference.
    """
    question, ends = finding.question, finding.runs.set_index("run")["logit_difference"]
    spans = subject_spans(tokenizer, question.clean, question.corrupted)
    (start, stop), (other_start, other_stop) = spans
    row = {
        "item_id": finding.item_id,
        "prompt": question.clean,
        "subject": question.clean[start:stop],
        "subject_start": start,
        "answer": question.answer.strip(),
        "foil": question.foil.strip(),
        "corrupted": question.corrupted,
        "corrupted_subject": question.corrupted[other_start:other_stop],
        "corrupted_subject_start": other_start,
        "answer_tokens": len(finding.pair.answer),
        "subject_tokens": int(finding.tokens["role"].str.startswith("subject").sum()),
        "model": finding.model_name,
        "clean_logit_difference": ends["clean"],
        "corrupted_logit_difference": ends["corrupted"],
    }
    return pd.DataFrame([row])


def save_item(item: pd.DataFrame, paths: Paths) -> Path:
    """Add an item to those saved before, in the place of its earlier form if it has one; returns the table's path."""
    table = paths.data / "items.parquet"
    with locked_file(paths.data / ".lock", patience=5.0):
        if table.is_file():
            saved = read_table(table)
            item = pd.concat([saved[~saved["item_id"].isin(item["item_id"])], item], ignore_index=True)
        write_table(table, item)
    return table


def save_heatmap(finding: Finding, paths: Paths) -> Path:
    """Save a finding's heatmap as every figure is saved, and return its png's path."""
    from helpers.figures import save_figure

    question, ends = finding.question, finding.runs.set_index("run")["logit_difference"]
    name = f"{finding.item_id}_{question.component}_{question.direction}_{question.metric}"
    folders = base_folder(settings_of(finding.model_name, paths), paths)
    save_figure(
        name,
        finding.effects,
        **finding.drawing,
        caption=f"“{question.clean}” → “{question.answer}” against “{question.corrupted}” → “{question.foil}”, "
        f"{finding.model_name}: {question.component}, {question.direction}. Logit difference {ends['clean']:.2f} in "
        f"the clean run, {ends['corrupted']:.2f} in the corrupted one. One pair.",
        paths=paths,
        plumbing=finding.plumbing,
        seed=0,
        inputs=[folder for folder in folders if folder.is_relative_to(paths.root)],
    )
    return paths.figures / f"{name}.png"


def _sweep(model, pair: PromptPair, question: Question, advance: Callable[[float], None]) -> pd.DataFrame:
    """The sweep at once, or in STEPS groups of layers where the model is large."""
    layers = range(layer_count(model))
    size = -(-len(layers) // STEPS) if model.num_parameters() >= LARGER else len(layers)
    parts = []
    for start in range(0, len(layers), size):
        part = sweep(
            model,
            [pair],
            components=[question.component],
            layers=layers[start : start + size],
            positions="all" if question.component == "head_out" else "each",
            direction=question.direction,
            metrics=[question.metric],
        )
        parts.append(part)
        advance(0.1 + 0.9 * min(1.0, (start + size) / len(layers)))
    return pd.concat(parts, ignore_index=True)


def _label(token) -> str:
    """A position's name; its number keeps a token that stands twice apart."""
    names = [visible(text.strip() or text) for text in (token.clean, token.corrupted)]
    if not token.same and names[0] == names[1]:
        names = [visible(text) for text in (token.clean, token.corrupted)]
    return f"{token.position} {names[0] if token.same else ' → '.join(names)}"


@contextmanager
def _few_threads(model) -> Iterator[None]:
    """One thread for a small model: it gains nothing from a second, and threads that wait for one another cost more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if model.num_parameters() < LARGER else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
