"""The token ids of all texts, concatenated, with whatever else the tokenizer returns for each token: computed once, kept on disk, and on
the device during training.

Shapes: N texts, B of them in a batch, L tokens of the longest in it, S tokens of all.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from lugpi_core.corpora.columns import TextColumn
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, whole_file
from lugpi_core.fingerprint import digest, earlier_form
from train.data.text_model import TextModel

FOLDER = "token-ids"
Token = Literal["first", "last"]
# So few that what a tokenizer returns for them, Python lists of numbers, is small beside the texts.
_TEXTS_AT_ONCE = 512
# In which numbers are kept, the narrowest first.
_WIDTHS = (np.uint8, np.uint16, np.int32)
_HASHED_AT_ONCE = 1 << 20
# A single entry of metadata: safetensors writes several in no fixed order.
_ABOUT = "about"


class Tokens(NamedTuple):
    """What a tokenizer returns for texts, special tokens included, without padding; on the CPU.

    Numbers are uint8, uint16 or int32, the narrowest that holds all of them.

    Attributes:
        flat_S: the ids of all texts, concatenated.
        lengths_N: int64, the number of ids of each text.
        others: what the model takes besides, [S] each, such as ``token_type_ids``.
    """

    flat_S: torch.Tensor
    lengths_N: NDArray[np.int64]
    others: Mapping[str, torch.Tensor] = MappingProxyType({})

    def followed_by(self, more: "Tokens") -> "Tokens":
        """Return these texts and, after them, others of the same tokenizer."""
        others = {name: _after_each_other(values, more.others[name]) for name, values in self.others.items()}
        return Tokens(_after_each_other(self.flat_S, more.flat_S), np.concatenate([self.lengths_N, more.lengths_N]), others)


def _after_each_other(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    # NumPy has a type for uint16 and int32 together; torch has none.
    return torch.from_numpy(np.concatenate([first.numpy(), second.numpy()]))


class NumberColumn:
    """Numbers that grow in one buffer, which the system moves without copying it; as wide as the largest of them needs."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._dtype: np.dtype[Any] = np.dtype(_WIDTHS[0])

    def extend(self, numbers: NDArray[np.int32]) -> None:
        """Append some numbers."""
        low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
        needed = next(np.dtype(width) for width in _WIDTHS if np.iinfo(width).min <= low and high <= np.iinfo(width).max)
        if needed.itemsize > self._dtype.itemsize:
            self._data, self._dtype = bytearray(np.frombuffer(self._data, self._dtype).astype(needed).data), needed
        self._data += numbers.astype(self._dtype).data

    def numbers(self) -> torch.Tensor:
        """Return the numbers, which share the buffer. Nothing may be appended after that."""
        return torch.from_numpy(np.frombuffer(self._data, self._dtype))


class TokenIds:
    """Token ids, special tokens included, without padding.

    Holds on ``device`` the numbers as they are given, of the other inputs only those that are not zero throughout, and the lengths there
    and on the host, so that the length of a batch is known without synchronizing.

    Args:
        flat_S: the ids of all texts, concatenated, of any type of whole numbers, as are the others.
        lengths_N: int64, the number of ids of each text.
        others: what the model takes besides, [S] each.
        pad: the id that fills up texts shorter than the longest of their batch.
        padding: on which side, and with what else (default: on the right, masked).
        device: where the batches are created.
    """

    def __init__(
        self,
        flat_S: torch.Tensor,
        lengths_N: NDArray[np.int64],
        others: Mapping[str, torch.Tensor] = MappingProxyType({}),
        *,
        pad: int,
        padding: "Padding | None" = None,
        device: torch.device,
    ) -> None:
        self.lengths_N = lengths_N
        self._pad, self._padding = pad, padding or Padding()
        self.equal_lengths = self._padding.is_read
        self._flat_S = _Numbers.of(flat_S, device)
        # Token types are zero throughout for single texts of most models: nothing is kept then.
        self._others = {name: _Numbers.of(values_S, device) if bool(values_S.any()) else None for name, values_S in others.items()}
        self._on_device_N = torch.from_numpy(lengths_N).to(device)
        self._starts_N = torch.from_numpy(np.cumsum(lengths_N) - lengths_N).to(device)
        self._places_L = torch.arange(int(lengths_N.max(initial=0)), device=device)

    @classmethod
    def of(cls, text_model: TextModel, tokens: Tokens, device: torch.device, *, padding_is_read: bool = False) -> "TokenIds":
        """Return the tokens of texts as batches are created from them, padded as the text model's tokenizer pads."""
        tokenizer = text_model.tokenizer
        padding = Padding(
            left=tokenizer.padding_side == "left",
            masked="attention_mask" in text_model.inputs,
            others={"token_type_ids": int(tokenizer.pad_token_type_id)},
            is_read=padding_is_read,
        )
        return cls(*tokens, pad=text_model.pad_id, padding=padding, device=device)

    def padded(self, rows: NDArray[np.int64], rows_B: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``input_ids``, ``attention_mask`` and what else the model takes, int64 [B, L], padded to the longest; no mask if none is
        padded.

        Args:
            rows: the texts.
            rows_B: the same on the device.
        """
        lengths = self.lengths_N[rows]
        longest = int(lengths.max())
        places_L = self._places_L[:longest]
        if longest == int(lengths.min()):
            where_BL = self._starts_N[rows_B, None] + places_L
            ids_BL = self._flat_S.at(where_BL)
            return {"input_ids": ids_BL} | {name: self._other(values_S, where_BL, ids_BL) for name, values_S in self._others.items()}
        lengths_B1 = self._on_device_N[rows_B, None]
        if self._padding.left:
            places_L = places_L - (longest - lengths_B1)
        mask_BL = (places_L >= 0) & (places_L < lengths_B1)
        where_BL = (self._starts_N[rows_B, None] + places_L).clamp_(min=0, max=len(self._flat_S.kept_S) - 1)
        ids_BL = self._flat_S.at(where_BL).masked_fill_(~mask_BL, self._pad)
        batch = {"input_ids": ids_BL} | ({"attention_mask": mask_BL.long()} if self._padding.masked else {})
        for name, values_S in self._others.items():
            batch[name] = self._other(values_S, where_BL, ids_BL).masked_fill_(~mask_BL, self._padding.others.get(name, 0))
        return batch

    def only(self, token: Token) -> "TokenIds":
        """Return one token of each text in place of the text: its first or its last."""
        starts_N = self._starts_N if token == "first" else self._starts_N + self._on_device_N - 1
        ids_N = self._flat_S.at(starts_N)
        others = {name: self._other(values_S, starts_N, ids_N) for name, values_S in self._others.items()}
        return TokenIds(ids_N, np.ones_like(self.lengths_N), others, pad=self._pad, padding=self._padding, device=ids_N.device)

    def is_token(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool [B, L]: which places of a padded batch are tokens of the texts, and no padding."""
        lengths_B1 = self.lengths_N[rows][:, None]
        places_L = np.arange(int(lengths_B1.max()))
        return places_L >= len(places_L) - lengths_B1 if self.pads_left else places_L < lengths_B1

    @property
    def pads_left(self) -> bool:
        """Whether padding is before a text, and not after it."""
        return self._padding.left

    def _other(self, values_S: "_Numbers | None", where_BL: torch.Tensor, ids_BL: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(ids_BL) if values_S is None else values_S.at(where_BL)


@dataclass(frozen=True)
class _Numbers:
    """Whole numbers on a device. uint16, of which torch has few operations, is kept as int16."""

    kept_S: torch.Tensor
    is_uint16: bool

    @classmethod
    def of(cls, numbers_S: torch.Tensor, device: torch.device) -> "_Numbers":
        is_uint16 = numbers_S.dtype == torch.uint16
        return cls((numbers_S.view(torch.int16) if is_uint16 else numbers_S).to(device), is_uint16)

    def at(self, where: torch.Tensor) -> torch.Tensor:
        """Return the numbers at some places, int64."""
        numbers = self.kept_S[where].long()
        return numbers.bitwise_and_(0xFFFF) if self.is_uint16 else numbers


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How shorter texts of a batch are filled up.

    Attributes:
        left: before a text, and not after it.
        masked: whether the model takes an ``attention_mask``.
        others: what fills up each other input (0 if not named).
        is_read: whether it changes the model's answers, which are therefore computed from texts of equal length.
    """

    left: bool = False
    masked: bool = True
    others: Mapping[str, int] = field(default_factory=dict)
    is_read: bool = False


def token_ids(text_model: TextModel, corpus: Corpus, run: Path) -> Tokens:
    """Return the tokens of a corpus's texts, or pairs of texts, ``max_length`` at most of each.

    They are kept in ``run`` under a name that follows from texts, tokenizer and length; a damaged file is replaced.
    """
    others = tuple(name for name in text_model.inputs if name != "attention_mask")
    fingerprint = {
        "corpus": corpus.fingerprint(),
        "separator": corpus.separator,
        "text_model": text_model.weights_hash,
        "max_length": text_model.max_length,
        **({"inputs": list(others)} if others else {}),
    }
    path, earlier = (run / FOLDER / f"{digest(value)}.safetensors" for value in (fingerprint, earlier_form(fingerprint)))
    tokens = _read(path, others) or _read(earlier, others)
    if tokens is None:
        tokens = tokenize(text_model, *texts_of(text_model, corpus))
        make_folder(path.parent)
        _write(path, tokens)
    return tokens


def texts_of(text_model: TextModel, corpus: Corpus) -> tuple[Sequence[str], Sequence[str] | None]:
    """Return the texts of a corpus as the text model reads them, with its own separator around marked targets, and the second texts of
    pairs."""
    texts, pairs = corpus.columns.texts, corpus.columns.pairs
    marked, separator = corpus.separator, text_model.tokenizer.sep_token
    if marked and separator and separator != marked:
        texts = TextColumn.of(text.replace(marked, separator) for text in texts)
    return texts, pairs if pairs is None or isinstance(pairs, TextColumn) else [pair or "" for pair in pairs]


def tokenize(text_model: TextModel, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
    """Return the tokens of the texts, or of pairs of texts, ``max_length`` at most of each."""
    names = ("input_ids", *(name for name in text_model.inputs if name != "attention_mask"))
    # One buffer that grows for all texts: an array for each takes more than its tokens do.
    flat = {name: NumberColumn() for name in names}
    lengths: list[NDArray[np.int64]] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        chunk = slice(start, start + _TEXTS_AT_ONCE)
        given = [list(texts[chunk])] if pairs is None else [list(texts[chunk]), list(pairs[chunk])]
        returned = text_model.tokenizer(*given, truncation=True, max_length=text_model.max_length)
        for name in names:
            flat[name].extend(np.fromiter(chain.from_iterable(returned[name]), np.int32))
        lengths.append(np.fromiter(map(len, returned["input_ids"]), np.int64))
    lengths_N = np.concatenate(lengths)
    if not lengths_N.all():
        row = int(lengths_N.argmin())
        raise InputError(
            got=f"{int((lengths_N == 0).sum()):,} texts without any token of {text_model.shown_name}, first {texts[row][:40]!r}, row {row}",
            expected="at least one token in every text",
            do="remove these texts, or choose another text model",
        )
    tokens = {name: column.numbers() for name, column in flat.items()}
    return Tokens(tokens.pop("input_ids"), lengths_N, tokens)


def _write(path: Path, tokens: Tokens) -> None:
    from safetensors.torch import save_file

    tensors = {"ids": tokens.flat_S, "lengths": torch.from_numpy(tokens.lengths_N), **tokens.others}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={_ABOUT: json.dumps({"xxh3": hash_of_tokens(tokens)})})


def _read(path: Path, others: Sequence[str]) -> Tokens | None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            values = {name: file.get_tensor(name) for name in others}
            tokens = Tokens(file.get_tensor("ids"), file.get_tensor("lengths").numpy(), values)
            about = json.loads((file.metadata() or {})[_ABOUT])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return tokens if about.get("xxh3") == hash_of_tokens(tokens) else None


def hash_of_tokens(tokens: Tokens) -> str:
    """Return the hash of everything that a model reads of the texts, of numbers as int32 however they are kept."""
    hasher = xxhash.xxh3_128()
    _update(hasher, tokens.flat_S)
    hasher.update(tokens.lengths_N.data)
    for values_S in tokens.others.values():
        _update(hasher, values_S)
    return hasher.hexdigest()


def _update(hasher: xxhash.xxh3_128, numbers_S: torch.Tensor) -> None:
    numbers = numbers_S.numpy()
    for first in range(0, len(numbers), _HASHED_AT_ONCE):
        hasher.update(numbers[first : first + _HASHED_AT_ONCE].astype(np.int32).data)
