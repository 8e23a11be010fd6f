"""How many rows a run computes at once. If memory runs out all the same, ``fill/out_of_memory.py`` halves them."""

from dataclasses import dataclass

import torch

from featurize.options import Execution
from featurize.plan.job import TEXT_BATCH, Job
from lugpi_core.command_line import say
from lugpi_core.runtime.host_memory import host_available_bytes
from lugpi_core.runtime.meters import peak_memory_bytes

# More at once is hardly faster: the GPU is busy. And a stop waits for the end of a block, and a kill costs one.
MOST_AT_ONCE = {"cuda": 32, "cpu": 16}
# Values that are alive at once per pixel of the images, counted for Stable Diffusion 2 with guidance, and a fifth more for the allocator:
# in the UNet for each image of a batch, in the decoder for a single image.
_UNET_VALUES, _DECODER_VALUES = 320, 1460
# An image in the decoder takes as much memory as 4.6 in the UNet.
_DECODED_SHARE = 8


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """How many rows at once: images to generate, to decode, to encode."""

    generate: int
    decode: int
    encode: int

    def by_stage(self) -> dict[str, int]:
        """Return the size of every stage."""
        return {"prompt": TEXT_BATCH, "denoise": self.generate, "decode": self.decode, "encode": self.encode}


def limit_memory(execution: Execution, device: str) -> None:
    """Make torch keep to ``--memory-gb`` on CUDA; on the CPU, warn that nothing does."""
    if execution.memory_gb is not None and device == "cpu":
        say("warning: --memory-gb does not limit memory on the CPU; there it only bounds what --batch-size auto chooses")
    elif execution.memory_gb is not None:
        _, total_bytes = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(min(1.0, execution.memory_gb * 1e9 / total_bytes))


def choose_batch_sizes(job: Job) -> BatchSizes:
    """Return how many rows to compute at once, given the memory that is free now, with the models loaded.

    ``--batch-size auto`` is the largest power of two up to ``MOST_AT_ONCE`` that is expected to fit, at least 1. Images are decoded in
    slices of an eighth of the batch, which need less memory than generating it; but on the CPU a batch that was asked for is decoded whole.
    """
    device, batch = job.compute.device, job.execution.batch_size
    if batch != "auto":
        return BatchSizes(generate=batch, decode=batch if device == "cpu" else max(1, batch // _DECODED_SHARE), encode=batch)
    value_bytes = job.generator.size_px**2 * job.compute.torch_dtype.itemsize
    free_bytes = free_memory_bytes(job.execution, device)
    batch = MOST_AT_ONCE[device]
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
