"""The lease on a shard: one owner at a time, free when its owner dies, lost if an owner on another machine is silent for long."""

import errno
import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lugpi_core.errors import InputError
from lugpi_core.files import host_name
from lugpi_core.store import lease as lease_module
from lugpi_core.store.lease import BEAT_S, STALE_S, Lease, ShardBusy, has_locks, locked, take_lease
from tests.support.checkout import ROOT

NAME = ".shard-00000.h5.lease"
ROUNDS = 20

OWNER = """
import sys, time
from pathlib import Path
from lugpi_core.store.lease import locked, take_lease
folder = Path(sys.argv[1])
with locked(folder) as lock:
    lease = take_lease(folder / sys.argv[2], lock)
print("taken", flush=True)
time.sleep(60)
"""


def _take(folder: Path) -> Lease:
    with locked(folder) as lock:
        return take_lease(folder / NAME, lock)


def _elsewhere(folder: Path, age_s: float, machine: str = "feedbeef") -> Path:
    """Write the lease of a process on another machine that last touched it ``age_s`` ago."""
    path = folder / NAME
    path.write_text(json.dumps({"machine": machine, "host": "node7", "pid": 4711, "since": "2026-01-01T00:00:00Z"}))
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


def _later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + seconds)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_lease_names_its_owner_until_it_is_released(tmp_path: Path) -> None:
    lease = _take(tmp_path)
    owner = json.loads((tmp_path / NAME).read_text())
    assert (owner["machine"], owner["host"], owner["pid"]) == (host_name(), os.uname().nodename, os.getpid())
    lease.still_ours()
    lease.release()
    assert not (tmp_path / NAME).exists()
    lease.release()  # a second time does nothing
    _take(tmp_path).release()


def test_a_second_owner_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    lease, content = _take(tmp_path), (tmp_path / NAME).read_bytes()
    before = _open_files()
    with pytest.raises(
        ShardBusy, match=rf"{NAME[1:-6]}, which process {os.getpid()} on .* is writing; expected one writer per shard"
    ) as raised:
        _take(tmp_path)
    assert raised.value.owner == f"process {os.getpid()} on {os.uname().nodename}"
    assert isinstance(raised.value, InputError)
    assert _open_files() == before
    assert (tmp_path / NAME).read_bytes() == content
    lease.still_ours()
    lease.release()


def test_leases_on_two_shards_do_not_touch_each_other(tmp_path: Path) -> None:
    with locked(tmp_path) as lock:
        leases = [take_lease(tmp_path / f".shard-0000{shard}.h5.lease", lock) for shard in range(2)]
    leases[0].release()
    leases[1].still_ours()
    leases[1].release()


def test_a_killed_owners_lease_is_free_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path), NAME]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "taken\n"
        with pytest.raises(ShardBusy, match=f"process {owner.pid} on "):
            _take(tmp_path)
        owner.kill()
        owner.wait()
    assert (tmp_path / NAME).exists(), "nobody was left to remove it"
    lease = _take(tmp_path)
    lease.still_ours()
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    lease.release()


@pytest.mark.parametrize("age_s", [-3600.0, 0.0, STALE_S - 5])
def test_an_owner_on_another_machine_is_respected_while_it_beats(tmp_path: Path, age_s: float) -> None:
    content = _elsewhere(tmp_path, age_s).read_bytes()
    before = _open_files()
    with pytest.raises(ShardBusy, match="process 4711 on node7"):
        _take(tmp_path)
    assert (tmp_path / NAME).read_bytes() == content
    assert _open_files() == before


def test_a_refused_request_does_not_refresh_the_lease(tmp_path: Path) -> None:
    _elsewhere(tmp_path, STALE_S / 2)
    touched = (tmp_path / NAME).stat().st_mtime_ns
    with pytest.raises(ShardBusy):
        _take(tmp_path)
    assert (tmp_path / NAME).stat().st_mtime_ns == touched


def test_a_long_silent_owner_on_another_machine_loses_its_lease(tmp_path: Path) -> None:
    _elsewhere(tmp_path, STALE_S + 5)
    (tmp_path / ".lock").touch()
    os.utime(tmp_path / ".lock", (0, 0))  # and no request for a long time
    lease = _take(tmp_path)
    lease.still_ours()
    assert json.loads((tmp_path / NAME).read_text())["machine"] == host_name()
    lease.release()


@pytest.mark.parametrize("is_touched", [True, False])
def test_a_touch_in_the_future_keeps_out_others_no_longer_than_one_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_touched: bool
) -> None:
    seen: dict[Path, tuple[int, float]] = {}

    def take() -> Lease:
        with locked(tmp_path) as lock:
            return take_lease(tmp_path / NAME, lock, seen)

    _elsewhere(tmp_path, -3600.0)  # the file system's clock has been set back since
    with pytest.raises(ShardBusy):
        take()
    _later(monkeypatch, STALE_S + 5)
    if is_touched:
        _elsewhere(tmp_path, -3500.0)
        with pytest.raises(ShardBusy):
            take()
    else:
        take().release()


def test_a_leases_age_is_measured_by_the_file_systems_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _elsewhere(tmp_path, 0)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(ShardBusy):
        _take(tmp_path)


def test_a_locked_lease_is_respected_however_old_it_is(tmp_path: Path) -> None:
    path = _elsewhere(tmp_path, 10 * STALE_S)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # a file system that shares locks between machines
        with pytest.raises(ShardBusy, match="process 4711 on node7"):
            _take(tmp_path)


def test_a_dead_processs_lease_is_free_however_fresh(tmp_path: Path) -> None:
    _elsewhere(tmp_path, 0, machine=host_name())
    _take(tmp_path).release()
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe\x00", b"[]", b"3", b'{"machine": "fe', b"[" * 4096, b"9" * 4096])
def test_an_empty_or_garbled_lease_is_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    lease = _take(tmp_path)
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid(), "nothing of the garbage is left"
    lease.still_ours()
    lease.release()


def test_a_replaced_lease_belongs_to_its_new_owner(tmp_path: Path) -> None:
    lease = _take(tmp_path)
    (tmp_path / "new").write_text("another's")
    (tmp_path / "new").replace(tmp_path / NAME)
    with pytest.raises(ShardBusy, match="another command, after this one was suspended, is writing"):
        lease.still_ours()
    lease.release()
    assert (tmp_path / NAME).read_text() == "another's"


def test_a_removed_lease_is_lost(tmp_path: Path) -> None:
    lease = _take(tmp_path)
    (tmp_path / NAME).unlink()
    with pytest.raises(ShardBusy):
        lease.still_ours()
    lease.release()


def _still_ours(lease: Lease) -> bool:
    try:
        lease.still_ours()
    except ShardBusy:
        return False
    return True


def test_a_lease_that_another_machine_took_over_stays_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file system that does not share locks; this process is suspended for longer than STALE_S, then resumed.
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, kind: None)
    monkeypatch.setattr(lease_module, "BEAT_S", 0.01)
    touch = os.utime

    def halted(*arguments: Any, **named: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        touch(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", halted)
        ours = _take(tmp_path)
        touch(tmp_path / NAME, (time.time() - STALE_S - 5,) * 2)
        patch.setattr(lease_module, "host_name", lambda: "feedbeef")
        theirs = _take(tmp_path)
    end = time.monotonic() + 3
    while _still_ours(ours):
        assert time.monotonic() < end, "both take themselves for the owner"
        time.sleep(0.01)
    ours.release()
    assert _still_ours(theirs)
    theirs.release()
    assert not (tmp_path / NAME).exists()


def test_losing_a_lease_does_not_remove_the_new_one(tmp_path: Path) -> None:
    lease = _take(tmp_path)
    content = _elsewhere(tmp_path, 0).read_bytes()  # written into the same file
    lease.release()
    assert (tmp_path / NAME).read_bytes() == content


@pytest.mark.parametrize("taken", [False, True], ids=["nobody came", "another came"])
def test_after_a_suspension_the_file_says_who_owns_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    lease = _take(tmp_path)
    if taken:
        _elsewhere(tmp_path, 0)
    with monkeypatch.context() as patch:
        _later(patch, STALE_S / 2 + 1)
        assert _still_ours(lease) == (not taken)
    lease.release()


@pytest.mark.parametrize("taken", [False, True], ids=["nobody came", "another came"])
def test_a_commit_checks_the_file_however_fresh_the_lease_is(tmp_path: Path, taken: bool) -> None:
    lease = _take(tmp_path)
    if taken:
        _elsewhere(tmp_path, 0)
        with locked(tmp_path), pytest.raises(ShardBusy, match="another command, after this one was suspended"):
            lease.confirm()
    else:
        os.utime(tmp_path / NAME, (0, 0))
        with locked(tmp_path):
            lease.confirm()
        assert (tmp_path / NAME).stat().st_mtime > 1, "and is touched, so that nobody takes it in the next moment"
    lease.release()


def _wait_for_beat(path: Path, timeout_s: float = 5.0) -> bool:
    """Set the lease back to 1970 and return whether it is touched again."""
    os.utime(path, (0, 0))
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if path.stat().st_mtime > 1:
            return True
        time.sleep(0.005)
    return False


def test_the_beat_is_frequent_enough_to_miss_several() -> None:
    assert BEAT_S * 5 <= STALE_S / 2


def test_the_owner_touches_its_lease_until_it_releases_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "BEAT_S", 0.01)
    lease = _take(tmp_path)
    assert _wait_for_beat(tmp_path / NAME)
    assert _wait_for_beat(tmp_path / NAME), "more than once"
    os.link(tmp_path / NAME, tmp_path / "kept")
    lease.release()
    assert not _wait_for_beat(tmp_path / "kept", timeout_s=0.1)


def test_one_missed_beat_is_tolerated_but_not_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "BEAT_S", 0.01)
    lease, missed = _take(tmp_path), list[int]()

    def failing(*arguments: Any, **named: Any) -> None:
        missed.append(1)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", failing)
        while len(missed) < 3:
            time.sleep(0.005)
        lease.still_ours()
        _later(patch, STALE_S / 2 + 1)
        with pytest.raises(OSError, match="Input/output error"):
            lease.still_ours()
    assert _wait_for_beat(tmp_path / NAME), "the heart beats on"
    lease.still_ours()
    lease.release()


def _race(folder: Path, name: str, barrier: Any) -> None:
    wins = []
    for number in range(ROUNDS):
        barrier.wait(60)
        try:
            lease = _take(folder)
            wins.append(number)
        except ShardBusy:
            lease = None
        barrier.wait(60)
        if lease is not None:
            lease.still_ours()
            lease.release()
        barrier.wait(60)
    (folder / name).write_text(json.dumps(wins))


def test_exactly_one_of_two_racing_processes_gets_the_lease(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    racers = [context.Process(target=_race, args=(tmp_path, name, barrier)) for name in ("a", "b")]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0, 0]
    wins = [json.loads((tmp_path / name).read_text()) for name in ("a", "b")]
    assert sorted(wins[0] + wins[1]) == list(range(ROUNDS))
    assert not (tmp_path / NAME).exists()


def _no_locks(descriptor: int, kind: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize(("flock", "expected"), [(fcntl.flock, True), (_no_locks, False), (lambda descriptor, kind: None, False)])
def test_a_file_system_has_locks_if_one_keeps_out_another_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: Any, expected: bool
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    assert has_locks(tmp_path) is expected
    with locked(tmp_path):
        pass


def test_an_error_inside_the_lock_is_not_mistaken_for_a_lock_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full") as raised, locked(tmp_path):
        raise OSError(errno.ENOSPC, "full")
    assert not isinstance(raised.value, InputError)
    with locked(tmp_path):
        pass
