"""A small store, filled by featurize's own loop with test doubles as models: every value is a function of its row number.

The writer thread would queue all of these tiny rows. To make a kill cost as much as with large rows, at most ``WAITING_BLOCKS`` blocks of
latents and tokens may wait.
"""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.fill import writer_thread as output
from featurize.fill.block import Models, RunState
from featurize.fill.fill_store import fill
from featurize.fill.out_of_memory import StageBatches
from featurize.generate.families.family import PromptEmbeddings
from featurize.plan.images import ImagePlan
from featurize.plan.job import Job
from featurize.plan.parts import WHOLE, Part
from lugpi_core.runtime.meters import StageTimes
from lugpi_core.store.layout import SCALE, Dtype, ShardLayout
from lugpi_core.store.manifest import MANIFEST, RECORDS, ColumnSpec, Record, load_manifest
from lugpi_core.store.quantize import quantize
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.shard import ShardWriter, check_record
from lugpi_core.store.writer import ColumnWriter

LATENT_SHAPE, TOKEN_SHAPE = (1, 2, 4), (3, 8)
WAITING_BLOCKS = 2
MOST_IN_FLIGHT = WAITING_BLOCKS + 1  # what a kill may cost: the waiting blocks and the one being computed
AGAIN, WROTE = "again", "wrote"  # log entries: a failed row is computed again on its own; a row is written
LOST_ROW, CONSTANT_ROW = 5, 7  # the row with non-finite latents, and the row whose image is constant

# With a second thread, a fork could inherit a lock that is never released.
torch.set_num_threads(1)


@dataclass(frozen=True, kw_only=True)
class Small:
    """The size of a store: rows per column, shard and block, and the dtype of its tokens."""

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
    """Return the latents that are generated for some rows; the first value of each is the row number."""
    numbers = torch.tensor(list(rows), dtype=torch.float32).reshape(-1, 1)
    values = torch.sin((numbers + 1) * torch.arange(1, 9) * 0.37)
    values[:, :1] = numbers
    values[numbers[:, 0] == LOST_ROW, 3] = torch.nan
    return values.reshape(-1, *LATENT_SHAPE).half()


def decode(latents: torch.Tensor) -> torch.Tensor:
    """Return the images of latents."""
    images = latents.float()
    images[images[:, 0, 0, 0] == CONSTANT_ROW] = CONSTANT_ROW
    return images


def encode(images: torch.Tensor) -> torch.Tensor:
    """Return the tokens of images."""
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
    """Return the failed rows of a complete column, with the reasons."""
    failed = {LOST_ROW: "not finite"} | ({CONSTANT_ROW: "constant picture"} if spec.what == "tokens" else {})
    return {row: why for row, why in failed.items() if row < spec.rows}


class Log:
    """An append-only file outside the store with a line for each block begun and each row written, by any process."""

    def __init__(self, path: Path, pause: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._pause = pause

    def begin(self, stage: str, first_row: int) -> None:
        """Record that a block is begun, then pause."""
        self._append([(stage, first_row)])
        self._pause()

    def wrote(self, what: str, rows: Iterable[int]) -> None:
        """Record that rows of a column are written."""
        self._append([(f"{WROTE}-{what}", row) for row in rows])

    def lines(self) -> list[tuple[str, int, int, float]]:
        """Return (stage, first row, process, time) of each block begun."""
        return [line for line in self._lines() if line[0] in ("draw", "encode")]

    def redone(self) -> int:
        """Return how many blocks were begun again; a block that is both generated and encoded again counts once."""
        again: Counter[int] = Counter()
        for (_, row), times in Counter(line[:2] for line in self.lines()).items():
            again[row] = max(again[row], times - 1)
        return again.total()

    def wasted(self, block: int, shard_rows: int, rows: int) -> int:
        """Return how many blocks were generated or encoded although all their rows had been written."""
        column_of, written, wasted = {"draw": "latents", "encode": "tokens"}, set[tuple[str, int]](), 0
        for stage, row, _, _ in self._lines():
            if stage in column_of:
                end = min(row + block, row // shard_rows * shard_rows + shard_rows, rows)
                wasted += all((f"{WROTE}-{column_of[stage]}", n) in written for n in range(row, end))
            written.add((stage, row))
        return wasted

    def _append(self, lines: list[tuple[str, int]]) -> None:
        descriptor = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(descriptor, "".join(f"{stage} {row} {os.getpid()} {time.monotonic()}\n" for stage, row in lines).encode())
        os.close(descriptor)

    def _lines(self) -> list[tuple[str, int, int, float]]:
        if not self.path.exists():
            return []
        parts = [line.split() for line in self.path.read_text().splitlines()]
        return [(stage, int(row), int(pid), float(at_s)) for stage, row, pid, at_s in parts]


class _Generator:
    """The double of the generator: an embedding is the row number of its prompt, twice."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._again = False

    @contextmanager
    def text_encoder_on_device(self) -> Iterator[None]:
        yield

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        self._again = True
        yield
        self._again = False

    def encoding_order(self, prompts: Sequence[str]) -> list[int]:
        return list(range(len(prompts)))

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeddings:
        return PromptEmbeddings({"tokens": torch.tensor([[[float(prompt)] * 2] for prompt in prompts])})

    def denoise(self, embeddings: PromptEmbeddings, seeds: Sequence[int], *, before_step: Callable[[], None]) -> torch.Tensor:
        before_step()
        assert embeddings["tokens"][:, 0, 0].tolist() == list(seeds), "each image has the prompt of its row"
        self._log.begin(AGAIN if self._again else "draw", min(seeds))
        return latents_of(seeds)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return decode(latents)


class _Encoder:
    """The double of an image encoder."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._again = False

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        self._again = True
        yield
        self._again = False

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self._log.begin(AGAIN if self._again else "encode", int(images[0, 0, 0, 0]))
        return encode(images)


class _LoggedColumn(ColumnWriter):
    """A column that logs which rows it has written."""

    def __init__(self, store: Path, spec: ColumnSpec, log: Log) -> None:
        super().__init__(store, spec)
        self._log = log

    def claim(self, shard: int) -> ShardWriter | None:
        file = super().claim(shard)
        if file is not None:
            write, first_row = file.write, file.layout.first_row

            def logged(first: int, values: NDArray[Any], *rest: Any) -> None:
                write(first, values, *rest)
                self._log.wrote(self.spec.what, range(first_row + first, first_row + first + len(values)))

            file.write = logged  # type: ignore[method-assign]
        return file


def fill_store(store: Path, small: Small, log: Log, part: Part = WHOLE) -> None:
    """Fill both columns as featurize does: claim, write blocks, commit, refresh, wait for the shards of other processes."""
    rows = np.arange(small.rows)
    plan = ImagePlan(prompts=tuple(map(str, rows.tolist())), seeds=rows, prompts_of_example=rows[:, None])
    models = Models(text_to_image=cast(Any, _Generator(log)), encoders={"clip": cast(Any, _Encoder(log))})
    job = Job(
        store=store,
        plan=plan,
        generator=cast(Any, None),
        encoders={},
        compute=cast(Any, None),
        columns=small.specs,
        batch_size=small.block,
    )
    writers = {spec.name: _LoggedColumn(store, spec, log) for spec in small.specs}
    sizes = dict.fromkeys(("prompt", "denoise", "decode", "encode"), small.block)
    waiting_bytes = WAITING_BLOCKS * sum(spec.layout(0).bytes_of(spec.what, small.block) for spec in small.specs)
    with patch.object(output, "MOST_WAITING_BYTES", waiting_bytes):
        for _ in fill(job, writers, models, RunState(times=StageTimes(), batches=StageBatches(sizes)), part):
            pass
    for writer in writers.values():
        writer.finish()


def open_writers(store: Path, small: Small) -> dict[str, ColumnWriter]:
    """Open both columns for writing."""
    return {spec.name: ColumnWriter(store, spec) for spec in small.specs}


def files_of(store: Path) -> dict[str, bytes]:
    """Return every file of a store, hidden ones included, locks excluded. Of a record file, the record: who wrote it may differ."""
    paths = [path for path in sorted(store.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {path.relative_to(store).as_posix(): _content(path) for path in paths}


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return json.dumps(json.loads(content)["record"]).encode() if path.parent.name == RECORDS else content


@lru_cache
def undisturbed(small: Small) -> Mapping[str, bytes]:
    """Return the files of a store that was filled without a fault."""
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
    """Return a dataset of a shard, read at the offset in its record."""
    shape, dtype = layout.datasets[name]
    return np.fromfile(folder / record["file"], dtype, math.prod(shape), offset=record["offsets"][name]).reshape(shape)


def check_recorded(store: Path, small: Small) -> int:
    """Assert that every shard recorded in a manifest exists and is exact, in a partial store too; return their number."""
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
    """Assert that a store has the same files and bytes as one filled without faults, and nothing else."""
    files, expected_files = files_of(store), undisturbed(small)
    assert sorted(files) == sorted(expected_files)
    assert [name for name in files if files[name] != expected_files[name]] == []
    check_rows(store, small)
