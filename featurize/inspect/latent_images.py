"""From latents to the tokens of their images, with gradients: the decoder and the encoder that a column of a store comes from.

Shapes: B images, C latent channels, h × w latent cells, S the images' side, T tokens, D width, n images of the store.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.encode.image_encoder import ImageEncoder
from featurize.generate.decoders import DecoderFiles, LatentDecoder, find_decoder
from featurize.generate.generators import Generator
from featurize.inspect.decoded_images import generator_of, only_text_vectors
from featurize.inspect.text_agreement import files_of
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import differences
from lugpi_core.runtime.device import Compute
from lugpi_core.store.layout import LATENTS
from lugpi_core.store.manifest import ColumnSpec, is_of_own_pictures
from lugpi_core.store.reader import ColumnReader, columns_of


class LatentImages:
    """The path of a column from latents to tokens, on the device.

    Attributes:
        generator: name of the latents' generator.
        notice: what a reader must know about it, or None.
        shape: of a latent, C, h, w.

    Args:
        store: the store's folder.
        column: of image tokens.
        compute: device and precision.

    Raises:
        InputError: the column has no latents, as of pictures of the user's own, or its decoder or encoder is not within reach.
    """

    def __init__(self, store: Path, column: str, compute: Compute) -> None:
        spec = ColumnReader(store, column, check_content=False).spec
        if is_of_own_pictures(spec) or only_text_vectors(store) or LATENTS not in columns_of(store):
            raise InputError(
                got=f"{column} in {store}, which has no latents",
                expected="a column of generated images and their latents",
                do="fill it with python -m featurize without --no-latents",
            )
        self._latents = ColumnReader(store, LATENTS, check_content=False)
        generator = generator_of(self._latents.spec)
        decoder = decoder_of(spec, generator)
        self.generator, self.notice, self.shape = generator.name, generator.settings.notice, self._latents.spec.row_shape
        self._device = torch.device(compute.device)
        self._decoder = LatentDecoder(generator, compute, decoder=decoder)
        self._encoder = ImageEncoder(files_of(spec), compute)

    def stored(self, drawings: NDArray[np.int64]) -> torch.Tensor:
        """Return stored latents, float32 [n, C, h, w] on the device; failed ones are left out."""
        good = [drawing for drawing in drawings.tolist() if drawing not in self._latents.flagged]
        return torch.from_numpy(self._latents.gather(np.array(good, np.int64))).float().to(self._device)

    def images(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        """Return images, float32 [B, 3, S, S] in [0, 1], with the gradients of their latents."""
        return self._decoder.differentiable(latents_BChw)

    def tokens(self, images_B3SS: torch.Tensor) -> torch.Tensor:
        """Return image tokens, [B, T, D], with the gradients of the images."""
        return self._encoder.differentiable(images_B3SS)


def decoder_of(column: ColumnSpec, generator: Generator) -> DecoderFiles | None:
    """Return the decoder that the images of a column were decoded by; None for the generator's own.

    Raises:
        InputError: its files are not within reach or have changed.
    """
    decoder = find_decoder(str((column.made_by or {}).get("decoder", "full")), generator)
    stated = column.fingerprint.get("decoder")
    if decoder is not None and differences({"decoder": stated}, {"decoder": decoder.fingerprint()}):
        raise InputError(
            got=f"{decoder.folder} with other weights than those that decoded the images of {column.name}",
            expected=f"weights {stated.get('weights') if isinstance(stated, Mapping) else stated}",
            do="restore the original files",
        )
    return decoder
