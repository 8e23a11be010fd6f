"""The roofline: images per second if the device did nothing but matrix products at its measured peak."""

import time
from collections.abc import Mapping

import torch

from benchmarks.featurize.plain_diffusers import ImageJob
from featurize.cost.stage_cost import DENOISE, stage_flops
from featurize.generate.decoders import DecoderFiles

# Side of the square matrices: large enough to keep all cores busy, small enough to take about a second.
_SIDE = {"cuda": 8192, "cpu": 2048}
_ROUNDS = 5
_PRODUCTS_A_ROUND = {"cuda": 20, "cpu": 1}


def flops_per_image(row_flops: Mapping[str, float], *, steps: int, guided: bool) -> float:
    """Return the FLOPs of one image: its prompt once, the UNet ``steps`` times (twice as often when guided), and everything else once.

    Args:
        row_flops: ``stage_flops`` of the generator and the encoders.
        steps: denoising steps.
        guided: whether each step reads the latent with the prompt and without.
    """
    once = sum(flops for name, flops in row_flops.items() if name != DENOISE)
    return once + row_flops[DENOISE] * steps * (2 if guided else 1)


def roof(peak_flops: float, drawings: ImageJob) -> float:
    """Return the images/s at which the device would do nothing but the drawings' FLOPs at its peak."""
    return peak_flops / flops_per_image(row_flops_of(drawings), steps=drawings.generator.settings.steps, guided=drawings.guided)


def row_flops_of(drawings: ImageJob) -> dict[str, float]:
    """Return the FLOPs of one row in each stage, counted from the configurations."""
    folder = drawings.tiny_decoder
    # Of its folder only the configuration is read.
    tiny = None if folder is None else DecoderFiles(name="tiny", folder=folder, revision=None, weights_hash="", license="")
    return stage_flops(drawings.generator, drawings.encoders, decoder=tiny)


def measured_peak_flops(device: str, dtype: torch.dtype) -> float:
    """Return the FLOP/s of large matrix products on the device, the best of some rounds."""
    side, products = _SIDE[device], _PRODUCTS_A_ROUND[device]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    rounds_s = [_round_s(left, right, products) for _ in range(_ROUNDS + 1)]
    return 2 * side**3 * products / min(rounds_s[1:])


def _round_s(left: torch.Tensor, right: torch.Tensor, products: int) -> float:
    _wait(left)
    start_s = time.perf_counter()
    for _ in range(products):
        left @ right
    _wait(left)
    return time.perf_counter() - start_s


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()
