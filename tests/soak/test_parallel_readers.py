"""One reader shared by forked processes, spawned processes and threads: each reads every row correctly."""

import json
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lugpi_core.store.reader import ColumnReader
from tests.soak.reading import wrong_rows
from tests.soak.worker import Log, Small, expected, fill_store

SMALL = Small(rows=600, shard_rows=64, block=64)
EXPECTED = [expected(spec, range(SMALL.rows)) for spec in SMALL.specs]
# Python warns of a fork with several threads; the threads here hold no lock.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("read")
    fill_store(folder / "tokens", SMALL, Log(folder / "log"))
    return folder / "tokens"


@pytest.fixture
def readers(store: Path) -> list[ColumnReader]:
    """Readers that have read once, so that their maps are open before the processes start."""
    readers = [ColumnReader(store, spec.name) for spec in SMALL.specs]
    assert wrong_rows(readers, EXPECTED, 0, 1) == 0
    return readers


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_share_a_reader_read_every_row_correctly(
    readers: list[ColumnReader], tmp_path: Path, method: str, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    workers, epochs = campaign(4 if method == "fork" else 2, 8), campaign(2 if method == "fork" else 1, 3)
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=wrong_rows, args=(readers, EXPECTED, seed, epochs, tmp_path)) for seed in range(workers)]
    for process in processes:
        process.start()
    assert wrong_rows(readers, EXPECTED, 99, epochs) == 0  # in the parent, at the same time
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * workers
    assert [json.loads((tmp_path / f"{seed}.json").read_text()) for seed in range(workers)] == [0] * workers
    report(f"{workers} readers by {method}: {workers * epochs * SMALL.rows * 2} rows read, wrong 0")


def test_threads_that_share_a_reader_read_every_row_correctly(
    store: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    # A reader that has not read yet, so that the threads meet at its first row, and the shortest possible thread switches.
    readers = [ColumnReader(store, spec.name) for spec in SMALL.specs]
    workers, epochs, interval_s = campaign(4, 8), campaign(2, 3), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(workers) as pool:
            wrong = list(pool.map(lambda seed: wrong_rows(readers, EXPECTED, seed, epochs), range(workers)))
    finally:
        sys.setswitchinterval(interval_s)
    assert wrong == [0] * workers
    report(f"{workers} readers by threads: {workers * epochs * SMALL.rows * 2} rows read, wrong 0")
