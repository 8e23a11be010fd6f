"""``drawings.png``: images in a grid, each with a few words below.

Shapes: B images, S their side.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.files import whole_file

DRAWINGS_PNG = "drawings.png"
_COLUMNS, _SIDE_PX = 8, 128
_MARGIN_PX, _TEXT_PX, _FONT_PX, _DRAWN_LARGER = 6, 58, 11, 4
_MAX_LINES, _MAX_LETTERS = 4, 24


def write_drawings_png(captions: Sequence[str], images_BSS3: NDArray[np.uint8], path: Path) -> Path:
    """Write a PNG of the images in rows of eight, 128 px each, with up to four lines of its caption below each; return its path.

    Args:
        captions: one for each image; line breaks are kept.
        images_BSS3: uint8.
        path: of the PNG.
    """
    from PIL import Image

    cell_width_px, cell_height_px = _SIDE_PX + 2 * _MARGIN_PX, _SIDE_PX + _TEXT_PX
    rows = -(-len(captions) // _COLUMNS)
    grid = Image.new("RGB", (_COLUMNS * cell_width_px, rows * cell_height_px), "white")
    for cell, (caption, image_SS3) in enumerate(zip(captions, images_BSS3, strict=True)):
        left, top = cell % _COLUMNS * cell_width_px + _MARGIN_PX, cell // _COLUMNS * cell_height_px + 4
        grid.paste(Image.fromarray(image_SS3).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS), (left, top))
        write_words(grid, caption_lines(caption), (left, top + _SIDE_PX + 2, _SIDE_PX + _MARGIN_PX, _TEXT_PX - 6))
    with whole_file(path) as partial:
        grid.save(partial, "PNG", optimize=True)
    return path


def write_words(picture: Any, lines: Sequence[str], place: tuple[int, int, int, int]) -> None:
    """Write lines of text on a picture of Pillow; what is outside their place is cut.

    They are drawn larger and scaled down: at this size Pillow's font rounds the space between words to nothing.

    Args:
        picture: in colour.
        lines: of text.
        place: left, top, width and height in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    left, top, width_px, height_px = place
    words = Image.new("L", (width_px * _DRAWN_LARGER, height_px * _DRAWN_LARGER))
    font = ImageFont.load_default(_FONT_PX * _DRAWN_LARGER)
    ImageDraw.Draw(words).multiline_text((0, 0), "\n".join(lines), fill=255, font=font, spacing=_DRAWN_LARGER)
    picture.paste("black", (left, top), words.resize((width_px, height_px), Image.Resampling.LANCZOS))


def caption_lines(caption: str, letters: int = _MAX_LETTERS, most: int = _MAX_LINES) -> list[str]:
    """Return a caption as at most ``most`` lines of at most so many letters; ``…`` marks what was cut."""
    # A text may be a megabyte: wrap only what can be shown.
    beginning = caption[: 2 * most * letters]
    lines = [line for part in beginning.split("\n") for line in textwrap.wrap(part, letters) or [""]]
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1][: letters - 3] + "…"]
