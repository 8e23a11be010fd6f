"""Pictures of a store's drawings, made again from its latents by the generator that drew them.

Shapes: B pictures, n of them asked for, C latent channels, h × w latent cells, H × W pixels, S the side they are kept at.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.cost.stage_cost import decode_flops
from featurize.generate.decoders import LatentDecoder, find_decoder
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.plan.job import OVERRIDES
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute
from lugpi_core.store.manifest import ColumnSpec
from lugpi_core.store.reader import LATENTS, ColumnReader, columns_of

# What decoding may take unless more is asked for, in 10^12 operations: about two minutes of one CPU core, less than one of a card.
DECODE_TFLOP: Mapping[str, float] = {"cpu": 10.0, "cuda": 1000.0}
_BATCH_PIXELS, _MOST_AT_ONCE = 1 << 20, 32


class StoredPictures:
    """Decodes the latents of a store. Holds the decoder and one batch of at most a million pixels (4 pictures of 512 px).

    Attributes:
        generator: that made the latents.
        flops: what decoding one picture takes.

    Args:
        store: the store's folder.
        decoder: ``full``, ``tiny`` or ``tiny=FOLDER``.
        compute: device and precision.

    Raises:
        InputError: there are no latents, they are not whole, or the generator that made them is not to be found.
    """

    def __init__(self, store: Path, decoder: str, compute: Compute) -> None:
        if LATENTS not in columns_of(store):
            raise InputError(got=f"{store} without latents", expected="latents to decode", do="run featurize without --no-latents")
        self._latents = ColumnReader(store, LATENTS, check_content=False)
        self.generator = generator_of(self._latents.spec)
        files = find_decoder(decoder, self.generator)
        self.flops = decode_flops(self.generator, dtype=compute.dtype, decoder_folder=None if files is None else files.folder)
        self._decoder = LatentDecoder(self.generator, compute, decoder=files)

    def of(self, drawings: NDArray[np.int64], side_px: int) -> tuple[NDArray[np.int64], torch.Tensor]:
        """Return the places in ``drawings`` that have a picture, and their pictures: float32 [n, 3, S, S] in [0, 1] on the CPU, not larger
        than ``side_px``. Drawings that failed, or whose picture is not finite, have none."""
        kept_px = min(side_px, self.generator.size_px)
        good = np.array([place for place, drawing in enumerate(drawings.tolist()) if drawing not in self._latents.flagged], np.int64)
        size = max(1, min(_MOST_AT_ONCE, _BATCH_PIXELS // self.generator.size_px**2))
        places: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        pictures = [torch.zeros((0, 3, kept_px, kept_px))]
        for start in range(0, len(good), size):
            some = good[start : start + size]
            images_B3HW = self._decoder.decode(torch.from_numpy(self._latents.gather(drawings[some])))
            finite_B = images_B3HW.isfinite().flatten(1).all(dim=1).cpu()
            small_B3SS = torch.nn.functional.interpolate(
                images_B3HW, size=(kept_px, kept_px), mode="bicubic", antialias=True, align_corners=False
            )
            pictures.append(small_B3SS.clamp(0, 1).cpu()[finite_B])
            places.append(some[finite_B.numpy()])
        return np.concatenate(places), torch.cat(pictures)


def generator_of(latents: ColumnSpec) -> Generator:
    """Return the generator that made a column of latents, its files found.

    Raises:
        InputError: no featurize command made the column, or its generator's files are not in reach or have changed.
    """
    flags, made = latents.made_by or {}, _stated(latents)
    wanted = flags.get("generator")
    if not isinstance(wanted, str) or "weights" not in made:
        raise InputError(
            got="latents that no featurize command made", expected="a generator to decode them with", do="nothing is to be done"
        )
    settings = generator_settings(wanted, {name: flags.get(name) for name in OVERRIDES})
    generator = find_generator(wanted, settings, half=_generation(latents).get("dtype") != "float32")
    if generator.weights_hash != made["weights"] or generator.latent_shape != latents.row_shape:
        raise InputError(
            got=f"{generator.folder} with other weights than those that drew the latents",
            expected=f"weights {made['weights']}",
            do="put the generator's files back",
        )
    return generator


def to_bytes(pictures_n3SS: torch.Tensor) -> NDArray[np.uint8]:
    """Return pictures in [0, 1] as uint8 [n, S, S, 3]."""
    values: NDArray[np.uint8] = (pictures_n3SS * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return values


def to_grey(pictures_n3SS: torch.Tensor) -> torch.Tensor:
    """Return the luma of pictures, [n, S, S] (ITU-R BT.601: .299 R + .587 G + .114 B)."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=pictures_n3SS.device)
    return torch.einsum("nchw,c->nhw", pictures_n3SS, weights)


def _generation(latents: ColumnSpec) -> Mapping[str, Any]:
    found = latents.fingerprint.get("generation")
    return found if isinstance(found, Mapping) else {}


def _stated(latents: ColumnSpec) -> Mapping[str, Any]:
    found = _generation(latents).get("generator")
    return found if isinstance(found, Mapping) else {}
