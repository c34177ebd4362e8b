"""Cases: the models and prompts of the benchmarks, equal in every environment because a seed decides them.

Nothing but torch and transformers is imported, for both of the benchmark's environments read this module. Effects are
the logit difference answer − foil at the last position of the corrupted run, after a clean activation was written
(denoising):

    blocks    resid_pre, attn_out, mlp_out of every layer at every position  (3, layers, positions, pairs)
    heads     head_out of every head, at all positions at once               (layers, heads, pairs)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = "data/embedded/models/base"
SEED = 0


@dataclass(frozen=True)
class Network:
    """A GPT-2 with random weights, GPT-2 small unless said otherwise; or a saved one, when `folder` names it."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    folder: str | None = None

    def load(self, device: str) -> PreTrainedModel:
        """The model in float32 and evaluation mode; no parameter asks for a gradient."""
        if self.folder:
            model = AutoModelForCausalLM.from_pretrained(ROOT / self.folder, dtype=torch.float32, local_files_only=True)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED)
                model = GPT2LMHeadModel(
                    GPT2Config(
                        n_layer=self.layers,
                        n_embd=self.width,
                        n_head=self.heads,
                        vocab_size=self.vocabulary,
                        bos_token_id=0,
                        eos_token_id=0,
                    )
                )
        return model.eval().requires_grad_(False).to(device)


@dataclass(frozen=True)
class Prompts:
    """Token ids: `clean` and `corrupted` `(pairs, positions)`, `answers` `(pairs, 2)`: each pair's answer and foil."""

    clean: Tensor
    corrupted: Tensor
    answers: Tensor

    def logit_difference(self, logits: Tensor) -> Tensor:
        """Answer minus foil at the last position, `(pairs,)`, of logits `(pairs, positions, vocabulary)`."""
        answer, foil = logits[:, -1].gather(1, self.answers).unbind(1)
        return answer - foil


@dataclass(frozen=True)
class Case:
    """One sweep: `sites` names the function that every implementation has for it.

    Both prompts of a pair are random tokens. They differ at every position, or, with `replaced`, at that one alone, as
    where one name stands for another.
    """

    name: str
    network: Network
    sites: str = "blocks"
    pairs: int = 8
    positions: int = 16
    replaced: int | None = None

    def prompts(self, device: str) -> Prompts:
        """The case's prompts, drawn from its network's vocabulary."""
        generator = torch.Generator().manual_seed(SEED)
        size = self.pairs, self.positions
        vocabulary = self.network.vocabulary

        def another(tokens: Tensor) -> Tensor:
            return (tokens + torch.randint(1, vocabulary, tokens.shape, generator=generator)) % vocabulary

        clean = torch.randint(vocabulary, size, generator=generator)
        corrupted = another(clean)
        if self.replaced is not None:
            corrupted = torch.where(torch.arange(self.positions) == self.replaced, corrupted, clean)
        answer = torch.randint(vocabulary, (self.pairs, 1), generator=generator)
        answers = torch.cat([answer, another(answer)], dim=1)
        return Prompts(clean.to(device), corrupted.to(device), answers.to(device))

    def as_json(self) -> dict:
        """The case as plain data, for another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict) -> Case:
        """The case that `as_json` wrote down."""
        return cls(**{**tree, "network": Network(**tree["network"])})


SMALL = Network()
MINI = Network(layers=6, width=128, heads=4, vocabulary=3300, folder=EMBEDDED)

SMALL_BLOCKS = Case("gpt2-small blocks", SMALL)
SMALL_HEADS = Case("gpt2-small heads", SMALL, sites="heads")
SMALL_ALL_METRICS = Case("gpt2-small blocks, all metrics", SMALL, sites="blocks_all_metrics")
SMALL_SHARED = Case("gpt2-small blocks, shared prefix", SMALL, replaced=10)
MINI_BLOCKS = Case("mini blocks", MINI)
MINI_HEADS = Case("mini heads", MINI, sites="heads")
WARM_UP = Network(layers=2, width=32, heads=2, vocabulary=50)
