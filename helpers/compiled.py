"""Compiled recall: a GPT-2 with weights set by hand, so that where facts are, and what patching finds, is known.

A prompt is four tokens, `filler subject relation query`, and the answer follows at the last one. Two blocks act:

    MLP of block `lookup`     a key-value memory. One hidden unit per fact fires at the fact's subject, and writes the
                              fact's attribute there. These weights *are* the facts: the base model has none of them
                              in the output projection, and is the same to the bit elsewhere.
    attention of `move`       at the last token, its first head attends to the subject and copies the attribute.

The unembedding reads the copy: the right answer has the logit c, every other token 0, and LD is c in the clean run and
−c in the corrupted one, whose subject is the next fact's. All else is 0.

Normalisation is made to do nothing. Every vector is written as (v, −v), whose mean is 0 whatever is patched; the
epsilon of LayerNorm is 2^40 and its gain 2^20, so that the variance is lost in rounding, and the output is the input.

What a method has to answer follows by algebra. A site is *on the path* where all that the answer depends on passes it:

    mlp_out of lookup     at the subject       (and at all positions)
    attn_out of move      at the last token    (and at all positions)
    resid_pre of l        at the subject for l ≤ move, at the last token for l > move, at all positions always

An exact effect is 0 off the path. On it a patch between prompts moves LD from c to −c, the whole way; zeros and the
mean over all F facts leave every answer alike, LD = 0, half the way; another fact's run goes half the way, and the
whole way when it is the foil's, which one of the F − 1 is: F / 2(F − 1) in expectation. Between base and taught model
a site matters only once the facts are looked up, so not the streams up to block `lookup`. Direct logit attribution
sees what is added at the last token, and so attention alone: how the answer gets there, and not where it is stored.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from helpers.methods import Models, Place
from helpers.pairs import PromptPair
from helpers.plans import PatchingError

ROLES = ("prefix", "subject_last", "relation", "last")
COMPONENTS = ("resid_pre", "attn_out", "mlp_out", "resid_post")
BETWEEN = ("taught into base", "base into taught")
WAYS = ("denoising", "noising", "zero", "mean", "resample", *BETWEEN, "direct")
HEADS = 2
FILLER, RELATION, QUERY = range(3)
FIRST_SUBJECT = 3
CONFIDENCE = 12.0  # logits: the answer then has a probability above 0.999
SHARPNESS = 64.0  # of the softmax: what is not the subject gets e^−64 of the weight, which is lost in rounding
CERTAINTY = 16.0  # input of a unit at its own subject, and minus that elsewhere, where GELU is the identity and 0
EPSILON, GAIN = 2.0**40, 2.0**20


@dataclass(frozen=True, eq=False)
class Compiled:
    """Taught and base model, one pair per fact, and the blocks that look up and move; `pairs` are in order of facts.

    `references` are all clean prompts, which mean and resample ablation take.
    """

    models: Models
    pairs: tuple[PromptPair, ...]
    lookup: int
    move: int
    confidence: float

    @property
    def truth(self) -> Place:
        """Where the facts are stored."""
        return Place("mlp_out", self.lookup)

    @property
    def mediators(self) -> tuple[Place, ...]:
        """The places that the answer flows through: where it is stored, and what moves it."""
        return self.truth, Place("attn_out", self.move)

    @property
    def references(self) -> tuple[tuple[int, ...], ...]:
        """Every fact's prompt once."""
        return tuple(pair.clean for pair in self.pairs)


def compiled_recall(*, layers: int, lookup: int, move: int, facts: int, confidence: float = CONFIDENCE) -> Compiled:
    """Wire a model of `layers` blocks that recalls `facts` facts, and its base, which recalls none.

    The tokens are filler, relation, query, then one subject per fact, then one answer per fact. Raises PatchingError
    unless 0 ≤ lookup < move < layers (attention reads what earlier blocks wrote), facts ≥ 3 and confidence > 0.
    """
    if not 0 <= lookup < move < layers or facts < 3 or not confidence > 0:
        raise PatchingError(
            f"A compiled model looks up before it moves: 0 ≤ lookup < move < layers, with 3 facts or more and a "
            f"confidence above 0, not lookup {lookup}, move {move}, layers {layers}, facts {facts}, {confidence}."
        )
    base = _empty_model(layers=layers, facts=facts)
    with torch.no_grad():
        _wire_all_but_facts(base, lookup=lookup, move=move, facts=facts, confidence=confidence)
        taught = copy.deepcopy(base)
        _write_facts(taught.transformer.h[lookup], facts)
    prompts = [(FILLER, FIRST_SUBJECT + fact, RELATION, QUERY) for fact in range(facts)]
    answers = [(FIRST_SUBJECT + facts + fact,) for fact in range(facts)]
    pairs = tuple(
        PromptPair(f"fact-{i}", prompts[i], prompts[j], answers[i], answers[j], ROLES, f"fact-{j}")
        for i, j in ((fact, (fact + 1) % facts) for fact in range(facts))
    )
    return Compiled(Models(taught, base), pairs, lookup, move, confidence)


def known_answers(*, layers: int, lookup: int, move: int, facts: int) -> pd.DataFrame:
    """What exact methods find in a compiled model, on paper: one line per way, component, layer and role or "all".

    Columns: way (of WAYS), component, layer, role, value. A value is a share of LD_clean − LD_corrupted, restored in
    denoising and destroyed in noising and the ablations (zero, mean, resample), which start from the clean run; of
    LD_taught − LD_base between models, on the clean prompt; of LD_clean in direct attribution, which has no streams.
    resample is the expectation over all other facts.
    """
    amounts = dict.fromkeys(WAYS, 1.0) | {"zero": 0.5, "mean": 0.5, "resample": facts / (2 * (facts - 1))}
    rows = []
    for way in WAYS:
        for component in COMPONENTS if way != "direct" else ("attn_out", "mlp_out"):
            for layer in range(layers):
                for role in ("all", *ROLES):
                    on_path = _on_path(component, layer, role, lookup=lookup, move=move)
                    if way in BETWEEN and component.startswith("resid"):
                        on_path &= layer + (component == "resid_post") > lookup  # before, the models are one
                    if way == "direct":
                        on_path &= component == "attn_out"
                    rows.append((way, component, layer, role, amounts[way] * on_path))
    return pd.DataFrame(rows, columns=["way", "component", "layer", "role", "value"])


def _on_path(component: str, layer: int, role: str, *, lookup: int, move: int) -> bool:
    if component == "mlp_out":
        return layer == lookup and role in ("subject_last", "all")
    if component == "attn_out":
        return layer == move and role in ("last", "all")
    enters = layer + (component == "resid_post")
    return role == "all" or role == ("subject_last" if enters <= move else "last")


@dataclass(frozen=True)
class _Directions:
    """Indices of the directions of the stream's first half; its second half holds the same with the sign turned."""

    facts: int

    @property
    def is_subject(self) -> int:
        return 0

    def subject(self, fact: int) -> int:
        return 1 + fact

    def attribute(self, fact: int) -> int:
        return 1 + self.facts + fact

    def answer(self, fact: int) -> int:
        return 1 + 2 * self.facts + fact

    @property
    def half(self) -> int:
        return 1 + 3 * self.facts


def _empty_model(*, layers: int, facts: int) -> GPT2LMHeadModel:
    """A GPT-2 whose weights are 0 and whose normalisation does nothing to a vector with the mean 0."""
    config = GPT2Config(
        vocab_size=FIRST_SUBJECT + 2 * facts,
        n_layer=layers,
        n_embd=2 * _Directions(facts).half,
        n_head=HEADS,
        n_positions=len(ROLES) + 4,
        n_inner=facts,
        layer_norm_epsilon=EPSILON,
        tie_word_embeddings=False,
        bos_token_id=FILLER,
        eos_token_id=FILLER,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng(devices=[]):  # its first weights are random, and the caller's draws are the caller's
        model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(GAIN)
    return model


def _wire_all_but_facts(model: GPT2LMHeadModel, *, lookup: int, move: int, facts: int, confidence: float) -> None:
    at = _Directions(facts)
    embeddings = model.transformer.wte.weight
    memory, attention = model.transformer.h[lookup].mlp, model.transformer.h[move].attn
    head_width = at.half  # there are two heads, and the first takes the whole first half
    query, key, value = 0, HEADS * head_width, 2 * HEADS * head_width
    attention.c_attn.bias[query] = SHARPNESS * head_width**0.5
    attention.c_attn.weight[at.is_subject, key] = 1
    memory.c_fc.bias[:] = -CERTAINTY
    for fact in range(facts):
        subject = FIRST_SUBJECT + fact
        _both_halves(embeddings[subject], at.subject(fact), 1.0)
        _both_halves(embeddings[subject], at.is_subject, 1.0)
        memory.c_fc.weight[at.subject(fact), fact] = 2 * CERTAINTY
        attention.c_attn.weight[at.attribute(fact), value + fact] = 1
        _both_halves(attention.c_proj.weight[fact], at.answer(fact), 1.0)
        model.lm_head.weight[FIRST_SUBJECT + facts + fact, at.answer(fact)] = confidence


def _write_facts(block: nn.Module, facts: int) -> None:
    for fact in range(facts):
        _both_halves(block.mlp.c_proj.weight[fact], _Directions(facts).attribute(fact), 1 / CERTAINTY)


def _both_halves(vector: torch.Tensor, direction: int, size: float) -> None:
    vector[direction] = size
    vector[direction + len(vector) // 2] = -size
