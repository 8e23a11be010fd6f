"""How many rows a run computes at once: the batch that is asked for, or the largest that fits the memory; and the estimate of a dry run."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from featurize.cost.estimate import (
    Estimate,
    calibrate,
    decode_rows,
    free_memory_bytes,
    largest_batch,
    peak_bytes,
    rows_at_once,
    total_flops,
)
from featurize.cost.stage_cost import DECODE, DENOISE, PROMPT, StageWork, counted_work
from featurize.generate.text_to_image import unet_is_guided
from featurize.plan.job import TEXT_BATCH, Job, wanted_bytes
from lugpi_core.store.layout import LATENTS
from lugpi_core.store.manifest import MANIFEST, load_manifest

# More at once is hardly faster: the card is full. And a batch is what a stop waits for, and what a kill costs.
MOST_AT_ONCE = {"cuda": 32, "cpu": 16}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many rows at once: drawn, decoded, encoded."""

    batch: int
    decode: int
    encode: int

    def by_stage(self) -> dict[str, int]:
        """Return the size of every stage."""
        return {"prompt": TEXT_BATCH, "denoise": self.batch, "decode": self.decode, "encode": self.encode}


def choose_sizes(job: Job) -> Sizes:
    """Return how many rows to compute at once: the batch that is asked for, or the largest that fits; decoded in slices that need no more
    memory than drawing does.

    On CUDA ``--memory-gb`` binds torch from here on.

    Raises:
        InputError: a single image does not fit.
    """
    wanted = job.execution.batch_size
    if wanted != "auto" and job.compute.device == "cpu":
        return Sizes(batch=wanted, decode=wanted, encode=wanted)
    if job.execution.memory_gb is not None and job.compute.device == "cuda":
        _, card_bytes = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(min(1.0, job.execution.memory_gb * 1e9 / card_bytes))
    return sizes_for(job, count_job(job))


def estimate_run(job: Job) -> Estimate:
    """Return what a run will take: counted from the configurations, and timed on the device for some seconds with random weights.

    Steps that DeepCache shortens count whole.
    """
    missing, work, guided = missing_rows(job), count_job(job), is_guided(job)
    needed = {name: stage for name, stage in work.items() if missing[name]}
    sizes = sizes_for(job, work)
    together = rows_at_once(needed, batch=sizes.batch, guided=guided)
    folder = None if job.decoder is None else job.decoder.folder
    measured = calibrate(job.generator, tuple(job.encoders.values()), job.compute, needed, rows=together, decoder_folder=folder)
    return Estimate(
        images=max(missing[DENOISE] // forwards_per_image(job), missing[DECODE]),
        prompts=missing[PROMPT],
        flops=total_flops(needed, missing),
        hours=measured.hours(missing),
        disk_bytes=wanted_bytes(job),
        peak_bytes=peak_bytes(work, batch=sizes.batch, guided=guided, decode_rows=sizes.decode, encode_rows=sizes.encode),
        basis=measured.basis if needed else "for nothing is missing",
    )


def missing_rows(job: Job) -> dict[str, int]:
    """Return how many rows each stage has to compute, by the names of ``counted_work``. Reads the manifests; nothing is touched.

    By whole shards: one that is begun counts as if nothing of it were there.
    """
    final = {spec.name: _final_shards(job, spec.name) for spec in job.columns}
    rows = [job.columns[0].layout(shard).rows for shard in range(job.columns[0].shards)]

    def lacking(columns: Iterable[str]) -> int:
        return sum(count for shard, count in enumerate(rows) if any(shard not in final[name] for name in columns))

    tokens = [name for name in final if name != LATENTS]
    drawn = sum(
        count
        for shard, count in enumerate(rows)
        if shard not in final.get(LATENTS, ()) and any(shard not in shards for shards in final.values())
    )
    return {
        PROMPT: drawn // job.plan.images_per_text,
        DENOISE: drawn * forwards_per_image(job),
        DECODE: lacking(tokens),
        **{f"encode {job.encoders[name].name}": lacking([name]) for name in tokens},
    }


def count_job(job: Job) -> dict[str, StageWork]:
    """Return what one row of a job costs in each stage."""
    folder = None if job.decoder is None else job.decoder.folder
    return counted_work(job.generator, tuple(job.encoders.values()), dtype=job.compute.dtype, decoder_folder=folder)


def sizes_for(job: Job, work: dict[str, StageWork]) -> Sizes:
    """Return how many rows to compute at once, given what one costs."""
    guided, batch = is_guided(job), job.execution.batch_size
    if batch == "auto":
        memory_bytes = free_memory_bytes(job.compute.device) if job.execution.memory_gb is None else int(job.execution.memory_gb * 1e9)
        batch = largest_batch(work, memory_bytes, guided=guided, most=MOST_AT_ONCE[job.compute.device])
    # On the CPU a batch that is asked for is computed as it is.
    whole = job.execution.batch_size != "auto" and job.compute.device == "cpu"
    return Sizes(batch=batch, decode=batch if whole else decode_rows(work, batch, guided), encode=batch)


def is_guided(job: Job) -> bool:
    """Whether the UNet reads each row twice."""
    return unet_is_guided(job.generator)


def _final_shards(job: Job, column: str) -> set[int]:
    folder = job.store / column
    return set(load_manifest(folder)[1]) if (folder / MANIFEST).is_file() else set()


def forwards_per_image(job: Job) -> int:
    """Return the UNet rows of an image."""
    return job.generator.settings.steps * (1 + is_guided(job))
