"""The machine: time, memory, arithmetic done, and what it could do at most. Memory is in MB, millions of bytes."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

MB = 10**6
STATUS = Path("/proc/self/status")
RESET_PEAK = "5"  # what proc(5) wants written to clear_refs to set VmHWM back to VmRSS


@dataclass(frozen=True)
class Measurement:
    """One call: seconds, and the memory held before it, at most during it, and after it."""

    seconds: float
    before: float
    peak: float
    after: float


def measured(call: Callable[[], object], device: str, *, trim: bool = True) -> tuple[object, Measurement]:
    """A call's result and what it took.

    With `trim` the allocator gives back what earlier calls left it, or a later call would seem to need less. Where the
    system does not keep a peak that can be reset (it does on Linux, and on accelerators), `peak` is the process's
    largest so far: an upper bound.
    """
    gc.collect()
    if trim:
        _trim()
    synchronise(device)
    _reset_peak(device)
    before, start = _held(device), time.perf_counter()
    result = call()
    synchronise(device)
    seconds = time.perf_counter() - start
    return result, Measurement(seconds, before, _peak(device), _held(device))


def synchronise(device: str) -> None:
    """Wait until an accelerator has done what it was told."""
    if device != "cpu":
        torch.accelerator.synchronize(device)


def floating_point_operations(call: Callable[[], object]) -> int:
    """The multiplications and additions of a call's matrix products and attentions, two for each pair of numbers."""
    # Torch counts fused attention on accelerators, but leaves out the processor's.
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused: _attention}) as counter:
        call()
    return counter.get_total_flops()


def matrix_peak(device: str, *, size: int | None = None, repeats: int = 7, dtype: torch.dtype = torch.float32) -> float:
    """Operations per second of the fastest of several large square products."""
    size = size or (2048 if device == "cpu" else 8192)
    left, right = torch.rand(2, size, size, device=device, dtype=dtype)
    fastest = min(measured(lambda: left @ right, device)[1].seconds for _ in range(repeats))
    return 2 * size**3 / fastest


def processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _attention(queries: tuple, keys: tuple, values: tuple, *others, **options) -> int:
    return sdpa_flop_count(queries, keys, values)


def _trim() -> None:
    """Return free memory to the system, where the C library can (glibc)."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)


def _reset_peak(device: str) -> None:
    if device != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
    elif STATUS.exists():
        STATUS.with_name("clear_refs").write_text(RESET_PEAK)


def _held(device: str) -> float:
    if device != "cpu":
        return torch.accelerator.memory_allocated(device) / MB
    return _status("VmRSS") if STATUS.exists() else _largest_so_far()


def _peak(device: str) -> float:
    if device != "cpu":
        return torch.accelerator.max_memory_allocated(device) / MB
    return _status("VmHWM") if STATUS.exists() else _largest_so_far()


def _status(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / MB


def _largest_so_far() -> float:
    """The largest resident size since the process began; macOS counts bytes, the rest of Unix KiB."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest * (1 if sys.platform == "darwin" else 1024) / MB
