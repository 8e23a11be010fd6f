"""``comparison.png``: the same texts in rows, stores in columns.

Shapes: S side of an image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurize.inspect.drawings_png import caption_lines, write_words
from lugpi_core.files import whole_file

COMPARISON_PNG = "comparison.png"
NO_IMAGE = "no image"  # in the place of one that failed, is missing, or was not decoded
_SIDE_PX, _MARGIN_PX = 128, 6
_TEXT_PX, _LETTERS, _LINES = 220, 36, 9
_HEAD_PX, _HEAD_LETTERS, _HEAD_LINES = 46, 22, 3


def write_picture_sheet(captions: Sequence[str], images: Mapping[str, Sequence[NDArray[np.uint8] | None]], path: Path) -> Path:
    """Write a PNG with a row for each caption and a column for each label; return its path.

    Args:
        captions: line breaks are kept; what does not fit is cut.
        images: by the label of a column, an image uint8 [S, S, 3] for each caption, or None where there is none.
        path: of the PNG.
    """
    from PIL import Image

    cell_px = _SIDE_PX + _MARGIN_PX
    sheet = Image.new("RGB", (_TEXT_PX + len(images) * cell_px, _HEAD_PX + len(captions) * cell_px), "white")
    for row, caption in enumerate(captions):
        place = (_MARGIN_PX, _HEAD_PX + row * cell_px, _TEXT_PX - _MARGIN_PX, cell_px)
        write_words(sheet, caption_lines(caption, _LETTERS, _LINES), place)
    for column, (label, column_images) in enumerate(images.items()):
        left = _TEXT_PX + column * cell_px
        write_words(sheet, caption_lines(label, _HEAD_LETTERS, _HEAD_LINES), (left, 4, _SIDE_PX, _HEAD_PX - 4))
        for row, image_SS3 in enumerate(column_images):
            top = _HEAD_PX + row * cell_px
            if image_SS3 is None:
                write_words(sheet, [NO_IMAGE], (left, top, _SIDE_PX, _SIDE_PX))
            else:
                sheet.paste(Image.fromarray(image_SS3).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS), (left, top))
    with whole_file(path) as partial:
        sheet.save(partial, "PNG", optimize=True)
    return path
