"""How many rows a run computes at once. If memory runs out all the same, ``fill/out_of_memory.py`` halves them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from featurize.cost.stage_memory import Part, decoder_part, denoiser_part, text_parts
from featurize.options import Execution
from featurize.plan.job import TEXT_BATCH, Job
from lugpi_core.command_line import say
from lugpi_core.runtime.host_memory import host_available_bytes
from lugpi_core.runtime.meters import peak_memory_bytes

# More at once is hardly faster: the GPU is busy. And a stop waits for the end of a block, and a kill costs one.
MOST_AT_ONCE = {"cuda": 32, "cpu": 16}
# Of a UNet on the CPU, and where nothing can be counted: values that are alive at once per pixel of the images, counted for Stable
# Diffusion 2 with guidance, and a fifth more for the allocator: in the UNet for each image of a batch, in the decoder for a single image.
_UNET_VALUES, _DECODER_VALUES = 320, 1460
# What the allocator and the work space of the kernels take beside what is counted.
ALLOCATED = 1.2
# Of a GPU's memory, to be left: weights that come and go break up what is free.
SPARE = 0.1
# An image in the decoder takes as much memory as 4.6 in the UNet.
_DECODED_SHARE = 8


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """How many rows at once: prompts to encode, images to generate, to decode, to encode."""

    generate: int
    decode: int
    encode: int
    prompt: int = TEXT_BATCH

    def by_stage(self) -> dict[str, int]:
        """Return the size of every stage."""
        return {"prompt": self.prompt, "denoise": self.generate, "decode": self.decode, "encode": self.encode}


def limit_memory(execution: Execution, device: str) -> None:
    """Make torch keep to ``--memory-gb`` on CUDA; on the CPU, warn that nothing does."""
    if execution.memory_gb is not None and device == "cpu":
        say("warning: --memory-gb does not limit memory on the CPU; there it only bounds what --batch-size auto chooses")
    elif execution.memory_gb is not None:
        _, total_bytes = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(min(1.0, execution.memory_gb * 1e9 / total_bytes))


def choose_batch_sizes(job: Job, tokenizers: Mapping[str, Any]) -> BatchSizes:
    """Return how many rows to compute at once, given the memory that is free now, with the models loaded and the text encoders elsewhere.

    ``--batch-size auto`` is the largest power of two up to ``MOST_AT_ONCE`` that is expected to fit, at least 1, by a count on the meta
    device, and with a tenth of a GPU left free; of a UNet on the CPU by a fixed rule, so that a run that an earlier version began is
    continued in the same blocks. Images are decoded in slices of at most an eighth of the batch; but on the CPU a batch that was asked for
    is decoded whole.

    Args:
        job: with which models, where, how.
        tokenizers: of the generator, by their folders.
    """
    device, batch = job.compute.device, job.execution.batch_size
    if batch != "auto":
        return BatchSizes(generate=batch, decode=batch if device == "cpu" else max(1, batch // _DECODED_SHARE), encode=batch)
    free_bytes = free_memory_bytes(job.execution, device)
    if device == "cpu" and job.generator.family.denoiser == "unet":
        return _by_rule(job, free_bytes)
    try:
        return _by_count(job, tokenizers, free_bytes - int(SPARE * _device_bytes(device)))
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RuntimeError):
        # The models run, as has just been tried; that they cannot be counted is no reason to refuse them.
        return _by_rule(job, free_bytes)


def most_rows(part: Part, free_bytes: int, most: int) -> int:
    """Return the largest power-of-two part of ``most`` rows that a model has the memory for, at least 1. What it takes grows evenly from
    the second row on."""
    one = part.peak_bytes(1)
    each = part.peak_bytes(2) - one if most > 1 else 0
    while most > 1 and ALLOCATED * (one + (most - 1) * each) > free_bytes:
        most //= 2
    return most


def _device_bytes(device: str) -> int:
    return 0 if device == "cpu" else torch.cuda.mem_get_info()[1]


def _by_count(job: Job, tokenizers: Mapping[str, Any], free_bytes: int) -> BatchSizes:
    generator, dtype, device = job.generator, job.compute.torch_dtype, job.compute.device
    batch = most_rows(denoiser_part(generator, dtype, device), free_bytes, MOST_AT_ONCE[device])
    decoder = decoder_part(generator, dtype, device, decoder=job.decoder)
    decoded = most_rows(decoder, free_bytes, max(1, batch // _DECODED_SHARE))
    prompts = TEXT_BATCH
    if device != "cpu":
        encoders = text_parts(generator, dtype, tokenizers)
        prompts = most_rows(encoders[0], free_bytes - sum(encoder.weight_bytes for encoder in encoders), TEXT_BATCH)
    return BatchSizes(generate=batch, decode=decoded, encode=batch, prompt=prompts)


def _by_rule(job: Job, free_bytes: int) -> BatchSizes:
    value_bytes = job.generator.size_px**2 * job.compute.torch_dtype.itemsize
    batch = MOST_AT_ONCE[job.compute.device]
    while batch > 1 and value_bytes * max(_UNET_VALUES * batch, _DECODER_VALUES) > free_bytes:
        batch //= 2
    return BatchSizes(generate=batch, decode=max(1, batch // _DECODED_SHARE), encode=batch)


def free_memory_bytes(execution: Execution, device: str) -> int:
    """Return the bytes that this process may still take on ``device`` (``cpu`` or ``cuda``).

    CUDA: what the GPU has free and what torch keeps unused, up to ``limit_memory``. CPU: half of what the machine, or the control group the
    process is in, has available, because the page cache and other processes need the rest; at most what ``--memory-gb`` leaves.
    """
    if device == "cpu":
        free_bytes = host_available_bytes() // 2
        if execution.memory_gb is None:
            return free_bytes
        return min(free_bytes, int(execution.memory_gb * 1e9) - peak_memory_bytes()["host_bytes"])
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    reserved_bytes, used_bytes = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    allowed_bytes = int(torch.cuda.get_per_process_memory_fraction() * total_bytes)
    return max(0, min(free_bytes + reserved_bytes - used_bytes, allowed_bytes - used_bytes))
