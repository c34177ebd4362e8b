"""The map of the modules in helpers/README.md: every module stands in it once."""

import re
from pathlib import Path

HELPERS = Path(__file__).resolve().parent.parent / "helpers"


def test_every_module_stands_in_the_map_once():
    named = re.findall(r"`(\w+)`", (HELPERS / "README.md").read_text())
    modules = sorted(path.stem for path in HELPERS.glob("*.py") if path.stem != "__init__")
    assert sorted(named) == modules
