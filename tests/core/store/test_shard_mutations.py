"""Randomly mutated shards with a matching manifest: a reader reads or refuses them, and survives."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from lugpi_core.errors import InputError
from lugpi_core.store.foreign_files import structure_faults
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.shard import create_shard
from tests.support.foreign_shards import LAYOUT, SPEC, in_a_child, offsets_of, place_of, plain, shard_of, write_matching_manifest


def _mutated(content: bytes, chance: random.Random) -> bytes:
    """Return the content changed in one of the ways of accidents and fuzzers."""
    size, place = len(content), chance.randrange(len(content))
    count = min(chance.choice([1, 2, 4, 8, 64, 512]), size - place)
    changed = bytearray(content)
    match chance.choice(["bits", "bits", "run", "fill", "cut", "splice", "insert", "remove"]):
        case "bits":
            for _ in range(chance.randint(1, 8)):
                changed[chance.randrange(size)] ^= 1 << chance.randrange(8)
        case "run":
            changed[place : place + count] = chance.randbytes(count)
        case "fill":
            changed[place : place + count] = bytes([chance.choice([0, 0x7F, 0x80, 0xFF])]) * count
        case "cut":
            del changed[place:]
        case "splice":
            source = chance.randrange(size - count + 1)
            changed[place : place + count] = content[source : source + count]
        case "insert":
            changed[place:place] = chance.randbytes(count)
        case "remove":
            del changed[place : place + count]
    return bytes(changed)


def open_mutations(folder: str, source: str, count: str) -> None:
    """In a child: mutate the shard in ``count`` ways, each with a matching manifest, and count what a reader does with them."""
    content, offsets, places = Path(source).read_bytes(), offsets_of(Path(source)), []
    counted = {"refused by its manifest": 0, "refused": 0, "died": 0, "read": 0}
    for number in range(int(count)):
        store = Path(folder) / str(number)
        shard_of(store).write_bytes(_mutated(content, random.Random(number)))
        write_matching_manifest(store, offsets)
        try:
            load_manifest(store / SPEC.name)
        except InputError:
            counted["refused by its manifest"] += 1
            continue
        places.append(place_of(shard_of(store), offsets))
    faults = structure_faults(places)
    for number, path in enumerate(one.path for one in places):
        counted["died"] += "HDF5 cannot read it" in faults.get(path, "")
        counted["refused" if path in faults else "read"] += 1
        if path not in faults or number % 25 == 0:
            _refuse_unlike(path.parents[1], path in faults)
    print(json.dumps(counted))


def _refuse_unlike(store: Path, refused: bool) -> None:
    if refused:
        with pytest.raises(InputError, match=str(store / SPEC.name)):
            ColumnReader(store, SPEC.name)
        return
    rows = ColumnReader(store, SPEC.name).gather(range(5))
    assert (rows.shape, rows.dtype) == ((5, 3, 4), np.float16)


@pytest.mark.parametrize("libver", [None, "latest"], ids=["our own structure", "another structure"])
def test_a_mutated_shard_is_read_or_refused(
    tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None], libver: str | None
) -> None:
    count = campaign(60, 1000)
    if libver is None:
        create_shard(tmp_path / "s", LAYOUT)
    else:
        with h5py.File(tmp_path / "s", "w", libver=libver) as file:
            plain(file)
    (tmp_path / "stores").mkdir()
    (counted,) = in_a_child(__name__, "open_mutations", str(tmp_path / "stores"), str(tmp_path / "s"), count)
    report(f"mutations of a shard ({libver or 'our own structure'}): {counted}")
    assert sum(counted.values()) - counted["died"] == count
    assert counted["refused"] >= count / 5
