"""How many rows a stage computes at once, and what happens where they do not fit."""

import gc
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurize.fill.out_of_memory import StageBatches, is_out_of_memory
from lugpi_core.errors import InputError

# What the libraries say when memory is lacking, word for word.
LACKING = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB"),
    MemoryError("std::bad_alloc"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
    ),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    ValueError("out of memory"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", LACKING, ids=lambda error: str(error)[:40])
def test_what_the_libraries_say_of_lacking_memory_is_understood(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_no_other_error_passes_for_lacking_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def _fits(most: int, calls: list[slice], error: Callable[[], Exception] = torch.OutOfMemoryError) -> Callable[[slice], list[int]]:
    """Return what computes at most ``most`` rows at once, and notes what it was asked for."""

    def compute(part: slice) -> list[int]:
        calls.append(part)
        if part.stop - part.start > most:
            raise error()
        return list(range(part.start, part.stop))

    return compute


def test_the_parts_are_consecutive_and_of_the_stages_size() -> None:
    calls: list[slice] = []
    results = StageBatches({"decode": 4, "encode": 9}).run("decode", 10, _fits(99, calls))
    assert calls == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert results == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert StageBatches({"decode": 4}).run("decode", 0, _fits(99, calls)) == []


@given(size=st.integers(1, 64), most=st.integers(1, 64), blocks=st.lists(st.integers(1, 80), min_size=1, max_size=6))
def test_every_row_is_computed_once_with_at_most_log2_failures(size: int, most: int, blocks: list[int]) -> None:
    calls: list[slice] = []
    batches = StageBatches({"denoise": size})
    for rows in blocks:
        done = batches.run("denoise", rows, _fits(most, calls))
        assert [row for part in done for row in part] == list(range(rows))
    failures = sum(part.stop - part.start > most for part in calls)
    assert failures == len(batches.halvings) <= math.log2(size)
    assert all(one["to"] == one["from"] // 2 for one in batches.halvings)
    assert all(part.stop - part.start <= size for part in calls)


def test_a_size_that_was_halved_stays_so_for_that_stage_alone(capsys: pytest.CaptureFixture[str]) -> None:
    batches, calls = StageBatches({"denoise": 16, "decode": 16}), list[slice]()
    batches.run("denoise", 16, _fits(5, []))
    assert batches.rows == {"denoise": 4, "decode": 16}
    assert batches.halvings == [{"stage": "denoise", "from": 16, "to": 8}, {"stage": "denoise", "from": 8, "to": 4}]
    batches.run("denoise", 8, _fits(5, calls))
    assert calls == [slice(0, 4), slice(4, 8)]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "out of memory at denoise of 16 rows: continuing with 8 at once, with the same seeds",
        "out of memory at denoise of 8 rows: continuing with 4 at once, with the same seeds",
    ]


def test_a_short_last_part_that_fails_is_halved_from_what_it_was() -> None:
    batches, calls = StageBatches({"encode": 8}), list[slice]()

    def compute(part: slice) -> int:
        calls.append(part)
        if part == slice(8, 11):
            raise torch.OutOfMemoryError
        return part.stop - part.start

    assert batches.run("encode", 11, compute) == [8, 1, 1, 1]
    assert batches.halvings == [{"stage": "encode", "from": 3, "to": 1}]


def test_one_row_that_does_not_fit_is_said_in_one_line() -> None:
    batches = StageBatches({"decode": 4})
    with pytest.raises(InputError, match=r"got too little memory for one row at a time \(decode\); expected a device that one image fits"):
        batches.run("decode", 4, _fits(0, []))
    assert [one["to"] for one in batches.halvings] == [2, 1]


def test_another_error_is_raised_as_it_is_and_nothing_is_halved() -> None:
    batches, calls = StageBatches({"decode": 4}), list[slice]()
    with pytest.raises(RuntimeError, match="shapes cannot"):
        batches.run("decode", 4, _fits(0, calls, lambda: RuntimeError("shapes cannot be multiplied")))
    assert (len(calls), batches.halvings, batches.rows) == (1, [], {"decode": 4})


def test_a_failed_parts_memory_is_free_when_the_cache_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated: list[weakref.ref[torch.Tensor]] = []
    emptied: list[int] = []

    def compute(part: slice) -> int:
        held = torch.zeros(8)
        allocated.append(weakref.ref(held))
        if part.stop - part.start > 1:
            raise torch.OutOfMemoryError
        return 1

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(sum(one() is not None for one in allocated)))
    gc.disable()  # by its last reference alone, not by a collection that may come too late
    try:
        assert StageBatches({"denoise": 4}).run("denoise", 4, compute) == [1, 1, 1, 1]
    finally:
        gc.enable()
    assert emptied == [0, 0]
