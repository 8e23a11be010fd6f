"""Images → tokens with a frozen encoder: class token first, then the patches, after the final LayerNorm, before any projection.

Two families, one convention: the vision towers of open_clip, and the ViT, DeiT, BEiT, DINO, MAE and CLIP models of transformers.

Shapes: B images, H × W pixels, S the encoder's side, T tokens, D width.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from featurize.encode.encoders import ANY_SIZE, EncoderFiles
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute
from lugpi_core.runtime.pretrained import loading


class ImageEncoder:
    """A frozen encoder on the device."""

    def __init__(self, files: EncoderFiles, compute: Compute) -> None:
        self.files = files
        self._device, self._dtype = torch.device(compute.device), compute.torch_dtype
        self._tower = _load_tower(files, compute.torch_dtype).eval().requires_grad_(False).to(self._device, self._dtype)

    def encode(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the tokens of square images in [0, 1]: float16 [B, T, D] on the device."""
        return self._encode(images_B3HW)

    @torch.inference_mode()
    def encode_pixels(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        """Return the tokens of the encoder's own input, float32: float16 [B, T, D] on the device."""
        tokens_BTD: torch.Tensor = self._tower(pixels_B3SS.to(self._device, self._dtype))
        assert tokens_BTD.shape[1:] == (self.files.tokens, self.files.width), tokens_BTD.shape
        return tokens_BTD.to(torch.float16)

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


def _load_tower(files: EncoderFiles, dtype: torch.dtype) -> nn.Module:
    with encoder_load_errors(files):
        return _OpenClipTokens(open_clip_model(files).visual) if files.family == "open_clip" else _transformers_tower(files, dtype)


def encoder_load_errors(files: EncoderFiles) -> AbstractContextManager[None]:
    """Turn what the libraries raise while an encoder loads inside the block into one InputError."""
    return loading(
        files.folder,
        expected="weights that fit their configuration",
        do="check that the folder is whole, as its library saves it, or choose another encoder",
    )


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
    def __init__(self, model: nn.Module, norm: nn.Module, how: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.norm = norm
        self.how = how

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        tokens_BTD: torch.Tensor = self.norm(self.model(pixel_values=pixels_B3SS, return_dict=True, **self.how).last_hidden_state)
        return tokens_BTD


class _MaeTokens(nn.Module):
    """The library hides a random three quarters of the patches and shuffles the rest; here all are read, in their order."""

    def __init__(self, model: Any, patches: int, how: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.how, self.patches = model, how, patches
        model.config.mask_ratio = 0.0

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        order_BT = torch.arange(self.patches, device=pixels_B3SS.device, dtype=torch.float32).repeat(len(pixels_B3SS), 1)
        tokens_BTD: torch.Tensor = self.model(pixel_values=pixels_B3SS, noise=order_BT, return_dict=True, **self.how).last_hidden_state
        return tokens_BTD


def open_clip_model(files: EncoderFiles) -> Any:
    """Return the whole open_clip model, both towers.

    Raises:
        InputError: its vision tower is not a vision transformer.
    """
    import open_clip
    from open_clip.model import resize_pos_embed
    from open_clip.transformer import VisionTransformer

    source = f"local-dir:{files.folder}" if files.architecture is None else files.architecture
    weights = None if files.architecture is None else str(files.folder)
    how: dict[str, Any] = {"precision": "fp32", "force_quick_gelu": files.quick_gelu}
    model = open_clip.create_model(source, pretrained=weights, require_pretrained=True, **how)
    if not isinstance(model.visual, VisionTransformer):
        raise InputError(got=f"{files.name} ({type(model.visual).__name__})", expected="a vision transformer", do="choose a ViT")
    if not files.resizes_positions:
        return model
    # From float32: given a half-precision file, open_clip 3.3 interpolates in half precision, which torch cannot on the CPU.
    state = model.state_dict()
    how |= {"force_image_size": files.preprocessing.size_px, "load_weights": False, "pretrained_text": False}
    resized = open_clip.create_model(source, **how)
    resize_pos_embed(state, resized)
    resized.load_state_dict(state)
    return resized


def open_clip_tokenizer(files: EncoderFiles) -> Any:
    """Return the tokenizer of an open_clip model's text tower."""
    import open_clip

    return open_clip.get_tokenizer(f"local-dir:{files.folder}" if files.architecture is None else files.architecture)


def _transformers_tower(files: EncoderFiles, dtype: torch.dtype) -> nn.Module:
    import transformers

    is_clip = files.family in ("clip", "clip_vision_model")
    # Without a dtype transformers takes that of the configuration, or of the first tensor by name, for the whole model.
    model, report = (transformers.CLIPVisionModel if is_clip else transformers.AutoModel).from_pretrained(
        files.folder,
        dtype=dtype,
        variant=files.variant,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    # transformers only logs them and leaves them random. The pooler is never read, and many checkpoints lack it.
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
        raise ValueError(f"no weights for {missing[0]} and {len(missing) - 1} more")
    how = {"interpolate_pos_encoding": True} if files.resizes_positions and files.family not in ANY_SIZE else {}
    if files.family == "vit_mae":
        return _MaeTokens(model, files.tokens - 1, how)
    # transformers applies CLIP's final LayerNorm to the class token alone and leaves last_hidden_state without it.
    return _TransformersTokens(model, _post_layernorm(model) if is_clip else nn.Identity(), how)


def _post_layernorm(clip: Any) -> nn.Module:
    norms = [module for name, module in clip.named_modules() if name.split(".")[-1] == "post_layernorm"]
    assert len(norms) == 1, [name for name, _ in clip.named_modules()]
    norm: nn.Module = norms[0]
    return norm
