"""Images in a grid with a few words below each, whatever the words are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurize.inspect.drawings_png import caption_lines, write_drawings_png


def test_images_stand_in_rows_of_eight_each_above_its_own_words(tmp_path: Path) -> None:
    images = np.zeros((9, 4, 4, 3), np.uint8)
    images[:, :, :, 0] = 20 * np.arange(9)[:, None, None]
    path = write_drawings_png(["", *"bcdefgh", "one\ntwo"], images, tmp_path / "grid.png")
    with Image.open(path) as grid:
        assert (grid.mode, grid.size) == ("RGB", (8 * 140, 2 * 186))
        for number in range(9):
            left, top = number % 8 * 140 + 6, number // 8 * 186 + 4
            assert grid.getpixel((left, top)) == grid.getpixel((left + 127, top + 127)) == (20 * number, 0, 0)
        inks = [np.asarray(grid.crop((x, y, x + 128, y + 50))).min() for x, y in ((6, 134), (146, 134), (6, 320))]
    assert inks[0] == 255
    assert inks[1] < 128
    assert inks[2] < 128


@pytest.mark.parametrize(
    ("caption", "lines"),
    [
        ("", [""]),
        ("a cat", ["a cat"]),
        ("[animal]\na small furry animal that sleeps", ["[animal]", "a small furry animal", "that sleeps"]),
        ("word " * 40, [*["word word word word word"] * 3, "word word word word w…"]),
        ("x" * 200, ["x" * 24, "x" * 24, "x" * 24, "x" * 21 + "…"]),
    ],
    ids=["nothing", "one line", "a label", "many words", "one long word"],
)
def test_a_long_caption_is_cut_with_a_mark(caption: str, lines: list[str]) -> None:
    assert caption_lines(caption) == lines


def test_a_megabyte_of_text_and_any_script_are_drawn(tmp_path: Path) -> None:
    captions = ["word " * 200_000, "nul \0 inside", "שלום 🐈‍⬛ مرحبا", "\ufeff\u200f"]
    assert write_drawings_png(captions, np.zeros((4, 2, 2, 3), np.uint8), tmp_path / "grid.png").stat().st_size > 500


def test_words_stand_apart(tmp_path: Path) -> None:
    """Between two words is more room than between two letters, at every place of a line."""
    path = write_drawings_png(["who knows why, on a shop"], np.full((1, 4, 4, 3), 255, np.uint8), tmp_path / "grid.png")
    with Image.open(path) as grid:
        inks_x = np.asarray(grid.convert("L").crop((6, 134, 140, 150))).min(axis=0) < 200
    ink_at = np.flatnonzero(inks_x)
    gaps = np.diff(ink_at) - 1
    assert (gaps >= 2).sum() == 5, "spaces of a line of six words"


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_drawings_png(["a", "b"], np.zeros((1, 2, 2, 3), np.uint8), tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []
