"""Images → tokens with a frozen encoder: the token that stands for the image, others before the patches, then the patches.

Shapes: B images, H × W pixels, S the encoder's side, T tokens, D width.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from featurize.encode.encoder_files import EncoderFiles, size_errors
from featurize.encode.open_clip_models import load_open_clip, open_clip_skeleton
from featurize.encode.pooling import pooled_tokens
from featurize.encode.timm_models import load_timm, timm_skeleton
from featurize.encode.transformers_models import load_transformers, transformers_skeleton
from lugpi_core.runtime.device import Compute
from lugpi_core.runtime.pretrained import loading


class ImageEncoder:
    """A frozen encoder on the device.

    Raises:
        InputError: its weights do not load, or it does not run at the size that the user chose.
    """

    def __init__(self, files: EncoderFiles, compute: Compute) -> None:
        self.files = files
        self._device, self._dtype = torch.device(compute.device), compute.torch_dtype
        tower = _load_tower(files, self._dtype).eval().requires_grad_(False)
        if files.is_resized:
            _try_size(files, tower if (compute.device, self._dtype) == ("cpu", torch.float32) else copy.deepcopy(tower).float())
        self._tower = tower.to(self._device, self._dtype)

    def encode(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the tokens of square images in [0, 1]: float16 [B, T, D] on the device."""
        return self._encode(images_B3HW)

    @torch.inference_mode()
    def encode_pixels(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        """Return the tokens of the encoder's own input, float32: float16 [B, T, D] on the device."""
        return self._tokens(pixels_B3SS).to(torch.float16)

    def differentiable(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the tokens of square images in [0, 1] with their gradients, [B, T, D] in the encoder's dtype on the device."""
        return self._tokens(self.pixels(images_B3HW))

    def _tokens(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        tokens_BTD = pooled_tokens(self._tower(pixels_B3SS.to(self._device, self._dtype)), self.files)
        assert tokens_BTD.shape[1:] == (self.files.tokens, self.files.width), tokens_BTD.shape
        return tokens_BTD

    def try_out(self, side_px: int) -> None:
        """Encode one black image of that side. Errors are those of the model's library."""
        self._encode(torch.zeros((1, 3, side_px, side_px), device=self._device))

    @torch.inference_mode()
    def _encode(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        return self.encode_pixels(self.pixels(images_B3HW))

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Compute in float32 inside the block, whatever the encoder's dtype."""
        dtype, self._dtype = self._dtype, torch.float32
        try:
            self._tower.float()
            yield
        finally:
            self._dtype = dtype
            self._tower.to(dtype)

    def pixels(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the encoder's input, float32 [B, 3, S, S], of square images in [0, 1] on the device."""
        return self.files.preprocessing.pixels(images_B3HW)


@torch.no_grad()  # what the tower keeps from the call must not be of inference mode: a gradient may go through it later
def _try_size(files: EncoderFiles, tower: nn.Module) -> None:
    """Encode black pixels on the CPU, in float32: without numbers no index is checked, and one that a GPU checks ends the process. The
    tower is the encoder's own or, where that computes on another device or in another dtype, a copy: what it keeps from the call, such as
    positions, would be in the way there."""
    with size_errors(files):
        tower(torch.zeros(1, 3, files.preprocessing.size_px, files.preprocessing.size_px))


def _load_tower(files: EncoderFiles, dtype: torch.dtype) -> nn.Module:
    with encoder_load_errors(files):
        match files.family:
            case "open_clip":
                return load_open_clip(files)
            case "timm":
                return load_timm(files)
        return load_transformers(files, dtype)


def skeleton(files: EncoderFiles) -> nn.Module:
    """Return an encoder's tower with random weights; with torch's meta device as the default device it has none."""
    match files.family:
        case "open_clip":
            return open_clip_skeleton(files)
        case "timm":
            return timm_skeleton(files)
    return transformers_skeleton(files)


def encoder_load_errors(files: EncoderFiles) -> AbstractContextManager[None]:
    """Turn what the libraries raise while an encoder loads inside the block into one InputError."""
    return loading(
        files.folder,
        expected="weights that fit their configuration",
        do="check that the folder is whole, as its library saves it, or choose another encoder",
    )
