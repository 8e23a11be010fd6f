"""Thumbnails of some examples' images, for the report: a folder of WebP files, and an index of which example each belongs to.

    thumbnails/index.json     {"corpus": fingerprint, "side_px": S, "examples": {"<row>": "<file>"}, "xxh3_128": {"<file>": hash},
                               "generator": name, "notice": what a reader must know, or null}
    thumbnails/1234.webp      the image of example 1234

``featurize inspect`` writes the folder and ``train report`` reads it. Shapes: images of S × S pixels in three colours.
"""

import io
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.files import open_file, read_at, read_json, whole_folder, write_bytes, write_json

FOLDER, INDEX = "thumbnails", "index.json"
COMPARISON = "comparison.json"  # of compared stores; inspect writes it into a run, and the report shows it
MOST_SIDE_PX = 128
# At this quality a typical image of 128 px takes 3 to 6 kB, and pure noise 12 kB.
_QUALITY = 80
LARGEST_BYTES = 64 << 10  # of a file; longer ones are not read further
_FILE = re.compile(r"[0-9]{1,9}\.webp")
_AGAIN = "run python -m featurize inspect again"


@dataclass(frozen=True, kw_only=True)
class ThumbnailSource:
    """Where the thumbnails come from.

    Attributes:
        corpus: ``Corpus.fingerprint()`` of the corpus whose rows the examples are.
        generator: name of the generator.
        notice: what a reader must know about their content, or None.
    """

    corpus: str
    generator: str
    notice: str | None


def write_thumbnails(folder: Path, images: Mapping[int, NDArray[np.uint8]], source: ThumbnailSource) -> int:
    """Write the folder, whole or not at all, replacing an existing one; return the total bytes of its images.

    Args:
        folder: of the thumbnails.
        images: by example row, uint8 [S, S, 3], all with the same S, at most 128 px.
        source: where they come from.
    """
    sides = {array.shape for array in images.values()}
    assert len(sides) <= 1, sides
    assert all(shape[0] == shape[1] <= MOST_SIDE_PX and shape[2] == 3 for shape in sides), sides
    encoded = {f"{row}.webp": _webp(array) for row, array in images.items()}
    index = {
        **asdict(source),
        "side_px": max((shape[0] for shape in sides), default=0),
        "examples": {str(row): f"{row}.webp" for row in images},
        "xxh3_128": {name: xxhash.xxh3_128_hexdigest(data) for name, data in encoded.items()},
    }
    with whole_folder(folder) as partial:
        for name, data in encoded.items():
            write_bytes(partial / name, data)
        write_json(partial / INDEX, index)
    return sum(map(len, encoded.values()))


def read_thumbnails(folder: Path, corpus: str) -> dict[int, bytes]:
    """Return the WebP bytes of each example's thumbnail, by example row; empty if there is no folder. Holds all of them in memory.

    Args:
        folder: of the thumbnails.
        corpus: fingerprint of the corpus that they should belong to.

    Raises:
        InputError: they belong to another corpus, or the folder is not as it was written.
    """
    if not os.path.lexists(folder):
        return {}
    try:
        if not folder.is_dir():
            raise ValueError("no folder")
        index = read_json(folder / INDEX)
        if index["corpus"] != corpus:
            raise InputError(got=f"{folder} with images of another corpus", expected="those of the corpus as it is loaded now", do=_AGAIN)
        return {_row(row): _read(folder, name, index["xxh3_128"][name]) for row, name in index["examples"].items()}
    except InputError:
        raise
    except (FileNotFoundError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(got=f"{folder} ({error!r:.200})", expected="thumbnails as lugpi wrote them", do=_AGAIN) from None


def thumbnail_generator(folder: Path) -> str | None:
    """Return the name of the generator whose images a folder has that ``read_thumbnails`` has read, or None if it is not recorded."""
    generator = read_json(folder / INDEX).get("generator")
    return generator if isinstance(generator, str) else None


def _webp(image_SS3: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image_SS3).save(file, "WEBP", quality=_QUALITY, method=4)
    return file.getvalue()


def _row(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f"an example {text[:20]!r}")
    return int(text)


def _read(folder: Path, name: Any, wanted_hash: Any) -> bytes:
    # The folder may come from anywhere and its content goes into an HTML page, so name, size, hash and file signature are checked.
    if not isinstance(name, str) or not _FILE.fullmatch(name) or (folder / name).is_symlink():
        raise ValueError(f"a file {str(name)[:20]!r}")
    with open_file(folder / name, os.O_RDONLY) as descriptor:
        data = read_at(descriptor, LARGEST_BYTES, 0)
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError(f"{name} is no WebP image")
    if xxhash.xxh3_128_hexdigest(data) != wanted_hash:
        raise ValueError(f"{name} differs from its hash")
    return data
