"""A user's own pictures → the encoder's pixels, as its library makes them: read by PIL, turned by EXIF, resized and cropped on the host.

Generated images are square and on the device; these have any shape, so the library's own steps are taken: the folder's image processor of
transformers, or the transforms of open_clip and timm for evaluation (which need torchvision; here they are PIL's, to the bit).

Shapes: H × W pixels, S the encoder's side.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from featurize.encode.encoders import EncoderFiles
from featurize.encode.preprocessing import image_processor
from lugpi_core.corpora.pictures import PictureFault
from lugpi_core.errors import InputError

# Formats of files that are opened. Others of PIL call programs (EPS), contain files (HDF5) or are no pictures of the web.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
# PIL itself warns above: 268 MB of pixels.
MOST_PIXELS = 89_478_485
_TOO_MANY = f"more than {MOST_PIXELS:,} pixels"
_ANIMATED = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")
_DEEP_MODES = ("I", "F")  # I;16 too; PIL cuts their values at 255
_ORIENTATION = 0x0112
# What PIL raises at damaged files.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
# What PIL and the encoders' libraries raise at a picture whose shape or mode they cannot resize.
_NOT_RESIZED = (OSError, ValueError, TypeError, ZeroDivisionError)
_PADDED = ("longest", "border")
_FILTERS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class PictureKind:
    """What is known of a picture from its header.

    Attributes:
        width, height: as it is shown, turned by its EXIF.
        is_turned: whether its EXIF turns or mirrors it.
        is_animated: whether it has several frames, of which the first is read.
        is_deep: whether it has more than 8 bits a channel, of which PIL keeps values up to 255.
    """

    width: int
    height: int
    is_turned: bool
    is_animated: bool
    is_deep: bool


def kind_of(data: bytes) -> PictureKind:
    """Return what the header of a picture's file says; its pixels are not read.

    Raises:
        PictureFault: it is no picture, of another format, or has too many pixels.
    """
    with _picture_faults(), _opened(data) as image:
        turn = image.getexif().get(_ORIENTATION, 1)
        sides = image.size[::-1] if turn in (5, 6, 7, 8) else image.size
        frames = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
        return PictureKind(
            width=sides[0],
            height=sides[1],
            is_turned=turn in range(2, 9),
            is_animated=frames > 1,
            is_deep=image.mode.startswith(_DEEP_MODES),
        )


def open_picture(data: bytes) -> Image.Image:
    """Return a picture, its first frame, turned as its EXIF says, in the mode of its file.

    Raises:
        PictureFault: it is no picture, is damaged, of another format, or has too many pixels.
    """
    with _picture_faults(), _opened(data) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def _opened(data: bytes) -> Image.Image:
    Image.init()
    image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    if image.width * image.height > MOST_PIXELS:
        raise PictureFault(_TOO_MANY)
    return image


@contextmanager
def _picture_faults() -> Iterator[None]:
    """Turn what PIL raises inside the block into a PictureFault; its warnings about details of a file are silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Image.DecompressionBombError:
            raise PictureFault(_TOO_MANY) from None
        except UnidentifiedImageError:
            raise PictureFault("no picture of a known format") from None
        except _DAMAGED as error:
            raise PictureFault(f"damaged picture ({_in_short(error)})") from None


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__


class PictureReader:
    """Makes an encoder's pixels of pictures.

    Args:
        files: of the encoder.

    Raises:
        InputError: the encoder's image processor cannot be read.
    """

    def __init__(self, files: EncoderFiles) -> None:
        self._files = files
        self._pixels = _steps_of(files)

    def require_shapes(self, sides: Sequence[tuple[int, int]]) -> None:
        """Raise InputError if pictures of some width and height do not become S × S pixels: then they have another number of tokens.

        Args:
            sides: of the pictures; only their shapes count, unless the encoder does not resize.
        """
        how, name, processor = self._files.preprocessing, self._files.name, self._files.processor
        if not how.is_resized and not how.is_cropped:
            if unlike := [(width, height) for width, height in sides if (width, height) != (how.size_px, how.size_px)]:
                width, height = unlike[0]
                raise InputError(
                    got=f"{len(unlike):,} of {len(sides):,} pictures of other sizes, the first {width} × {height} pixels, for {name}, "
                    f"whose {processor} does not resize",
                    expected=f"{how.size_px} × {how.size_px} pixels",
                    do="resize your pictures to that, or choose another encoder",
                )
            return
        for (width, height), (its_width, its_height) in {_small(*each): each for each in sides}.items():
            shape = tuple(self._pixels(Image.new("RGB", (width, height))).shape)
            if shape != (3, how.size_px, how.size_px):
                raise InputError(
                    got=f"pictures of {its_width} × {its_height} pixels for {name}, whose {processor} does not make a square of them",
                    expected=f"{how.size_px} × {how.size_px} pixels, as of square pictures",
                    do="crop your pictures to squares, or choose an encoder that crops or pads them",
                )

    def pixels(self, picture: Image.Image) -> torch.Tensor:
        """Return float32 [3, S, S] on the CPU.

        Raises:
            PictureFault: its shape or mode cannot be resized, or so much that it would fill the memory before it is cropped.
        """
        (short, long), how = sorted(picture.size), self._files.preprocessing
        made_px = (how.crop_from_px or how.size_px) ** 2 * long // short
        if how.is_resized and made_px > MOST_PIXELS and self._cuts_long_pictures:
            raise PictureFault(f"{picture.width} × {picture.height} pixels, whose resize makes {made_px:,}, {_TOO_MANY}")
        try:
            return self._pixels(picture)
        except _NOT_RESIZED as error:
            raise PictureFault(f"a picture that {self._files.processor} cannot resize ({_in_short(error)})") from None

    @cached_property
    def _cuts_long_pictures(self) -> bool:
        """Whether the shorter edge is resized to the encoder's side, and the longer one cut: then a thin picture becomes a huge one."""
        white, black_at_left = Image.new("RGB", (64, 16), "white"), Image.new("RGB", (64, 16), "white")
        black_at_left.paste("black", (0, 0, 16, 16))
        return torch.equal(self._pixels(white), self._pixels(black_at_left))


def _small(width: int, height: int) -> tuple[int, int]:
    """Return sides of about the same shape, of which few are different."""
    long = 512
    share = min(width, height) / max(width, height)
    short = max(1, round(share * 16) * long // 16 or long // 32)
    return (long, short) if width >= height else (short, long)


def _steps_of(files: EncoderFiles) -> Callable[[Image.Image], torch.Tensor]:
    if files.family in ("open_clip", "timm"):
        return lambda picture: _like_torchvision(picture, files)
    processor = image_processor(files.folder, files.preprocessing.size_px)
    # As transformers' own load_image gives pictures to processors (transformers 5.23, image_utils.py).
    return lambda picture: processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"][0]


def _like_torchvision(picture: Image.Image, files: EncoderFiles) -> torch.Tensor:
    """Return what open_clip's image_transform (3.3) and timm's transforms_imagenet_eval (1.0.31) make of a picture of PIL."""
    how = files.preprocessing
    if files.family == "timm":
        picture = picture.convert("RGB")  # as timm's datasets do; open_clip converts last
    resize_px, size_px = how.crop_from_px or how.size_px, how.size_px
    width, height = picture.size
    match files.fit:
        case "squash":
            sides = (resize_px, resize_px)
        case "shortest":
            short, long = min(width, height), max(width, height)
            longer = int(resize_px * long / short)
            sides = (resize_px, longer) if width <= height else (longer, resize_px)
        case _:
            ratio = max(height / resize_px, width / resize_px)
            sides = (round(width / ratio), round(height / ratio))
    if picture.size != sides:
        picture = picture.resize(sides, _FILTERS[how.interpolation])
    picture = _centre(picture, size_px, files.fill if files.fit in _PADDED else 0)
    pixels_HW3 = np.asarray(picture.convert("RGB"))
    mean_311, std_311 = (torch.tensor(values).view(3, 1, 1) for values in (how.mean, how.std))
    return (torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1).contiguous().float().div(255) - mean_311) / std_311


def _centre(picture: Image.Image, size_px: int, fill: int | tuple[int, int, int]) -> Image.Image:
    """Return the centre of a picture, S × S; what is smaller is padded first."""
    width, height = picture.size
    lacks_x, lacks_y = max(0, size_px - width), max(0, size_px - height)
    if lacks_x or lacks_y:
        border = (lacks_x // 2, lacks_y // 2, (lacks_x + 1) // 2, (lacks_y + 1) // 2)
        bands = len(picture.getbands())
        if isinstance(fill, tuple) and len(fill) != bands:  # open_clip, which converts last, cannot either
            raise ValueError(f"a border of {len(fill)} colours around {bands}")
        picture = ImageOps.expand(picture, border, fill=fill if bands == 1 or isinstance(fill, tuple) else (fill,) * bands)
        width, height = picture.size
    left, top = round((width - size_px) / 2), round((height - size_px) / 2)
    return picture.crop((left, top, left + size_px, top + size_px))
