"""What is known of an encoder before its weights are loaded: the record, its tokens by a run without numbers, its input size, its layer.

Every encoder gives the same: ``prefix`` tokens, then the patches, row by row. The first token stands for the image (V_CLS): the encoder's
class token, or, where it has none, its attention-pooled vector or the mean of its patches.

Shapes: B images, S the encoder's side, T tokens, D width.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featurize.encode.preprocessing import Preprocessing
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import loading, reason

LAYER = "after the final LayerNorm, before projection"
LAST = "last tokens, after the final norm where there is one"
QUERIES = "after the attentional pool and its LayerNorm, before projection"
MAP_WITH_NORM, MAP = "last feature map, after the final LayerNorm", "last feature map"
CLASS_TOKEN, ATTENTION_POOLED, MEAN = "class token", "attention-pooled", "mean of the patches"
# Encoders by a short name: the model that each stands for.
PRESETS: Mapping[str, str] = {
    "clip-vit-b32": "open_clip:ViT-B-32/openai",
    "clip-vit-b16": "open_clip:ViT-B-16/openai",
    "clip-vit-l14": "open_clip:ViT-L-14/openai",
    "vit-b16": "google/vit-base-patch16-224-in21k",
    "siglip2-b16": "open_clip:ViT-B-16-SigLIP2/webli",
    "dinov2-b14-reg": "facebook/dinov2-with-registers-base",
    "dinov3-b16": "timm:vit_base_patch16_dinov3.lvd1689m",
    "pe-core-b16": "open_clip:PE-Core-B-16/meta",
    "clip-demo": "embedded",
    "vit-demo": "embedded",
}
LICENSES = {
    "clip-vit-b32": "MIT",
    "clip-vit-b16": "MIT",
    "clip-vit-l14": "MIT",
    "vit-b16": "Apache-2.0",
    "clip-demo": "Apache-2.0",
    "vit-demo": "Apache-2.0",
    "siglip2-b16": "Apache-2.0",
    "dinov2-b14-reg": "Apache-2.0",
    "dinov3-b16": "DINOv3 License",
    "pe-core-b16": "Apache-2.0",
}


def flag_of(name: str) -> str:
    """Return the flag that an encoder was given with, for the error that names its place on the hub; a preset is named before it."""
    return f"--encoders {name}, which is" if name in PRESETS else "--encoders"


@dataclass(frozen=True, kw_only=True)
class EncoderFiles:
    """An encoder whose files are found, with everything that decides its tokens; nothing is loaded yet.

    Attributes:
        name: the column's name in the store.
        family: ``open_clip``, ``timm`` or the transformers model type.
        folder: with the weights; for an open_clip model with an ``architecture`` it may be the weights file itself.
        architecture: open_clip's or timm's name of the model, or None if the folder has a configuration.
        tokens: T, the first token included; 0 until the model has been run without numbers.
        width: D.
        processor: what the preprocessing was read from: the class of the folder's image processor, or the library.
        resizes_positions: whether the positions are interpolated from those of another input size.
        is_resized: whether the user chose another size than its own.
        variant: of the weight files, such as fp16; None for the plain ones.
        prefix: tokens before the patches.
        first_token: what the first token is.
        output: which of the model's outputs the tokens are.
        layer: n = the tokens after block n, the model's own final norm applied; None = after the last.
        stated_license: of a preset, or what the files themselves say, or nothing.
        fit: how open_clip and timm make a square of pictures that are not: ``shortest``, ``longest``, ``squash`` or ``border``. Generated
            images are square.
        fill: the colour of the border of ``longest`` and ``border``.
        pool: what is kept of the tokens: ``cls``, ``1`` or ``gxg``, see ``pooling.py``; None = all. ``tokens`` counts what is kept, while
            ``prefix`` and ``first_token`` are those of the encoder itself.
    """

    name: str
    family: str
    folder: Path
    architecture: str | None
    weights_hash: str
    preprocessing: Preprocessing
    tokens: int = 0
    width: int = 0
    quick_gelu: bool = False
    processor: str = "open_clip"
    resizes_positions: bool = False
    is_resized: bool = False
    variant: str | None = None
    prefix: int = 1
    first_token: str = CLASS_TOKEN
    output: str = LAYER
    layer: int | None = None
    stated_license: str = ""
    fit: str = "shortest"
    fill: int | tuple[int, int, int] = 0
    pool: str | None = None

    @property
    def license(self) -> str:
        """The licence of the weights, as far as we know it."""
        return self.stated_license or "see the model's own card"

    def words(self) -> str:
        """Return how images are read, for a person."""
        of_encoder = "" if self.first_token == CLASS_TOKEN else f", the first of them {self.first_token}"
        first = of_encoder if self.pool is None else f", pooled ({self.pool})"
        positions = ", positions interpolated" if self.resizes_positions else ""
        return f"{self.tokens:,} tokens of {self.width:,}{first}; {self.processor}: {self.preprocessing.words()}{positions}"

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the tokens of a given image, except the dtype; fields that came later only where they are not their
        defaults."""
        prefix, first_token = (self.prefix, self.first_token) if self.pool is None else (1, MEAN if self.pool == "1" else self.first_token)
        later = {"prefix": (prefix, 1), "first_token": (first_token, CLASS_TOKEN), "pool": (self.pool, None)}
        return {
            "name": self.name,
            "family": self.family,
            "weights": self.weights_hash,
            "preprocessing": self.preprocessing.fingerprint(),
            "quick_gelu": self.quick_gelu,
            "layer": self.output if self.layer is None else f"after block {self.layer} and the final norm",
            **{name: value for name, (value, default) in later.items() if value != default},
        }

    def unpooled(self) -> "EncoderFiles":
        """Return the encoder whose tokens are all kept; they are not counted."""
        return replace(self, name=self.name.removesuffix(f"-pool-{self.pool}"), pool=None, tokens=0) if self.pool is not None else self


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the user chose beyond the encoder's name.

    Attributes:
        size_px: side of the encoder's input; None = as its image processor says.
        layer: the block whose tokens are read; None = the last.
    """

    size_px: int | None = None
    layer: int | None = None


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What a configuration says about sizes.

    Attributes:
        trained_px: side of the images that the model was built for; None = it has no positions of a fixed size.
        patch_px: side of a patch; None = the input may have any side that the model runs with.
        positions: to another side they are interpolated if ``asked``, or by the model ``itself``; ``computed`` for any side; or ``fixed``.
        blocks: number of equal blocks, of which ``--encoder-layer`` chooses one; None = the model is a pyramid.
    """

    trained_px: int | None
    patch_px: int | None
    positions: str
    blocks: int | None


def as_chosen(files: EncoderFiles, choice: Choice, geometry: Geometry, at_side: Callable[[int], Preprocessing]) -> EncoderFiles:
    """Return the encoder for inputs of another size and tokens of another block, or as it is; its tokens are not counted yet.

    Args:
        files: as the encoder's own configuration says.
        choice: the user's.
        geometry: of the model.
        at_side: returns what the encoder's library does to images for inputs of another side.

    Raises:
        InputError: no such block, no whole number of patches, or positions for another size than the processor makes.
    """
    chosen = _at_size(_at_layer(files, choice.layer, geometry.blocks), choice.size_px, geometry)
    if choice.size_px in (None, files.preprocessing.size_px):
        return chosen
    return replace(chosen, preprocessing=at_side(choice.size_px))


def _at_layer(files: EncoderFiles, layer: int | None, blocks: int | None) -> EncoderFiles:
    if layer is None or layer == blocks:
        return files
    if blocks is None:
        raise InputError(
            got=f"--encoder-layer {layer} for {files.name}, whose tokens are not those of one of several equal blocks",
            expected="an encoder of equal blocks",
            do="leave --encoder-layer out, or choose a vision transformer",
        )
    if not 1 <= layer <= blocks:
        raise InputError(got=f"--encoder-layer {layer} for {files.name}", expected=f"1 to {blocks}, its blocks", do="give one of these")
    # What pools the last block's tokens was not trained for those of another.
    first = MEAN if files.first_token == ATTENTION_POOLED else files.first_token
    return replace(files, name=f"{files.name}-layer{layer}", layer=layer, first_token=first)


def _at_size(files: EncoderFiles, size_px: int | None, geometry: Geometry) -> EncoderFiles:
    own_px, trained_px, patch_px = files.preprocessing.size_px, geometry.trained_px, geometry.patch_px
    if size_px is None:
        if trained_px in (None, own_px) or geometry.positions in ("itself", "computed"):
            return replace(files, resizes_positions=geometry.positions == "itself" and trained_px not in (None, own_px))
        raise InputError(
            got=f"{files.folder}, whose {files.processor} makes {own_px} px where its model reads {trained_px} px",
            expected="a processor and a model of one size",
            do=f"choose with --encoder-size {trained_px}"
            + (", or another size, to which its positions are interpolated" if geometry.positions == "asked" else ""),
        )
    if patch_px and size_px != own_px and (size_px < patch_px or size_px % patch_px):
        near = max(1, round(size_px / patch_px)) * patch_px
        raise InputError(
            got=f"--encoder-size {size_px} for {files.name}", expected=f"a multiple of its patches' {patch_px} px", do=f"give {near}"
        )
    if geometry.positions == "fixed" and trained_px not in (None, size_px):
        raise InputError(
            got=f"--encoder-size {size_px} for {files.name}, whose library cannot resize its positions",
            expected=f"its own {trained_px} px",
            do="leave --encoder-size out, or choose another encoder",
        )
    return replace(
        files,
        name=files.name if size_px == own_px else f"{files.name}-{size_px}px",
        resizes_positions=trained_px not in (None, size_px) and geometry.positions != "computed",
        is_resized=size_px != own_px,
    )


def with_tokens(files: EncoderFiles, build: Callable[[EncoderFiles], nn.Module], choice: Choice) -> EncoderFiles:
    """Return the encoder with T and D, as a run on the meta device gives them: no weight is read, no number is computed.

    Raises:
        InputError: no model can be built from its configuration, or it does not run with images of this size.
    """
    side_px = files.preprocessing.size_px
    try:
        with encoder_config_errors(files.folder) if choice.size_px is None else size_errors(files):
            tokens_1TD = run_without_numbers(build, files)
    except (AttributeError, IndexError, ZeroDivisionError, ImportError) as error:
        raise InputError(
            got=f"{files.folder}, which does not run with images of {side_px} px ({error})",
            expected="an encoder of images",
            do="choose another encoder, or another --encoder-size",
        ) from None
    assert tokens_1TD.ndim == 3, tokens_1TD.shape
    return replace(files, tokens=tokens_1TD.shape[1], width=tokens_1TD.shape[2])


def run_without_numbers(build: Callable[[EncoderFiles], nn.Module], files: EncoderFiles) -> torch.Tensor:
    """Return the tokens [1, T, D] of a tower on the meta device."""
    with torch.inference_mode():
        with torch.device("meta"):
            tower = build(files).eval()
        # Not on that device by default: what a model keeps from a call, as BEiT does its index of positions, would be of no use later.
        tokens_1TD: torch.Tensor = tower(torch.zeros(1, 3, files.preprocessing.size_px, files.preprocessing.size_px, device="meta"))
    return tokens_1TD


@contextmanager
def size_errors(files: EncoderFiles) -> Iterator[None]:
    """Turn what a library raises inside the block at a size that the user has chosen into one InputError."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            got=f"--encoder-size {files.preprocessing.size_px} for {files.folder}, whose library cannot resize its positions or windows so"
            f" ({reason(error)})",
            expected="a size that its library builds it for",
            do="leave --encoder-size out, or choose another encoder",
        ) from None


def encoder_config_errors(folder: Path) -> AbstractContextManager[None]:
    """Turn what a library raises at a configuration inside the block into one InputError."""
    return loading(folder, expected="a configuration that its library reads", do="restore its configuration, or choose another encoder")


def square(folder: Path, name: str, size: Any) -> int:
    """Return a side that a configuration states as one number or as two.

    Raises:
        InputError: two different sides, or no number.
    """
    sides = list(size) if isinstance(size, (list, tuple)) else [size]
    if len(set(sides)) != 1 or not isinstance(sides[0], int) or sides[0] < 1:
        raise InputError(got=f"{folder} with the {name} {size}", expected="square images and patches", do="choose another encoder")
    return int(sides[0])


class FirstAndPatches(nn.Module):
    """Puts a first token before the patches of a model that has no class token, and applies the final norm to all.

    Args:
        norm: the final norm, where the model itself applies it to its pooled vector alone, or Identity.
        prefix: tokens before the patches in what the model returns; the mean is that of the patches.
    """

    def __init__(self, norm: nn.Module, prefix: int = 0) -> None:
        super().__init__()
        self.norm, self.prefix = norm, prefix

    def forward(self, states_BND: torch.Tensor, pooled_BD: torch.Tensor | None = None) -> torch.Tensor:
        """Return [B, 1 + N, D]; without a pooled vector the mean of the patches comes first."""
        if pooled_BD is None:
            mean_B1D = states_BND[:, self.prefix :].mean(dim=1, keepdim=True)
            tokens_BTD: torch.Tensor = self.norm(torch.cat([mean_B1D, states_BND], dim=1))
            return tokens_BTD
        return torch.cat([pooled_BD[:, None], self.norm(states_BND)], dim=1)
