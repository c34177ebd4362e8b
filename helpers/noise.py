"""Gaussian noising (GN): the corrupted run is the clean prompt with noise added to some of its token embeddings.

Meng et al. (arXiv 2202.05262) noise the subject with three times the standard deviation of the embeddings; Zhang &
Nanda (arXiv 2309.16042, section 3) find that this takes a model off its distribution, and prefer symmetric token
replacement. A draw is part of the result: repeat a sweep with several seeds and treat the draw as a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helpers.draws import draw_rank
from helpers.pairs import SUBJECT, PromptPair


@dataclass(frozen=True)
class GaussianNoise:
    """Noise of one standard deviation on the embeddings of every token with one of `roles`, drawn by `seed`.

    The draw depends on the seed and the pair's name only, never on its place in a batch.
    """

    standard_deviation: float
    seed: int
    roles: tuple[str, ...] = SUBJECT

    def draw(self, chunk: Sequence[PromptPair], *, width: int) -> Tensor:
        """The noise of pairs of one length, `(pairs, positions, width)`."""
        return torch.stack([self._of(pair, width) for pair in chunk])

    def first_position(self, pair: PromptPair) -> int:
        """The first noised token; the number of positions when there is none."""
        return next((i for i, role in enumerate(pair.roles) if role in self.roles), pair.positions)

    def _of(self, pair: PromptPair, width: int) -> Tensor:
        rank = bytes.fromhex(draw_rank(self.seed, pair.pair_id))
        generator = torch.Generator().manual_seed(int.from_bytes(rank[:8], "big", signed=True))
        noise = self.standard_deviation * torch.randn(pair.positions, width, generator=generator)
        return noise * torch.tensor([[role in self.roles] for role in pair.roles])


def embedding_deviation(model: nn.Module) -> float:
    """The standard deviation of all entries of the token embeddings: ν of Meng et al. is three times this."""
    return float(model.get_input_embeddings().weight.detach().float().std())
