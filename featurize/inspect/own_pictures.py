"""A user's own pictures as small images, in place of what latents are decoded to.

Shapes: n pictures of those asked for, S the side they are kept at.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageOps

from featurize.encode.own_pictures import open_picture
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.pictures import Picture, PictureFault
from lugpi_core.errors import InputError
from lugpi_core.store.example_table import ExampleTable
from lugpi_core.store.layout import OWN_IMAGES
from lugpi_core.store.manifest import is_of_own_pictures, load_manifest
from lugpi_core.store.reader import columns_of

# What reading a picture is counted as, so that those of 10 TFLOP take seconds: 10,000 of them.
_READ_FLOPS = 1e9


class OwnPictures:
    """Reads the pictures of a store's texts. Holds none.

    Attributes:
        name: stands where a generator's name would.
        notice: None.
        flops: as what reading one counts.

    Args:
        corpus: whose texts have pictures.
        table: of the store.

    Raises:
        InputError: the corpus was loaded without its pictures.
    """

    name, notice, flops = OWN_IMAGES, None, _READ_FLOPS

    def __init__(self, corpus: Corpus, table: ExampleTable) -> None:
        if not corpus.has_pictures:
            raise InputError(
                got="a store of pictures of your own, for a corpus without them",
                expected="the pictures beside the texts",
                do="name their column with --images-from",
            )
        self._places: dict[int, tuple[int, int]] = {}
        for example, drawings in enumerate(table.drawings.tolist()):
            for place, drawing in enumerate(drawings):
                self._places.setdefault(drawing, (example, place))
        self._corpus = corpus

    def decode(self, drawings: NDArray[np.int64], side_px: int) -> tuple[NDArray[np.int64], torch.Tensor]:
        """Return the positions in ``drawings`` that have a picture, and these: float32 [n, 3, S, S] in [0, 1], their centres, S
        ``side_px``. Pictures that cannot be read are left out."""
        places, images = [], [torch.zeros((0, 3, side_px, side_px))]
        for number, drawing in enumerate(drawings.tolist()):
            try:
                image = open_picture(self._picture(drawing).read()).convert("RGB")
            except PictureFault:
                continue
            small = np.asarray(ImageOps.fit(image, (side_px, side_px)))
            images.append(torch.from_numpy(small.copy()).permute(2, 0, 1)[None].float() / 255)
            places.append(number)
        return np.array(places, np.int64), torch.cat(images)

    def _picture(self, drawing: int) -> Picture:
        example, place = self._places[drawing]
        cell = self._corpus.examples[example].pictures
        pictures = () if cell is None else cell.pictures()
        if not pictures:
            raise PictureFault("no picture")
        return pictures[place % len(pictures)]


def is_own(store: Path) -> bool:
    """Whether the images of a store are a user's own."""
    return any(_is_own_column(store / name) for name in columns_of(store))


def images_from(store: Path) -> str | None:
    """Return the column of pictures that a store was filled from, or None."""
    for name in columns_of(store):
        try:
            made_by = load_manifest(store / name)[0].made_by or {}
        except InputError:
            continue  # reported as a column that is left out
        if (column := made_by.get("images_from")) is not None:
            return str(column)
    return None


def _is_own_column(folder: Path) -> bool:
    try:
        return is_of_own_pictures(load_manifest(folder)[0])
    except InputError:
        return False
