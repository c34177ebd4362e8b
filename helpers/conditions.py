"""Conditions: the runs that a corruption is judged by, side by side: clean, STR, and Gaussian noise draw by draw.

STR is the run of the corrupted prompt. GN is the run of the *clean* prompt with noise on some of its embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from helpers.noise import GaussianNoise
from helpers.pairs import PromptPair
from helpers.runs import Run, prompt_tokens, record
from helpers.tracing import Traced


@dataclass(frozen=True)
class Condition:
    """One kind of run: its `corruption` is "clean", "STR" or "GN", and only the last has noise."""

    corruption: str
    noise: GaussianNoise | None = None

    @property
    def draw(self) -> int:
        """The seed of the noise; 0 where nothing is drawn."""
        return self.noise.seed if self.noise else 0

    def record(self, traced: Traced, chunk: Sequence[PromptPair], sites: Iterable[tuple[str, int]] = ()) -> Run:
        """Run pairs of one length, and keep the `sites`."""
        tokens = prompt_tokens(chunk, "corrupted" if self.corruption == "STR" else "clean", traced.device)
        if self.noise is None:
            return record(traced, tokens, sites)
        noise = self.noise.draw(chunk, width=traced.model.config.hidden_size)
        return record(traced, tokens, sites, noise=noise.to(traced.device, traced.model.dtype))


CLEAN, STR = Condition("clean"), Condition("STR")


def corrupted_conditions(noises: Sequence[GaussianNoise]) -> tuple[Condition, ...]:
    """STR, and GN once for every draw."""
    return STR, *(Condition("GN", noise) for noise in noises)
