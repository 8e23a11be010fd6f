"""Small pictures of every kind that people have, written as files, for the tests of own pictures."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# EXIF's number for the orientation, and the value that means: turn it by 90 degrees to the right.
ORIENTATION, TURNED_RIGHT = 0x0112, 6


def picture(width: int = 24, height: int = 24, seed: int = 0) -> Image.Image:
    """Return a picture in colour: smooth waves, none like those of another seed."""
    across, down = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 6, height))
    waves = [np.sin(across * (n + 1) + seed) * np.cos(down + n * seed) for n in range(3)]
    return Image.fromarray((np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8))


def file_of(image: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    """Return the bytes of a picture's file."""
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def turned(image: Image.Image) -> bytes:
    """Return a JPEG whose EXIF says that it is to be turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED_RIGHT
    return file_of(image, "JPEG", quality=95, exif=exif)


def unusual_pictures() -> Mapping[str, bytes]:
    """Return files that PIL reads, by name: shapes, modes, formats."""
    see_through = picture(seed=3)
    see_through.putalpha(Image.linear_gradient("L").resize(see_through.size))
    deep = Image.fromarray(np.arange(24 * 24, dtype=np.uint16).reshape(24, 24))
    return {
        "wide.png": file_of(picture(60, 20, seed=1)),
        "high.jpg": file_of(picture(17, 41, seed=2), "JPEG", quality=90),
        "turned.jpg": turned(picture(40, 20, seed=4)),
        "rgba.png": file_of(see_through),
        "cmyk.jpg": file_of(picture(seed=5).convert("CMYK"), "JPEG"),
        "grey.png": file_of(picture(seed=6).convert("L")),
        "palette.gif": file_of(picture(seed=7).convert("P"), "GIF"),
        "moving.gif": file_of(picture(seed=8), "GIF", save_all=True, append_images=[picture(seed=9)]),
        "deep.png": file_of(deep),
        "bilevel.tiff": file_of(picture(seed=10).convert("1"), "TIFF"),
        "lossless.webp": file_of(picture(30, 22, seed=11), "WEBP", lossless=True),
        "white.png": file_of(Image.new("RGB", (20, 20), "white")),
    }


def hostile_files() -> Mapping[str, bytes]:
    """Return files that no picture can be read of, by name."""
    whole = file_of(picture(64, 64), "JPEG")
    return {
        "empty.png": b"",
        "text.png": b"not a picture at all",
        "cut.jpg": whole[: len(whole) // 2],
        "bomb.png": file_of(Image.new("1", (20_000, 20_000))),
        "drawing.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(rm -rf) system\n",
        "page.svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'></svg>",
    }


def write_corpus(folder: Path, cells: Sequence[str], *, extra: Mapping[str, bytes] | None = None) -> Path:
    """Write a CSV corpus, a text and a cell of pictures in each row, and the files that ``extra`` names; return it."""
    for name, data in (extra or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    table = folder / "own.csv"
    splits = ["train", "train", "validation", "test"]
    rows = [(f"text number {n}", "ab"[n % 2], splits[n % 4], cell) for n, cell in enumerate(cells)]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "split", "image"), *rows])
    return table
