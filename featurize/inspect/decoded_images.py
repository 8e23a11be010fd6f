"""Images of a store, decoded from its latents by the generator that they come from.

Shapes: B images, n of them requested, C latent channels, h × w latent cells, H × W pixels, S the side they are kept at.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.cost.stage_cost import decode_flops
from featurize.generate.decoders import LatentDecoder, find_decoder, image_side_px
from featurize.generate.generators import SAMPLING, Generator, find_generator, generator_settings
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import agree
from lugpi_core.runtime.device import Compute
from lugpi_core.store.layout import LATENTS, PROMPT_TEXT
from lugpi_core.store.manifest import ColumnSpec
from lugpi_core.store.reader import ColumnReader, columns_of

# Work that decoding may take by default, in 10^12 operations: about two minutes on one CPU core, less than one on a GPU.
DECODE_TFLOP: Mapping[str, float] = {"cpu": 10.0, "cuda": 1000.0}
_BATCH_PIXELS, _MAX_BATCH = 1 << 20, 32
_FILE_FLAGS = ("unet", "generator_config")


class DecodedImages:
    """Decodes the latents of a store. Holds the decoder and one batch of at most a million pixels (4 images of 512 px).

    Attributes:
        generator: of the latents.
        flops: work to decode one image.

    Args:
        store: the store's folder.
        decoder: ``full``, ``half``, ``tiny`` or ``tiny=FOLDER``.
        compute: device and precision.

    Raises:
        InputError: there are no latents, some are missing or damaged, or their generator is not within reach.
    """

    def __init__(self, store: Path, decoder: str, compute: Compute) -> None:
        if only_text_vectors(store):
            raise InputError(
                got=f"{store} with text vectors of the generator and no images",
                expected="images",
                do="run featurize with an image encoder among --encoders to generate them",
            )
        if LATENTS not in columns_of(store):
            raise InputError(got=f"{store} without latents", expected="latents to decode", do="run featurize without --no-latents")
        self._latents = ColumnReader(store, LATENTS, check_content=False)
        self.generator = generator_of(self._latents.spec)
        files = find_decoder(decoder, self.generator)
        self.flops = decode_flops(self.generator, decoder=files)
        self._side_px = image_side_px(self.generator, files)
        self._decoder = LatentDecoder(self.generator, compute, decoder=files)

    @property
    def name(self) -> str:
        """The generator's name."""
        return self.generator.name

    @property
    def notice(self) -> str | None:
        """What a reader must know of the generator, or None."""
        return self.generator.settings.notice

    def decode(self, drawings: NDArray[np.int64], side_px: int) -> tuple[NDArray[np.int64], torch.Tensor]:
        """Return the positions in ``drawings`` that have an image, and these images: float32 [n, 3, S, S] in [0, 1] on the CPU, S at most
        ``side_px``. Images that failed or are not finite are left out."""
        kept_px = min(side_px, self._side_px)
        good = np.array([place for place, drawing in enumerate(drawings.tolist()) if drawing not in self._latents.flagged], np.int64)
        batch = max(1, min(_MAX_BATCH, _BATCH_PIXELS // self.generator.size_px**2))
        places: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        images = [torch.zeros((0, 3, kept_px, kept_px))]
        for start in range(0, len(good), batch):
            batch_places = good[start : start + batch]
            images_B3HW = self._decoder.decode(torch.from_numpy(self._latents.gather(drawings[batch_places])))
            finite_B = images_B3HW.isfinite().flatten(1).all(dim=1).cpu()
            small_B3SS = torch.nn.functional.interpolate(
                images_B3HW, size=(kept_px, kept_px), mode="bicubic", antialias=True, align_corners=False
            )
            images.append(small_B3SS.clamp(0, 1).cpu()[finite_B])
            places.append(batch_places[finite_B.numpy()])
        return np.concatenate(places), torch.cat(images)


def only_text_vectors(store: Path) -> bool:
    """Whether a store has no images, but vectors of the generator's text encoder."""
    return columns_of(store) == [PROMPT_TEXT]


def generator_of(column: ColumnSpec) -> Generator:
    """Return the generator of a column, its files found.

    Its settings are those of the generator's record in the manifest. Where its files are is not part of the record: they are looked for
    where the command that wrote the column found them, or by the record's name.

    Raises:
        InputError: the manifest has no record of a generator, or its files are not within reach or have changed.
    """
    generation = column.fingerprint.get("generation")
    record = generation.get("generator") if isinstance(generation, Mapping) else None
    if not isinstance(generation, Mapping) or not isinstance(record, Mapping) or not {"name", "weights"} <= record.keys():
        raise InputError(
            got=f"{column.name} without a record of their generator",
            expected="images that a generator made with featurize",
            do="run python -m featurize with latents in another --run-dir",
        )
    flags = column.made_by or {}
    source = str(flags.get("generator") or record["name"])
    recorded = {name: record.get(name) for name in SAMPLING}
    settings = generator_settings(source, recorded | {name: flags.get(name) for name in _FILE_FLAGS})
    generator = find_generator(source, settings, half=generation.get("dtype") != "float32")
    if not agree(record["weights"], generator.weights_hash) or (column.name == LATENTS and generator.latent_shape != column.row_shape):
        raise InputError(
            got=f"{generator.folder} with other weights than those that generated the latents",
            expected=f"weights {record['weights']}",
            do="restore the generator's original files",
        )
    return generator


def to_bytes(images_n3SS: torch.Tensor) -> NDArray[np.uint8]:
    """Return images in [0, 1] as uint8 [n, S, S, 3]."""
    values: NDArray[np.uint8] = (images_n3SS * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return values


def to_grey(images_n3SS: torch.Tensor) -> torch.Tensor:
    """Return the luma of images, [n, S, S] (ITU-R BT.601: .299 R + .587 G + .114 B)."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images_n3SS.device)
    return torch.einsum("nchw,c->nhw", images_n3SS, weights)
