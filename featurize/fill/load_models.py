"""From a job to loaded models, compiled if that was asked for or pays."""

from collections.abc import Container, Mapping
from functools import partial

from featurize.cost.batch_size import BatchSizes, choose_batch_sizes, free_memory_bytes, limit_memory
from featurize.encode.image_encoder import ImageEncoder
from featurize.encode.joint_space import JointSpace
from featurize.fill.block import Models
from featurize.fill.out_of_memory import is_out_of_memory
from featurize.fill.scorer import Scorer
from featurize.generate.acceleration import choose_compilation
from featurize.generate.decoders import image_side_px
from featurize.generate.text_to_image import TextToImage
from featurize.plan.job import Job
from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.runtime.meters import StageTimes
from lugpi_core.runtime.pretrained import reason


def load_models(job: Job, columns: Container[str], images: int, times: StageTimes) -> tuple[Models, BatchSizes]:
    """Load the generator and the encoders of some columns; choose batch sizes that fit next to them; compile.

    Args:
        job: with which models, where, how.
        columns: whose encoders are needed, beside the one that chooses among candidates.
        images: to be generated, which decides whether compiling pays.
        times: gets the seconds of loading and compiling.

    Raises:
        InputError: something does not load, or ``--compile on`` does not compile.
    """
    limit_memory(job.execution, job.compute.device)
    with times.stage("load"):
        text_to_image = TextToImage(job.generator, job.compute, attention=job.execution.attention, decoder=job.decoder)
        encoders = {
            name: ImageEncoder(files, job.encoder_compute or job.compute)
            for name, files in job.encoders.items()
            if name in columns or name == job.scorer
        }
        scorer = None
        if job.scorer is not None:
            scorer = Scorer(column=job.scorer, space=JointSpace(job.encoders[job.scorer], job.encoder_compute or job.compute))
        _try_models(job, text_to_image, encoders)
    sizes = choose_batch_sizes(job, text_to_image.parts.tokenizers)
    with times.stage("compile"):
        _compile(job, text_to_image, sizes, images)
    part = text_to_image.compilation.part
    compiled = "" if part == "off" else f", compiled ({part})"
    say(f"generating on {job.compute}, attention {text_to_image.attention}{compiled}, {sizes.generate} at a time")
    free_bytes = partial(free_memory_bytes, job.execution, job.compute.device)
    return Models(text_to_image=text_to_image, encoders=encoders, scorer=scorer, free_bytes=free_bytes), sizes


def _try_models(job: Job, text_to_image: TextToImage, encoders: Mapping[str, ImageEncoder]) -> None:
    """Run every model once on something small, so that models that do not fit one another are told before the first image.

    Raises:
        InputError: one of them does not run; it is named.
    """
    folder = job.generator.folder
    part = folder
    try:
        for name in text_to_image.try_parts():
            part = job.decoder.folder if name == "vae" and job.decoder is not None else folder / name
        for encoder in encoders.values():
            part = encoder.files.folder
            encoder.try_out(image_side_px(job.generator, job.decoder))
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            got=f"{part}, which does not run ({reason(error)})",
            expected="a model that fits the others of its folder, and needs no other input than text or image",
            do="restore its files from where it comes from, or choose another model",
        ) from None


def _compile(job: Job, text_to_image: TextToImage, sizes: BatchSizes, images: int) -> None:
    # Of a transformer, whose blocks are alike, one is compiled for all.
    branching = job.generator.settings.deepcache > 1 or job.generator.family.denoiser == "transformer"
    part = choose_compilation(job.execution.compile, job.compute.device, images, branching=branching)
    if part == "off":
        return
    rows = sizes.generate * (1 + text_to_image.guided)
    try:
        text_to_image.compilation.switch_on(part, rows=rows, latent_shape=job.generator.latent_shape)
        with text_to_image.text_encoder_on_device():
            prompt = text_to_image.encode_prompts([""])
        text_to_image.warm_up(prompt, sizes.generate, sizes.decode)
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            return  # as in the run itself, which halves the batch
        if job.execution.compile == "on":
            raise InputError(
                got=f"--compile on, which fails here ({reason(error)})",
                expected="a C++ compiler on the CPU, Triton on CUDA",
                do="install it, or use --compile off",
            ) from None
        text_to_image.compilation.switch_off()
        say(f"not compiled: {reason(error)}")
