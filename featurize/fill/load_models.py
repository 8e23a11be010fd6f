"""From a job to loaded models, compiled where that is asked for or pays."""

from collections.abc import Container

import torch

from featurize.cost.batch_size import Sizes, count_job, missing_rows
from featurize.cost.estimate import EFFICIENCY, matrix_flops_per_s, total_flops
from featurize.cost.stage_cost import DECODE, DENOISE
from featurize.encode.image_encoder import ImageEncoder
from featurize.fill.block import Models
from featurize.fill.out_of_memory import is_out_of_memory
from featurize.generate.acceleration import choose_compilation
from featurize.generate.text_to_image import TextToImage
from featurize.plan.job import Job
from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.runtime.meters import StageTimes
from lugpi_core.runtime.pretrained import reason


def load_models(job: Job, columns: Container[str], sizes: Sizes, times: StageTimes) -> Models:
    """Load the generator and the encoders of the columns; compile where that is asked for or pays.

    Raises:
        InputError: something does not load, or ``--compile on`` does not compile.
    """
    with times.stage("load"):
        drawer = TextToImage(job.generator, job.compute, attention=job.execution.attention, decoder=job.decoder)
        encoders = {name: ImageEncoder(files, job.compute) for name, files in job.encoders.items() if name in columns}
    with times.stage("compile"):
        _compile(job, drawer, sizes)
    compiled = "" if drawer.compilation.part == "off" else f", compiled ({drawer.compilation.part})"
    say(f"drawing on {job.compute}, attention {drawer.attention}{compiled}, {sizes.batch} at a time")
    return Models(text_to_image=drawer, encoders=encoders)


def _compile(job: Job, drawer: TextToImage, sizes: Sizes) -> None:
    expected_s = _expected_s(job) if job.execution.compile == "auto" and job.compute.device == "cuda" else None
    branching = job.generator.settings.deepcache > 1
    part = choose_compilation(job.execution.compile, job.compute.device, expected_s, branching=branching)
    if part == "off":
        return
    rows = sizes.batch * (1 + drawer.guided)
    drawer.compilation.switch_on(part, rows=rows, latent_shape=job.generator.latent_shape)
    try:
        drawer.try_compiled(sizes.batch, sizes.decode)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return  # as in the run itself, which halves the batch
        if job.execution.compile == "on":
            raise InputError(
                got=f"--compile on, which fails here ({reason(error)})",
                expected="a C++ compiler on the CPU, Triton on CUDA",
                do="install it, or use --compile off",
            ) from None
        drawer.compilation.switch_off()
        say(f"not compiled: {reason(error)}")


def _expected_s(job: Job) -> float:
    """Return about how long drawing takes uncompiled."""
    missing, work = missing_rows(job), count_job(job)
    flops = total_flops({name: work[name] for name in (DENOISE, DECODE)}, missing)
    return flops / (EFFICIENCY * matrix_flops_per_s(torch.device(job.compute.device), job.compute.torch_dtype))
