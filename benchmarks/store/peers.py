"""Random batches of tokens from the store beside the formats that others keep arrays in: rows/s, warm and cold, and bytes on disk.

A format whose package is not installed (the extra ``peers``) is named in the table as not measured. webdataset has no random access: its
shards are read as they are made to be, in order, through a shuffle buffer.
"""

import importlib.metadata
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import finish, interleaved, medians, promise
from benchmarks.store.page_cache import cached_share, drop_pages
from benchmarks.store.store_reading import BATCH, Batches, pick, rates
from benchmarks.store.token_files import COLUMN, Tokens, fill_store, random_tokens
from lugpi_core.command_line import say
from lugpi_core.store.reader import ColumnReader

Batch = NDArray[np.float16]
# Yields each batch [b, *row_shape].
Read = Callable[[Batches], Iterator[Batch]]
OURS, AHEAD, MEMMAP = "ours", "ours, read ahead", "memmap"
# Tokens of a row, rows, batches with a cold cache.
B32 = ((50, 768), 8192, 32)
SMOKE = ((5, 8), 64, 2)
ROUNDS = 9
# Batches and rounds of warm reads. A round of two batches is shorter than the time that a busy system gives to another program; with 60
# of them the ratios within rounds told the other programs apart, not the formats.
QUICK, SLOW = (2, 299), (60, ROUNDS)
REQUIRED = 0.95
_GROUP_ROWS = 16  # rows of a row group of Parquet: fewer make its footer large, more are read for nothing
_SHUFFLED = 256  # rows in webdataset's shuffle buffer


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A format.

    Attributes:
        package: that reads it.
        write: writes tokens below a folder that exists.
        open: returns what reads batches from there.
        fewer: how many times fewer batches it reads, because they take so long.
    """

    package: str
    write: Callable[[Path, Tokens], None]
    open: Callable[[Path, "Shape"], Read]
    fewer: int = 1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """float16 [rows, *of_row]."""

    rows: int
    of_row: tuple[int, int]


def measure(*, smoke: bool, record: bool) -> dict[str, Any]:
    """Return rows/s, bytes on disk and ratios of every format that is installed. Writes 5 GB to the temporary folder."""
    of_row, rows, cold_batches = SMOKE if smoke else B32
    shape = Shape(rows=rows, of_row=of_row)
    missing = {
        name: peer.package for name, peer in PEERS.items() if importlib.util.find_spec(_MODULES.get(peer.package, peer.package)) is None
    }
    peers = {name: peer for name, peer in PEERS.items() if name not in missing}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = random_tokens(rows, of_row)
        for kind, peer in peers.items():
            (folder / kind).mkdir()
            peer.write(folder / kind, tokens)
            assert _is_right(peer.open(folder / kind, shape), tokens, kind), kind
        figures: dict[str, Any] = {
            "shape": [rows, *of_row],
            "batch": BATCH,
            "bytes_per_row": {kind: round(_bytes_below(folder / kind) / rows) for kind in peers},
            "hot": _hot(peers, folder, shape, smoke=smoke),
            "cold": _cold(peers, folder, shape, batches=cold_batches, rounds=1 if smoke else ROUNDS),
            "packages": {peer.package: importlib.metadata.version(peer.package) for peer in peers.values()},
            "not_measured": missing,
        }
        shutil.rmtree(folder, ignore_errors=True)
    figures["promises"] = promises(figures)
    say(table(figures))
    return finish("peers", figures, record=record)


def promises(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return whether the store is at 0.95 of memmap with a warm cache, and above every other format with either."""
    found = []
    for when in ("hot", "cold"):
        for name, ratio in figures[when]["ours_against"].items():
            if name in (OURS, AHEAD):
                continue
            least = REQUIRED if name == MEMMAP else 1.0
            found.append(promise(f"{when}: ours against {name}", ratio, at_least=least))
    return found


def table(figures: Mapping[str, Any]) -> str:
    """Return rows/s and bytes a row of each format as a Markdown table."""
    lines = ["| format | hot, rows/s | cold, rows/s | bytes a row |", "|---|---|---|---|"]
    for name, size in figures["bytes_per_row"].items():
        lines.append(f"| {name} | {figures['hot']['rows_per_s'][name]:,} | {figures['cold']['rows_per_s'][name]:,} | {size:,} |")
    lines += [f"| {name} | not measured: no package {package} | | |" for name, package in figures["not_measured"].items()]
    return "\n".join(lines)


def _hot(peers: Mapping[str, Peer], folder: Path, shape: Shape, *, smoke: bool) -> dict[str, Any]:
    """Three groups of rounds, each with ours: memmap, which is as quick, so that what another format leaves in the processor's cache
    favours neither; the quick formats; the slow ones. Also the rates of the fastest round of each format, which nothing else on the machine
    has slowed."""
    slow = {name for name, peer in peers.items() if peer.fewer > 1 or name == _STREAM}
    quick = peers.keys() - slow - {MEMMAP}
    figures: dict[str, Any] = {}
    for group, sizes in ((slow, SLOW), (quick, QUICK), ({MEMMAP}, QUICK)):
        found = _hot_rounds(
            {name: peer for name, peer in peers.items() if name in {OURS, *group}}, folder, shape, *((2, 1) if smoke else sizes)
        )
        figures = {what: figures.get(what, {}) | found[what] for what in found}
    return figures


def _hot_rounds(peers: Mapping[str, Peer], folder: Path, shape: Shape, batches: int, rounds: int) -> dict[str, Any]:
    picked = {name: pick(shape.rows, max(1, batches // peer.fewer)) for name, peer in peers.items()}
    opened = {name: peer.open(folder / name, shape) for name, peer in peers.items()}
    seconds = interleaved({name: partial(_all_of, read, picked[name]) for name, read in opened.items()}, repeats=rounds)
    a_row = {name: [value / (BATCH * len(picked[name])) for value in values] for name, values in seconds.items()}
    fastest = {name: min(values) for name, values in a_row.items()}
    return rates(a_row, ours=OURS) | {
        "fastest_rows_per_s": {name: round(1 / value) for name, value in fastest.items()},
        "ours_against_in_fastest_rounds": {name: round(value / fastest[OURS], 3) for name, value in fastest.items() if name != OURS},
    }


def _cold(peers: Mapping[str, Peer], folder: Path, shape: Shape, *, batches: int, rounds: int) -> dict[str, Any]:
    """Opening is untimed, mapping and reading are timed."""
    picked = {name: pick(shape.rows, max(1, batches // peer.fewer)) for name, peer in peers.items()}
    opened: dict[str, Read] = {}
    cached: list[float] = []

    def open_cold(name: str) -> None:
        opened.clear()  # mapped pages cannot be dropped
        opened[name] = peers[name].open(folder / name, shape)
        paths = [path for path in (folder / name).rglob("*") if path.is_file() and path.stat().st_size]
        drop_pages(paths)
        cached.append(cached_share(paths))

    ways = {name: partial(_read_opened, opened, name, picked[name]) for name in peers}
    seconds = interleaved(ways, repeats=rounds, before=open_cold)
    figures = rates({name: [value / (BATCH * len(picked[name])) for value in values] for name, values in seconds.items()}, ours=AHEAD)
    return figures | {"cached_before_at_most": round(max(cached), 4), "seconds": medians(seconds)}


def _read_opened(opened: Mapping[str, Read], name: str, batches: Batches) -> None:
    _all_of(opened[name], batches)


def _all_of(read: Read, batches: Batches) -> None:
    for _ in read(batches):
        pass


def _is_right(read: Read, tokens: Tokens, name: str) -> bool:
    """Whether a format gives the rows that are asked for; of a stream, rows of the right shape."""
    batches = pick(len(tokens), 2)
    found = list(read(batches))
    if name == _STREAM:
        return all(batch.shape == (BATCH, *tokens.shape[1:]) for batch in found)
    return all(np.array_equal(batch.view(np.uint16), tokens[rows].view(np.uint16)) for batch, rows in zip(found, batches, strict=True))


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# Each format: how it is written and how it is read


def _write_ours(folder: Path, tokens: Tokens) -> None:
    fill_store(folder / "store", tokens, shard_rows=min(1024, len(tokens)))


def _open_ours(folder: Path, _: Shape) -> Read:
    reader = ColumnReader(folder / "store", COLUMN, check_content=False)
    return lambda batches: (reader.gather(rows) for rows in batches)


def _open_ahead(folder: Path, _: Shape) -> Read:
    return ColumnReader(folder / "store", COLUMN, check_content=False).batches


def _write_raw(folder: Path, tokens: Tokens) -> None:
    tokens.tofile(folder / "raw.bin")


def _open_raw(folder: Path, shape: Shape) -> Read:
    mapped = np.memmap(folder / "raw.bin", np.float16, "r", shape=(shape.rows, *shape.of_row))
    return lambda batches: (np.asarray(mapped[rows]) for rows in batches)


def _write_safetensors(folder: Path, tokens: Tokens) -> None:
    from safetensors.numpy import save_file

    save_file({"tokens": tokens}, folder / "tokens.safetensors")


def _open_safetensors_slices(folder: Path, shape: Shape) -> Read:
    from safetensors import safe_open

    file: Any = safe_open(folder / "tokens.safetensors", framework="np")
    part = file.get_slice("tokens")

    def read(batches: Batches) -> Iterator[Batch]:
        for rows in batches:
            out = np.empty((len(rows), *shape.of_row), np.float16)
            for place, row in enumerate(rows.tolist()):
                out[place] = part[row : row + 1][0]
            yield out

    return read


def _open_safetensors_mapped(folder: Path, _: Shape) -> Read:
    import torch
    from safetensors import safe_open

    file: Any = safe_open(folder / "tokens.safetensors", framework="pt")
    tensor = file.get_tensor("tokens")
    return lambda batches: (tensor[torch.from_numpy(rows)].numpy() for rows in batches)


def _arrow_table(tokens: Tokens) -> Any:
    import pyarrow as pa

    kind = pa.binary(tokens[0].nbytes)
    column = pa.FixedSizeBinaryArray.from_buffers(kind, len(tokens), [None, pa.py_buffer(tokens)])
    return pa.table({"tokens": column})


def _of_arrow(column: Any, shape: Shape) -> Batch:
    """Return the rows of an Arrow column."""
    array = column.combine_chunks()
    return np.frombuffer(array.buffers()[1], np.float16).reshape(-1, *shape.of_row)[array.offset : array.offset + len(array)]


def _write_arrow(folder: Path, tokens: Tokens) -> None:
    import pyarrow as pa

    table = _arrow_table(tokens)
    with pa.OSFile(str(folder / "tokens.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1024)


def _open_arrow(folder: Path, shape: Shape) -> Read:
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(folder / "tokens.arrow"))).read_all()
    return lambda batches: (_of_arrow(table["tokens"].take(pa.array(rows)), shape) for rows in batches)


def _open_arrow_slices(folder: Path, shape: Shape) -> Read:
    """Row by row, as ``datasets`` reads its files: ``take`` of pyarrow 26 copies a column of several chunks whole."""
    import pyarrow as pa

    file = pa.ipc.open_file(pa.memory_map(str(folder / "tokens.arrow")))
    parts = [file.get_batch(number).column(0) for number in range(file.num_record_batches)]
    at_once = len(parts[0])

    def read(batches: Batches) -> Iterator[Batch]:
        for rows in batches:
            yield _of_arrow(pa.chunked_array([parts[row // at_once].slice(row % at_once, 1) for row in rows.tolist()]), shape)

    return read


def _write_parquet(folder: Path, tokens: Tokens) -> None:
    import pyarrow.parquet as pq

    pq.write_table(_arrow_table(tokens), folder / "tokens.parquet", row_group_size=_GROUP_ROWS, compression="none", use_dictionary=False)


def _open_parquet(folder: Path, shape: Shape) -> Read:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(folder / "tokens.parquet", memory_map=True)

    def read(batches: Batches) -> Iterator[Batch]:
        for rows in batches:
            groups, place = np.unique(rows // _GROUP_ROWS, return_inverse=True)
            read_rows = _of_arrow(file.read_row_groups(groups.tolist())["tokens"], shape)
            yield read_rows[place * _GROUP_ROWS + rows % _GROUP_ROWS]

    return read


def _write_zarr(folder: Path, tokens: Tokens) -> None:
    import zarr

    shard = (min(1024, len(tokens)), *tokens.shape[1:])
    array = zarr.create_array(
        folder / "tokens.zarr", shape=tokens.shape, dtype="float16", chunks=(1, *tokens.shape[1:]), shards=shard, compressors=None
    )
    array[:] = tokens


def _open_zarr(folder: Path, _: Shape) -> Read:
    import zarr

    array = zarr.open_array(folder / "tokens.zarr", mode="r")
    return lambda batches: (np.asarray(array.oindex[rows]) for rows in batches)


def _write_lance(folder: Path, tokens: Tokens) -> None:
    import lance
    import pyarrow as pa

    values = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), tokens[0].size)
    lance.write_dataset(pa.table({"tokens": values}), str(folder / "tokens.lance"))


def _open_lance(folder: Path, shape: Shape) -> Read:
    import lance

    data = lance.dataset(str(folder / "tokens.lance"))

    def read(batches: Batches) -> Iterator[Batch]:
        for rows in batches:
            array = data.take(rows.tolist(), columns=["tokens"])["tokens"].combine_chunks()
            yield array.flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape.of_row)

    return read


def _write_webdataset(folder: Path, tokens: Tokens) -> None:
    import webdataset

    with webdataset.ShardWriter(str(folder / "%04d.tar"), maxcount=1024, verbose=0) as sink:
        for row, values in enumerate(tokens):
            sink.write({"__key__": f"{row:08d}", "bin": values.tobytes()})


def _open_webdataset(folder: Path, shape: Shape) -> Read:
    import webdataset

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]

    def read(batches: Batches) -> Iterator[Batch]:
        stream = iter(webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(_SHUFFLED))
        for rows in batches:
            yield np.stack([np.frombuffer(next(stream)["bin"], np.float16).reshape(shape.of_row) for _ in rows])

    return read


_STREAM = "webdataset, a shuffled stream"
# Packages whose modules have another name.
_MODULES = {"pylance": "lance"}
PEERS: dict[str, Peer] = {
    MEMMAP: Peer(package="numpy", write=_write_raw, open=_open_raw),
    OURS: Peer(package="numpy", write=_write_ours, open=_open_ours),
    AHEAD: Peer(package="numpy", write=_write_ours, open=_open_ahead),
    "safetensors, mapped by torch": Peer(package="safetensors", write=_write_safetensors, open=_open_safetensors_mapped),
    "safetensors, slices": Peer(package="safetensors", write=_write_safetensors, open=_open_safetensors_slices),
    "Arrow file, mapped, slices": Peer(package="pyarrow", write=_write_arrow, open=_open_arrow_slices),
    "Arrow file, mapped, take": Peer(package="pyarrow", write=_write_arrow, open=_open_arrow, fewer=8),
    "Parquet, row groups of 16": Peer(package="pyarrow", write=_write_parquet, open=_open_parquet, fewer=4),
    "zarr 3, one-row chunks in shards": Peer(package="zarr", write=_write_zarr, open=_open_zarr, fewer=2),
    "lance": Peer(package="pylance", write=_write_lance, open=_open_lance),
    _STREAM: Peer(package="webdataset", write=_write_webdataset, open=_open_webdataset),
}
