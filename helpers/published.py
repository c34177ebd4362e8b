"""The study's patching protocol, to the letter: the answer stands inside the prompt, and one module at a time is
replayed at all positions from one run into the other.

The metric is the study's too: the mean logit of the tokens of one phrase minus that of another, read after the final
full stop. The published script visits `nn.Linear` modules only, and in GPT-2 that is the unembedding alone; every
`Conv1D` (a transposed linear layer, which GPT-2 uses everywhere else) is visited here as well, under its real name,
and so are the sites through which everything must pass. Those recover exactly 1 in any network, and say so.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from nnsight import NNsight
from torch import nn
from transformers.pytorch_utils import Conv1D

DIRECTIONS = ("denoising", "noising")


@dataclass(frozen=True)
class PublishedItem:
    """One question with its clean and corrupted answer, and the two phrases whose tokens the metric averages."""

    name: str
    question: str
    clean_answer: str
    corrupted_answer: str
    clean_phrase: str
    corrupted_phrase: str
    provenance: str


PHRASES = ("interictal epileptiform discharges", "intracranial electrode diagnostics")
PUBLISHED_ITEMS = (
    PublishedItem(
        "associative",
        "What is the presence of interictal epileptiform discharges associated with?",
        "Increased seizure risk in both focal and generalized epilepsy.",
        "Cognitive dysfunction risk in both focal and generalized epilepsy.",
        *PHRASES,
        provenance="verbatim",
    ),
    PublishedItem(
        "definitional",
        "What does IEDs stand for?",
        "interictal epileptiform discharges.",
        "intracranial electrode diagnostics.",
        *PHRASES,
        provenance="reconstructed: its prompts are not available",
    ),
)


def visited_modules(model) -> dict[str, str]:
    """Name and class of every module that is patched, in the order of the forward pass.

    All `nn.Linear` and `Conv1D` modules, and the bottlenecks: token embedding, dropout after it, every block, ln_f.
    """
    bottleneck = {"transformer.wte", "transformer.drop", "transformer.ln_f"}
    bottleneck |= {f"transformer.h.{layer}" for layer in range(model.config.n_layer)}
    found = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) or name in bottleneck
    }
    names = list(found)
    # Modules are named before what they hold, and their outputs come after it.
    last = {name: max(i for i, n in enumerate(names) if f"{n}.".startswith(f"{name}.")) for name in names}
    return {name: found[name] for name in sorted(names, key=lambda name: (last[name], -len(name)))}


def by_construction(name: str, kind: str) -> bool:
    """Whether replaying this module at all positions fixes the rest of the forward pass, whatever the weights.

    The token embedding counts: with equal positions, everything the model sees of the prompt passes through it.
    """
    return kind not in {"Conv1D"}


def published_sweep(model, tokenizer, item: PublishedItem) -> pd.DataFrame:
    """Patch every visited module at all positions, clean into corrupted (denoising) and the other way (noising).

    One row per module and direction: item, site, module, by_construction, direction, clean, corrupted, patched
    (mean-logit differences), recovery = (patched − corrupted) / (clean − corrupted) for denoising and (clean −
    patched) / (clean − corrupted) for noising, note. When the two prompts differ in length only the last position of
    the unembedding can be replayed; the other rows have no number and the note "shape error".
    """
    ids = {
        "clean": tokenizer(f"{item.question} {item.clean_answer}", return_tensors="pt")["input_ids"].to(model.device),
        "corrupted": tokenizer(f"{item.question} {item.corrupted_answer}", return_tensors="pt")["input_ids"].to(
            model.device
        ),
    }
    phrases = [tokenizer(text)["input_ids"] for text in (item.clean_phrase, item.corrupted_phrase)]
    modules = visited_modules(model)
    network = NNsight(model)
    runs = {name: _record(network, tokens, modules) for name, tokens in ids.items()}
    clean, corrupted = (_phrase_difference(runs[name]["lm_head"], phrases) for name in ("clean", "corrupted"))
    fits = ids["clean"].shape == ids["corrupted"].shape
    rows = []
    for direction, base, source in (("denoising", "corrupted", "clean"), ("noising", "clean", "corrupted")):
        for name, kind in modules.items():
            row = {
                "item": item.name,
                "site": name,
                "module": kind,
                "by_construction": by_construction(name, kind),
                "direction": direction,
            }
            row |= {
                "clean": clean,
                "corrupted": corrupted,
                "patched": float("nan"),
                "recovery": float("nan"),
                "note": "",
            }
            if fits or name == "lm_head":
                patched = _phrase_difference(_replay(network, ids[base], name, runs[source][name]), phrases)
                gained = patched - corrupted if direction == "denoising" else clean - patched
                row |= {
                    "patched": patched,
                    "recovery": gained / (clean - corrupted) if clean != corrupted else float("nan"),
                }
            else:
                row["note"] = "shape error"
            rows.append(row)
    return pd.DataFrame(rows)


def _record(network: NNsight, tokens: torch.Tensor, modules: dict[str, str]) -> dict[str, torch.Tensor]:
    recorded: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        with network.trace(tokens, use_cache=False):
            for name in modules:
                recorded[name] = network.get(name).output.clone().save()
    return recorded


def _replay(network: NNsight, tokens: torch.Tensor, name: str, value: torch.Tensor) -> torch.Tensor:
    module = network.get(name)
    with torch.no_grad():
        with network.trace(tokens, use_cache=False):
            module.output = value
            logits = network.output.logits.save()
    return logits


def _phrase_difference(logits: torch.Tensor, phrases: list[list[int]]) -> float:
    """Mean logit of the first phrase's tokens minus that of the second's, at the last position of the one prompt."""
    last = logits[0, -1]
    return float(last[phrases[0]].mean() - last[phrases[1]].mean())


@dataclass(frozen=True)
class PublishedFigure:
    """A recovery the study reports, as a share, and the modules its row may mean: the text does not say which."""

    name: str
    recovery: float
    item: str
    suffixes: tuple[str, ...]

    def candidates(self, layers: int) -> list[str]:
        """Names of the modules in question, in the first and in the last of `layers` blocks."""
        if self.suffixes == ("lm_head",):
            return ["lm_head"]
        return [f"transformer.h.{layer}.{suffix}" for layer in sorted({0, layers - 1}) for suffix in self.suffixes]


PUBLISHED_FIGURES = (
    PublishedFigure("first feedforward layer", 0.56, "associative", ("mlp.c_fc",)),
    PublishedFigure("final output layer", 1.00, "definitional", ("lm_head",)),
    PublishedFigure("convolutional layer", 0.136, "associative", ("attn.c_attn", "attn.c_proj")),
)


def describe_items(tokenizer) -> pd.DataFrame:
    """The two items as a table, with the tokens of their clean and corrupted prompts."""
    rows = []
    for item in PUBLISHED_ITEMS:
        prompts = [f"{item.question} {answer}" for answer in (item.clean_answer, item.corrupted_answer)]
        lengths = " / ".join(str(len(tokenizer(prompt)["input_ids"])) for prompt in prompts)
        row = {"item": item.name, "provenance": item.provenance, "question": item.question}
        rows.append(row | {"clean": item.clean_answer, "corrupted": item.corrupted_answer, "tokens": lengths})
    return pd.DataFrame(rows)


def published_comparison(sweep: pd.DataFrame, *, layers: int) -> pd.DataFrame:
    """Every published figure beside the median recovery of each module it may mean, per group of networks."""
    rows = []
    for figure in PUBLISHED_FIGURES:
        for site in figure.candidates(layers):
            found = sweep[(sweep["site"] == site) & (sweep["item"] == figure.item)]
            ours = found.groupby(["group", "direction"])["recovery"].median()
            row = {"published row": figure.name, "published": figure.recovery, "may mean": site, "item": figure.item}
            rows.append(row | {f"{group}, {direction}": value for (group, direction), value in ours.items()})
    return pd.DataFrame(rows)
