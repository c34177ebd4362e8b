"""Kernels: a private one of this very interpreter, its environment, and the execution of one notebook in it.

Nothing is installed for the user and no setting of the user's is read: the kernel's description, IPython's folder and
matplotlib's lie in `build/`. Hash seeds and thread behaviour are fixed, and the Hugging Face hub is cut off.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from helpers.artifacts import write_bytes, write_json
from helpers.config import ROOT, Profile
from helpers.progress import VARIABLE, Display, follow
from helpers.stages import WITHOUT_FOLDER

BUILD = "build"  # scratch space at the root: ignored by git, never read as evidence
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
STEADY = {
    "TOKENIZERS_PARALLELISM": "false",
    # Idle threads spin for some ten microseconds and then sleep. Without an end they starve the others on two busy
    # cores; without spinning, training a small model takes twice as long.
    "GOMP_SPINCOUNT": "20000",
    "PYTHONHASHSEED": "0",
    "MPLBACKEND": "agg",
    "SOURCE_DATE_EPOCH": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
PATIENCE = {"startup_timeout": 300, "iopub_timeout": 60, "timeout": None}  # seconds; the short defaults fail when busy


class CellError(RuntimeError):
    """A cell raised: `kind` is the class name of the exception, `message` its text."""

    def __init__(self, kind: str, message: str):
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class KernelError(RuntimeError):
    """The kernel did not start, or died."""


def execute(
    notebook,
    parameters: Mapping[str, str],
    *,
    root: Path,
    log: Path,
    display: Display,
    online: bool = False,
    descriptors: Sequence[int] = (),
):
    """Execute a notebook (nbformat node) in memory, with `root` as working folder, and return it with its outputs.

    Nothing reaches the disk but `log`, which takes standard error and tracebacks. The kernel inherits `descriptors`.
    Raises CellError for a cell that fails and KernelError for a kernel that dies.
    """
    import nbformat
    import papermill
    from papermill.engines import papermill_engines

    prefix = display.prefix
    source, progress = log.with_suffix(".ipynb"), log.with_suffix(".progress")
    write_bytes(source, nbformat.writes(notebook).encode())
    papermill_engines.register("reporting", _engine(display, descriptors))
    settings = environment(root / BUILD, online=online) | {VARIABLE: str(progress)}
    with _set(settings), follow(progress, display), open(log, "w", encoding="utf-8") as errors:
        try:
            return papermill.execute_notebook(
                source,
                None,
                dict(parameters),
                engine_name="reporting",
                kernel_name="python3",
                progress_bar=False,
                stderr_file=errors,
                cwd=root,
            )
        except papermill.PapermillExecutionError as error:
            errors.write("\n".join(map(uncoloured, error.traceback)) + "\n")
            raise CellError(error.ename, error.evalue) from None
        except RuntimeError as error:  # nbclient's: it did not start, or died
            errors.write(traceback.format_exc())
            raise KernelError(str(error)) from None
        finally:
            display.prefix = prefix


def environment(build: Path, *, online: bool) -> dict[str, str]:
    """The environment variables of a kernel; writes its description into `build`."""
    write_kernelspec(build)
    folders = {
        "JUPYTER_PATH": build,
        "JUPYTER_RUNTIME_DIR": build / "runtime",
        "IPYTHONDIR": build / "ipython",
        "MPLCONFIGDIR": build / "matplotlib",
    }
    return {name: str(folder) for name, folder in folders.items()} | STEADY | ({} if online else OFFLINE)


def write_kernelspec(build: Path) -> None:
    """Describe the kernel `python3` as this very interpreter, under `build` only."""
    # Critical errors only: the kernel listens on this machine alone, and says at length that it does so unencrypted.
    argv = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    argv.append("--IPKernelApp.log_level=CRITICAL")
    spec = {"argv": argv, "display_name": "Python 3", "language": "python", "metadata": {"debugger": True}}
    write_json(build / "kernels" / "python3" / "kernel.json", spec)


def wants_network(profile: Profile, root: Path = ROOT) -> bool:
    """Whether the model is named on the Hugging Face hub; every other run is cut off from the hub."""
    name = profile.model.name_or_path
    hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None
    return hub and name not in WITHOUT_FOLDER and not (root / name).exists()


def uncoloured(text: str) -> str:
    """Text without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def lab(root: Path = ROOT) -> None:
    """Become JupyterLab: the percent sources open as notebooks, paired with copies in `build/lab`."""
    build = root / BUILD
    viewers = {"python": "Jupytext Notebook"}
    settings = {"@jupyterlab/docmanager-extension:plugin": {"defaultViewers": viewers}}
    write_json(build / "jupyter" / "labconfig" / "default_setting_overrides.json", settings)
    # The kernel of an opened notebook starts in its folder; `helpers` is found from the root.
    places = {"JUPYTER_CONFIG_PATH": str(build / "jupyter"), "PYTHONPATH": str(root)}
    os.environ.update(environment(build, online=True) | places)
    os.chdir(root)
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", "--LabApp.default_url=/lab/tree/notebooks"])


def _engine(display: Display, descriptors: Sequence[int]) -> type:
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine

    prefix = display.prefix

    class Reporting(NBClientEngine):
        """Papermill's engine, saying which cell runs and handing descriptors on to the kernel."""

        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, stderr_file=None, **unused):
            start = nb_man.cell_start
            codes = [index for index, cell in enumerate(nb_man.nb.cells) if cell.cell_type == "code"]

            def cell_start(cell, index=None, **rest):
                if index in codes:
                    here = f"cell {codes.index(index) + 1}/{len(codes)}"
                    display.prefix = f"{prefix} · {here}" if prefix else here
                    display.passing("")
                start(cell, index, **rest)

            nb_man.cell_start = cell_start
            client = PapermillNotebookClient(
                nb_man, kernel_name=kernel_name, stderr_file=stderr_file, record_timing=False, **PATIENCE
            )
            return client.execute(pass_fds=tuple(descriptors))

    return Reporting


@contextmanager
def _set(settings: Mapping[str, str]) -> Iterator[None]:
    """Jupyter reads its folders from this process's environment, so they are set here and put back."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m helpers.kernel", description=lab.__doc__)
    parser.add_argument("command", choices=["lab"])
    parser.parse_args()
    lab()
