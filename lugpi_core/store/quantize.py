"""Tokens in eight bits: each token's values divided by its own scale, so that the largest magnitude is 127. Symmetric, round to nearest.

``x ≈ values · scale`` with ``scale = max|x| / 127``, so that the error is at most half a scale. Shapes: [..., T, D] and [..., T].
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

LARGEST = 127.0


def quantize(tokens: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Return int8 values [..., T, D] and float32 scales [..., T] of finite tokens; a token of zeros has scale 0."""
    import torch

    exact = tokens.float()
    scales = exact.abs().amax(dim=-1) / LARGEST
    values = (exact / torch.where(scales > 0, scales, 1).unsqueeze(-1)).round().clamp(-LARGEST, LARGEST)
    return values.to(torch.int8), scales


def lost_values(tokens: "torch.Tensor", values: "torch.Tensor") -> "torch.Tensor":
    """Return int64 [2]: how many values of tokens are not 0, and how many of these are 0 in eight bits: those below half a scale.

    Of normal numbers it is about one in a hundred; where one dimension is a hundred times larger than the rest, a third.
    """
    import torch

    is_value = tokens != 0
    return torch.stack([is_value.sum(), (is_value & (values == 0)).sum()])


def dequantize(values: "torch.Tensor", scales: "torch.Tensor") -> "torch.Tensor":
    """Return float16 tokens [..., T, D] on the device of the values."""
    import torch

    return (values.float() * scales.unsqueeze(-1)).to(torch.float16)


def dequantize_array(values: NDArray[np.int8], scales: NDArray[np.float32], out: NDArray[Any]) -> NDArray[Any]:
    """Write float16 tokens [..., T, D] into ``out`` and return it."""
    np.multiply(values, scales[..., None], out=out, casting="same_kind", dtype=np.float32)
    return out
