"""Sealed files: HDF5 opens them, a hash covers every bit, and a forged seal allocates nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lugpi_core.errors import InputError
from lugpi_core.store.sealed_file import USER_BLOCK_BYTES, read_sealed, sealed_bytes, write_sealed
from tests.support.clock import next_second

ABOUT = {"corpus": "Käse", "count": 3}


def _build(file: Any) -> None:
    file.attrs["corpus"] = np.bytes_("Käse".encode())
    file["numbers"] = np.arange(6, dtype="<i8").reshape(2, 3)
    file["names"] = np.array([b"a", b"bc"], "S")


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    write_sealed(tmp_path / "small.h5", ABOUT, _build)
    return tmp_path / "small.h5"


def test_rows_read_back_as_they_were_written(sealed: Path) -> None:
    about, arrays = read_sealed(sealed)
    assert about == ABOUT
    assert arrays.keys() == {"numbers", "names"}
    np.testing.assert_array_equal(arrays["numbers"], np.arange(6).reshape(2, 3))
    assert arrays["names"].tolist() == [b"a", b"bc"]


def test_h5py_opens_it_like_any_other_file(sealed: Path) -> None:
    with h5py.File(sealed, "r") as file:
        assert file.userblock_size == USER_BLOCK_BYTES
        assert file["numbers"][:].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert file.attrs["corpus"].decode() == "Käse"


def test_the_head_is_a_readable_line(sealed: Path) -> None:
    line, rest = sealed.read_bytes()[:USER_BLOCK_BYTES].split(b"\n")
    assert json.loads(line)["corpus"] == "Käse"
    assert not rest.strip(b"\0")


def test_equal_content_is_equal_bytes(sealed: Path) -> None:
    next_second()
    assert sealed_bytes(ABOUT, _build) == sealed_bytes(dict(reversed(ABOUT.items())), _build) == sealed.read_bytes()
    assert sealed_bytes({**ABOUT, "count": 4}, _build) != sealed.read_bytes()


def test_lugpi_reads_it_without_hdf5(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h5py, "File", None)
    assert read_sealed(sealed)[0] == ABOUT


def test_a_flipped_bit_is_found_at_every_place(sealed: Path, campaign: Callable[[int, int], int]) -> None:
    content = sealed.read_bytes()
    head, unseen = content.index(b"\n") + 2, []
    for place in (*range(head), *range(head, len(content), campaign(5, 1))):
        for bit in range(8) if place < head else (place % 8,):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            sealed.write_bytes(damaged)
            try:
                read_sealed(sealed)
            except InputError:
                continue
            unseen.append((place, bit))
    assert not unseen


@pytest.mark.parametrize("kept", [0, 1, 100, USER_BLOCK_BYTES - 1, USER_BLOCK_BYTES, USER_BLOCK_BYTES + 1, -1])
def test_a_file_that_ends_early_is_found(sealed: Path, kept: int) -> None:
    sealed.write_bytes(sealed.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"small\.h5 \(.*\); expected the file as lugpi wrote it; run the same featurize command again"):
        read_sealed(sealed)


def test_an_extra_byte_is_found(sealed: Path) -> None:
    sealed.write_bytes(sealed.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"small\.h5"):
        read_sealed(sealed)


def test_a_missing_file_names_the_command_that_writes_it(tmp_path: Path) -> None:
    for path in (tmp_path / "none.h5", tmp_path):
        with pytest.raises(InputError, match=r"got no file .*; run python -m featurize first"):
            read_sealed(path)


# A forged seal: its hash matches, because whoever writes a file can also hash it.
HUGE, DEEP = 10**18, 700
FORGED: dict[str, Any] = {
    "an offset behind the end": [HUGE, "<i8", [2, 3]],
    "an offset near the end": [8000, "<i8", [HUGE]],
    "a negative offset": [-8, "<i8", [2, 3]],
    "an offset that is no number": ["0", "<i8", [2, 3]],
    "an offset that is a fraction": [4096.5, "<i8", [1]],
    "an offset that is true": [True, "<i8", [1]],
    "one TiB declared": [4096, "<i8", [1 << 37]],
    "a size beyond 64 bits": [4096, "<i8", [1 << 40, 1 << 40]],
    "a negative size": [4096, "<i8", [-1]],
    "more dimensions than numpy has": [4096, "<i8", [1] * 100],
    "objects": [4096, "O", [1]],
    "records with objects": [4096, "i4,O", [1]],
    "letters of no size": [4096, "S0", [HUGE]],
    "one huge text": [4096, "S2000000000", [1]],
    "floats": [4096, "<f8", [1]],
    "times": [4096, "<M8[ns]", [1]],
    "no dtype": [4096, "nothing", [1]],
    "a dtype that is code": [4096, "(1,i4", [1]],
    "a dtype that is a list": [4096, [["a", "O"]], [1]],
    "a place with a part missing": [4096, "<i8"],
    "a place that is a number": 4096,
    "a place that is null": None,
}


@pytest.mark.parametrize("place", FORGED.values(), ids=FORGED)
def test_a_forged_offset_is_refused_before_anything_is_allocated(tmp_path: Path, place: Any) -> None:
    (tmp_path / "f.h5").write_bytes(sealed_bytes({"datasets": {"numbers": place}}, _build))
    with pytest.raises(InputError, match=r"f\.h5 \(.*\); expected the file as lugpi wrote it"):
        read_sealed(tmp_path / "f.h5")


def test_overlapping_datasets_are_read_only_inside_the_file(tmp_path: Path) -> None:
    places = {"a": [4096, "<i8", [4]], "b": [4100, "<i8", [4]]}
    content = sealed_bytes({"datasets": places}, _build)
    (tmp_path / "f.h5").write_bytes(content)
    for name, values in read_sealed(tmp_path / "f.h5")[1].items():
        start = places[name][0]
        assert isinstance(start, int)
        assert values.tobytes() == content[start : start + 32]


HEADS = {
    "nothing": b"",
    "no JSON": b"\x89HDF\r\n\x1a\n",
    "no UTF-8": b'{"xxh3_128": "\xff\xfe"}',
    "an empty object": b"{}",
    "a list": b"[]",
    "a text": b'"seal"',
    "a number": b"7",
    "null": b"null",
    "a number of a million digits": b"7" * 10**6,
    "lists without end": b"[" * 4000,
    "lists in lists": b"[" * 2000 + b"]" * 2000,
    "objects in objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a seal and more": b'{"xxh3_128": "0", "datasets": {}} {}',
    "a hash that is a number": b'{"xxh3_128": 0, "datasets": {}}',
    "another hash": b'{"xxh3_128": "00000000000000000000000000000000", "datasets": {}}',
    "places that are a list": b'{"xxh3_128": "0", "datasets": []}',
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_head_that_is_no_seal_is_refused(sealed: Path, head: bytes) -> None:
    sealed.write_bytes(head.ljust(USER_BLOCK_BYTES, b"\0") + sealed.read_bytes()[USER_BLOCK_BYTES:])
    with pytest.raises(InputError, match=r"small\.h5 \(.*\); expected the file as lugpi wrote it") as refused:
        read_sealed(sealed)
    assert len(str(refused.value)) < 500


def test_a_seal_that_is_too_long_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a seal of"):
        sealed_bytes({"corpus": "x" * USER_BLOCK_BYTES}, _build)
