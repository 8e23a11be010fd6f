"""Several commands fill one store at once and one is killed: the content is that of one writer, and others take over its shard."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lugpi_core.errors import InputError
from lugpi_core.store.lease import STALE_S
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.writer import ColumnWriter
from tests.soak.worker import MOST_IN_FLIGHT, Small, open_writers
from tests.support.checkout import ROOT


def test_several_writers_take_over_the_shard_of_a_killed_one(
    tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    soak = campaign(0, 1)
    kinds = [(writers, locking) for writers in (2, 3, 4) for locking in ("TRUE", "FALSE")] if soak else [(2, "FALSE"), (4, "TRUE")]
    races = {}
    for writers, locking in kinds:
        folder = tmp_path / f"{writers}-{locking}"
        folder.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HDF5_USE_FILE_LOCKING": locking}
        command = [sys.executable, "-m", "tests.soak.race", str(folder), str(writers), str(campaign(1, 8))]
        races[writers, locking] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        if soak:  # one after the other, to measure the takeover
            races[writers, locking].wait(timeout=600)
    for (writers, locking), child in races.items():
        output, _ = child.communicate(timeout=240)
        assert child.returncode == 0
        figures = json.loads(output)
        assert max(figures["redone"]) <= MOST_IN_FLIGHT  # the blocks that the killed one had in flight
        assert max(figures["takeover_s"]) < STALE_S  # no writer waited for the lease to expire
        assert max(figures["working"]) >= 2
        report(
            f"{writers} writers, HDF5_USE_FILE_LOCKING={locking}: {figures['rounds']} races with one killed, blocks redone "
            f"{sum(figures['redone'])}, its shard taken over after at most {max(figures['takeover_s'])} s"
        )


def test_of_two_commands_with_different_settings_one_fills_the_column(tmp_path: Path) -> None:
    spec = Small().specs[1]
    first = ColumnWriter(tmp_path, spec)
    second = ColumnWriter(tmp_path, replace(spec, fingerprint={"seed": 2}))
    claimed = second.claim(0)
    with pytest.raises(InputError, match="seed"):
        first.claim(1)
    assert claimed is not None
    claimed.close()
    assert load_manifest(tmp_path / spec.name)[0].fingerprint == {"seed": 2}


def test_two_commands_with_the_same_settings_open_a_new_store_at_once(tmp_path: Path) -> None:
    first, second = open_writers(tmp_path, Small()), open_writers(tmp_path, Small())
    one, other = first["clip"].claim(0), second["clip"].claim(1)
    assert one is not None
    assert other is not None
    one.close()
    other.close()
