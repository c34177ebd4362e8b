"""A toy bundle in a temporary folder: three small notebooks on the real machinery, run in seconds."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from helpers.config import Paths, Profile, load_profile
from helpers.stages import Stage

ROOT = Path(__file__).resolve().parent.parent
STAGES = (
    Stage("01_draw", sections=("corpus",), outputs=("draw",), embedded=("facts.csv",), budget_minutes=1.0),
    Stage("02_round", sections=("items",), inputs=("01_draw",), outputs=("round",), embedded=(), budget_minutes=1.0),
    Stage("03_show", sections=("model",), inputs=("02_round",), outputs=("show",), embedded=(), budget_minutes=1.0),
)
HEADER = (
    "# ---\n# jupyter:\n#   kernelspec:\n#     display_name: Python 3\n#     language: python\n"
    "#     name: python3\n# ---\n\n"
)
PARAMETERS = '# %% tags=["parameters"]\nprofile_name = "toy"\noverrides = ""\n\n'
START = (
    "# %%\nfrom helpers.artifacts import read_json, write_json\nfrom helpers.config import Paths, load_profile\n"
    "profile = load_profile(profile_name, overrides)\npaths = Paths(profile.name)\n\n"
)
BODIES = {
    # The draw is 10.1 or so; its rounding is 10 for every seed from 0 to 3: an early cut-off.
    "01_draw": (
        "# %%\nfrom helpers.arithmetic import tenth\nfrom helpers.progress import step\n"
        'step("drawing")\nvalue = 10 + tenth(profile.corpus.seed)\n'
        'write_json(paths.data / "draw" / "value.json", value)\nvalue\n'
    ),
    "02_round": (
        '# %%\nwrite_json(paths.data / "round" / "value.json", round(read_json(paths.data / "draw" / "value.json")))\n'
    ),
    "03_show": (
        '# %%\nimport sys\nvalue = read_json(paths.data / "round" / "value.json")\n'
        'print("shown in", paths.root)\nprint("a warning", file=sys.stderr)\n'
        'write_json(paths.figures / "03_value.json", {"caption": f"The value is {value}."})\n'
        'write_json(paths.data / "findings" / "03_show.json", [{"title": "Value", "text": f"It is {value}."}])\n'
    ),
}


@dataclass(frozen=True)
class Toy:
    """The toy bundle's folder."""

    root: Path

    def profile(self, overrides: str = "") -> Profile:
        return load_profile("toy", overrides, folder=self.root / "profiles")

    @property
    def paths(self) -> Paths:
        return Paths("toy", self.root)

    def notebook(self, name: str) -> Path:
        return self.root / "notebooks" / f"{name}.py"

    def add_cell(self, name: str, code: str) -> None:
        """Append one code cell to a notebook."""
        with self.notebook(name).open("a") as file:
            file.write(f"\n# %%\n{code}\n")


def make_toy(root: Path) -> Toy:
    """Write the toy bundle into `root`: real configuration, artifacts and progress, toy notebooks and arithmetic."""
    for folder in ("notebooks", "helpers", "profiles", "data/embedded"):
        (root / folder).mkdir(parents=True)
    for name in ("__init__", "config", "artifacts", "progress"):
        shutil.copy(ROOT / "helpers" / f"{name}.py", root / "helpers")
    shutil.copy(ROOT / "profiles" / "mini.yaml", root / "profiles" / "toy.yaml")
    shutil.copy(ROOT / "requirements.lock", root)
    (root / "helpers" / "arithmetic.py").write_text("def tenth(number):\n    return number / 10\n")
    (root / "helpers" / "unused.py").write_text("UNUSED = 1\n")
    (root / "data" / "embedded" / "facts.csv").write_text("id\n1\n")
    for name, body in BODIES.items():
        (root / "notebooks" / f"{name}.py").write_text(
            f"{HEADER}# %% [markdown]\n# # {name}\n\n{PARAMETERS}{START}{body}"
        )
    return Toy(root)
