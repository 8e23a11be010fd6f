"""What does decoding at half the side do to tokens? The halved decoder beside smaller latents and the tiny decoder, on stored latents.

Shapes: M images, T tokens, D width.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.encode.encoders import find_encoder
from featurize.encode.image_encoder import ImageEncoder
from featurize.generate.decoders import LatentDecoder, find_decoder
from featurize.generate.generators import Generator
from lugpi_core.runtime.device import resolve_compute

# Images at once.
_BATCH = 32


def smaller_decoding(
    generator: Generator,
    encoder: str,
    latents_MChw: torch.Tensor,
    other_MChw: torch.Tensor,
    compare: Callable[[NDArray[np.float32], NDArray[np.float32]], dict[str, float]],
) -> dict[str, Any]:
    """Return how near the tokens of smaller images are to those of the whole ones, by the side that the encoder reads: its own, and half.

    Args:
        generator: of the latents.
        encoder: its name.
        latents_MChw: those of some images.
        other_MChw: those of the same prompts by another seed.
        compare: of tokens [M, T, D].
    """
    compute = resolve_compute("cpu", "float32", half="float16")
    whole, half, tiny = (LatentDecoder(generator, compute, decoder=find_decoder(name, generator)) for name in ("full", "half", "tiny"))
    smaller_MChw = torch.nn.functional.avg_pool2d(latents_MChw.float(), 2)
    images = {
        "whole": _decoded(whole, latents_MChw),
        "another seed": _decoded(whole, other_MChw),
        "half decoder": _decoded(half, latents_MChw),
        "latents averaged over 2 × 2 cells": _decoded(whole, smaller_MChw),
        "tiny decoder": _decoded(tiny, latents_MChw),
    }
    figures: dict[str, Any] = {"images": len(latents_MChw)}
    for side_px in (generator.size_px, generator.size_px // 2):
        model = ImageEncoder(find_encoder(encoder, side_px), compute)
        tokens = {name: _encoded(model, images_M3HW) for name, images_M3HW in images.items()}
        figures[f"encoder of {side_px} px"] = {name: compare(tokens["whole"], tokens[name]) for name in images if name != "whole"}
    return figures


def _decoded(decoder: LatentDecoder, latents_MChw: torch.Tensor) -> torch.Tensor:
    return torch.cat([decoder.decode(latents_MChw[start : start + _BATCH]) for start in range(0, len(latents_MChw), _BATCH)])


def _encoded(encoder: ImageEncoder, images_M3HW: torch.Tensor) -> NDArray[np.float32]:
    parts = [encoder.encode(images_M3HW[start : start + _BATCH]) for start in range(0, len(images_M3HW), _BATCH)]
    return torch.cat(parts).numpy().astype(np.float32)
