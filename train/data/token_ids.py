"""The token ids of all texts, concatenated: computed once, kept on disk, and on the device during training.

Shapes: N texts, B of them in a batch, L tokens of the longest in it, S tokens of all.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.files import make_folder, whole_file
from lugpi_core.fingerprint import digest, earlier_form
from train.data.text_model import TextModel

FOLDER = "token-ids"
_TEXTS_AT_ONCE = 4096
# A single entry of metadata: safetensors writes several in no fixed order.
_ABOUT = "about"


class TokenIds:
    """Token ids, special tokens included, without padding.

    Holds 4 bytes per token on ``device``, and the lengths there and on the host, so that the length of a batch is known without
    synchronizing.

    Args:
        flat_S: int32, the ids of all texts, concatenated.
        lengths_N: int64, the number of ids of each text.
        pad: the id that fills up texts shorter than the longest of their batch.
        device: where the batches are created.
    """

    def __init__(self, flat_S: torch.Tensor, lengths_N: NDArray[np.int64], *, pad: int, device: torch.device) -> None:
        self.lengths_N = lengths_N
        self._pad = pad
        self._flat_S = flat_S.to(device)
        self._on_device_N = torch.from_numpy(lengths_N).to(device)
        self._starts_N = torch.from_numpy(np.cumsum(lengths_N) - lengths_N).to(device)
        self._places_L = torch.arange(int(lengths_N.max(initial=0)), device=device)

    def padded(self, rows: NDArray[np.int64], rows_B: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``input_ids`` and ``attention_mask``, int64 [B, L], padded on the right to the longest; no mask if none is padded.

        Args:
            rows: the texts.
            rows_B: the same on the device.
        """
        lengths = self.lengths_N[rows]
        longest = int(lengths.max())
        places_L = self._places_L[:longest]
        if longest == int(lengths.min()):
            return {"input_ids": self._flat_S[self._starts_N[rows_B, None] + places_L].long()}
        mask_BL = places_L < self._on_device_N[rows_B, None]
        where_BL = (self._starts_N[rows_B, None] + places_L).clamp_(max=len(self._flat_S) - 1)
        ids_BL = self._flat_S[where_BL].long().masked_fill_(~mask_BL, self._pad)
        return {"input_ids": ids_BL, "attention_mask": mask_BL.long()}


def token_ids(text_model: TextModel, corpus: Corpus, run: Path) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Return the token ids of a corpus's texts as ``TokenIds`` takes them: int32 [S], and int64 [N] lengths of ``max_length`` at most.

    They are kept in ``run`` under a name that follows from texts, tokenizer and length; a damaged file is replaced.
    """
    fingerprint = {
        "corpus": corpus.fingerprint(),
        "separator": corpus.separator,
        "text_model": text_model.weights_hash,
        "max_length": text_model.max_length,
    }
    path, earlier = (run / FOLDER / f"{digest(value)}.safetensors" for value in (fingerprint, earlier_form(fingerprint)))
    ids = _read(path) or _read(earlier)
    if ids is None:
        texts = [example.text for example in corpus.examples]
        separator = text_model.tokenizer.sep_token
        if corpus.separator and separator and separator != corpus.separator:
            texts = [text.replace(corpus.separator, separator) for text in texts]
        ids = tokenize(text_model, texts)
        make_folder(path.parent)
        _write(path, *ids)
    return ids


def tokenize(text_model: TextModel, texts: Sequence[str]) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Return the token ids of the texts, concatenated, int32 [S], and their lengths, int64 [N], ``max_length`` at most."""
    parts: list[NDArray[np.int32]] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = list(texts[start : start + _TEXTS_AT_ONCE])
        ids = text_model.tokenizer(some, truncation=True, max_length=text_model.max_length)["input_ids"]
        parts += [np.asarray(of_text, np.int32) for of_text in ids]
    return torch.from_numpy(np.concatenate(parts)), np.asarray([len(part) for part in parts], np.int64)


def _write(path: Path, flat_S: torch.Tensor, lengths_N: NDArray[np.int64]) -> None:
    from safetensors.torch import save_file

    tensors = {"ids": flat_S, "lengths": torch.from_numpy(lengths_N)}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={_ABOUT: json.dumps({"xxh3": _hash(flat_S, lengths_N)})})


def _read(path: Path) -> tuple[torch.Tensor, NDArray[np.int64]] | None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            flat_S, lengths_N = file.get_tensor("ids"), file.get_tensor("lengths").numpy()
            about = json.loads((file.metadata() or {})[_ABOUT])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return (flat_S, lengths_N) if about.get("xxh3") == _hash(flat_S, lengths_N) else None


def _hash(flat_S: torch.Tensor, lengths_N: NDArray[np.int64]) -> str:
    hasher = xxhash.xxh3_128(flat_S.numpy().tobytes())
    hasher.update(lengths_N.tobytes())
    return hasher.hexdigest()
