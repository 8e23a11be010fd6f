"""Image tokens during training: read from the device, from page-locked memory, or from the disk's page cache.

Shapes: M images, B examples, T image tokens, I width of the image tokens.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lugpi_core.amounts import size
from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest
from lugpi_core.runtime.host_memory import host_available_bytes
from lugpi_core.store.clip_scores import ClipScores, read_clip_scores
from lugpi_core.store.example_table import NO_IMAGE, read_example_table
from lugpi_core.store.layout import CANDIDATES, LATENTS, PROMPT_TEXT, SCALE
from lugpi_core.store.manifest import is_of_own_pictures, load_manifest
from lugpi_core.store.quantize import dequantize
from lugpi_core.store.reader import ColumnReader, Rows, columns_of, image_columns_of
from train.data.outline import text_sizes
from train.options.settings import TokensOn

# For the CUDA context, cuBLAS and fragmentation, which the estimate does not include.
RESERVE_BYTES = 2 << 30
_TORCH_DTYPES = {"float16": torch.float16, "int8": torch.int8, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class ImageTokens:
    """The cached tokens of every example's images. Holds memory maps, not rows.

    Attributes:
        reader: the column.
        drawings: int64 [N, K], the rows of each example's images.
        store: its folder.
        corpus_fingerprint: of the examples.
        is_subset: whether images were drawn for some of the texts only (``featurize --subset``); those of other examples are -1.
    """

    reader: ColumnReader
    drawings: NDArray[np.int64]
    store: Path
    corpus_fingerprint: str
    is_subset: bool = False

    @property
    def has_image(self) -> NDArray[np.bool_]:
        """Which examples have images, bool [N]."""
        has_image_N: NDArray[np.bool_] = self.drawings[:, 0] != NO_IMAGE
        return has_image_N

    @property
    def width(self) -> int:
        """I."""
        return self.reader.spec.row_shape[1]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all rows as they are stored."""
        return len(self.reader) * self.reader.row_bytes

    @cached_property
    def scores(self) -> ClipScores:
        """How well each image agrees with its text. Raises InputError as ``read_clip_scores``."""
        return read_clip_scores(self.store, corpus_fingerprint=self.corpus_fingerprint, shape=self.drawings.shape)

    def fingerprint(self) -> dict[str, Any]:
        """Return the column's fingerprint, and which of its rows failed: these are read as blank until they are repaired."""
        failed = {"failed_rows": digest(sorted(int(row) for row in self.reader.flagged))} if len(self.reader.flagged) else {}
        return {**self.reader.spec.fingerprint, **failed}


class TokenSource(Protocol):
    """Where a training step reads its image tokens."""

    @property
    def place(self) -> str:
        """``device``, ``pinned``, ``disk`` or ``nowhere``."""

    def gather(self, drawings: NDArray[np.int64]) -> torch.Tensor:
        """Return float16 [B, T, I] on the training device for rows of the column."""

    def ahead(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[Rows]:
        """Yield the batches in order, prefetching the tokens of the following ones if that helps."""


def open_column(store: Path, column: str, corpus: Corpus) -> ImageTokens:
    """Open tokens of images, or the generator's text vectors.

    Raises:
        InputError: as ``open_image_tokens`` and ``open_text_vectors``.
    """
    return open_text_vectors(store, corpus) if column == PROMPT_TEXT else open_image_tokens(store, column, corpus)


def open_image_tokens(store: Path, column: str | None, corpus: Corpus) -> ImageTokens:
    """Open a column of the run's token store for a corpus; every shard is compared with its hash.

    Raises:
        InputError: no store, another corpus's store, no such column, several to choose from, missing rows, a damaged shard.
    """
    columns = image_columns_of(store)
    if column == CANDIDATES:
        raise InputError(
            got=f"--image-tokens {CANDIDATES}, which are scores of images and no tokens",
            expected=f"tokens of images: {', '.join(columns) or 'none are there'}",
            do="choose one of them",
        )
    if column == PROMPT_TEXT:
        raise InputError(
            got=f"--image-tokens {PROMPT_TEXT}, which are of no image",
            expected=f"tokens of images: {', '.join(columns) or 'none are there'}",
            do="train on the generator's text vectors with train teacher --privileged text",
        )
    if not columns and PROMPT_TEXT in columns_of(store):
        raise InputError(
            got=f"{store} with the generator's text vectors ({PROMPT_TEXT}) alone",
            expected="tokens of images",
            do="run python -m featurize with its flags and an encoder such as clip-vit-b32, or train teacher --privileged text or none",
        )
    if column is None and len(columns) > 1:
        raise InputError(got=f"a store with {', '.join(columns)}", expected="one of them", do="name it with --image-tokens")
    if column == LATENTS:
        raise InputError(got="--image-tokens latents", expected=f"tokens: {', '.join(columns)}", do="choose one of them")
    return _open_tokens(store, column or "".join(columns), corpus)


def open_text_vectors(store: Path, corpus: Corpus) -> ImageTokens:
    """Open the vectors of the generator's text encoder, which a control reads in place of image tokens.

    Raises:
        InputError: no store, another corpus's store, no such column, missing rows, a damaged shard.
    """
    if columns_of(store) and PROMPT_TEXT not in columns_of(store):
        if any(is_of_own_pictures(load_manifest(store / name)[0]) for name in columns_of(store)):
            raise InputError(
                got=f"--privileged text for {store}, pictures of your own that no generator drew",
                expected="images by a generator, whose text vectors are their control",
                do="compare with --privileged none, shuffled or blank",
            )
        raise InputError(
            got=f"{store} without the generator's text vectors",
            expected=f"the column {PROMPT_TEXT}",
            do=f"run python -m featurize with its flags and --encoders {PROMPT_TEXT}, which generates no image",
        )
    return _open_tokens(store, PROMPT_TEXT, corpus)


def _open_tokens(store: Path, column: str, corpus: Corpus) -> ImageTokens:
    table = read_example_table(store, corpus)
    reader = ColumnReader(store, column)
    last = int(table.drawings.max(initial=NO_IMAGE))
    if len(reader.spec.row_shape) != 2 or last >= len(reader):
        raise InputError(
            got=f"{store / reader.spec.name} with {len(reader)} rows of shape {reader.spec.row_shape}",
            expected=f"{last + 1} rows of shape (T, D)",
            do="run featurize again for this corpus",
        )
    return ImageTokens(
        reader=reader,
        drawings=table.drawings,
        store=store,
        corpus_fingerprint=table.corpus_fingerprint,
        is_subset=table.subset is not None,
    )


def place_tokens(tokens: ImageTokens, *, choice: TokensOn, device: torch.device, training_bytes: int) -> TokenSource:
    """Return a source of the tokens in the chosen place.

    ``auto`` on CUDA takes the device if all rows fit into what ``training_bytes`` and a reserve leave free, else page-locked memory if they
    fit into half of the host's free memory, else the disk. On the CPU it takes the disk: the page cache is in memory already.
    """
    choice = resolve_place(choice, tokens.stored_bytes, device=device, training_bytes=training_bytes)
    source = DiskTokens(tokens, device) if choice == "disk" else ResidentTokens(tokens, device, choice)
    what = "text vectors" if tokens.reader.spec.name == PROMPT_TEXT else "image tokens"
    say(f"{what}: {size(tokens.stored_bytes)}, read from {source.place}")
    return source


def resolve_place(choice: TokensOn, stored_bytes: int, *, device: torch.device, training_bytes: int) -> Literal["device", "pinned", "disk"]:
    """Return where rows of so many bytes are read from; ``auto`` is resolved as ``place_tokens`` says."""
    if choice == "auto":
        # Every process of this machine holds all rows, and torch allocates page-locked memory in powers of two.
        host_bytes = host_available_bytes() // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        host_bytes = 1 << host_bytes.bit_length() - 1 if host_bytes else 0
        return choose_place(stored_bytes, _free_bytes(device) - training_bytes - RESERVE_BYTES, host_bytes, device.type)
    if choice == "pinned" and device.type != "cuda":
        say("warning: --tokens-on pinned only keeps the tokens in memory without CUDA")
    return choice


def choose_place(tokens_bytes: int, device_bytes: int, host_bytes: int, device_type: str) -> Literal["device", "pinned", "disk"]:
    """Return the fastest place with room for all tokens; on the CPU the disk."""
    if device_type == "cpu":
        return "disk"
    if tokens_bytes <= device_bytes:
        return "device"
    return "pinned" if tokens_bytes <= host_bytes else "disk"


class DiskTokens:
    """Reads each batch from the page cache into a new buffer, page-locked if the device is CUDA. Holds only the memory maps."""

    place = "disk"

    def __init__(self, tokens: ImageTokens, device: torch.device) -> None:
        self._reader, self._device = tokens.reader, device

    def gather(self, drawings: NDArray[np.int64]) -> torch.Tensor:
        """Return float16 [B, T, I] on the device."""
        reader = self._reader
        if self._device.type != "cuda":
            return _dequantized(reader, {name: torch.from_numpy(values) for name, values in reader.gather_stored(drawings).items()})
        # torch does not reuse a page-locked buffer before the copy from it is done.
        buffers = _buffers(reader, len(drawings), pinned=True)
        reader.gather_stored(drawings, {name: buffer.numpy() for name, buffer in buffers.items()})
        return _dequantized(reader, {name: buffer.to(self._device, non_blocking=True) for name, buffer in buffers.items()})

    def ahead(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[Rows]:
        """Yield the batches while the operating system prefetches the rows of the next ones."""
        return self._reader.ahead(batches)


class ResidentTokens:
    """Holds every row, as stored, in the memory of the device or of the host (page-locked if the device is CUDA)."""

    def __init__(self, tokens: ImageTokens, device: torch.device, place: Literal["device", "pinned"]) -> None:
        self.place = place
        self._device = device
        self._reader = tokens.reader
        on_host = place == "pinned"
        self._rows = _buffers(self._reader, len(self._reader), pinned=on_host and device.type == "cuda", device=None if on_host else device)
        for first in range(0, len(self._reader), self._reader.spec.shard_rows):
            part = np.arange(first, min(first + self._reader.spec.shard_rows, len(self._reader)))
            for name, values in self._reader.gather_stored(part).items():
                self._rows[name][first : first + len(part)].copy_(torch.from_numpy(values))

    def gather(self, drawings: NDArray[np.int64]) -> torch.Tensor:
        """Return float16 [B, T, I] on the device."""
        if self.place == "pinned" and self._device.type == "cuda":
            return _dequantized(self._reader, {name: self._copied(values, drawings.tolist()) for name, values in self._rows.items()})
        where = torch.from_numpy(drawings)
        if self.place == "device" and self._device.type == "cuda":
            where = where.pin_memory().to(self._device, non_blocking=True)
        return _dequantized(self._reader, {name: values.index_select(0, where).to(self._device) for name, values in self._rows.items()})

    def ahead(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[Rows]:
        """Yield the batches: all rows are in memory already."""
        return iter(batches)

    def _copied(self, values: torch.Tensor, drawings: list[int]) -> torch.Tensor:
        # Directly from page-locked rows that never change: no gathering on the host, and no synchronization.
        copied = torch.empty((len(drawings), *values.shape[1:]), dtype=values.dtype, device=self._device)
        for n, drawing in enumerate(drawings):
            copied[n].copy_(values[drawing], non_blocking=True)
        return copied


def training_bytes(config: Any, *, weights: int, batch_size: int, positions: int, state_bytes: int) -> int:
    """Return an upper estimate of the memory that training takes in addition to the weights: gradients, optimizer state, activations.

    Activations of a transformer layer take ``B·S·(34·D + 5·A·S)`` bytes in half precision (Korthikanti et al. 2022, arXiv 2205.05198,
    eq. 1) for S positions, width D and A heads; doubled, because some are kept in float32, and summed over the layers.

    Args:
        config: the text encoder's configuration.
        weights: the number of trained weights.
        batch_size: B.
        positions: S, text and image tokens together.
        state_bytes: the optimizer's bytes per weight (8 for AdamW, 2 for 8-bit AdamW).
    """
    sizes = text_sizes(config)
    in_a_layer = batch_size * positions * (34 * sizes.width + 5 * sizes.heads * positions)
    return weights * (4 + state_bytes) + 2 * (sizes.layers + 1) * in_a_layer  # the fusion block too


def _dequantized(reader: ColumnReader, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    values = stored[reader.spec.what]
    return dequantize(values, stored[SCALE]) if SCALE in stored else values


def _buffers(reader: ColumnReader, count: int, *, pinned: bool, device: torch.device | None = None) -> dict[str, torch.Tensor]:
    datasets = reader.spec.layout(0).datasets
    return {
        name: torch.empty(
            (count, *datasets[name][0][1:]), dtype=_TORCH_DTYPES[datasets[name][1].name], pin_memory=pinned, device=device or "cpu"
        )
        for name in reader.spec.layout(0).stored
    }


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
