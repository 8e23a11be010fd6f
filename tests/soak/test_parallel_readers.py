"""One reader, made once, read by forked and spawned processes and by threads: each gets every row right."""

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
WANTED = [expected(spec, range(SMALL.rows)) for spec in SMALL.specs]
# A fork of a process with threads may be warned of; the threads here hold nothing.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("read")
    fill_store(folder / "tokens", SMALL, Log(folder / "log"))
    return folder / "tokens"


@pytest.fixture
def readers(store: Path) -> list[ColumnReader]:
    """Readers that have read already, so that their maps are open when the others begin."""
    readers = [ColumnReader(store, spec.name) for spec in SMALL.specs]
    assert wrong_rows(readers, WANTED, 0, 1) == 0
    return readers


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_share_a_reader_read_every_row_right(
    readers: list[ColumnReader], tmp_path: Path, method: str, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    workers, epochs = campaign(4 if method == "fork" else 2, 8), campaign(2 if method == "fork" else 1, 3)
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=wrong_rows, args=(readers, WANTED, seed, epochs, tmp_path)) for seed in range(workers)]
    for process in processes:
        process.start()
    assert wrong_rows(readers, WANTED, 99, epochs) == 0  # and so does the one that made it, meanwhile
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * workers
    assert [json.loads((tmp_path / f"{seed}.json").read_text()) for seed in range(workers)] == [0] * workers
    report(f"{workers} readers by {method}: {workers * epochs * SMALL.rows * 2} rows read, wrong 0")


def test_threads_that_share_a_reader_read_every_row_right(
    store: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    # A reader that has not read yet, so that the threads meet at its first row; and turns as short as the interpreter gives.
    readers = [ColumnReader(store, spec.name) for spec in SMALL.specs]
    workers, epochs, interval_s = campaign(4, 8), campaign(2, 3), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(workers) as pool:
            wrong = list(pool.map(lambda seed: wrong_rows(readers, WANTED, seed, epochs), range(workers)))
    finally:
        sys.setswitchinterval(interval_s)
    assert wrong == [0] * workers
    report(f"{workers} readers by threads: {workers * epochs * SMALL.rows * 2} rows read, wrong 0")
