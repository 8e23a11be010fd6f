"""Pictures with a few words below each, whatever the words are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurize.inspect import contact_sheet as sheets
from featurize.inspect.contact_sheet import contact_sheet


def test_pictures_stand_in_rows_of_eight_each_over_its_own_words(tmp_path: Path) -> None:
    pictures = np.zeros((9, 4, 4, 3), np.uint8)
    pictures[:, :, :, 0] = 20 * np.arange(9)[:, None, None]
    path = contact_sheet(["", *"bcdefgh", "one\ntwo"], pictures, tmp_path / "sheet.png")
    with Image.open(path) as sheet:
        assert (sheet.mode, sheet.size) == ("RGB", (8 * 140, 2 * 186))
        for number in range(9):
            left, top = number % 8 * 140 + 6, number // 8 * 186 + 4
            assert sheet.getpixel((left, top)) == sheet.getpixel((left + 127, top + 127)) == (20 * number, 0, 0)
        inks = [np.asarray(sheet.crop((x, y, x + 128, y + 50))).min() for x, y in ((6, 134), (146, 134), (6, 320))]
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
def test_words_that_are_too_many_are_cut_with_a_mark(caption: str, lines: list[str]) -> None:
    assert sheets._lines(caption) == lines


def test_a_text_of_a_megabyte_and_letters_of_any_kind_are_no_matter(tmp_path: Path) -> None:
    captions = ["word " * 200_000, "nul \0 inside", "שלום 🐈‍⬛ مرحبا", "\ufeff\u200f"]
    assert contact_sheet(captions, np.zeros((4, 2, 2, 3), np.uint8), tmp_path / "sheet.png").stat().st_size > 500


def test_nothing_is_left_where_a_sheet_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        contact_sheet(["a", "b"], np.zeros((1, 2, 2, 3), np.uint8), tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []
