"""Manifest work in its short form: every record is read and merged, and a second merge reads nothing new."""

from pathlib import Path

from benchmarks.store.manifest_work import COLUMN, write_records
from lugpi_core.store.manifest import load_manifest, merge_records, read_manifest
from lugpi_core.store.store_progress import store_progress


def test_records_of_many_shards_are_read_and_merged(tmp_path: Path) -> None:
    write_records(tmp_path, 300)
    assert read_manifest(tmp_path / COLUMN)[1] == {}
    records = load_manifest(tmp_path / COLUMN)[1]
    assert list(records) == list(range(300))
    assert merge_records(tmp_path / COLUMN) == 300
    assert read_manifest(tmp_path / COLUMN)[1] == records
    progress = store_progress(tmp_path)
    assert progress is not None
    assert (progress.shards, progress.missing, progress.seconds) == (300, (), 700.0)
