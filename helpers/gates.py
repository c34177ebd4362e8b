"""Gates: GPT-2 models wired by hand, of which two heads matter, so that the right answer of every patch is known.

A prompt is four tokens, `filler a filler b`: feature a is on (1) or off (0) at the second, feature b at the last one.
Clean prompts have both on, corrupted ones both off. Head A says at the last token what a is, head B what it knows of b,
and the answer's logit difference is LD = c (2 g − 1), where c is the gate's confidence, and its value g is 1 in the
clean run and 0 in the corrupted one:

    AND        g = relu(A + B − 1)                   both are needed
    OR         g = relu(A + B) − relu(A + B − 1)     one is enough
    BACKUP     g = A + 0.7 B, B = relu(b − A)        B speaks only where A is lost, and makes up for 0.7 of it
    NEGATIVE   g = 2 A − B                           B works against the answer

The answer has the logit LD / 2, the foil −LD / 2 and each other token 0, so that every metric is known too. As real
heads write something in every prompt, a head writes 1 + what it says, and a bias after it takes the 1 off. So does an
idle head, which never says anything: it is added to g, and whoever finds it is wrong. A patch makes a head say 1 or 0
by the other run; −1, which is further from on than off is, by zero ablation; and by mean and resample ablation what
the references say (both on, a alone, b alone, none): 1/2 in the mean, and each of them once. B of BACKUP is silent (0)
in both runs and says 1 where b is alone: 1/4 in the mean.

This is the table of Heimersheim & Nanda (arXiv 2404.15255), with numbers: shares of the logit difference, (LD_patched −
LD_corrupted) or (LD_clean − LD_patched) over (LD_clean − LD_corrupted), of A, of B, and of both together. All ways but
denoising start from the clean run. The idle head has 1 in zero ablation and 0 in all other ways.

                 AND              OR               BACKUP                NEGATIVE
    denoising    0    0    1      1    1    1      1     0      1        2   −1     1
    noising      1    1    1      0    0    1      0.3   0      1        2   −1     1
    zero         1    1    1      1    1    1      0.6   0.7    2.7      4   −2     2
    mean         1/2  1/2  1      0    0    0      0.15  −0.175 0.325    1   −1/2   1/2
    resample     1/2  1/2  3/4    0    0    1/4    0.15  −0.175 0.325    1   −1/2   1/2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from helpers.pairs import PromptPair
from helpers.plans import PatchingError, Site

GATES = ("AND", "OR", "BACKUP", "NEGATIVE")
WAYS = ("denoising", "noising", "zero", "mean", "resample")
BOTH = "A + B"
SITES = ("A", "B", BOTH, "idle")
STANDS_IN = 0.7  # of what is lost: Heimersheim & Nanda, section 3.2, of the Hydra effect
AT_REST = 1.0  # what a head writes that has nothing to say
CONFIDENCE = 4.0  # logits: the answer then has a probability of about 0.4 in the clean run, and below 0.01 in the other

ANSWER, FOIL, *FILLERS = range(8)
A_TOKENS, B_TOKENS = (8, 9), (10, 11)  # off, on
VOCABULARY, LENGTH, WIDTH, HEADS = 12, 4, 8, 4
# Directions of the residual stream: the features as tokens bring them, what the heads say, where the answer is read.
FEATURE_A, FEATURE_B, IS_LAST, SAID_A, SAID_B, OUTPUT = range(6)
STATES = tuple(product((0, 1), repeat=2))


@dataclass(frozen=True, eq=False)
class Gate:
    """A model wired as one of GATES, the pairs that it answers, its heads by name, and reference prompts.

    The references, as token ids, show every combination of the two features once, with fillers of their own.
    """

    name: str
    confidence: float
    model: GPT2LMHeadModel
    pairs: tuple[PromptPair, ...]
    heads: Mapping[str, Site]
    references: tuple[tuple[int, ...], ...]

    @property
    def sets(self) -> dict[str, list[Site]]:
        """The sets of heads that are patched, by SITES."""
        alone = {name: [site] for name, site in self.heads.items()}
        return alone | {BOTH: [self.heads["A"], self.heads["B"]]}


def make_gate(name: str, *, confidence: float = CONFIDENCE) -> Gate:
    """Wire one of GATES; raises PatchingError for another name, or a confidence that is not above 0."""
    if name not in GATES or not confidence > 0:
        raise PatchingError(
            f"A gate is one of {', '.join(GATES)} with a confidence above 0, not {name!r} with {confidence}."
        )
    model = _empty_model(layers=2 if name == "BACKUP" else 1)
    with torch.no_grad():
        _wire(model, name, confidence)
    roles = ("prefix", "subject_last", "relation", "last")
    pairs = tuple(
        PromptPair(f"{name}-{i}", _prompt(1, 1, fillers), _prompt(0, 0, fillers), (ANSWER,), (FOIL,), roles)
        for i, fillers in enumerate(zip(FILLERS[:3], FILLERS[1:4], strict=True))
    )
    second = (1, 0) if name == "BACKUP" else (0, 1)
    places = {"A": (0, 0), "B": second, "idle": (0, 2)}
    heads = {said: Site("head_out", layer, "all", head) for said, (layer, head) in places.items()}
    return Gate(name, confidence, model, pairs, heads, tuple(_prompt(a, b, FILLERS[4:]) for a, b in STATES))


def exact_values(name: str, way: str) -> dict[str, tuple[float, ...]]:
    """What is read out as a gate's value after a patch, by SITES, for every draw: on paper, without the model."""
    base = 0 if way == "denoising" else 1
    values: dict[str, list[float]] = {sites: [] for sites in SITES}
    for a, b, idle in _written(name, way):
        values["A"].append(_value(name, a, _said_by_b(name, a, base)))
        values["B"].append(_value(name, base, b))
        values[BOTH].append(_value(name, a, b))
        values["idle"].append(base + idle)
    return {sites: tuple(drawn) for sites, drawn in values.items()}


def _empty_model(*, layers: int) -> GPT2LMHeadModel:
    """A GPT-2 without normalisation, all of whose weights are 0: every head attends to all visible tokens alike."""
    shape = {"n_layer": layers, "n_embd": WIDTH, "n_head": HEADS, "n_positions": LENGTH, "n_inner": 2}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
    with torch.random.fork_rng(devices=[]):  # its first weights are random, and the caller's draws are the caller's
        model = GPT2LMHeadModel(GPT2Config(**shape, **tokens, activation_function="relu")).eval()
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
    model.transformer.ln_f = nn.Identity()
    for parameter in model.requires_grad_(False).parameters():
        parameter.zero_()
    return model


def _wire(model: GPT2LMHeadModel, name: str, confidence: float) -> None:
    tokens, scale = model.transformer.wte.weight, 2 * confidence
    tokens[A_TOKENS[1], FEATURE_A] = tokens[B_TOKENS[1], FEATURE_B] = 1
    tokens[B_TOKENS, IS_LAST] = 1
    model.transformer.wpe.weight[:, OUTPUT] = -confidence
    model.lm_head.weight[ANSWER, OUTPUT], model.lm_head.weight[FOIL, OUTPUT] = 0.5, -0.5
    block, last = model.transformer.h[0], model.transformer.h[-1]
    _head(block, 2, reads=None, writes={OUTPUT: scale})
    if name in ("AND", "OR"):
        _head(block, 0, reads=FEATURE_A, writes={SAID_A: 1})
        _head(block, 1, reads=FEATURE_B, writes={SAID_B: 1})
        _neuron(block, 0, reads={SAID_A: 1, SAID_B: 1}, bias=-1, writes={OUTPUT: scale if name == "AND" else -scale})
    if name == "OR":
        _neuron(block, 1, reads={SAID_A: 1, SAID_B: 1}, bias=0, writes={OUTPUT: scale})
    if name == "NEGATIVE":
        _head(block, 0, reads=FEATURE_A, writes={OUTPUT: 2 * scale})
        _head(block, 1, reads=FEATURE_B, writes={OUTPUT: -scale})
    if name == "BACKUP":
        _head(block, 0, reads=FEATURE_A, writes={SAID_A: 1, OUTPUT: scale})
        # At the last token only, for the head above it reads all tokens.
        _neuron(block, 0, reads={FEATURE_B: 1, SAID_A: -1, IS_LAST: 2}, bias=-2, writes={SAID_B: 1})
        _head(last, 0, reads=SAID_B, writes={OUTPUT: STANDS_IN * scale})


def _head(block: nn.Module, head: int, *, reads: int | None, writes: Mapping[int, float]) -> None:
    """Let a head write the sum of one direction over the tokens; what it writes at rest is taken off after it."""
    own = head * WIDTH // HEADS
    value = 2 * WIDTH + own
    if reads is not None:
        block.attn.c_attn.weight[reads, value] = LENGTH
    block.attn.c_attn.bias[value] = AT_REST
    for direction, weight in writes.items():
        block.attn.c_proj.weight[own, direction] = weight
        block.attn.c_proj.bias[direction] -= weight * AT_REST


def _neuron(
    block: nn.Module, neuron: int, *, reads: Mapping[int, float], bias: float, writes: Mapping[int, float]
) -> None:
    for direction, weight in reads.items():
        block.mlp.c_fc.weight[direction, neuron] = weight
    block.mlp.c_fc.bias[neuron] = bias
    for direction, weight in writes.items():
        block.mlp.c_proj.weight[neuron, direction] = weight


def _prompt(a: int, b: int, fillers: Sequence[int]) -> tuple[int, ...]:
    return fillers[0], A_TOKENS[a], fillers[1], B_TOKENS[b]


def _relu(x: float) -> float:
    return max(x, 0.0)


def _value(name: str, a: float, b: float) -> float:
    """The gate's value g where the heads say a and b."""
    if name == "AND":
        return _relu(a + b - 1)
    if name == "OR":
        return _relu(a + b) - _relu(a + b - 1)
    return a + STANDS_IN * b if name == "BACKUP" else 2 * a - b


def _said_by_b(name: str, a: float, b: float) -> float:
    """What head B says where head A says a, and the feature is b."""
    return _relu(b - a) if name == "BACKUP" else b


def _written(name: str, way: str) -> list[tuple[float, float, float]]:
    """What a way makes A, B and the idle head say, for every draw."""
    said = [(a, _said_by_b(name, a, b), 0) for a, b in STATES]
    return {
        "denoising": [(1, _said_by_b(name, 1, 1), 0)],
        "noising": [(0, _said_by_b(name, 0, 0), 0)],
        "zero": [(-AT_REST, -AT_REST, -AT_REST)],
        "mean": [tuple(sum(of_head) / len(said) for of_head in zip(*said, strict=True))],
        "resample": said,
    }[way]
