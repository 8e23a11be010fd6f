"""A small store, filled by featurize's own loop with doubles for the models: every value is a function of its row's number."""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.pipeline import Job, Models, Work, fill
from lugpi_core.meters import StageTimes
from lugpi_core.store.layout import SCALE, Dtype, ShardLayout
from lugpi_core.store.manifest import MANIFEST, ColumnSpec, Record, load_manifest
from lugpi_core.store.quantize import quantize
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.shard import check_record
from lugpi_core.store.writer import ColumnWriter

LATENT_SHAPE, TOKEN_SHAPE = (1, 2, 4), (3, 8)
LOST_ROW, CONSTANT_ROW = 5, 7  # one whose latents are not finite, one whose picture has one value everywhere

# A fork after a second thread was started could inherit a lock that nobody gives back.
torch.set_num_threads(1)


@dataclass(frozen=True, kw_only=True)
class Small:
    """How large a store is: rows of every column, of a shard, of a block, and how its tokens are kept."""

    rows: int = 14
    shard_rows: int = 8
    block: int = 3
    dtype: Dtype = "int8"

    @property
    def specs(self) -> tuple[ColumnSpec, ColumnSpec]:
        """The latents and the tokens."""
        common: dict[str, Any] = {"rows": self.rows, "shard_rows": self.shard_rows}
        latents = ColumnSpec(name="latents", what="latents", row_shape=LATENT_SHAPE, fingerprint={"seed": 1}, **common)
        tokens = ColumnSpec(
            name="clip", what="tokens", row_shape=TOKEN_SHAPE, fingerprint={"seed": 1, "as": self.dtype}, dtype=self.dtype, **common
        )
        return latents, tokens


def latents_of(rows: Iterable[int]) -> torch.Tensor:
    """Return the latents that are drawn for some rows; the first value of each is the row's number."""
    numbers = torch.tensor(list(rows), dtype=torch.float32).reshape(-1, 1)
    values = torch.sin((numbers + 1) * torch.arange(1, 9) * 0.37)
    values[:, :1] = numbers
    values[numbers[:, 0] == LOST_ROW, 3] = torch.nan
    return values.reshape(-1, *LATENT_SHAPE).half()


def decode(latents: torch.Tensor) -> torch.Tensor:
    """Return the pictures of latents."""
    images = latents.float()
    images[images[:, 0, 0, 0] == CONSTANT_ROW] = CONSTANT_ROW
    return images


def encode(images: torch.Tensor) -> torch.Tensor:
    """Return the tokens of pictures."""
    return torch.cos(images.flatten(1).repeat(1, 3) * torch.arange(1, 25)).reshape(-1, *TOKEN_SHAPE)


def expected(spec: ColumnSpec, rows: Iterable[int]) -> dict[str, NDArray[Any]]:
    """Return what a column is to hold for some rows, computed without the store."""
    numbers = list(rows)
    latents = latents_of(numbers)
    values = latents if spec.what == "latents" else encode(decode(latents))
    bad = [n for n, row in enumerate(numbers) if row == LOST_ROW or (row == CONSTANT_ROW and spec.what == "tokens")]
    values[bad] = 0
    if spec.dtype == "int8":
        stored, scales = quantize(values)
        return {spec.what: stored.numpy(), SCALE: scales.numpy()}
    return {spec.what: values.half().numpy()}


def flagged(spec: ColumnSpec) -> dict[int, str]:
    """Return what a complete column is to say of its failed rows."""
    failed = {LOST_ROW: "not finite"} | ({CONSTANT_ROW: "constant picture"} if spec.what == "tokens" else {})
    return {row: why for row, why in failed.items() if row < spec.rows}


class Log:
    """An append-only file outside the store: a line for each block that is begun, whoever begins it."""

    def __init__(self, path: Path, pause: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._pause = pause

    def begin(self, stage: str, first_row: int) -> None:
        """Write down that a block is begun, then pause."""
        descriptor = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(descriptor, f"{stage} {first_row} {os.getpid()} {time.monotonic()}\n".encode())
        os.close(descriptor)
        self._pause()

    def lines(self) -> list[tuple[str, int, int, float]]:
        """Return (stage, first row, process, time) of each block begun."""
        if not self.path.exists():
            return []
        parts = [line.split() for line in self.path.read_text().splitlines()]
        return [(stage, int(row), int(pid), float(at_s)) for stage, row, pid, at_s in parts]

    def redone(self) -> int:
        """Return how many blocks were begun again, by stage."""
        begun = [line[:2] for line in self.lines()]
        return len(begun) - len(set(begun))


class _Drawing:
    """The double of the generator."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def draw(self, prompts: list[str], seeds: list[int]) -> torch.Tensor:
        assert len(prompts) == len(seeds)
        self._log.begin("draw", min(seeds))
        return latents_of(seeds)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return decode(latents)


class _Encoder:
    """The double of an image encoder."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self._log.begin("encode", int(np.nanmin(images[:, 0, 0, 0].numpy())))
        return encode(images)


@dataclass(frozen=True)
class _Plan:
    prompts: tuple[str, ...]
    seeds: NDArray[np.int64]


def fill_store(store: Path, small: Small, log: Log) -> None:
    """Fill both columns as featurize does: claim, write blocks, commit, refresh, wait for what others are writing."""
    plan = _Plan(prompts=("",) * small.rows, seeds=np.arange(small.rows))
    models = Models(text_to_image=cast(Any, _Drawing(log)), encoders={"clip": cast(Any, _Encoder(log))})
    job = Job(
        store=store,
        plan=cast(Any, plan),
        generator=cast(Any, None),
        encoders=(),
        compute=cast(Any, None),
        columns=small.specs,
        batch_size=small.block,
    )
    writers = open_writers(store, small)
    for _ in fill(job, writers, models, Work(times=StageTimes())):
        pass
    for writer in writers.values():
        writer.add_sha256()


def open_writers(store: Path, small: Small) -> dict[str, ColumnWriter]:
    """Open both columns for writing."""
    return {spec.name: ColumnWriter(store, spec) for spec in small.specs}


def files_of(store: Path) -> dict[str, bytes]:
    """Return every file of a store, hidden ones too, but for the folders' locks."""
    paths = [path for path in sorted(store.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in paths}


@lru_cache
def undisturbed(small: Small) -> Mapping[str, bytes]:
    """Return the files of a store that was filled without any fault."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        fill_store(Path(folder) / "tokens", small, Log(Path(folder) / "log"))
        return files_of(Path(folder) / "tokens")


def check_rows(store: Path, small: Small, **how: bool) -> int:
    """Read all rows of all columns and compare them; return how many there were.

    Raises:
        InputError: the store refuses to be read.
    """
    for spec in small.specs:
        reader = ColumnReader(store, spec.name, **how)
        got = reader.gather_stored(range(small.rows))
        for name, values in expected(spec, range(small.rows)).items():
            np.testing.assert_array_equal(got[name], values)
        assert reader.flagged == flagged(spec)
    return 2 * small.rows


def stored(folder: Path, layout: ShardLayout, record: Record, name: str) -> NDArray[Any]:
    """Return a dataset of a shard, by nothing but where its record says that it lies."""
    shape, dtype = layout.datasets[name]
    return np.fromfile(folder / record["file"], dtype, math.prod(shape), offset=record["offsets"][name]).reshape(shape)


def check_recorded(store: Path, small: Small) -> int:
    """Every shard that a manifest records is there and exact, however far the store is; return how many there are."""
    shards = 0
    for spec in small.specs:
        folder = store / spec.name
        if not (folder / MANIFEST).exists():
            continue
        for shard, record in load_manifest(folder)[1].items():
            assert check_record(folder, record, content=True) is None, (spec.name, shard)
            layout = spec.layout(shard)
            for name, values in expected(spec, range(layout.first_row, layout.first_row + layout.rows)).items():
                np.testing.assert_array_equal(stored(folder, layout, record, name), values)
            shards += 1
    return shards


def check_complete(store: Path, small: Small) -> None:
    """Whole, the same bytes as without faults, exact rows, and nothing left beside shards and manifests."""
    found, wanted = files_of(store), undisturbed(small)
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []
    check_rows(store, small)
