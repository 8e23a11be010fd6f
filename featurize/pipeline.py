"""The pipeline of featurize: text → prompt → image → tokens → store, a block of drawings at a time.

Pixels exist on the device, for one block, between ``decode`` and ``encode``. A block is a fixed range of rows of a shard, so that a
resumed run computes the same batches, and therefore the same bytes, as one that was never interrupted.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.generators import Generator
from featurize.image_encoder import EncoderFiles, ImageEncoder
from featurize.prompts import DrawingPlan
from featurize.text_to_image import AttentionChoice, TextToImage
from lugpi_core.command_line import say
from lugpi_core.device import Compute
from lugpi_core.errors import InputError
from lugpi_core.meters import StageTimes
from lugpi_core.store.layout import Dtype
from lugpi_core.store.lease import ShardBusy
from lugpi_core.store.manifest import MOST_SHARDS, ColumnSpec
from lugpi_core.store.quantize import quantize
from lugpi_core.store.reader import LATENTS
from lugpi_core.store.shard import FLAG_CONSTANT, FLAG_NOT_FINITE, ShardWriter
from lugpi_core.store.writer import ColumnWriter

POLL_S = 0.2


@dataclass(kw_only=True)
class Work:
    """What a run has done so far: rows drawn, decoded and encoded (exact), seconds by stage, and the UNet's attention processor."""

    times: StageTimes
    drawn: int = 0
    decoded: int = 0
    encoded: int = 0
    attention: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that is known before a model is loaded: what to draw, with what, into which columns."""

    store: Path
    plan: DrawingPlan
    generator: Generator
    encoders: tuple[EncoderFiles, ...]
    compute: Compute
    columns: tuple[ColumnSpec, ...]
    batch_size: int
    attention: AttentionChoice = "auto"


@dataclass(frozen=True, kw_only=True)
class Models:
    """The loaded models of a job."""

    text_to_image: TextToImage
    encoders: dict[str, ImageEncoder] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """How a run keeps what it makes.

    Attributes:
        latents: whether the latents are kept too.
        token_dtype: of the token columns.
        shard_rows: rows of a shard.
        made_by: the run's flags, for the manifests of new columns.
    """

    latents: bool
    shard_rows: int
    token_dtype: Dtype = "float16"
    made_by: dict[str, Any] | None = None


def column_specs(
    plan: DrawingPlan,
    generator: Generator,
    encoders: tuple[EncoderFiles, ...],
    generation: dict[str, Any],
    kept: Kept,
) -> tuple[ColumnSpec, ...]:
    """Return the columns that a run makes: the latents unless they are not wanted, and one for each encoder."""
    notice = generator.settings.notice
    if len(plan) > kept.shard_rows * MOST_SHARDS:
        raise InputError(
            got=f"--shard-rows {kept.shard_rows} for {len(plan):,} drawings",
            expected=f"at most {MOST_SHARDS:,} shards",
            do="give more rows a shard",
        )
    common: dict[str, Any] = {"rows": len(plan), "shard_rows": kept.shard_rows, "notice": notice, "made_by": kept.made_by}
    drawn_by = f"drawn by {generator.name}: {generator.settings.license}"
    latent = ColumnSpec(
        name=LATENTS, what="latents", row_shape=generator.latent_shape, fingerprint={"generation": generation}, license=drawn_by, **common
    )
    tokens = [
        ColumnSpec(
            name=files.name,
            what="tokens",
            row_shape=(files.tokens, files.width),
            fingerprint={
                "generation": generation,
                "encoder": {**files.fingerprint(), "dtype": generation["dtype"], "stored_as": kept.token_dtype},
            },
            dtype=kept.token_dtype,
            license=f"images {drawn_by}; tokens by {files.name}: {files.license}",
            **common,
        )
        for files in encoders
    ]
    specs = ((latent,) if kept.latents else ()) + tuple(tokens)
    names = [LATENTS, *(spec.name for spec in tokens)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(got=f"two columns named {', '.join(twice)}", expected="one name a column", do="rename the encoder's folder")
    return specs


def fill(job: Job, writers: dict[str, ColumnWriter], models: Models, work: Work) -> Iterator[None]:
    """Fill every shard that is not final, adding up in ``work``; yield after each block.

    Other processes may fill the same store: a shard that one of them is writing is left to it, and waited for at the end, lest it dies.
    """
    waited_for = ""
    while shards := open_shards(writers):
        busy: ShardBusy | None = None
        for shard in shards:
            with ExitStack() as stack:
                try:
                    files = _claim(stack, writers, shard)
                except ShardBusy as error:
                    busy = error
                    continue
                if files:
                    yield from _fill_shard(job, models, files, _stored_latents(writers, shard), work)
                    with work.times.stage("commit"):
                        for name, file in files.items():
                            writers[name].commit(shard, file)
        for writer in writers.values():
            writer.refresh()
        if busy and open_shards(writers) == shards:
            if busy.owner != waited_for:
                say(f"waiting for {busy.owner}, which is writing what is missing")
                waited_for = busy.owner
            with work.times.stage("wait"):
                time.sleep(POLL_S)


def open_shards(writers: dict[str, ColumnWriter]) -> list[int]:
    """Return the shards that are not final in every column."""
    shards = next(iter(writers.values())).spec.shards
    return [shard for shard in range(shards) if not all(writer.is_committed(shard) for writer in writers.values())]


def _claim(stack: ExitStack, writers: dict[str, ColumnWriter], shard: int) -> dict[str, ShardWriter]:
    """Return the shard of each column where it is not final yet; all of them are given back at the end of the stack.

    Raises:
        ShardBusy: another process is writing one of them.
    """
    claimed = {}
    for name, writer in writers.items():
        file = writer.claim(shard)
        if file is not None:
            claimed[name] = stack.enter_context(closing(file))
    return claimed


def _fill_shard(job: Job, models: Models, files: dict[str, ShardWriter], stored: NDArray[np.float16] | None, work: Work) -> Iterator[None]:
    layout = next(iter(files.values())).layout
    for first in range(0, layout.rows, job.batch_size):
        rows = slice(first, min(first + job.batch_size, layout.rows))
        wanting = {name: file for name, file in files.items() if not file.valid[rows].all()}
        if not wanting:
            continue
        latents_BChw = _known_latents(files.get(LATENTS), stored, rows)
        if latents_BChw is None:
            with work.times.stage("draw"):
                drawings = slice(layout.first_row + rows.start, layout.first_row + rows.stop)
                drawn = models.text_to_image.draw(job.plan.prompts[drawings], [int(seed) for seed in job.plan.seeds[drawings]])
                # Rounded before it is decoded: an encoder added later, which sees the stored latent, gets the same image.
                latents_BChw = drawn.to(torch.float16)
            work.drawn += rows.stop - rows.start
        if LATENTS in wanting:
            with work.times.stage("write"):
                _write(wanting[LATENTS], rows, latents_BChw)
        _encode_block(models, {name: file for name, file in wanting.items() if name != LATENTS}, rows, latents_BChw, work)
        yield


def _encode_block(models: Models, wanting: dict[str, ShardWriter], rows: slice, latents_BChw: torch.Tensor, work: Work) -> None:
    if not wanting:
        return
    with work.times.stage("decode"):
        images_B3HW = models.text_to_image.decode(latents_BChw)
        constant_B = _constant(images_B3HW)
    work.decoded += len(images_B3HW)
    for name, file in wanting.items():
        with work.times.stage("encode"):
            tokens_BTD = models.encoders[name].encode(images_B3HW)
        work.encoded += len(tokens_BTD)
        with work.times.stage("write"):
            _write(file, rows, tokens_BTD, constant_B)


def _constant(images_B3HW: torch.Tensor) -> torch.Tensor:
    """Return bool [B]: True where a picture has one value everywhere, to within one step of 8 bits (SD v2 at 768 px in fp16 draws such)."""
    pixels = images_B3HW.flatten(1)
    return pixels.amax(dim=1) - pixels.amin(dim=1) < 1 / 255


def _write(file: ShardWriter, rows: slice, values_B: torch.Tensor, constant_B: torch.Tensor | None = None) -> None:
    flags_B = torch.zeros(len(values_B), dtype=torch.uint8, device=values_B.device)
    if constant_B is not None:
        flags_B[constant_B] = FLAG_CONSTANT
    flags_B[~torch.isfinite(values_B).flatten(1).all(dim=1)] = FLAG_NOT_FINITE
    good_B = (flags_B == 0).view(-1, *[1] * (values_B.ndim - 1))
    good = torch.where(good_B, values_B, 0)
    stored, scales_BT = quantize(good) if file.layout.dtype == "int8" else (good, None)
    values, flags = stored.cpu().numpy(), flags_B.cpu().numpy()
    scales = None if scales_BT is None else scales_BT.cpu().numpy()
    missing = np.flatnonzero(~file.valid[rows])
    for start, stop in _runs(missing):
        part = slice(start, stop)
        file.write(rows.start + start, values[part], flags[part], None if scales is None else scales[part])


def _runs(numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return ascending numbers as half-open runs: [0, 1, 2, 5] → [(0, 3), (5, 6)]."""
    breaks = np.flatnonzero(np.diff(numbers) > 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(numbers, breaks) if len(run)]


def _stored_latents(writers: dict[str, ColumnWriter], shard: int) -> NDArray[np.float16] | None:
    """Return the latents of a shard whose latents are final already; rows that failed are NaN again, so that they fail in every column."""
    writer = writers.get(LATENTS)
    if writer is None or not writer.is_committed(shard):
        return None
    return with_failures(writer.read_committed(shard), [int(row) for row in writer.records[shard]["flagged"]])


def _known_latents(partial: ShardWriter | None, stored: NDArray[np.float16] | None, rows: slice) -> torch.Tensor | None:
    if stored is not None:
        return torch.from_numpy(stored[rows])
    if partial is not None and partial.valid[rows].all():
        values = np.array(partial.read(rows.start, rows.stop - rows.start))
        return torch.from_numpy(with_failures(values, np.flatnonzero(partial.flags()[rows])))
    return None


def with_failures(values: NDArray[np.float16], failed: list[int] | NDArray[np.int64]) -> NDArray[np.float16]:
    """Return the values with the failed rows set to NaN, in place."""
    values[np.asarray(failed, dtype=np.int64)] = np.nan
    return values
