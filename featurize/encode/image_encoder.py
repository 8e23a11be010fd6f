"""Images → tokens with a frozen encoder: class token first, then the patches, after the final LayerNorm, before any projection.

Two families, one convention: the vision towers of open_clip, and the ViT, DINOv2 and CLIP models of transformers.

Shapes: B images, H × W pixels, S the encoder's side, T tokens, D width.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from featurize.encode.encoders import EncoderFiles
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute
from lugpi_core.runtime.pretrained import loading


class ImageEncoder:
    """A frozen encoder on the device."""

    def __init__(self, files: EncoderFiles, compute: Compute) -> None:
        self.files = files
        self._device, self._dtype = torch.device(compute.device), compute.torch_dtype
        self._tower = _load_tower(files).eval().requires_grad_(False).to(self._device, self._dtype)
        self._mean = torch.tensor(files.preprocessing.mean, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(files.preprocessing.std, device=self._device).view(3, 1, 1)

    @torch.inference_mode()
    def encode(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the tokens of square images in [0, 1]: float16 [B, T, D] on the device."""
        tokens_BTD: torch.Tensor = self._tower(self.pixels(images_B3HW).to(self._dtype))
        assert tokens_BTD.shape[1:] == (self.files.tokens, self.files.width), tokens_BTD.shape
        return tokens_BTD.to(torch.float16)

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
        """Return the encoder's input, float32 [B, 3, S, S]: images resized on the device with antialiasing, clipped, normalised."""
        preprocessing = self.files.preprocessing
        resized = nn.functional.interpolate(
            images_B3HW.float(),
            size=(preprocessing.size_px, preprocessing.size_px),
            mode=preprocessing.interpolation,
            antialias=True,
            align_corners=False,
        )
        return (resized.clamp(0, 1) - self._mean) / self._std


def _load_tower(files: EncoderFiles) -> nn.Module:
    with encoder_load_errors(files):
        return _OpenClipTokens(open_clip_model(files).visual) if files.family == "open_clip" else _transformers_tower(files)


def encoder_load_errors(files: EncoderFiles) -> AbstractContextManager[None]:
    """Turn what the libraries raise while an encoder loads inside the block into one InputError."""
    return loading(files.folder, expected="weights that fit their configuration", do="download them again")


class _OpenClipTokens(nn.Module):
    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        layers = self.visual.forward_intermediates(
            pixels_B3SS, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        return torch.cat([layers["image_intermediates_prefix"][0], layers["image_intermediates"][0]], dim=1)


class _TransformersTokens(nn.Module):
    def __init__(self, model: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.norm = norm

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        tokens_BTD: torch.Tensor = self.norm(self.model(pixel_values=pixels_B3SS).last_hidden_state)
        return tokens_BTD


def open_clip_model(files: EncoderFiles) -> Any:
    """Return the whole open_clip model, both towers.

    Raises:
        InputError: its vision tower is not a vision transformer.
    """
    import open_clip
    from open_clip.transformer import VisionTransformer

    if files.architecture is None:
        model = open_clip.create_model(f"local-dir:{files.folder}", force_quick_gelu=files.quick_gelu, require_pretrained=True)
    else:
        model = open_clip.create_model(files.architecture, pretrained=str(files.folder), require_pretrained=True)
    if not isinstance(model.visual, VisionTransformer):
        raise InputError(got=f"{files.name} ({type(model.visual).__name__})", expected="a vision transformer", do="choose a ViT")
    return model


def open_clip_tokenizer(files: EncoderFiles) -> Any:
    """Return the tokenizer of an open_clip model's text tower."""
    import open_clip

    return open_clip.get_tokenizer(f"local-dir:{files.folder}" if files.architecture is None else files.architecture)


def _transformers_tower(files: EncoderFiles) -> nn.Module:
    import transformers

    if files.family in ("clip", "clip_vision_model"):
        model = transformers.CLIPVisionModel.from_pretrained(files.folder, use_safetensors=True, local_files_only=True)
        # transformers applies CLIP's final LayerNorm to the class token alone and leaves last_hidden_state without it.
        return _TransformersTokens(model, _post_layernorm(model))
    model = transformers.AutoModel.from_pretrained(files.folder, use_safetensors=True, local_files_only=True)
    return _TransformersTokens(model, nn.Identity())


def _post_layernorm(clip: Any) -> nn.Module:
    norms = [module for name, module in clip.named_modules() if name.split(".")[-1] == "post_layernorm"]
    assert len(norms) == 1, [name for name, _ in clip.named_modules()]
    norm: nn.Module = norms[0]
    return norm
