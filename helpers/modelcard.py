"""The model card of a fine-tuned model: its settings, its data by digest, and the machine and code that made it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from helpers.artifacts import fingerprint, sha256_tree
from helpers.config import ROOT, Configuration


@dataclass(frozen=True)
class Provenance:
    """What a run was made from: a digest per input, the git revision of the code, and the machine in words."""

    data: dict[str, str]
    revision: str
    hardware: str


def provenance(inputs: Sequence[Path], *, root: Path = ROOT) -> Provenance:
    """Look up what a run is about to be made from; a folder's digest is that of all its files."""
    data = {
        str(path.relative_to(root) if path.is_relative_to(root) else path): fingerprint(
            sha256_tree([path], path.parent)
        )
        for path in inputs
    }
    return Provenance(data, git_revision(root), hardware())


def git_revision(root: Path) -> str:
    """The commit of the code, "+" when files differ from it, or "unknown" outside a repository."""
    try:
        ask = ["git", "-C", str(root)]
        commit = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*ask, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}{'+' if changed.stdout else ''}"


def hardware() -> str:
    """The accelerators, or else the processor and how many threads train on it."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def model_card(
    configuration: Configuration,
    *,
    seed: int,
    base: str,
    precision: str,
    processes: int,
    history: pd.DataFrame,
    provenance: Provenance,
    minutes: float,
) -> str:
    """The card as Markdown."""
    best, several = history[history["best"]].iloc[0], "process" if processes == 1 else "processes"
    settings = "\n".join(f"- {name}: {value}" for name, value in asdict(configuration).items() if name != "seeds")
    data = "\n".join(f"- {name}: sha256 {digest}" for name, digest in provenance.data.items())
    return (
        f"# A fine-tuned GPT-2\n\nFine-tuned from {base}. Seed {seed}, best epoch {best['epoch']:.4g} of "
        f"{len(history)}, validation loss "
        f"{best['validation_loss']:.3f} nats per scored token, in {precision}; {minutes:.1f} minutes in "
        f"{processes} {several} on {provenance.hardware}, at revision {provenance.revision}.\n\n{settings}\n\n"
        f"Trained from\n\n{data}\n"
    )
