"""The trainer: half precision where a device has it, and steps that are the same for any number of processes."""

import dataclasses

import pytest
import torch
from test_finetune import CONFIGURATION_1

from helpers.trainer import FineTuningError, precision_used, shared_batch


@pytest.mark.parametrize(
    "asked, cuda, used",
    [
        ("fp16", False, "fp32"),
        ("fp16", True, "fp16"),
        ("fp32", True, "fp32"),
        ("bf16", False, "fp32"),
        ("bf16", True, "bf16"),
    ],
)
def test_half_precision_needs_cuda(monkeypatch, asked, cuda, used):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda and not including_emulation)
    assert precision_used(dataclasses.replace(CONFIGURATION_1, precision=asked)) == used


@pytest.mark.parametrize(
    "rows, batches, processes, shared",
    [(8, 4, 1, (8, 4)), (8, 4, 2, (8, 2)), (8, 4, 4, (8, 1)), (8, 4, 8, (4, 1)), (8, 1, 2, (4, 1)), (6, 2, 3, (2, 2)),
     (4, 6, 4, (2, 3))],
)  # fmt: skip
def test_a_step_has_as_many_rows_whatever_the_number_of_processes(rows, batches, processes, shared):
    configuration = dataclasses.replace(CONFIGURATION_1, batch_size=rows, gradient_accumulation=batches)
    assert shared_batch(configuration, processes) == shared
    assert shared[0] * shared[1] * processes == rows * batches


def test_a_step_that_cannot_be_shared_is_refused():
    configuration = dataclasses.replace(CONFIGURATION_1, batch_size=8, gradient_accumulation=4)
    with pytest.raises(FineTuningError, match=r"3 processes cannot share the 32 rows of a step \(4 batches of 8\)"):
        shared_batch(configuration, 3)
