"""Small pictures of some examples, for a report: a folder of WebP files with an index that says which example each belongs to.

    thumbnails/index.json     {"corpus": fingerprint, "side_px": S, "examples": {"<row>": "<file>"}, "xxh3_128": {"<file>": hash},
                               "generator": name, "notice": what a reader must know, or null}
    thumbnails/1234.webp      the picture of example 1234

``featurize inspect`` writes the folder and ``train report`` reads it. Shapes: S × S pixels of three colours.
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
MOST_SIDE_PX = 128
# At this quality a picture of 128 px takes 12 kB if it is noise, and 3 to 6 kB if it is a picture.
_QUALITY = 80
LARGEST_BYTES = 64 << 10  # no more of a file is read
_FILE = re.compile(r"[0-9]{1,9}\.webp")
_AGAIN = "run python -m featurize inspect again"


@dataclass(frozen=True, kw_only=True)
class ThumbnailSource:
    """What the pictures are of.

    Attributes:
        corpus: ``Corpus.fingerprint()`` of the corpus whose rows the examples are.
        generator: name of the generator that drew them.
        notice: what a reader must know about their content, or None.
    """

    corpus: str
    generator: str
    notice: str | None


def write_thumbnails(folder: Path, pictures: Mapping[int, NDArray[np.uint8]], source: ThumbnailSource) -> int:
    """Write the folder, whole or not at all, in the place of one that is there; return the bytes of its pictures.

    Args:
        folder: of the thumbnails.
        pictures: by example row, uint8 [S, S, 3], all of one side, at most 128 px.
        source: what they are of.
    """
    sides = {array.shape for array in pictures.values()}
    assert len(sides) <= 1, sides
    assert all(shape[0] == shape[1] <= MOST_SIDE_PX and shape[2] == 3 for shape in sides), sides
    encoded = {f"{row}.webp": _webp(array) for row, array in pictures.items()}
    index = {
        **asdict(source),
        "side_px": max((shape[0] for shape in sides), default=0),
        "examples": {str(row): f"{row}.webp" for row in pictures},
        "xxh3_128": {name: xxhash.xxh3_128_hexdigest(data) for name, data in encoded.items()},
    }
    with whole_folder(folder) as partial:
        for name, data in encoded.items():
            write_bytes(partial / name, data)
        write_json(partial / INDEX, index)
    return sum(map(len, encoded.values()))


def read_thumbnails(folder: Path, corpus: str) -> dict[int, bytes]:
    """Return the WebP bytes of each example's picture, by example row; nothing where there is no folder. Holds all of them.

    Args:
        folder: of the thumbnails.
        corpus: fingerprint of the corpus they are wanted for.

    Raises:
        InputError: they are of another corpus, or the folder is not as it was written.
    """
    if not os.path.lexists(folder):
        return {}
    try:
        if not folder.is_dir():
            raise ValueError("no folder")
        index = read_json(folder / INDEX)
        if index["corpus"] != corpus:
            raise InputError(got=f"{folder} with pictures of another corpus", expected="those of the corpus as it is loaded now", do=_AGAIN)
        return {_row(row): _read(folder, name, index["xxh3_128"][name]) for row, name in index["examples"].items()}
    except InputError:
        raise
    except (FileNotFoundError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(got=f"{folder} ({error!r:.200})", expected="thumbnails as lugpi wrote them", do=_AGAIN) from None


def thumbnail_generator(folder: Path) -> str | None:
    """Return the name of the generator whose images a folder has that ``read_thumbnails`` could read; None where it is not recorded."""
    generator = read_json(folder / INDEX).get("generator")
    return generator if isinstance(generator, str) else None


def _webp(picture_SS3: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture_SS3).save(file, "WEBP", quality=_QUALITY, method=4)
    return file.getvalue()


def _row(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f"an example {text[:20]!r}")
    return int(text)


def _read(folder: Path, name: Any, wanted_hash: Any) -> bytes:
    # The folder may come from anywhere, and what is read goes into a page: a plain name, a size, a hash, and a picture's own first bytes.
    if not isinstance(name, str) or not _FILE.fullmatch(name) or (folder / name).is_symlink():
        raise ValueError(f"a file {str(name)[:20]!r}")
    with open_file(folder / name, os.O_RDONLY) as descriptor:
        data = read_at(descriptor, LARGEST_BYTES, 0)
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError(f"{name} is no WebP picture")
    if xxhash.xxh3_128_hexdigest(data) != wanted_hash:
        raise ValueError(f"{name} differs from its hash")
    return data
