"""What a run will take (``--dry-run``): images, FLOPs and disk are counted; time and memory are measured on one warm-up block."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

import torch

from featurize.cost.batch_size import BatchSizes
from featurize.cost.stage_cost import DECODE, DENOISE, PROMPT, REUSE, encode_flops, stage_flops
from featurize.encode.image_encoder import ImageEncoder
from featurize.generate.denoiser_rows import denoiser_rows
from featurize.generate.text_to_image import TextToImage
from featurize.plan.growth import rows_kept
from featurize.plan.job import Job, StoreJob, missing_disk_bytes
from featurize.plan.own_pictures import OwnJob
from lugpi_core.amounts import duration, size
from lugpi_core.runtime.meters import peak_memory_bytes
from lugpi_core.store.layout import CANDIDATES, LATENTS
from lugpi_core.store.manifest import MANIFEST, load_manifest

# On the CPU a block has fewer images than the run's if the whole would take more FLOPs, about a minute.
_CPU_BLOCK_FLOPS = 1e12
# The first call of a model is slower; if it was shorter, the block is run once more.
_SHORT_S = 2.0
_FLOP = {"GFLOP": 1e9, "TFLOP": 1e12, "PFLOP": 1e15, "EFLOP": 1e18}


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """A block that was run: one step of the denoiser, decoding and encoding.

    Attributes:
        images: generated at once.
        flops: of the block.
        seconds: that it took.
        peak_bytes: on CUDA of torch's allocator, on the CPU of the process, models included.
        device: device and dtype, in words.
    """

    images: int
    flops: float
    seconds: float
    peak_bytes: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take.

    Attributes:
        images: to be generated, or decoded from stored latents.
        prompts: to be read by the text encoder.
        flops: of the whole run.
        hours: ``flops`` at the speed of the warm-up block; None if nothing was run.
        disk_bytes: that the store will take in addition.
        peak_bytes: of the warm-up block; None if nothing was run.
        basis: where ``hours`` and ``peak_bytes`` come from, or why they are unknown.
        is_generated: False: the images are the user's own.
    """

    images: int
    prompts: int
    flops: float
    hours: float | None
    disk_bytes: int
    peak_bytes: int | None
    basis: str
    is_generated: bool = True

    def __str__(self) -> str:
        memory = "unknown" if self.peak_bytes is None else f"{size(self.peak_bytes)} at the peak of that block"
        return "\n".join(
            (
                f"images  {self.images:,} from {self.prompts:,} prompts" if self.is_generated else f"images  {self.images:,} of your own",
                f"work    {_flop(self.flops)}",
                f"time    {'unknown' if self.hours is None else f'about {duration(3600 * self.hours)}'}: {self.basis}",
                f"disk    {size(self.disk_bytes)} more",
                f"memory  {memory}",
            )
        )


def missing_rows(job: Job) -> dict[str, int]:
    """Return how many rows each stage has to compute, by the names of ``stage_flops``. Reads the manifests; nothing is touched.

    By whole shards: one that is not final counts in full, but for rows that a smaller subset has. Every candidate of an image is a row of
    denoiser, decoder and the encoder that chooses; its text tower, which reads each prompt once, is not counted.
    """
    kept = rows_kept(job)
    final = {spec.name: set() if kept else _final_shards(job, spec.name) for spec in job.columns}
    layouts = [job.every_column[0].layout(shard) for shard in range(job.every_column[0].shards)]
    rows = [max(0, layout.rows - max(0, kept - layout.first_row)) for layout in layouts]

    def lacking(columns: Iterable[str]) -> int:
        return sum(count for shard, count in enumerate(rows) if any(shard not in final[name] for name in columns))

    tokens = [name for name in final if name not in (LATENTS, CANDIDATES)]
    generated = sum(
        count
        for shard, count in enumerate(rows)
        if any(shard not in final[name] for name in (LATENTS, CANDIDATES) if name in final)
        or (LATENTS not in final and any(shard not in shards for shards in final.values()))
    )
    per_image = denoiser_rows(job.generator)
    candidates = job.plan.candidates
    scored = 0 if job.scorer is None else generated * candidates
    texts = 0
    if job.text_column is not None:
        done = set() if kept else _final_shards(job, job.text_column.name)
        texts = sum(count for shard, count in enumerate(rows) if shard not in done)
    return {
        PROMPT: (generated + texts) // job.plan.images_per_prompt,
        DENOISE: generated * candidates * per_image.whole,
        **({REUSE: generated * candidates * per_image.reused} if job.generator.settings.deepcache > 1 else {}),
        DECODE: lacking(tokens) + scored,
        **{f"encode {job.encoders[name].name}": lacking([name]) + (scored if name == job.scorer else 0) for name in tokens},
    }


def row_flops(job: Job) -> dict[str, float]:
    """Return the FLOPs of one row in each stage of a job."""
    return stage_flops(job.generator, tuple(job.encoders.values()), decoder=job.decoder)


def warm_up(text_to_image: TextToImage, encoders: Mapping[str, ImageEncoder], job: Job, sizes: BatchSizes) -> WarmUp:
    """Run one block on zeros: one step of the denoiser, decoding and encoding.

    Raises:
        RuntimeError, MemoryError: the block does not fit into the memory.
    """
    flops, forwards = row_flops(job), 1 + text_to_image.guided
    encode_flops = sum(flops[f"encode {encoder.files.name}"] for encoder in encoders.values())
    images, decoded = sizes.generate, sizes.decode
    if job.compute.device == "cpu":
        images = max(1, min(images, int(_CPU_BLOCK_FLOPS // (flops[DENOISE] * forwards + flops[DECODE] + encode_flops))))
        decoded = min(decoded, images)
    with text_to_image.text_encoder_on_device():
        prompt = text_to_image.encode_prompts([""])
    if job.compute.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = 0.0
    for _ in range(2):
        start_s = time.perf_counter()
        images_B3HW = text_to_image.warm_up(prompt, images, decoded)
        for encoder in encoders.values():
            encoder.encode(images_B3HW)
        if job.compute.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start_s
        if seconds > _SHORT_S:
            break
    peak = peak_memory_bytes()
    return WarmUp(
        images=images,
        flops=images * forwards * flops[DENOISE] + decoded * (flops[DECODE] + encode_flops),
        seconds=seconds,
        peak_bytes=peak["device_bytes"] if job.compute.device == "cuda" else peak["host_bytes"],
        device=str(job.compute),
    )


def estimate_run(job: Job, block: WarmUp | None, unknown_because: str = "nothing is missing") -> Estimate:
    """Return what a run will take.

    Args:
        job: what is to be done.
        block: a block of the run's models, or None if none was run.
        unknown_because: why not.
    """
    missing, flops = missing_rows(job), 0.0
    if any(missing.values()):
        flops_of_row = row_flops(job)
        flops = sum(flops_of_row[stage] * rows for stage, rows in missing.items())
    hours, basis = (0.0 if flops == 0 else None), unknown_because
    if block is not None:
        speed = block.flops / block.seconds
        hours = flops / speed / 3600
        basis = f"on {block.device} a block of {block.images} images ran at {speed / 1e9:,.0f} GFLOP/s"
    return Estimate(
        images=_images(job, missing),
        prompts=missing[PROMPT],
        flops=flops,
        hours=hours,
        disk_bytes=missing_disk_bytes(job),
        peak_bytes=None if block is None else block.peak_bytes,
        basis=basis,
    )


def _images(job: Job, missing: Mapping[str, int]) -> int:
    """Return how many images are kept of those that are drawn, or decoded from stored latents."""
    drawn = missing[DENOISE] // denoiser_rows(job.generator).whole
    return max(drawn // job.plan.candidates, missing[DECODE] - (0 if job.scorer is None else drawn))


def estimate_own(job: OwnJob) -> Estimate:
    """Return what encoding a user's own pictures will take; nothing is run."""
    rows = range(len(job.plan))
    final = {spec.name: _final_shards(job, spec.name) for spec in job.columns}
    missing = {
        spec.name: [row for row in rows if row // spec.shard_rows not in final[spec.name]]
        + list(chain.from_iterable(job.rows_to_fill_in(spec.name).values()))
        for spec in job.columns
    }
    return Estimate(
        images=max(sum(not job.plan.rows[row].fault for row in lacking) for lacking in missing.values()),
        prompts=0,
        flops=sum(encode_flops(job.encoders[name]) * len(lacking) for name, lacking in missing.items() if lacking),
        hours=None if any(missing.values()) else 0.0,
        disk_bytes=missing_disk_bytes(job),
        peak_bytes=None,
        basis="reading pictures is not measured" if any(missing.values()) else "nothing is missing",
        is_generated=False,
    )


def _final_shards(job: StoreJob, column: str) -> set[int]:
    folder = job.store / column
    return set(load_manifest(folder)[1]) if (folder / MANIFEST).is_file() else set()


def _flop(flops: float) -> str:
    unit = next((unit for unit in ("GFLOP", "TFLOP", "PFLOP") if flops < 1000 * _FLOP[unit]), "EFLOP")
    return f"{flops / _FLOP[unit]:,.1f} {unit}"
