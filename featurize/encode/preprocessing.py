"""How images become an encoder's pixels: what the image processor of a folder does, told in four steps and checked against the processor.

The images that are generated are square, so that resizing the shortest edge, the longest edge or both to S pixels is the same, and padding
to a square does nothing.

Shapes: B images, H × W pixels, S the encoder's side.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featurize.encode.preprocessing_words import preprocessing_in_words
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import loading, read_config, reason

Interpolation = Literal["bicubic", "bilinear", "nearest"]
Colours = tuple[float, float, float]
_PIL: Mapping[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
# transformers reads one of the two; the second is what a whole processor (CLIPProcessor.save_pretrained) writes.
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# ConvNeXt's processor crops below this side only (transformers 5.23, image_processing_convnext.py).
_CROP_PCT_BELOW_PX = 384
# Sides of test images of noise, as generators make them.
_NOISE_PX = (512, 768, 1024)
# Our float pixels may differ by so many of 255 levels from the processor's, which rounds to whole levels after resizing.
_MOST_LEVELS = 2.0
_LARGEST_PX = 2048
# Processors that transformers 5.23 has on torchvision only. They do what ViT's does, with other defaults.
_LIKE_VIT: Mapping[str, Mapping[str, Any]] = {
    "DINOv3ViTImageProcessor": {
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
        "size": {"height": 224, "width": 224},
    },
    "Tipsv2ImageProcessor": {"resample": 2, "size": {"height": 448, "width": 448}, "do_normalize": False},
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How square images in [0, 1] become the encoder's pixels: antialiased resize, centre crop, scale, ``(x - mean) / std`` by channel.

    Attributes:
        size_px: S, the side of the encoder's input.
        interpolation: of the resize.
        crop_from_px: the side that the image is resized to before S × S is cropped from its centre; None = resized to S.
        is_resized: False: the image must have the side already or, if it ``is_cropped``, at least that.
        scale: what white is before normalisation, 1 for pixels in [0, 1].
        is_bgr: whether blue comes first.
        rounds_margin: the margin of the crop is rounded, halves to even, as torchvision does for timm; else it is cut off.
    """

    size_px: int
    mean: Colours
    std: Colours
    interpolation: Interpolation
    crop_from_px: int | None = None
    is_resized: bool = True
    is_cropped: bool = False
    scale: float = 1.0
    is_bgr: bool = False
    rounds_margin: bool = False

    def fingerprint(self) -> dict[str, Any]:
        """Return the fields; those that came later only where they are not their defaults."""
        later = {field.name: field.default for field in fields(self)}
        # Earlier versions took other pixels: torch's nearest-exact.
        pixels = {"pixels": "as PIL"} if self.interpolation == "nearest" and self.is_resized else {}
        return {name: value for name, value in asdict(self).items() if value != later[name]} | pixels

    def pixels(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        """Return the encoder's input, float32 [B, 3, S, S], of square images in [0, 1], computed on their device."""
        images, size_px = images_B3HW.float(), self.size_px
        if self.is_resized:
            side = self.crop_from_px or size_px
            images = _resized(images, side, self.interpolation).clamp(0, 1)
        if images.shape[-1] != size_px:
            margin = (images.shape[-1] - size_px) / 2
            first = round(margin) if self.rounds_margin else int(margin)  # transformers 5.23 cuts it off
            images = images[..., first : first + size_px, first : first + size_px]
        if self.is_bgr:
            images = images.flip(1)
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (self.mean, self.std))
        return (images * self.scale - mean) / std if self.scale != 1 else (images - mean) / std

    def words(self) -> str:
        """Return the steps for a person: ``resize to 256 px (bicubic), crop 224 px, mean .48 .46 .41, std .27 .26 .28``."""
        return preprocessing_in_words(self.fingerprint())


def timm_preprocessing(cfg: Mapping[str, Any], folder: Path) -> Preprocessing:
    """Return what timm's transform for evaluation does (timm 1.0, data/config.py and transforms_factory.py): resize to ``size / crop_pct``,
    centre crop. Its crop modes ``squash``, ``border`` and ``center`` are one thing for a square image.

    Args:
        cfg: the model's ``pretrained_cfg``.
        folder: the model's, for errors.

    Raises:
        InputError: images that are not square, in other channels, larger than what they are cropped from, or another interpolation.
    """
    channels, height, width = cfg.get("input_size") or (3, 224, 224)
    if channels != 3 or height != width:
        raise InputError(
            got=f"{folder} for images of {channels} × {height} × {width}", expected="square images in colour", do="choose another encoder"
        )
    interpolation = cfg.get("interpolation") or "bicubic"
    if interpolation not in get_args(Interpolation):
        raise InputError(
            got=f"{folder}, whose images are resized with {interpolation!r}",
            expected=f"one of {', '.join(get_args(Interpolation))}",
            do="choose another encoder",
        )
    crop_pct = cfg.get("crop_pct") or 0.875
    resize_px = int(height / crop_pct)
    if resize_px < height:
        raise InputError(
            got=f"{folder}, which crops {height} px from images of {resize_px} px (crop_pct {crop_pct:g})",
            expected="a crop_pct of at most 1",
            do="restore crop_pct in its configuration",
        )
    return Preprocessing(
        size_px=height,
        mean=colours(cfg.get("mean") or (0.485, 0.456, 0.406)),
        std=deviations(cfg.get("std") or (0.229, 0.224, 0.225), folder),
        interpolation=cast(Interpolation, interpolation),
        crop_from_px=None if resize_px == height else resize_px,
        rounds_margin=(resize_px - height) % 4 == 3,
    )


def open_clip_preprocessing(cfg: Mapping[str, Any], size_px: int, folder: Path) -> Preprocessing:
    """Return what open_clip's transform does (open_clip 3.3, transform.py). It resizes the shortest edge, the longest or both
    (``resize_mode``), which is one thing for a square image.

    Args:
        cfg: a folder's ``preprocess_cfg`` or the settings of a tag.
        size_px: side of the tower's input.
        folder: the model's, for errors.

    Raises:
        InputError: an interpolation that open_clip does not have.
    """
    clip_mean, clip_std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    interpolation = cfg.get("interpolation") or "bicubic"
    if interpolation not in ("bicubic", "bilinear", "random"):
        raise InputError(
            got=f"{folder}, whose images are resized with {interpolation!r}",
            expected="bicubic or bilinear, which open_clip has",
            do="restore interpolation in its configuration",
        )
    return Preprocessing(
        size_px=size_px,
        mean=colours(cfg.get("mean") or clip_mean),
        std=deviations(cfg.get("std") or clip_std, folder),
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
    )


def read_preprocessing(folder: Path, size_px: int | None = None) -> tuple[Preprocessing, str]:
    """Return what the image processor in a folder of transformers does, and its class's name.

    The library itself reads the folder, so what a file leaves out is the default of the processor's class. Two test images go through the
    processor and through ours; their pixels must agree within two of 255 levels.

    Args:
        folder: the model's.
        size_px: the side that the processor makes; None = its own.

    Raises:
        InputError: no processor that transformers can read, or one that does something else to a square image.
    """
    processor = image_processor(folder, size_px)
    name = _name_of(processor)
    try:
        preprocessing = _steps_of(processor.to_dict(), name, folder)
    except InputError:
        raise
    except (_NotFollowed, KeyError, TypeError, ValueError) as error:
        why = str(error) if isinstance(error, _NotFollowed) else f"has settings that are not as they must be ({reason(error)})"
        raise _not_followed(folder, name, why) from None
    _check_against(processor, preprocessing, folder)
    return preprocessing, name


def image_processor(folder: Path, size_px: int | None = None) -> Any:
    """Return the image processor in a folder of transformers, on PIL.

    For another side than its own its sizes are scaled, and it does with them what its class does: ConvNeXt's crops below 384 px and
    squashes from there on.

    Args:
        folder: the model's.
        size_px: the side that it makes; None = its own.

    Raises:
        InputError: there is none that transformers can read.
    """
    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise InputError(
            got=f"{folder} without {' or '.join(_PROCESSOR_FILES)}",
            expected="the image processor that the encoder was trained with",
            do="copy that file from the model's repository, or save it there with AutoImageProcessor…save_pretrained()",
        )
    from transformers import AutoImageProcessor, ViTImageProcessor

    with _processor_errors(folder):
        settings = read_config(next(path for name in _PROCESSOR_FILES if (path := folder / name).is_file()))
        settings = settings.get("image_processor", settings)
        like_vit = _LIKE_VIT.get(str(settings.get("image_processor_type")).removesuffix("Fast"))
        if like_vit is not None:
            return _at_side(ViTImageProcessor.from_dict({**like_vit, **settings}), size_px)
        # The backend on PIL, so that nothing depends on whether torchvision is installed.
        return _at_side(AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, backend="pil"), size_px)


def _at_side(processor: Any, size_px: int | None) -> Any:
    own = processor.to_dict()
    size = own.get("crop_size") if own.get("do_center_crop") else own.get("size")
    sides = [value for value in (size or {}).values() if isinstance(value, int)]
    if size_px is None or not sides or size_px == min(sides):
        return processor
    factor = size_px / min(sides)
    scaled = {
        name: {key: round(value * factor) if isinstance(value, int) else value for key, value in own[name].items()}
        for name in ("size", "crop_size")
        if isinstance(own.get(name), Mapping)
    }
    return type(processor).from_dict({**own, **scaled})


@contextmanager
def _processor_errors(folder: Path) -> Iterator[None]:
    """Turn what a processor raises inside the block into one InputError; some want packages that are not installed."""
    what = f"the image processor of {folder}"
    try:
        with loading(what, expected="one that transformers reads", do="restore its files, or choose another encoder"):
            yield
    except (ImportError, IndexError, AttributeError) as error:
        raise InputError(
            got=f"{what} ({reason(error)})", expected="one that takes an image in colour", do="install what it asks for, or choose another"
        ) from None


class _NotFollowed(Exception):
    """A step of a processor that we do not take."""


def _not_followed(folder: Path, name: str, reason: str) -> InputError:
    return InputError(
        got=f"{folder}, whose {name} {reason}",
        expected="resize, centre crop, rescale and normalise, to a square",
        do="choose another encoder; the pixels it was trained on cannot be made here",
    )


def _steps_of(settings: Mapping[str, Any], name: str, folder: Path) -> Preprocessing:
    """Return the steps of a processor from its settings.

    Raises:
        _NotFollowed: something that is not among them.
    """
    resample = settings.get("resample")
    if settings.get("do_resize") and resample is not None and int(resample) not in _PIL:
        raise _NotFollowed(f"resizes with PIL's filter {int(resample)}, which is none of nearest, bilinear, bicubic")
    resize_px = _side(settings.get("size"), "size") if settings.get("do_resize") else None
    crop_px = _side(settings.get("crop_size"), "crop_size") if settings.get("do_center_crop") else None
    if settings.get("crop_pct") and name.startswith("ConvNext") and resize_px is not None and resize_px < _CROP_PCT_BELOW_PX:
        resize_px, crop_px = int(resize_px / settings["crop_pct"]), resize_px
    if settings.get("crop_pct") and name.startswith("PoolFormer") and resize_px is not None:
        resize_px = int(resize_px / settings["crop_pct"])
    if name.startswith("Levit") and resize_px is not None and (settings.get("size") or {}).get("shortest_edge"):
        resize_px = int(256 / 224 * resize_px)
    if crop_px and resize_px and crop_px > resize_px:
        # The two backends of transformers 5.23 pad it differently.
        raise _NotFollowed(f"crops {crop_px} px from an image that it resized to {resize_px} px")
    size_px = crop_px or resize_px or _side(settings.get("size"), "size")
    scale = 255 * float(settings["rescale_factor"]) if settings.get("do_rescale") else 255.0
    mean, std = _normalisation(settings, name, folder)
    return Preprocessing(
        size_px=size_px,
        mean=mean,
        std=std,
        interpolation="bilinear" if resample is None else _PIL.get(int(resample), "bilinear"),
        crop_from_px=None if resize_px in (None, size_px) else resize_px,
        is_resized=resize_px is not None,
        is_cropped=resize_px is None and crop_px is not None,
        scale=1.0 if abs(scale - 1) < 1e-6 else scale,
        is_bgr=bool(settings.get("do_flip_channel_order")),
    )


def _normalisation(settings: Mapping[str, Any], name: str, folder: Path) -> tuple[Colours, Colours]:
    """Return mean and deviation of a processor; EfficientNet's may move the pixels by one and divide twice by the deviations."""
    plain = not settings.get("do_normalize")
    mean = (0.0, 0.0, 0.0) if plain else colours(settings["image_mean"])
    std = (1.0, 1.0, 1.0) if plain else deviations(settings["image_std"], folder)
    if name.startswith("EfficientNet"):
        if settings.get("rescale_offset") and settings.get("do_rescale"):
            mean = colours([value + 1 for value in mean])
        if settings.get("include_top"):
            once = deviations(settings["image_std"], folder)
            std = colours([first * second for first, second in zip(std, once, strict=True)])
    return mean, std


def _side(size: Any, name: str) -> int:
    """Return the side that a square image gets from a size of transformers, in any of its forms."""
    sides = {key: value for key, value in size.items() if value is not None} if isinstance(size, Mapping) else {name: size}
    if isinstance(size, (list, tuple)):
        sides = dict(enumerate(size))
    values = list(sides.values())
    if not values or not all(isinstance(value, int) and value > 0 for value in values):
        raise _NotFollowed(f"has the {name} {size}")
    if {"shortest_edge", "longest_edge"} <= sides.keys() or {"max_height", "max_width"} <= sides.keys():
        values = [min(values)]
    if len(set(values)) > 1:
        raise _NotFollowed(f"makes images of {' × '.join(map(str, values))} pixels, which are not square")
    if values[0] > _LARGEST_PX:
        raise _NotFollowed(f"makes images of {values[0]:,} pixels a side, more than {_LARGEST_PX:,}")
    return int(values[0])


def colours(values: Any) -> Colours:
    """Return a number for each of three colours; a single number stands for all."""
    first, second, third = (float(value) for value in (values if isinstance(values, (list, tuple)) else [values] * 3))
    return first, second, third


def deviations(values: Any, folder: Path) -> Colours:
    """Return the numbers by which the colours are divided.

    Raises:
        InputError: one of them is not positive.
    """
    std = colours(values)
    if not all(0 < value < np.inf for value in std):
        raise InputError(
            got=f"{folder}, whose images are divided by the standard deviations {', '.join(f'{value:g}' for value in std)}",
            expected="positive numbers",
            do="restore image_std (std for open_clip) in its configuration",
        )
    return std


def _check_against(processor: Any, ours: Preprocessing, folder: Path) -> None:
    """Raise InputError unless the processor makes the same pixels of test images, larger and smaller than what it resizes to: of waves,
    whose crops, scales and orders of the colours differ, and, where it resizes, of noise, whose resizes differ."""
    side = ours.crop_from_px or ours.size_px
    waves = [_test_image(px) for px in ((2 * side, max(2, side // 2)) if ours.is_resized else (side + 32, side))]
    for image_HW3 in [*waves, *(_noise(px) for px in _NOISE_PX if ours.is_resized)]:
        test_px = len(image_HW3)
        with _processor_errors(folder):
            theirs = processor(image_HW3, return_tensors="pt")["pixel_values"]
        image_13HW = torch.from_numpy(image_HW3).permute(2, 0, 1).unsqueeze(0) / 255
        if not ours.is_resized and tuple(theirs.shape) != (1, 3, ours.size_px, ours.size_px) and test_px != ours.size_px:
            continue  # it takes the image's own side, which is checked where the generator is known
        if tuple(theirs.shape) != (1, 3, ours.size_px, ours.size_px):
            raise _not_followed(folder, _name_of(processor), f"makes pixels of shape {list(theirs.shape)}")
        level = ours.scale / 255 / min(ours.std)
        if float((ours.pixels(image_13HW) - theirs).abs().max()) > _MOST_LEVELS * level:
            raise _not_followed(folder, _name_of(processor), "makes other pixels than its settings say")


def _name_of(processor: Any) -> str:
    return type(processor).__name__.removesuffix("Pil")


def _test_image(side_px: int) -> NDArray[np.uint8]:
    """Return uint8 [side, side, 3]: smooth waves, of which any two resizes agree, but not two crops, scales or orders of the colours."""
    at = np.linspace(0, 2 * np.pi, side_px, endpoint=False)
    waves = [np.sin(across * at)[:, None] * np.cos(down * at)[None, :] for across, down in ((1, 2), (2, 1), (3, 2))]
    image: NDArray[np.uint8] = (np.stack(waves, axis=-1) * 100 + np.array([110, 128, 150])).round().astype(np.uint8)
    return image


def _noise(side_px: int) -> NDArray[np.uint8]:
    """Return uint8 [side, side, 3]: noise, always the same, so far from black and white that no filter overshoots them."""
    return np.random.default_rng(0).integers(64, 192, (side_px, side_px, 3), dtype=np.uint8)


def _resized(images_B3HW: torch.Tensor, side_px: int, interpolation: Interpolation) -> torch.Tensor:
    assert interpolation in get_args(Interpolation), interpolation
    if interpolation == "nearest":
        # torch's nearest-exact takes the other neighbour where the centre of a pixel falls between two, as at 512 to 224 px.
        rows, columns = (_nearest_in_pil(length, side_px).to(images_B3HW.device) for length in images_B3HW.shape[-2:])
        return images_B3HW[..., rows[:, None], columns]
    return nn.functional.interpolate(images_B3HW, size=(side_px, side_px), mode=interpolation, antialias=True, align_corners=False)


def _nearest_in_pil(length_px: int, side_px: int) -> torch.Tensor:
    """Return the pixel [side] that PIL's nearest filter takes for each new one: it adds up its steps in float64 (Pillow, Geometry.c)."""
    steps = np.full(side_px, length_px / side_px)
    steps[0] /= 2
    return torch.from_numpy(np.cumsum(steps).astype(np.int64))
