"""What a run will take: memory and the batch that fits it, FLOPs, hours. All of it follows from ``counted_work``, and hours from a few
forwards of modules with random weights; no weights are loaded.

Stages are named as ``counted_work`` names them; a run that draws nothing leaves out the stages that it does not need.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from featurize.cost.stage_cost import DECODE, DENOISE, PROMPT, Stage, StageWork, stages
from featurize.encode.encoders import EncoderFiles
from featurize.generate.generators import Generator
from featurize.plan.job import TEXT_BATCH
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute
from lugpi_core.runtime.host_memory import host_available_bytes

# What a process holds beside tensors. On CUDA: the context (0.3 to 0.6 GB by card and driver), the workspaces of cuDNN and cuBLAS, and
# the embeddings of prompts that wait to be drawn (0.16 GB). On the CPU: the libraries themselves and oneDNN's copies of weights (measured
# for Stable Diffusion 2: 0.5 and 0.13 GB).
RESERVE_BYTES = 1 << 30
# Bytes that the allocator takes over bytes alive: blocks are rounded up, and a freed block seldom fits the next tensor.
ALLOCATOR_FACTOR = 1.2
# Speed of a whole stage over that of large matrix products, for stages too long to be run for an estimate. Measured on one core of a CPU:
# the UNet of Stable Diffusion 2 at 512 px .71, its decoder .70 (first forward) to .90.
EFFICIENCY = 0.75
# A stage whose single row takes longer is not run for an estimate.
LONGEST_ROW_S = 5.0
# Rows of one timed forward are chosen to take no longer together, and forwards are repeated until they have taken so long.
_FORWARD_S, _REPEATS_S, _PRODUCTS_S = 1.0, 0.2, 0.2
_SIDE = {"cuda": 8192, "cpu": 1024}
_FLOP = {"GFLOP": 1e9, "TFLOP": 1e12, "PFLOP": 1e15, "EFLOP": 1e18}
_NOTHING = StageWork(flops=0.0, activation_bytes=0, weight_bytes=0)


def free_memory_bytes(device: str) -> int:
    """Return the bytes that this process may still take on ``device`` (``cpu``, ``cuda`` or ``cuda:1``).

    CUDA: what the card has free and what torch keeps unused, up to what ``set_per_process_memory_fraction`` leaves. CPU: half of what the
    machine, or the control group the process is in, has available; the other half is the page cache's and the neighbours'.
    """
    where = torch.device(device)
    if where.type == "cpu":
        return host_available_bytes() // 2
    index = torch.cuda.current_device() if where.index is None else where.index
    free_bytes, total_bytes = torch.cuda.mem_get_info(index)
    held_bytes, used_bytes = torch.cuda.memory_reserved(index), torch.cuda.memory_allocated(index)
    allowed_bytes = int(torch.cuda.get_per_process_memory_fraction(index) * total_bytes)
    return max(0, min(free_bytes + held_bytes - used_bytes, allowed_bytes - used_bytes))


def decode_rows(work: Mapping[str, StageWork], batch: int, guided: bool) -> int:
    """Return how many images to decode at once: the largest power of two ≤ ``batch`` with which decoding needs no more memory than
    denoising the batch does; at least 1. Without a UNet in ``work``, nothing but the batch bounds it."""
    rows = _power_of_two(batch)
    denoise_bytes = work[DENOISE].activation_bytes * batch * (2 if guided else 1) if DENOISE in work else None
    while denoise_bytes is not None and rows > 1 and work[DECODE].activation_bytes * rows > denoise_bytes:
        rows //= 2
    return rows


def rows_at_once(work: Mapping[str, StageWork], *, batch: int, guided: bool) -> dict[str, int]:
    """Return the rows of one forward of each stage in a run that draws ``batch`` images at a time."""
    own = {PROMPT: TEXT_BATCH, DENOISE: batch * (2 if guided else 1)}
    if DECODE in work:
        own[DECODE] = decode_rows(work, batch, guided)
    return {name: own.get(name, batch) for name in work}


def peak_bytes(work: Mapping[str, StageWork], *, batch: int, guided: bool, decode_rows: int, encode_rows: int) -> int:
    """Return the most bytes that a run holds on its device: the weights of UNet, decoder and encoders, the largest stage's activations
    times ``ALLOCATOR_FACTOR``, and ``RESERVE_BYTES``. The text encoder is beside them only while it reads and the others wait.

    Args:
        work: ``counted_work``.
        batch: images drawn at once.
        guided: whether the UNet reads each image twice.
        decode_rows: images decoded at once.
        encode_rows: images encoded at once.
    """
    rows = {PROMPT: TEXT_BATCH, DENOISE: batch * (2 if guided else 1), DECODE: decode_rows}
    activations = {name: ALLOCATOR_FACTOR * stage.activation_bytes * rows.get(name, encode_rows) for name, stage in work.items()}
    reading_bytes = activations.pop(PROMPT, 0) + work.get(PROMPT, _NOTHING).weight_bytes
    weight_bytes = sum(stage.weight_bytes for name, stage in work.items() if name != PROMPT)
    return int(RESERVE_BYTES + weight_bytes + max(reading_bytes, *activations.values(), 0))


def largest_batch(work: Mapping[str, StageWork], memory_bytes: int, *, guided: bool, most: int) -> int:
    """Return the largest power of two ≤ ``most`` of images that can be drawn, decoded by ``decode_rows`` and encoded together in
    ``memory_bytes``.

    Raises:
        InputError: a single image does not fit.
    """
    batch = _power_of_two(most)
    while (needed_bytes := _peak_of_batch(work, batch, guided)) > memory_bytes:
        if batch == 1:
            raise InputError(
                got=f"{_gigabytes(memory_bytes)} of free memory",
                expected=f"{_gigabytes(needed_bytes)} for one image at a time",
                do="free memory, take a larger card, or draw smaller images (--size-px) or with another generator",
            )
        batch //= 2
    return batch


def total_flops(work: Mapping[str, StageWork], rows: Mapping[str, float]) -> float:
    """Return the FLOPs of a run that computes so many ``rows`` in each stage: a prompt a row, a UNet row for each step, twice when guided,
    an image a row elsewhere."""
    return sum(stage.flops * rows[name] for name, stage in work.items())


def matrix_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of large matrix products, measured for about a fifth of a second."""
    side = _SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(_repeated_s(lambda: left @ right, device, _PRODUCTS_S))


def calibrate(
    generator: Generator,
    encoders: Sequence[EncoderFiles],
    compute: Compute,
    work: Mapping[str, StageWork],
    *,
    rows: Mapping[str, int],
    decoder_folder: Path | None = None,
) -> "Calibration":
    """Time the stages of ``work`` on the device, with random weights, one stage there at a time.

    A stage is run with as many of its ``rows`` as are expected to take a second. One whose single row takes longer than
    ``LONGEST_ROW_S`` at ``EFFICIENCY`` times the speed of matrix products is not run, and that is its time.

    Args:
        generator, encoders, decoder_folder: as ``counted_work`` got them.
        compute: device and dtype.
        work: what ``counted_work`` returned, or the part of it that the run needs.
        rows: ``rows_at_once`` of the run.
    """
    device = torch.device(compute.device)
    unbuilt = stages(generator, encoders, dtype=compute.dtype, decoder_folder=decoder_folder)
    row_s: dict[str, float] = {}
    timed: list[str] = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        products_per_s = matrix_flops_per_s(device, compute.torch_dtype)
        for name, stage in work.items():
            row_s[name] = stage.flops / (EFFICIENCY * products_per_s)
            if row_s[name] <= LONGEST_ROW_S:
                together = max(1, min(rows[name], int(_FORWARD_S / row_s[name])))
                row_s[name] = _forward_s(unbuilt[name], name, together, device) / together
                timed.append(name)
    return Calibration(row_s=row_s, timed=tuple(timed), products_per_s=products_per_s, where=str(compute))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How fast the device is.

    Attributes:
        row_s: seconds that one row takes in each stage.
        timed: the stages that were run; the others are inferred from FLOPs.
        products_per_s: FLOP/s of large matrix products.
        where: device and dtype, in words.
    """

    row_s: Mapping[str, float]
    timed: tuple[str, ...]
    products_per_s: float
    where: str

    def hours(self, rows: Mapping[str, float]) -> float:
        """Return the hours of a run that computes so many rows in each stage, as ``total_flops`` has them."""
        return sum(seconds * rows[name] for name, seconds in self.row_s.items()) / 3600

    @property
    def basis(self) -> str:
        """One sentence: how the hours were found."""
        inferred = [name for name in self.row_s if name not in self.timed]
        parts = [f"{', '.join(self.timed)} timed with random weights"] if self.timed else []
        if inferred:
            speed = f"{EFFICIENCY:g} × the {self.products_per_s / 1e9:,.0f} GFLOP/s of matrix products"
            parts.append(f"{', '.join(inferred)} counted in FLOPs at {speed}")
        return f"on {self.where}: {'; '.join(parts)}."


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take.

    Attributes:
        images: to be drawn, or made again from latents.
        prompts: to be read by the text encoder.
        flops: of the whole run.
        hours: of the whole run; None where they were not estimated.
        disk_bytes: that the store will take in addition.
        peak_bytes: on the device.
        basis: one sentence that says how ``hours`` were found.
    """

    images: int
    prompts: int
    flops: float
    hours: float | None
    disk_bytes: int
    peak_bytes: int
    basis: str

    def record(self) -> dict[str, Any]:
        """Return what goes into a JSON record."""
        return asdict(self)

    def __str__(self) -> str:
        taken = "not estimated" if self.hours is None else f"about {_duration(self.hours)}"
        return "\n".join(
            (
                f"images  {self.images:,} from {self.prompts:,} prompts",
                f"work    {_flop(self.flops)}",
                f"time    {taken}, {self.basis}",
                f"disk    {_gigabytes(self.disk_bytes)} more",
                f"memory  {_gigabytes(self.peak_bytes)} on the device at the peak",
            )
        )


def _peak_of_batch(work: Mapping[str, StageWork], batch: int, guided: bool) -> int:
    rows = decode_rows(work, batch, guided) if DECODE in work else 0
    return peak_bytes(work, batch=batch, guided=guided, decode_rows=rows, encode_rows=batch)


def _power_of_two(most: int) -> int:
    assert most >= 1, most
    return 1 << (most.bit_length() - 1)


def _forward_s(stage: Stage, name: str, rows: int, device: torch.device) -> float:
    module = stage.module(device)
    if device.type == "cuda" and name in (DENOISE, DECODE):
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the run has them
    with device:
        inputs = stage.inputs(rows)
        return statistics.median(_repeated_s(lambda: stage.forward(module, *inputs), device, _REPEATS_S))


def _repeated_s(compute: Any, device: torch.device, least_s: float) -> list[float]:
    """Return the seconds of each call after a first one apart, until they have taken ``least_s`` together."""
    seconds: list[float] = []
    compute()
    while sum(seconds) < least_s:
        _wait(device)
        start_s = time.perf_counter()
        compute()
        _wait(device)
        seconds.append(time.perf_counter() - start_s)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _flop(flops: float) -> str:
    unit = next((unit for unit in ("GFLOP", "TFLOP", "PFLOP") if flops < 1000 * _FLOP[unit]), "EFLOP")
    return f"{flops / _FLOP[unit]:,.1f} {unit}"


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.2f} GB"


def _duration(hours: float) -> str:
    if hours < 1 / 30:
        return f"{hours * 3600:.0f} s"
    if hours < 2:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"
