"""Hostile shard files with a matching manifest: nothing outside the file is read, nothing crashes, nothing is trusted."""

import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lugpi_core.errors import InputError
from lugpi_core.runtime.meters import peak_memory_bytes
from lugpi_core.store import foreign_files
from lugpi_core.store.foreign_files import CRASHED, structure_faults
from lugpi_core.store.layout import structure
from lugpi_core.store.manifest import MANIFEST
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.shard import create_shard
from tests.support.foreign_shards import (
    LAYOUT,
    SPEC,
    in_a_child,
    offsets_of,
    place_of,
    plain,
    rewrite_manifest,
    shard_of,
    write_matching_manifest,
)

SECRET = b"TOP-SECRET-"
GIB = 1 << 30


def _file(leave_out: str, make: Callable[[h5py.File, Path], object]) -> Callable[[Path], None]:
    """Return a function that writes plain datasets, one of them by ``make``, which gets the path of the secret."""

    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            plain(file, leave_out)
            make(file, path.with_name("secret"))

    return write


def _dataset(name: str = "tokens", **how: Any) -> Callable[[Path], None]:
    shape, dtype = LAYOUT.datasets[name]
    return _file(name, lambda file, _: file.create_dataset(name, **{"shape": shape, "dtype": dtype, **how}))


def _external(name: str) -> Callable[[Path], None]:
    shape, dtype = LAYOUT.datasets[name]
    return _file(name, lambda file, secret: file.create_dataset(name, shape, dtype, external=[(str(secret), 0, LAYOUT.bytes_of(name, 5))]))


def _virtual(file: h5py.File, secret: Path) -> None:
    shape, dtype = LAYOUT.datasets["tokens"]
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:] = h5py.VirtualSource(str(secret.with_name("secret.h5")), "tokens", shape, dtype)
    file.create_virtual_dataset("tokens", layout)


def _compact(file: h5py.File, _: Path) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((5, 3, 4))
    h5py.h5d.create(file.id, b"tokens", h5py.h5t.py_create(np.dtype("<f2")), space, plan)


def _references(kind: Any) -> Callable[[h5py.File, Path], object]:
    def make(file: h5py.File, _: Path) -> None:
        target = file["flags"].regionref[:2] if kind is h5py.regionref_dtype else file["flags"].ref
        file.create_dataset("tokens", (5, 3, 4), kind)[:] = target

    return make


def _brain_float(file: h5py.File, _: Path) -> None:
    kind = h5py.h5t.IEEE_F16LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_ebias(127)
    h5py.h5d.create(file.id, b"tokens", kind, h5py.h5s.create_simple((5, 3, 4)))
    file["tokens"][:] = np.ones((5, 3, 4), np.float32)


def _ours(change: Callable[[bytearray], bytes | bytearray]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        create_shard(path, LAYOUT)
        path.write_bytes(change(bytearray(path.read_bytes())))

    return write


def _with_byte(content: bytearray, place: int) -> bytearray:
    content[place] ^= 0xFF
    return content


def _linked(file: h5py.File, link: Any) -> None:
    file["real"] = np.zeros((5, 3, 4), np.float16)
    file["tokens"] = link


def _in_a_loop(file: h5py.File, _: Path) -> None:
    file.create_group("more")["again"] = file["/"]


NOT_PLAIN = "tokens is not a plain contiguous dataset"
# name → (function that writes the file, why it is refused)
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "external storage": (_external("tokens"), NOT_PLAIN),
    "external storage of the flags": (_external("flags"), "flags is not a plain contiguous dataset"),
    "external link": (_file("tokens", lambda file, _: file.__setitem__("tokens", h5py.ExternalLink("secret.h5", "/tokens"))), "is a link"),
    "soft link": (_file("tokens", lambda file, _: _linked(file, h5py.SoftLink("/real"))), "also contains real"),
    "soft link to nothing more": (_file("flags", lambda file, _: file.__setitem__("flags", h5py.SoftLink("/none"))), "flags is a link"),
    "virtual dataset": (_file("tokens", _virtual), NOT_PLAIN),
    "object references": (_file("tokens", _references(h5py.ref_dtype)), "tokens is object"),
    "region references": (_file("tokens", _references(h5py.regionref_dtype)), "tokens is object"),
    "texts of variable length": (_dataset(dtype=h5py.string_dtype()), "tokens is object|no space"),
    "chunked": (_dataset(chunks=(1, 3, 4)), NOT_PLAIN),
    "compressed": (_dataset("row_hash", compression="gzip"), "row_hash is not a plain contiguous dataset"),
    "compact": (_file("tokens", _compact), NOT_PLAIN),
    "one TiB declared": (_dataset(shape=(1 << 39,)), r"tokens is float16 \(549755813888,\), not"),
    "one TiB in chunks declared": (_dataset(shape=(1 << 39,), chunks=(1 << 20,), compression="gzip"), NOT_PLAIN),
    "wrong shape": (_dataset(data=np.zeros((5, 4, 3), "<f2"), shape=None), r"\(5, 4, 3\), not float16 \(5, 3, 4\)"),
    "no shape": (_file("tokens", lambda file, _: file.__setitem__("tokens", h5py.Empty("<f2"))), "tokens"),
    "wrong dtype": (_dataset(data=np.zeros((5, 3, 4), "<u2"), dtype="<u2"), "tokens is uint16"),
    "big-endian": (_dataset(data=np.zeros((5, 3, 4), ">f2"), dtype=">f2"), "tokens is >f2"),
    "a brain float": (_file("tokens", _brain_float), "tokens"),
    "no space": (_dataset("flags"), "flags has no space"),
    "one dataset more": (_file("", lambda file, _: file.__setitem__("more", np.zeros(3))), "it also contains more"),
    "a group in a loop": (_file("", _in_a_loop), "it also contains more"),
    "a group for a dataset": (_file("tokens", lambda file, _: file.create_group("tokens")), "tokens is not a dataset"),
    "a type for a dataset": (_file("tokens", lambda file, _: file.__setitem__("tokens", np.dtype("<f2"))), "tokens is not a dataset"),
    "one dataset less": (_file("row_hash", lambda file, _: None), "row_hash"),
    "nothing said of itself": (_file("", lambda file, _: file.attrs.clear()), "fingerprint"),
    "another column's shard": (_file("", lambda file, _: file.attrs.create("fingerprint", np.bytes_("0" * 32))), "it is the shard"),
    "another shard of the column": (_file("", lambda file, _: file.attrs.create("first_row", 5)), "it is the shard"),
    "texts said of itself": (_file("", lambda file, _: file.attrs.create("first_row", "five")), "five"),
    "a list said of itself": (_file("", lambda file, _: file.attrs.create("first_row", [0, 0])), "size 1|scalar"),
    "other offsets": (_file("", lambda file, _: None), r"its datasets lie at .*, the manifest says"),
    "a user block": (_ours(lambda content: bytes(512) + content), r"its datasets lie at .*, the manifest says"),
    "a damaged superblock": (_ours(lambda content: _with_byte(content, 20)), "clip"),
    "a damaged root group": (_ours(lambda content: _with_byte(content, 100)), "clip"),
    "cut": (_ours(lambda content: content[:-1]), "truncated"),
    "cut to nothing but its head": (_ours(lambda content: content[:64]), "outside its file"),
    "empty": (lambda path: path.write_bytes(b""), "outside its file"),
    "a picture": (lambda path: path.write_bytes(b"GIF89a" * 5000), "signature"),
    "noise": (lambda path: path.write_bytes(random.Random(0).randbytes(1 << 16)), "signature"),
    "a folder": (lambda path: path.mkdir(), "clip"),
}
SMALL = ("cut", "cut to nothing but its head", "empty", "a folder")


def _lay_secret(folder: Path) -> list[Path]:
    """Write files that no reader should touch, last read in 1970 according to the file system."""
    with h5py.File(folder / "secret.h5", "w") as file:
        plain(file)
        file["tokens"][:] = np.frombuffer((SECRET * 12)[:120], "<f2").reshape(5, 3, 4)
    (folder / "secret").write_bytes(SECRET * 2000)
    found = [folder / "secret", folder / "secret.h5"]
    for path in found:
        os.utime(path, (0, 1))
    return found


def open_stores(folder: str) -> None:
    """In a child with 1 GiB more than the libraries need: open every store in ``folder``; print a JSON line each, then the peak memory."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = int(status["VmSize"].split()[0]) * 1024 + GIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for store in sorted(Path(folder).iterdir()):
        try:
            found = ColumnReader(store, SPEC.name).gather(range(5))
            said, leaked = None, SECRET in found.tobytes()
        except InputError as error:
            said, leaked = str(error), SECRET.decode() in str(error)
        print(json.dumps({"store": store.name, "said": said, "leaked": leaked}), flush=True)
    below = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"peak_bytes": max(peak_memory_bytes()["host_bytes"], below)}))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The answer of a child process for every hostile store, by name."""
    folder = tmp_path_factory.mktemp("hostile")
    secrets = {}
    for name, (make, _) in HOSTILE.items():
        path = shard_of(folder / name)
        make(path)
        if name not in SMALL and path.stat().st_size < structure(LAYOUT).file_bytes:
            with path.open("ab") as file:  # so that the offsets of the manifest lie inside the file
                file.truncate(structure(LAYOUT).file_bytes)
        secrets[name] = _lay_secret(path.parent)
        write_matching_manifest(folder / name, offsets_of(path) if "itself" in name or name.startswith("another") else None)
        for secret in secrets[name]:
            os.utime(secret, (0, 1))
    *said, peak = in_a_child(__name__, "open_stores", str(folder))
    found = {one["store"]: one for one in said}
    for name, files in secrets.items():
        found[name] |= {**peak, "read": [file.name for file in files if file.stat().st_atime != 0]}
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_outside_it_is_read(answers: dict[str, dict[str, Any]], name: str) -> None:
    answer = answers[name]
    assert answer["said"] is not None, "it was read"
    assert not answer["leaked"]
    assert f"{name}/clip/" in answer["said"]
    with pytest.raises(InputError, match=HOSTILE[name][1]):
        raise InputError(got=answer["said"], expected="", do="")
    assert CRASHED not in answer["said"], "HDF5 took too long for it"
    assert answer["peak_bytes"] < GIB
    assert not answer["read"]


def test_the_file_system_records_when_a_file_is_read(tmp_path: Path) -> None:
    secret, _ = _lay_secret(tmp_path)
    secret.read_bytes()
    if secret.stat().st_atime == 0:
        pytest.skip("this file system does not note when a file is read")


def test_a_pipe_in_place_of_a_shard_is_refused_without_blocking(tmp_path: Path) -> None:
    path = shard_of(tmp_path / "pipe")
    create_shard(path, LAYOUT)
    write_matching_manifest(tmp_path / "pipe")
    path.unlink()
    os.mkfifo(path)
    answer, _ = in_a_child(__name__, "open_stores", str(tmp_path), timeout_s=20)
    assert path.name in answer["said"]


def _called(what: str) -> Callable[[dict[str, Any]], object]:
    def change(value: dict[str, Any]) -> None:
        offsets = value["shards"]["0"]["offsets"]
        offsets[what] = offsets.pop("tokens")
        value["what"] = what

    return change


MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    **{f"rows called {what!r}": _called(what) for what in ("a/b", "", "/", ".", "..", "flags", "row_hash", "\ud800", "a\0b", "x" * 70_000)},
    "more dimensions than HDF5 has": lambda value: value.update(row_shape=[1] * 40),
    "rows beyond 64 bits": lambda value: value.update(rows=10**18, shard_rows=10**18),
    "a row beyond 64 bits": lambda value: value.update(row_shape=[10**30]),
    "sizes that are texts": lambda value: value.update(row_shape="abc"),
    "rows that are a list": lambda value: value.update(rows=[5]),
    "a size that is a text": lambda value: value["shards"]["0"].update(bytes="1"),
    "a size beyond 64 bits": lambda value: value["shards"]["0"].update(bytes=10**40),
    "offsets that are a list": lambda value: value["shards"]["0"].update(offsets=[0, 0, 0]),
    "flags that are a list": lambda value: value["shards"]["0"].update(flagged=[1]),
    "flags of rows that are not there": lambda value: value["shards"]["0"].update(flagged={"5": "why"}),
    "another shard's file": lambda value: value["shards"]["0"].update(file="../../secret"),
    "a shard that is no number": lambda value: value["shards"].update(x=value["shards"].pop("0")),
    "a shard before the first": lambda value: value["shards"].update({"-1": value["shards"].pop("0")}),
    "a fingerprint that is a list": lambda value: value.update(fingerprint=[]),
    "shards that are null": lambda value: value.update(shards=None),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_hostile_manifest_beside_a_good_shard_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    create_shard(shard_of(tmp_path), LAYOUT)
    write_matching_manifest(tmp_path)
    rewrite_manifest(tmp_path / SPEC.name / MANIFEST, change)
    with pytest.raises(InputError, match=f"{tmp_path}/clip"):
        ColumnReader(tmp_path, "clip")


@pytest.mark.parametrize("how", [{}, {"libver": "latest"}, {"libver": ("v108", "v108")}, {"userblock_size": 1024}], ids=str)
def test_a_plain_shard_that_another_version_of_hdf5_wrote_is_read(tmp_path: Path, how: dict[str, Any]) -> None:
    path, values = shard_of(tmp_path), np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float16)
    with h5py.File(path, "w", **how) as file:
        plain(file)
        file["tokens"][:] = values
        file.attrs["made_by"] = "somebody else"
    offsets = offsets_of(path)
    assert offsets != structure(LAYOUT).offsets
    write_matching_manifest(tmp_path, offsets)
    np.testing.assert_array_equal(ColumnReader(tmp_path, "clip").gather(range(5)), values)
    np.testing.assert_array_equal(ColumnReader(tmp_path, "clip", check_content=False).gather([4]), values[[4]])


def test_our_own_shard_is_checked_without_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_shard(shard_of(tmp_path), LAYOUT)
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(h5py, "File", None)
    assert structure_faults([place_of(shard_of(tmp_path))]) == {}


def test_each_of_several_files_gets_its_own_fault(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.h5" for n in range(3)]
    HOSTILE["soft link"][0](paths[0])
    with h5py.File(paths[1], "w") as file:
        plain(file)
    HOSTILE["a picture"][0](paths[2])
    faults = structure_faults([place_of(path, offsets_of(paths[1])) for path in paths])
    assert list(faults) == [paths[0], paths[2]]
    assert "also contains real" in faults[paths[0]]
    assert "signature" in faults[paths[2]]


@pytest.mark.parametrize("end", ["kill -SEGV $$", "exit 3", "exec sleep 60", "printf '\"half an ans'"])
def test_a_child_that_dies_or_hangs_gets_its_file_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    child = tmp_path / "python"
    # Reports the first of two files as plain; asked about the second alone, it answers nothing.
    child.write_text(f"#!/bin/sh\ncase $(cat) in *0.h5*) echo null;; esac\n{end}\n")
    child.chmod(0o755)
    paths = [tmp_path / f"{n}.h5" for n in range(2)]
    for path in paths:
        path.write_bytes(b"x" * 10_000)
    monkeypatch.setattr(sys, "executable", str(child))
    monkeypatch.setattr(foreign_files, "TIME_S", 0)
    monkeypatch.setattr(foreign_files, "START_S", 1)
    faults = structure_faults([place_of(path) for path in paths])
    assert paths[1] in faults
    assert "HDF5 cannot read it" in faults[paths[1]]
