"""The reader and the writer on docs/store.md agree with lugpi's own, and the reader detects every change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.store.token_files import COLUMN, fill_store, random_tokens
from lugpi_core.store.layout import SCALE
from lugpi_core.store.manifest import ColumnSpec
from lugpi_core.store.quantize import quantize
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.verify import check_column
from lugpi_core.store.writer import ColumnWriter
from tests.support.pages import code_of
from tests.support.shards import shard_file

ROWS, SHARD_ROWS, ROW_SHAPE = 40, 16, (5, 8)
Read = Callable[[Path, str], Any]


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the two programs on the page define, without their last lines, which run them."""
    names: dict[str, Any] = {}
    for code in code_of("docs/store.md"):
        if code.is_python:
            call = "\n\n\ntokens = read_column(" if "def read_shard" in code.text else "\n\n\nwrite_column("
            program, call, _ = code.text.partition(call)
            assert call
            exec(compile(program, "docs/store.md", "exec"), names)
    return names


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of one column in three shards."""
    fill_store(tmp_path / "tokens", random_tokens(ROWS, ROW_SHAPE), shard_rows=SHARD_ROWS, merged=True)
    return tmp_path / "tokens"


def test_the_reader_reads_what_lugpi_wrote(page: dict[str, Any], store: Path) -> None:
    assert np.array_equal(page["read_column"](store, COLUMN), random_tokens(ROWS, ROW_SHAPE))


def test_the_reader_dequantizes_int8_as_lugpi_does(page: dict[str, Any], tmp_path: Path) -> None:
    values, scales = quantize(torch.from_numpy(np.array(random_tokens(ROWS, ROW_SHAPE))))
    settings: dict[str, Any] = {"what": "tokens", "rows": ROWS, "row_shape": ROW_SHAPE, "shard_rows": SHARD_ROWS, "fingerprint": {"a": 1}}
    spec = ColumnSpec(name="eight", dtype="int8", **settings)
    writer = ColumnWriter(tmp_path, spec)
    for shard in range(spec.shards):
        file, layout = writer.claim(shard), spec.layout(shard)
        assert file is not None
        assert SCALE in layout.datasets
        part = slice(layout.first_row, layout.first_row + layout.rows)
        file.write(0, values[part].numpy(), np.zeros(layout.rows, np.uint8), scales[part].numpy())
        writer.commit(shard, file)
    assert writer.finish()
    assert np.array_equal(page["read_column"](tmp_path, "eight"), ColumnReader(tmp_path, "eight").gather(range(ROWS)))


def test_the_reader_detects_a_flipped_bit(page: dict[str, Any], store: Path) -> None:
    shard = shard_file(store / COLUMN, 1)
    whole, places = shard.read_bytes(), np.random.default_rng(0)
    for place in places.integers(len(whole), size=50).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(places.integers(8))
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match="content is not as recorded"):
            page["read_column"](store, COLUMN)


def _rewrite_manifest(page: dict[str, Any], store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = store / COLUMN / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["xxh3_128"]
    change(manifest)
    path.write_text(json.dumps({**manifest, "xxh3_128": page["digest"](manifest)}))


def test_the_reader_detects_a_row_changed_with_its_record(page: dict[str, Any], store: Path) -> None:
    shard = shard_file(store / COLUMN, 1)

    def change(manifest: dict[str, Any]) -> None:
        record = manifest["shards"]["1"]
        data = bytearray(shard.read_bytes())
        data[record["offsets"]["tokens"] + 3 * 2 * 5 * 8] ^= 1
        shard.write_bytes(data)
        record["xxh3_128"] = page["xxhash"].xxh3_128_hexdigest(data)
        del record["sha256"]

    _rewrite_manifest(page, store, change)
    with pytest.raises(ValueError, match="row 3 does not hold"):
        page["read_column"](store, COLUMN)


def test_the_reader_detects_another_fingerprint_and_a_missing_shard(page: dict[str, Any], store: Path) -> None:
    path = store / COLUMN / "manifest.json"
    whole = path.read_text()
    _rewrite_manifest(page, store, lambda manifest: manifest["fingerprint"].update(made="otherwise"))
    with pytest.raises(ValueError, match="another fingerprint"):
        page["read_column"](store, COLUMN)
    path.write_text(whole)
    _rewrite_manifest(page, store, lambda manifest: manifest["shards"].pop("2"))
    with pytest.raises(ValueError, match="not complete"):
        page["read_column"](store, COLUMN)
    path.write_text(whole.replace('"rows": 40', '"rows": 41'))
    with pytest.raises(ValueError, match="or changed"):
        page["read_column"](store, COLUMN)


def test_lugpi_reads_what_the_writer_wrote(page: dict[str, Any], store: Path) -> None:
    tokens = random_tokens(ROWS, ROW_SHAPE)[::-1]
    page["write_column"](store, "mine", tokens, {"made": "by hand"}, SHARD_ROWS)
    assert np.array_equal(ColumnReader(store, "mine").gather(range(ROWS)), tokens)
    assert check_column(store / "mine", deep=True) == []
    assert np.array_equal(page["read_column"](store, "mine"), tokens)
