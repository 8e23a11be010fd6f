"""From a job to loaded models: batch sizes that fit the memory, what to compile, and the estimate of a dry run."""

from collections.abc import Container, Iterable
from dataclasses import dataclass

import torch

from featurize.cost.estimate import (
    EFFICIENCY,
    Estimate,
    calibrate,
    decode_rows,
    free_memory_bytes,
    largest_batch,
    matrix_flops_per_s,
    peak_bytes,
    rows_at_once,
    total_flops,
)
from featurize.cost.stage_cost import DECODE, DENOISE, PROMPT, StageWork, counted_work
from featurize.encode.image_encoder import ImageEncoder
from featurize.fill.block import TEXT_BATCH, Models
from featurize.fill.fill_store import Job
from featurize.fill.out_of_memory import is_out_of_memory
from featurize.generate.acceleration import choose_compilation
from featurize.generate.text_to_image import TextToImage, unet_is_guided
from featurize.options import FeaturizeOptions
from featurize.plan.job import wanted_bytes
from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.runtime.meters import StageTimes
from lugpi_core.runtime.pretrained import reason
from lugpi_core.store.manifest import MANIFEST, load_manifest
from lugpi_core.store.reader import LATENTS

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


def choose_sizes(options: FeaturizeOptions, job: Job) -> Sizes:
    """Return how many rows to compute at once: the batch that is asked for, or the largest that fits; decoded in slices that need no more
    memory than drawing does.

    On CUDA ``--memory-gb`` binds torch from here on.

    Raises:
        InputError: a single image does not fit.
    """
    wanted = options.batch_size
    if wanted != "auto" and job.compute.device == "cpu":
        return Sizes(batch=wanted, decode=wanted, encode=wanted)
    if options.memory_gb is not None and job.compute.device == "cuda":
        _, card_bytes = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory_gb * 1e9 / card_bytes))
    return _sizes_for(options, job, _count(job))


def estimate_run(options: FeaturizeOptions, job: Job) -> Estimate:
    """Return what a run will take: counted from the configurations, and timed on the device for some seconds with random weights.

    Steps that DeepCache shortens count whole.
    """
    missing, work, guided = missing_rows(job), _count(job), _guided(job)
    needed = {name: stage for name, stage in work.items() if missing[name]}
    sizes = _sizes_for(options, job, work)
    together = rows_at_once(needed, batch=sizes.batch, guided=guided)
    folder = None if job.decoder is None else job.decoder.folder
    measured = calibrate(job.generator, tuple(job.encoders.values()), job.compute, needed, rows=together, decoder_folder=folder)
    return Estimate(
        images=max(missing[DENOISE] // _forwards(job), missing[DECODE]),
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
        DENOISE: drawn * _forwards(job),
        DECODE: lacking(tokens),
        **{f"encode {job.encoders[name].name}": lacking([name]) for name in tokens},
    }


def load_models(options: FeaturizeOptions, job: Job, columns: Container[str], sizes: Sizes, times: StageTimes) -> Models:
    """Load the generator and the encoders of the columns; compile where that is asked for or pays.

    Raises:
        InputError: something does not load, or ``--compile on`` does not compile.
    """
    with times.stage("load"):
        drawer = TextToImage(job.generator, job.compute, attention=options.attention, decoder=job.decoder)
        encoders = {name: ImageEncoder(files, job.compute) for name, files in job.encoders.items() if name in columns}
    with times.stage("compile"):
        _compile(options, job, drawer, sizes)
    compiled = "" if drawer.compilation.part == "off" else f", compiled ({drawer.compilation.part})"
    say(f"drawing on {job.compute}, attention {drawer.attention}{compiled}, {sizes.batch} at a time")
    return Models(text_to_image=drawer, encoders=encoders)


def _compile(options: FeaturizeOptions, job: Job, drawer: TextToImage, sizes: Sizes) -> None:
    expected_s = _expected_s(job) if options.compile == "auto" and job.compute.device == "cuda" else None
    branching = job.generator.settings.deepcache > 1
    part = choose_compilation(options.compile, job.compute.device, expected_s, branching=branching)
    if part == "off":
        return
    rows = sizes.batch * (1 + drawer.guided)
    drawer.compilation.switch_on(part, rows=rows, latent_shape=job.generator.latent_shape)
    try:
        drawer.try_compiled(sizes.batch, sizes.decode)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return  # as in the run itself, which halves the batch
        if options.compile == "on":
            raise InputError(
                got=f"--compile on, which fails here ({reason(error)})",
                expected="a C++ compiler on the CPU, Triton on CUDA",
                do="install it, or use --compile off",
            ) from None
        drawer.compilation.switch_off()
        say(f"not compiled: {reason(error)}")


def _expected_s(job: Job) -> float:
    """Return about how long drawing takes uncompiled."""
    missing, work = missing_rows(job), _count(job)
    flops = total_flops({name: work[name] for name in (DENOISE, DECODE)}, missing)
    return flops / (EFFICIENCY * matrix_flops_per_s(torch.device(job.compute.device), job.compute.torch_dtype))


def _forwards(job: Job) -> int:
    """Return the UNet rows of an image."""
    return job.generator.settings.steps * (1 + _guided(job))


def _count(job: Job) -> dict[str, StageWork]:
    folder = None if job.decoder is None else job.decoder.folder
    return counted_work(job.generator, tuple(job.encoders.values()), dtype=job.compute.dtype, decoder_folder=folder)


def _sizes_for(options: FeaturizeOptions, job: Job, work: dict[str, StageWork]) -> Sizes:
    guided, batch = _guided(job), options.batch_size
    if batch == "auto":
        memory_bytes = free_memory_bytes(job.compute.device) if options.memory_gb is None else int(options.memory_gb * 1e9)
        batch = largest_batch(work, memory_bytes, guided=guided, most=MOST_AT_ONCE[job.compute.device])
    # On the CPU a batch that is asked for is computed as it is.
    whole = options.batch_size != "auto" and job.compute.device == "cpu"
    return Sizes(batch=batch, decode=batch if whole else decode_rows(work, batch, guided), encode=batch)


def _guided(job: Job) -> bool:
    return unet_is_guided(job.generator)


def _final_shards(job: Job, column: str) -> set[int]:
    folder = job.store / column
    return set(load_manifest(folder)[1]) if (folder / MANIFEST).is_file() else set()
