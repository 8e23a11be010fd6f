"""The structure of a shard file: a pure function of its layout, which HDF5 reads as intended."""

import io
import tracemalloc
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.store.layout import Dtype, ShardLayout, Structure, structure
from tests.support.clock import next_second

LAYOUT = ShardLayout(what="tokens", rows=5, row_shape=(3, 4), first_row=10, fingerprint_digest="f" * 32)
INT8 = replace(LAYOUT, dtype="int8")
LATENTS = ShardLayout(what="latents", rows=3, row_shape=(4, 2, 2), first_row=0, fingerprint_digest="0" * 32)
LARGE = ShardLayout(what="tokens", rows=2048, row_shape=(50, 768), first_row=4096, fingerprint_digest="a" * 32)

layouts = st.builds(
    ShardLayout,
    what=st.sampled_from(["tokens", "latents"]),
    rows=st.integers(1, 300),
    row_shape=st.lists(st.integers(1, 20), min_size=1, max_size=3).map(tuple),
    first_row=st.integers(0, 1 << 40),
    fingerprint_digest=st.text("0123456789abcdef", min_size=32, max_size=32),
    dtype=st.sampled_from(["float16", "int8"]),
)


def _bytes(plan: Structure, fill: int = 0) -> bytes:
    content = bytearray([fill]) * plan.file_bytes
    for offset, data in plan.frame:
        content[offset : offset + len(data)] = data
    return bytes(content)


def _opened(plan: Structure) -> h5py.File:
    return h5py.File(io.BytesIO(_bytes(plan)), "r")


def _ranges(layout: ShardLayout) -> list[tuple[int, int]]:
    plan = structure(layout)
    data = [(offset, offset + layout.bytes_of(name, layout.rows)) for name, offset in plan.offsets.items()]
    return sorted(data + [(offset, offset + len(part)) for offset, part in plan.frame])


def test_the_datasets_of_a_shard_have_its_rows_as_first_dimension() -> None:
    assert LAYOUT.datasets == {
        "tokens": ((5, 3, 4), np.dtype("<f2")),
        "row_hash": ((5,), np.dtype("<u8")),
        "flags": ((5,), np.dtype("u1")),
    }
    assert LAYOUT.stored == ("tokens",)
    assert LATENTS.stored == ("latents",)


def test_each_int8_token_has_a_float32_scale() -> None:
    assert INT8.datasets["tokens"] == ((5, 3, 4), np.dtype("i1"))
    assert INT8.datasets["scale"] == ((5, 3), np.dtype("<f4"))
    assert INT8.stored == ("tokens", "scale")


@pytest.mark.parametrize("layout", [LAYOUT, INT8, LATENTS], ids=["float16", "int8", "latents"])
def test_the_bytes_of_rows_are_their_values_times_the_item_size(layout: ShardLayout) -> None:
    for name, (shape, dtype) in layout.datasets.items():
        assert layout.bytes_of(name) == np.zeros(shape[1:], dtype).nbytes
        assert layout.bytes_of(name, layout.rows) == np.zeros(shape, dtype).nbytes
        assert layout.bytes_of(name, 0) == 0


def test_equal_layouts_give_equal_bytes_at_any_time() -> None:
    first = structure(LAYOUT)
    structure.cache_clear()
    next_second()
    again = structure(ShardLayout(what="tokens", rows=5, row_shape=(3, 4), first_row=10, fingerprint_digest="f" * 32))
    assert again == first
    assert again is not first, "it was laid down anew"


@pytest.mark.parametrize(
    "change",
    [
        {"first_row": 11},
        {"fingerprint_digest": "f" * 31 + "e"},
        {"rows": 6},
        {"row_shape": (4, 3)},
        {"row_shape": (3, 4, 1)},
        {"dtype": "int8"},
        {"what": "latents"},
    ],
    ids=str,
)
def test_the_frame_contains_the_shards_description(change: dict[str, Any]) -> None:
    assert structure(replace(LAYOUT, **change)).frame != structure(LAYOUT).frame


@given(layouts)
def test_frame_and_datasets_cover_every_byte_once(layout: ShardLayout) -> None:
    ranges = _ranges(layout)
    assert ranges[0][0] == 0
    assert [start for start, _ in ranges[1:]] == [stop for _, stop in ranges[:-1]]
    assert ranges[-1][1] == structure(layout).file_bytes
    assert all(start < stop for start, stop in ranges)


@given(layouts)
def test_rows_and_all_other_datasets_start_on_a_cache_line(layout: ShardLayout) -> None:
    assert all(offset % 64 == 0 for offset in structure(layout).offsets.values())


@given(layouts)
def test_hdf5_finds_in_the_frame_what_the_layout_states(layout: ShardLayout) -> None:
    plan = structure(layout)
    with _opened(plan) as file:
        assert sorted(file) == sorted(layout.datasets)
        assert dict(file.attrs) == {"fingerprint": layout.fingerprint_digest.encode(), "first_row": layout.first_row}
        for name, (shape, dtype) in layout.datasets.items():
            dataset = file[name]
            assert (dataset.shape, dataset.dtype) == (shape, dtype)
            assert (dataset.chunks, dataset.compression, dataset.fletcher32, dataset.external) == (None, None, False, None)
            assert dataset.id.get_offset() == plan.offsets[name]
            assert dataset.id.get_storage_size() == layout.bytes_of(name, layout.rows)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_hdf5_reads_what_was_written_at_an_offset(dtype: Dtype) -> None:
    layout = replace(LAYOUT, dtype=dtype)
    plan, content = structure(layout), bytearray(_bytes(structure(layout)))
    stated = {}
    for name, (shape, kind) in layout.datasets.items():
        stated[name] = np.arange(1, prod(shape) + 1).astype(kind).reshape(shape)
        content[plan.offsets[name] : plan.offsets[name] + stated[name].nbytes] = stated[name].tobytes()
    with h5py.File(io.BytesIO(content), "r") as file:
        for name, values in stated.items():
            np.testing.assert_array_equal(file[name][:], values)


def test_every_byte_of_the_frame_is_determined(tmp_path: Path) -> None:
    # Whatever the rows are, HDF5 reads the same structure: row bytes are never mistaken for metadata.
    (tmp_path / "s.h5").write_bytes(_bytes(structure(LAYOUT), fill=0xFF))
    with h5py.File(tmp_path / "s.h5", "r") as file:
        assert np.isnan(file["tokens"][:]).all()
        assert file["row_hash"][:].tolist() == [2**64 - 1] * 5
        assert file.attrs["first_row"] == 10


def test_a_large_shard_is_planned_without_its_rows_in_memory() -> None:
    structure.cache_clear()
    tracemalloc.start()
    plan = structure(LARGE)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.file_bytes > 2048 * 50 * 768 * 2
    assert peak_bytes < 4e6
    assert sum(len(data) for _, data in plan.frame) < 8192
