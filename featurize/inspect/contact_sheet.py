"""Pictures on one sheet with a few words below each.

Shapes: B pictures, S their side.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lugpi_core.files import whole_file

_COLUMNS, _SIDE_PX = 8, 128
_MARGIN_PX, _TEXT_PX, _FONT_PX = 6, 58, 11
_LINES, _LETTERS = 4, 24


def contact_sheet(captions: Sequence[str], pictures_BSS3: NDArray[np.uint8], path: Path) -> Path:
    """Write a PNG of the pictures in rows of eight, 128 px each, with up to four lines of its caption below each; return its path.

    Args:
        captions: one for each picture; a line break is kept.
        pictures_BSS3: uint8.
        path: of the PNG.
    """
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.load_default(_FONT_PX)
    width_px, height_px = _SIDE_PX + 2 * _MARGIN_PX, _SIDE_PX + _TEXT_PX
    sheet = Image.new("RGB", (_COLUMNS * width_px, -(-len(captions) // _COLUMNS) * height_px), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, picture_SS3) in enumerate(zip(captions, pictures_BSS3, strict=True)):
        left, top = number % _COLUMNS * width_px + _MARGIN_PX, number // _COLUMNS * height_px + 4
        sheet.paste(Image.fromarray(picture_SS3).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS), (left, top))
        draw.multiline_text((left, top + _SIDE_PX + 2), "\n".join(_lines(caption)), fill="black", font=face, spacing=1)
    with whole_file(path) as partial:
        sheet.save(partial, "PNG", optimize=True)
    return path


def _lines(caption: str) -> list[str]:
    # A text may be a megabyte; what is not shown need not be broken into lines.
    short = caption[: 2 * _LINES * _LETTERS]
    lines = [line for part in short.split("\n") for line in textwrap.wrap(part, _LETTERS) or [""]]
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], lines[_LINES - 1][: _LETTERS - 3] + "…"]
