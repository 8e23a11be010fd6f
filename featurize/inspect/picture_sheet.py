"""``comparison.png``: the same texts in rows, stores in columns.

Shapes: S side of an image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurize.inspect.drawings_png import caption_lines
from lugpi_core.files import whole_file

COMPARISON_PNG = "comparison.png"
_SIDE_PX, _MARGIN_PX = 128, 6
_TEXT_PX, _LETTERS, _LINES = 220, 36, 9
_HEAD_PX, _HEAD_LETTERS, _HEAD_LINES = 46, 22, 3
_FONT_PX = 11


def write_picture_sheet(captions: Sequence[str], images: Mapping[str, Sequence[NDArray[np.uint8] | None]], path: Path) -> Path:
    """Write a PNG with a row for each caption and a column for each label; return its path.

    Args:
        captions: line breaks are kept; what does not fit is cut.
        images: by the label of a column, an image uint8 [S, S, 3] for each caption, or None for a blank place.
        path: of the PNG.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_FONT_PX)
    cell_px = _SIDE_PX + _MARGIN_PX
    sheet = Image.new("RGB", (_TEXT_PX + len(images) * cell_px, _HEAD_PX + len(captions) * cell_px), "white")
    draw = ImageDraw.Draw(sheet)
    for row, caption in enumerate(captions):
        text = "\n".join(caption_lines(caption, _LETTERS, _LINES))
        draw.multiline_text((_MARGIN_PX, _HEAD_PX + row * cell_px), text, fill="black", font=font, spacing=1)
    for column, (label, column_images) in enumerate(images.items()):
        left = _TEXT_PX + column * cell_px
        draw.multiline_text((left, 4), "\n".join(caption_lines(label, _HEAD_LETTERS, _HEAD_LINES)), fill="black", font=font, spacing=1)
        for row, image_SS3 in enumerate(column_images):
            if image_SS3 is not None:
                scaled = Image.fromarray(image_SS3).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
                sheet.paste(scaled, (left, _HEAD_PX + row * cell_px))
    with whole_file(path) as partial:
        sheet.save(partial, "PNG", optimize=True)
    return path
