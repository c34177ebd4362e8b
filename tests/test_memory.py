"""How many rows a pass may hold: by hand, on machines that are made up, and when it was too many."""

from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import torch
from conftest import tiny_gpt2
from tiny import random_pair, shared_model

from helpers import memory
from helpers.memory import affordable_pairs, affordable_rows, free_memory, in_chunks, is_out_of_memory
from helpers.plans import PatchingError

GPT2 = shared_model("gpt2", 0)  # width 16, two heads, an inner width of 4 × 16
LLAMA = shared_model("llama", 0)  # the same, but an inner width of 24


def test_a_processor_has_the_memory_of_the_machine(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=12345))
    assert free_memory(torch.device("cpu")) == free_memory(torch.device("meta")) == 12345


def test_an_accelerator_is_asked_and_one_that_does_not_say_has_the_machines(monkeypatch):
    device = torch.device("xpu")
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda of: (777, 1000) if of == device else None)
    assert free_memory(device) == 777

    def refuse(of):
        raise RuntimeError("this device does not say")

    monkeypatch.setattr(torch.accelerator, "get_memory_info", refuse)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=12345))
    assert free_memory(device) == 12345


@pytest.mark.parametrize(
    "model, numbers",
    [
        (GPT2, 10 * 16 + 3 * 64 + 2 * 5),
        (LLAMA, 10 * 16 + 3 * 24 + 2 * 5),
        (tiny_gpt2(0, width=16, n_inner=8), 160 + 24 + 20),
    ],
)
def test_rows_by_hand(model, numbers, monkeypatch):
    """Prompts of 5 tokens, 4 bytes a number, a quarter of the memory: 7 rows and a little more."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 4 * 7 * 5 * 4 * numbers + 100)
    assert affordable_rows(model, 5) == 7


def test_half_precision_affords_twice_the_rows(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1_000_000)
    one, other = tiny_gpt2(0), tiny_gpt2(0).bfloat16()
    assert affordable_rows(other, 10) // 2 == affordable_rows(one, 10) > 1


def test_there_is_always_one_row_and_never_more_than_are_of_use(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    assert affordable_rows(GPT2, 100) == affordable_pairs(GPT2, 100) == 1
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**15)
    assert affordable_rows(GPT2, 100) == memory.ENOUGH_BYTES // (100 * 64 * 4)  # an inner width of 4 x 16
    assert affordable_rows(GPT2, 10**6) == 1


@pytest.mark.parametrize(
    "error, expected",
    [
        (torch.OutOfMemoryError("no memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (KeyError("x"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


class Device:
    """A table maker for which `most` rows are just not too many; it notes what it was asked for."""

    def __init__(self, most: int, error: Exception | None = None) -> None:
        self.most, self.asked, self.error = most, [], error or torch.OutOfMemoryError("no memory")

    def __call__(self, traced, chunk, budget):
        self.asked.append(([pair.pair_id for pair in chunk], budget))
        if budget > self.most:
            raise self.error
        return pd.DataFrame({"pair": [pair.pair_id for pair in chunk]})


PAIRS = [random_pair(name, length, seed=0) for name, length in zip("abcdefg", (3, 3, 2, 3, 3, 2, 3), strict=True)]


def chunks(device, *, row_budget):
    tables = in_chunks(SimpleNamespace(model=GPT2), PAIRS, device, row_budget=row_budget, rows_per_pair=2)
    return [table["pair"].tolist() for table in tables]


def test_chunks_are_of_one_length_and_as_large_as_the_budget_allows():
    device = Device(most=6)
    assert chunks(device, row_budget=6) == [["c", "f"], ["a", "b", "d"], ["e", "g"]]
    assert {budget for _, budget in device.asked} == {6}


def test_the_budget_is_halved_until_it_fits_and_stays_so(monkeypatch):
    monkeypatch.setattr(memory, "clear_device_cache", lambda **named: None)
    device = Device(most=2)
    assert chunks(device, row_budget=8) == [["c"], ["f"], ["a"], ["b"], ["d"], ["e"], ["g"]]
    assert device.asked[:4] == [(["c", "f"], 8), (["c", "f"], 4), (["c"], 2), (["f"], 2)]
    assert {budget for _, budget in device.asked[2:]} == {2}


def test_a_row_that_does_not_fit_alone_names_its_pair(monkeypatch):
    monkeypatch.setattr(memory, "clear_device_cache", lambda **named: None)
    with pytest.raises(PatchingError, match=r"single row in the forward pass \(pair c, 2 tokens\)") as error:
        chunks(Device(most=0), row_budget=5)
    assert isinstance(error.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize("error", [RuntimeError("another fault"), KeyError("x")])
def test_other_errors_pass_at_once(error):
    device = Device(most=0, error=error)
    with pytest.raises(type(error)):
        chunks(device, row_budget=8)
    assert len(device.asked) == 1


def test_without_a_budget_the_memory_that_is_free_decides(monkeypatch):
    monkeypatch.setattr(memory, "affordable_rows", lambda model, positions: {2: 9, 3: 4}[positions])
    device = Device(most=9)
    assert chunks(device, row_budget=None) == [["c", "f"], ["a", "b"], ["d", "e"], ["g"]]
    assert [budget for _, budget in device.asked] == [9, 4, 4, 4]
