"""Thumbnails: read back as they were written, small, and bad folders are refused."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray
from PIL import Image

from featurize.options import MOST_THUMBNAILS
from lugpi_core import thumbnails
from lugpi_core.errors import InputError
from lugpi_core.thumbnails import LARGEST_BYTES, MOST_SIDE_PX, ThumbnailSource, read_thumbnails, write_thumbnails

SOURCE = ThumbnailSource(corpus="0123", generator="demo", notice="drawn by a small model")


def pictures(side: int = 32, rows: tuple[int, ...] = (7, 12, 300)) -> dict[int, NDArray[np.uint8]]:
    ramp = np.linspace(0, 255, side, dtype=np.uint8)
    return {
        row: np.stack([np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side)), np.full((side, side), row % 256, np.uint8)], -1)
        for row in rows
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_thumbnails(tmp_path / "thumbnails", pictures(), SOURCE)
    return tmp_path / "thumbnails"


def test_thumbnails_are_read_by_example_row(folder: Path) -> None:
    found = read_thumbnails(folder, "0123")
    assert list(found) == [7, 12, 300]
    for row, data in found.items():
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size) == ("WEBP", (32, 32))
            shown = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(shown - pictures()[row]).mean() < 12


def test_the_index_names_corpus_and_generator(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    assert {name: index[name] for name in ("corpus", "side_px", "examples", "generator", "notice")} == {
        "corpus": "0123",
        "side_px": 32,
        "examples": {"7": "7.webp", "12": "12.webp", "300": "300.webp"},
        "generator": "demo",
        "notice": "drawn by a small model",
    }
    assert sorted(path.name for path in folder.iterdir()) == ["12.webp", "300.webp", "7.webp", "index.json"]


def test_without_a_folder_nothing_is_read(tmp_path: Path) -> None:
    assert read_thumbnails(tmp_path / "thumbnails", "0123") == {}


def test_an_empty_folder_can_be_written_and_read(tmp_path: Path) -> None:
    assert write_thumbnails(tmp_path / "thumbnails", {}, SOURCE) == 0
    assert read_thumbnails(tmp_path / "thumbnails", "0123") == {}


def test_new_thumbnails_replace_the_old_ones(folder: Path) -> None:
    size = write_thumbnails(folder, pictures(rows=(1,)), SOURCE)
    assert list(read_thumbnails(folder, "0123")) == [1]
    assert sorted(path.name for path in folder.iterdir()) == ["1.webp", "index.json"]
    assert size == (folder / "1.webp").stat().st_size
    assert [path.name for path in folder.parent.iterdir()] == ["thumbnails"], "nothing is left beside it"


def test_the_same_images_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_thumbnails(tmp_path / "again", pictures(), SOURCE)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_the_most_thumbnails_of_noise_stay_below_ten_megabytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, size=(MOST_SIDE_PX, MOST_SIDE_PX, 3), dtype=np.uint8)
    total = write_thumbnails(tmp_path / "thumbnails", {0: noise}, SOURCE)
    (data,) = read_thumbnails(tmp_path / "thumbnails", "0123").values()
    assert total == len(data)
    assert total * MOST_THUMBNAILS < 7e6


def test_thumbnails_of_another_corpus_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"got .*thumbnails with images of another corpus; expected .*; run python -m featurize inspect"):
        read_thumbnails(folder, "4567")


def _index(change: Callable[[dict[str, dict[str, str]]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        value = json.loads((folder / "index.json").read_text())
        change(value)
        (folder / "index.json").write_text(json.dumps(value))

    return damage


def _content(data: bytes) -> Callable[[Path], None]:
    """A file with other content whose hash in the index matches."""

    def damage(folder: Path) -> None:
        (folder / "7.webp").write_bytes(data)
        _index(lambda value: value["xxh3_128"].update({"7.webp": xxhash.xxh3_128_hexdigest(data)}))(folder)

    return damage


def _flipped(folder: Path) -> None:
    data = bytearray((folder / "7.webp").read_bytes())
    data[-1] ^= 1
    (folder / "7.webp").write_bytes(data)


def _linked(folder: Path) -> None:
    (folder.parent / "elsewhere").write_bytes((folder / "7.webp").read_bytes())
    (folder / "7.webp").unlink()
    (folder / "7.webp").symlink_to(folder.parent / "elsewhere")


def _elsewhere(folder: Path) -> None:
    (folder.parent / "7.webp").write_bytes((folder / "7.webp").read_bytes())
    _index(
        lambda value: (value["examples"].update({"7": "../7.webp"}), value["xxh3_128"].update({"../7.webp": value["xxh3_128"]["7.webp"]}))
    )(folder)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte": _flipped,
    "a picture that is gone": lambda folder: (folder / "7.webp").unlink(),
    "a pipe for a picture": lambda folder: ((folder / "7.webp").unlink(), os.mkfifo(folder / "7.webp")),
    "a link for a picture": _linked,
    "a picture outside the folder": _elsewhere,
    "no picture": _content(b"root:x:0:0"),
    "a picture too large": _content(b"RIFF\0\0\0\0WEBP" + bytes(LARGEST_BYTES)),
    "no index": lambda folder: (folder / "index.json").unlink(),
    "half an index": lambda folder: (folder / "index.json").write_text('{"corpus": "01'),
    "an index that is a list": lambda folder: (folder / "index.json").write_text("[]"),
    "an index without examples": _index(lambda value: value.pop("examples")),
    "an index without hashes": _index(lambda value: value.pop("xxh3_128")),
    "examples that are a list": _index(lambda value: value.update(examples=["7.webp"])),  # type: ignore[dict-item]
    "an example that is no number": _index(lambda value: value["examples"].update({"x": "7.webp"})),
    "an example below nought": _index(lambda value: value["examples"].update({"-1": "7.webp"})),
    "a file that is no text": _index(lambda value: value["examples"].update({"7": 7})),  # type: ignore[dict-item]
    "a file for the folder": lambda folder: (folder.rename(folder.parent / "x"), folder.write_text("x")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(folder: Path, name: str) -> None:
    DAMAGE[name](folder)
    with pytest.raises(InputError, match=r"^got .*; expected .*; [^\n]*$") as caught:
        read_thumbnails(folder, "0123")
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_write_that_fails_leaves_the_old_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(thumbnails, "write_json", None)
    with pytest.raises(TypeError):
        write_thumbnails(folder, pictures(rows=(1,)), SOURCE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["thumbnails"]
