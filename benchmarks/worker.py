"""Workers: one process per implementation, so that memory is each one's own and every environment can take part.

A worker reads one JSON line, does what it says, answers with one JSON line, and sleeps in between: implementations can
alternate within a run without disturbing one another. `Worker` is the parent's side; the module run by an interpreter
is the child's, and imports no more than its implementation has.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from benchmarks import machine
from benchmarks.cases import ROOT, WARM_UP, Case

LOGS = ROOT / "build" / "benchmarks"


class WorkerError(RuntimeError):
    """A worker that could not be started, or could not do what it was asked."""


@dataclass(frozen=True)
class Implementation:
    """Where an implementation is: its module, and the function in it that makes its model of a Hugging Face one."""

    module: str
    model: str | None = None
    environment: str = "project"


IMPLEMENTATIONS = MappingProxyType(
    {
        "ours": Implementation("benchmarks.ours"),
        "limit": Implementation("benchmarks.peers.limit", "weights"),
        "hooks": Implementation("benchmarks.peers.hooks"),
        "one-trace-per-patch": Implementation("benchmarks.peers.traces", "traced"),
        "bridge": Implementation("benchmarks.peers.transformerlens", "bridge", "transformerlens"),
        "transformerlens": Implementation("benchmarks.peers.transformerlens", "hooked", "transformerlens"),
    }
)


@dataclass(frozen=True)
class Timing:
    """One sweep: seconds, memory in MB before, at most during, and after it, and its effects as nested lists."""

    seconds: float
    before: float
    peak: float
    after: float
    effects: list

    @property
    def growth(self) -> float:
        """Peak memory above the memory held before, in MB."""
        return self.peak - self.before


class Worker:
    """A process with one implementation; a context manager. Raises WorkerError when the process fails."""

    def __init__(self, implementation: str, *, python: str | Path, device: str, threads: int):
        self.name = implementation
        LOGS.mkdir(parents=True, exist_ok=True)
        self._log = LOGS / f"{implementation}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(python), "-m", "benchmarks.worker", implementation, device],
                cwd=ROOT,
                env={**os.environ, **_quiet(threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def prepare(self, case: Case) -> None:
        """Load a case's model, unless it is there, and warm up."""
        self._ask("prepare", case=case.as_json())

    def largest_logit(self, case: Case) -> float:
        """The largest absolute logit of a prepared case's prompts; the implementation's model is Hugging Face's."""
        return self._ask("largest_logit", case=case.as_json())

    def release(self) -> None:
        """Let go of every model that was prepared."""
        self._ask("release")

    def sweep(self, case: Case, *, trim: bool = True) -> Timing:
        """Run a prepared case once."""
        return Timing(**self._ask("sweep", name=case.name, trim=trim))

    def floating_point_operations(self, case: Case) -> int:
        """Run a prepared case once, counting its arithmetic."""
        return self._ask("count", name=case.name)

    def matrix_peak(self) -> float:
        """Floating point operations per second that a large matrix product reaches in this process."""
        return self._ask("matrix_peak")

    def _ask(self, request: str, **arguments):
        try:
            self._process.stdin.write(json.dumps({"request": request, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise WorkerError(f"The worker of {self.name} died: see {self._log.relative_to(ROOT)}.")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name} failed: {answer['error']}; see {self._log.relative_to(ROOT)}.")
        return answer["value"]


def _quiet(threads: int) -> dict[str, str]:
    """Equal threads for all, which sleep when they wait: spinning ones take the processor from who works."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }


class _Sweeps:
    """The child's side of a Worker: one method per request, and the models and sweeps that were prepared."""

    def __init__(self, implementation: Implementation, device: str):
        self._module = importlib.import_module(implementation.module)
        self._convert = getattr(self._module, implementation.model) if implementation.model else lambda model: model
        self._device = device
        self._models: dict = {}
        self._sweeps: dict[str, Callable] = {}

    def prepare(self, case: dict) -> None:
        case = Case.from_json(case)
        self._bind(Case("warm-up", WARM_UP, sites=case.sites, pairs=2, positions=4))()
        self._sweeps[case.name] = self._bind(case)

    def largest_logit(self, case: dict) -> float:
        case = Case.from_json(case)
        model, prompts = self._models[case.network], case.prompts(self._device)
        with torch.no_grad():
            return max(model(tokens).logits.abs().max().item() for tokens in (prompts.clean, prompts.corrupted))

    def release(self) -> None:
        self._models.clear()
        self._sweeps.clear()

    def sweep(self, name: str, trim: bool) -> dict:
        effects, measurement = machine.measured(self._sweeps[name], self._device, trim=trim)
        return {**vars(measurement), "effects": effects.tolist()}

    def count(self, name: str) -> int:
        return machine.floating_point_operations(self._sweeps[name])

    def matrix_peak(self) -> float:
        return machine.matrix_peak(self._device)

    def _bind(self, case: Case) -> Callable:
        if case.network not in self._models:
            model = case.network.load(self._device)
            self._models[case.network] = self._convert(model)
        model, prompts = self._models[case.network], case.prompts(self._device)
        function = getattr(self._module, case.sites)
        return lambda: function(model, prompts)


def main() -> None:
    """Answer requests until standard input ends."""
    implementation, device = sys.argv[1:]
    # Libraries print to standard output; the answers get one of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sweeps = None
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            sweeps = sweeps or _Sweeps(IMPLEMENTATIONS[implementation], device)
            answer = {"value": getattr(sweeps, arguments.pop("request"))(**arguments)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
