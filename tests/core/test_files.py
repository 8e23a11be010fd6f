"""Files and folders are whole or absent."""

import errno
import os
import platform
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lugpi_core import files
from lugpi_core.errors import InputError
from lugpi_core.files import (
    FOREIGN_ORPHAN_S,
    host_name,
    make_folder,
    open_file,
    read_at,
    read_json,
    sweep,
    whole_file,
    whole_folder,
    write_at,
    write_bytes,
    write_json,
    write_text,
)
from tests.support.checkout import ROOT


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_takes_its_place_at_the_end_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with whole_file(path) as partial:
        partial.write_text("new")
        assert partial.parent == path.parent, "a rename must stay within one file system"
        assert not path.exists()
    assert path.read_text() == "new"
    assert _names(path.parent) == ["a.txt"]


def test_a_failed_whole_file_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with whole_file(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


def test_a_whole_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, order = tmp_path / "a.txt", list[str]()
    monkeypatch.setattr(files, "sync_file", lambda synced: order.append(f"file, old there: {path.read_text()}"))
    monkeypatch.setattr(files, "sync_folder", lambda synced: order.append(f"{synced.name}, new there: {path.read_text()}"))
    path.write_text("old")
    write_text(path, "new")
    assert order == ["file, old there: old", f"{tmp_path.name}, new there: new"]


@pytest.mark.parametrize("operation", ["fsync", "replace", "pwrite"])
def test_a_failing_operation_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    write_text(tmp_path / "a.txt", "old")

    def failing(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, failing)
        with pytest.raises(OSError, match="Input/output error"):
            write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


def test_an_unfinished_file_is_hidden_and_names_its_writer(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.txt") as partial:
        assert partial.name.startswith(f".a.txt.{host_name()}-{os.getpid()}-")
        assert partial.name.endswith(".partial")
        with whole_file(tmp_path / "a.txt") as second:
            assert second != partial, "two of one process do not meet"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_whole_files_and_folders_have_ordinary_permissions(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a", "")
        with whole_folder(tmp_path / "b"):
            pass
        assert os.umask(umask) == umask, "the mask is put back"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o777 & ~umask


def test_a_whole_folder_replaces_the_old_content(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")
    with whole_folder(folder) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "new").write_text("new")
        assert _names(folder) == ["old"]
    assert _names(folder) == ["sub"]
    assert (folder / "sub" / "new").read_text() == "new"
    assert _names(tmp_path) == ["model"]


def test_every_file_of_a_whole_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(files, "sync_file", lambda path: synced.append(path.name))
    with whole_folder(tmp_path / "model") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "b").write_text("")
        (partial / "a").write_text("")
    assert synced == ["a", "b"]


def test_a_failed_whole_folder_keeps_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")

    def fail() -> None:
        with whole_folder(folder) as partial:
            (partial / "new").write_text("new")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert (_names(tmp_path), _names(folder)) == (["model"], ["old"])


def test_json_survives_the_round_trip_in_plain_utf8(tmp_path: Path) -> None:
    value = {"name": "Größe", "figures": [1, 0.1, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "Größe".encode() in (tmp_path / "a.json").read_bytes()
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_json_leave_the_old_file(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == 1


def test_a_missing_json_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*a\.json; .*run the command that writes it"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
def test_a_damaged_json_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json, which is not JSON .*; remove it"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"], ids=["nested too deep", "a number too long"])
def test_json_that_python_rejects_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.json, which is not JSON"):
        read_json(tmp_path / "a.json")


def test_make_folder_creates_parents_and_accepts_an_existing_one(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert make_folder(tmp_path / "a" / "b").is_dir()


def test_a_folder_below_a_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/below \(Not a directory\); expected a folder that can be written"):
        make_folder(tmp_path / "file" / "below")


def test_a_folder_without_permission_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(InputError, match="no permission"):
        make_folder(tmp_path)


@pytest.fixture(params=[1, 7, 1 << 20], ids="{} bytes at a time".format)
def at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Limit how many bytes a system call transfers."""
    pwrite, pread, most = os.pwrite, os.pread, int(request.param)
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: pwrite(descriptor, data[:most], offset))
    monkeypatch.setattr(os, "pread", lambda descriptor, count, offset: pread(descriptor, min(count, most), offset))
    return most


@pytest.mark.usefixtures("at_a_time")
def test_short_reads_and_writes_transfer_all_data(tmp_path: Path) -> None:
    values = np.arange(60, dtype="<f4").reshape(3, 20)
    with open_file(tmp_path / "a", os.O_CREAT | os.O_RDWR) as descriptor:
        write_at(descriptor, values, 5)
        write_at(descriptor, b"head", 0)
        assert read_at(descriptor, 240, 5) == values.tobytes()
        assert read_at(descriptor, 1000, 241) == values.tobytes()[236:], "fewer where the file ends"
        assert read_at(descriptor, 10, 5000) == b""
    assert (tmp_path / "a").read_bytes() == b"head\0" + values.tobytes()


@pytest.mark.parametrize("nothing", [b"", bytearray(), np.zeros((0, 3), np.float16)], ids=["bytes", "bytearray", "array"])
def test_nothing_is_written_as_nothing(tmp_path: Path, nothing: Any) -> None:
    with open_file(tmp_path / "a", os.O_CREAT | os.O_RDWR) as descriptor:
        write_at(descriptor, nothing, 100)
        assert os.fstat(descriptor).st_size == 0
        assert read_at(descriptor, 0, 0) == b""
    write_bytes(tmp_path / "b", b"")
    assert (tmp_path / "b").read_bytes() == b""


def test_an_opened_file_is_closed_at_the_end_whatever_happens(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    opened: list[int] = []

    def interrupted() -> None:
        with open_file(tmp_path / "a", os.O_RDONLY) as descriptor:
            opened.append(descriptor)
            assert not os.get_inheritable(descriptor)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_the_name_of_this_machine_is_the_same_in_all_its_processes() -> None:
    assert files.host_name() == host_name()
    assert len(host_name()) == 8
    code = "from lugpi_core.files import host_name; print(host_name())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == host_name()


@pytest.fixture
def fresh_name() -> Iterator[None]:
    """Clear the cached name of the machine before and after the test."""
    host_name.cache_clear()
    yield
    host_name.cache_clear()


@pytest.mark.usefixtures("fresh_name")
@pytest.mark.parametrize("part", ["node", "container", "start"])
def test_another_machine_container_or_boot_has_another_name(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    own = host_name()
    host_name.cache_clear()
    read_text = Path.read_text
    if part == "node":
        monkeypatch.setattr(platform, "node", lambda: "another")
    elif part == "container":
        monkeypatch.setattr(os, "readlink", lambda path: "pid:[1]")
    else:
        monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: "another" if "boot_id" in path.name else read_text(path, *a, **k))
    assert host_name() != own


def _dead() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    return child.pid


def _left(folder: Path, owner: str, age_s: float = 0.0, *, is_folder: bool = False) -> Path:
    path = folder / f".a.txt.{owner}-0123abcd.partial"
    if is_folder:
        (path / "sub").mkdir(parents=True)
        (path / "sub" / "b").write_text("half")
    else:
        path.write_text("half")
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
def test_a_dead_processs_files_are_swept_at_once(tmp_path: Path, is_folder: bool) -> None:
    left = _left(tmp_path, f"{host_name()}-{_dead()}", is_folder=is_folder)
    assert sweep(tmp_path) == [left]
    assert _names(tmp_path) == []
    assert sweep(tmp_path) == []


def test_a_killed_processs_partial_file_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from lugpi_core.files import whole_file, whole_folder\n"
        "with whole_folder(Path(sys.argv[1]) / 'b') as b, whole_file(Path(sys.argv[1]) / 'a') as a:\n"
        "    (b / 'c').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert len(_names(tmp_path)) == 2
    assert len(sweep(tmp_path)) == 2
    assert _names(tmp_path) == []


def test_a_running_processs_files_are_kept_however_old(tmp_path: Path) -> None:
    left = [_left(tmp_path, f"{host_name()}-{pid}", 10 * FOREIGN_ORPHAN_S) for pid in (os.getpid(), os.getppid())]
    assert sweep(tmp_path) == []
    assert all(path.exists() for path in left)


def test_a_process_of_another_user_counts_as_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    _left(tmp_path, f"{host_name()}-{_dead()}")
    monkeypatch.setattr(os, "kill", refused)
    assert sweep(tmp_path) == []


def test_an_impossible_process_number_counts_as_dead(tmp_path: Path) -> None:
    left = _left(tmp_path, f"{host_name()}-{1 << 70}")
    assert sweep(tmp_path) == [left]


@pytest.mark.parametrize("owner", ["feedbeef-1", "feedbeef-{ours}", "nobody"])
@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
def test_another_machines_files_are_kept_for_a_day(tmp_path: Path, owner: str, is_folder: bool) -> None:
    left = _left(tmp_path, owner.format(ours=os.getpid()), FOREIGN_ORPHAN_S - 60, is_folder=is_folder)
    assert sweep(tmp_path) == []
    os.utime(left, (time.time() - FOREIGN_ORPHAN_S - 60,) * 2)
    assert sweep(tmp_path) == [left]
    assert _names(tmp_path) == []


def test_another_machines_files_are_kept_however_wrong_the_clock_of_this_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, now_s = _left(tmp_path, "feedbeef-1", 0), time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 2 * FOREIGN_ORPHAN_S)
    assert sweep(tmp_path) == []
    assert _names(tmp_path) == [left.name]


@pytest.mark.parametrize(
    "name", ["shard-00000.h5.partial", ".shard-00000.h5.lease", ".lock", "a.txt", ".partial-notes", "manifest.damaged"]
)
def test_other_names_are_no_orphans(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    os.utime(tmp_path / name, (0, 0))
    assert sweep(tmp_path) == []
    assert (tmp_path / name).exists()


def test_a_concurrent_sweep_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, look = _left(tmp_path, "feedbeef-1", 2 * FOREIGN_ORPHAN_S), os.stat

    def looked_at_and_gone(path: Any, *arguments: Any, **named: Any) -> os.stat_result:
        found = look(path, *arguments, **named)
        if Path(path) == left:
            os.unlink(left)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", looked_at_and_gone)
        sweep(tmp_path)
    assert _names(tmp_path) == []


def test_a_folder_that_is_not_there_has_no_orphans(tmp_path: Path) -> None:
    assert sweep(tmp_path / "none") == []
