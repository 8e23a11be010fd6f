"""A run with made-up models of a corpus whose words would break a careless page."""

from pathlib import Path

import pytest

from tests.support.small_report import corpus_of, hostile_csv, write_run


@pytest.fixture
def corpus_csv(tmp_path: Path) -> Path:
    return hostile_csv(tmp_path)


@pytest.fixture
def run(tmp_path: Path, corpus_csv: Path) -> Path:
    write_run(tmp_path / "run", corpus_of(corpus_csv))
    return tmp_path / "run"
