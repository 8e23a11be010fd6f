"""A corpus takes little more memory than its file while it is read, and no Python object for each of its texts."""

import gc
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.scale.many_texts import write_texts
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus

ROWS = 6_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of 1.6 MB."""
    path = tmp_path_factory.mktemp("many") / "many.csv"
    write_texts(path, ROWS)
    return path


def _peak_bytes(run: Callable[[], object]) -> int:
    """Return the most bytes that Python and NumPy had allocated at once."""
    run()
    gc.collect()
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_reading_a_file_takes_less_than_twice_its_size(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small blocks, as those of a large file are.
    monkeypatch.setattr("lugpi_core.corpora.text_files._BLOCK_LETTERS", 1 << 14)
    monkeypatch.setattr("lugpi_core.corpora.delimited._ROWS_AT_ONCE", 64)
    assert _peak_bytes(lambda: load_corpus(many).fingerprint()) < 2 * many.stat().st_size


def test_a_corpus_has_no_object_for_each_text(many: Path) -> None:
    def objects() -> int:
        gc.collect()
        return sys.getallocatedblocks()  # of up to 512 bytes: strings, examples, the nodes of lists

    corpora: list[Corpus] = [load_corpus(many)]
    before = objects()
    corpora.append(load_corpus(many))
    assert objects() - before < ROWS // 10
