"""Environments: the project's own, and one for the peer that cannot share it.

TransformerLens pins what the project does not, so it lives in an environment of its own under build/, made when it is
missing from `requirements-transformerlens.txt`. It has the same releases of torch and transformers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from helpers.config import ROOT
from helpers.environment import SetupError, is_complete, make

REQUIREMENTS = Path(__file__).with_name("requirements-transformerlens.txt")
FOLDER = ROOT / "build" / "environments" / "transformerlens"


def interpreters(transformerlens: Path | None = None) -> dict[str, Path]:
    """The interpreter of each environment by name; `transformerlens` is one that exists already.

    Raises SetupError when the environment cannot be made.
    """
    return {"project": Path(sys.executable), "transformerlens": transformerlens or _transformerlens()}


def _transformerlens() -> Path:
    if not is_complete(FOLDER, REQUIREMENTS):
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        try:
            make(FOLDER, REQUIREMENTS)
        except SetupError as error:
            raise SetupError(
                f"{error} This was the environment of TransformerLens, {FOLDER.relative_to(ROOT)}: run the benchmark "
                "again, or name an interpreter that has it with --transformerlens."
            ) from error
    return FOLDER / "bin" / "python"
