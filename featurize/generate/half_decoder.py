"""A generator's own decoder that makes images of half the side, from its own weights: its last upsampling is averaged.

The last upsampling of an AutoencoderKL repeats every cell twice along both axes and convolves with 3 × 3 taps. The mean of the four results
of a cell is a convolution with 3 × 3 taps of the cells before they were repeated. With that one in its place, everything up to there is
what the whole decoder computes, averaged over 2 × 2 pixels, and all behind it runs on a quarter of them. Decoding latents that were made
smaller is another thing: they are latents of another image (docs/benchmarks.md has both).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

# Their decoders are one class of diffusers, and so is the upsampling of these blocks.
HALVED_CLASSES = ("AutoencoderKL", "AutoencoderKLFlux2")
_HALVED_BLOCKS = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
# Row i, column t: how much of tap t of the upsampled image's kernel is in tap i of the averaged one, along one axis.
_AVERAGED = ((0.5, 0.0, 0.0), (0.5, 1.0, 0.5), (0.0, 0.0, 0.5))


def can_be_halved(class_name: str, config: Mapping[str, Any]) -> bool:
    """Whether a decoder of this class and configuration has an upsampling that can be averaged."""
    blocks = config.get("up_block_types", ())[:-1]  # the last block upsamples nothing
    return class_name in HALVED_CLASSES and bool(blocks) and blocks[-1] in _HALVED_BLOCKS


@torch.no_grad()
def halve(vae: Any) -> Any:
    """Make the decoder of an AutoencoderKL return images of half the side, in place; return the model."""
    block = vae.decoder.up_blocks[-2]
    (upsampler,) = block.upsamplers
    conv, axis = upsampler.conv, torch.tensor(_AVERAGED, dtype=torch.float64, device=upsampler.conv.weight.device)
    averaged = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, device=conv.weight.device, dtype=conv.weight.dtype)
    averaged.weight.copy_(torch.einsum("it,oqts,js->oqij", axis, conv.weight.double(), axis))
    averaged.bias = conv.bias
    block.upsamplers[0] = averaged.eval().requires_grad_(False)
    return vae
