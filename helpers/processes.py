"""Processes: one measurement of several models or tasks, in processes of one thread beside each other.

A small network gains next to nothing from a second thread, its matrices being small, and nearly everything from a
second process. A pool is started once, and imports what it needs while its owner goes on.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module

import numpy as np
import torch


def pool_of(processes: int, *, warm: str) -> ProcessPoolExecutor | None:
    """So many processes of one thread, which begin by importing the module `warm`; None where one is enough."""
    if processes == 1:
        return None
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
    for _ in range(processes):
        pool.submit(import_module, warm)
    return pool


def measure_each(measure: Callable, jobs: Iterable[tuple], *, pool: ProcessPoolExecutor | None, **options) -> list:
    """The results of `measure(model, *arguments, **options)` for every job (model, *arguments), in their order.

    Without a pool all is done here, on the models' own device; in a pool the models are copied to the processor, and
    `measure` must be a module's function. What it raises is raised here.
    """
    if pool is None:
        return [measure(*job, **options) for job in jobs]
    calls = [
        pool.submit(_measure_copy, measure, type(model), model.config, _weights(model), arguments, options)
        for model, *arguments in jobs
    ]
    return [call.result() for call in calls]


def as_finished(function: Callable, jobs: Iterable[tuple], *, processes: int, warm: str) -> Iterator:
    """The results of `function(*job)` as they come, from processes of their own; from this one where it is one.

    When something is raised, here or there, the jobs that have not begun are given up.
    """
    pool = pool_of(processes, warm=warm)
    if pool is None:
        yield from (function(*job) for job in jobs)
        return
    try:
        for call in as_completed([pool.submit(function, *job) for job in jobs]):
            yield call.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _weights(model) -> dict[str, np.ndarray]:
    """The parameters, each once: tensors would be sent through shared memory, of which containers have little."""
    return {name: parameter.detach().cpu().numpy() for name, parameter in model.named_parameters()}


def _measure_copy(measure: Callable, kind: type, config, weights: dict, arguments: list, options: dict):
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]))
    return measure(model, *arguments, **options)
