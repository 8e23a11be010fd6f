"""The token ids of every text, one text after another: made once, kept on disk, and on the device while a model trains.

Shapes: N texts, B of them in a batch, L tokens of the longest in it, S tokens of all.
"""

import json
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.files import make_folder, whole_file
from lugpi_core.fingerprint import digest
from train.data.text_model import TextModel

FOLDER = "token-ids"
_AT_ONCE = 4096
# One entry of metadata, for safetensors writes several in no fixed order.
_ABOUT = "about"


class TokenIds:
    """Token ids, special tokens included, without padding.

    Holds 4 bytes a token on ``device``, and the lengths there and on the host: how long a batch is, is known without asking the device.

    Args:
        flat_S: int32, every text's ids behind those of the one before.
        lengths_N: int64, how many are each text's.
        pad: what stands behind a text that is shorter than the longest of its batch.
        device: where batches are made.
    """

    def __init__(self, flat_S: torch.Tensor, lengths_N: NDArray[np.int64], *, pad: int, device: torch.device) -> None:
        self.lengths_N = lengths_N
        self._pad = pad
        self._flat_S = flat_S.to(device)
        self._on_device_N = torch.from_numpy(lengths_N).to(device)
        self._starts_N = torch.from_numpy(np.cumsum(lengths_N) - lengths_N).to(device)
        self._places_L = torch.arange(int(lengths_N.max(initial=0)), device=device)

    def padded(self, rows: NDArray[np.int64], rows_B: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``input_ids`` and ``attention_mask``, int64 [B, L], padded on the right to the longest; no mask where all are as long.

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

    Tokenised once: they are kept in ``run`` under a name that follows from texts, tokenizer and length, and a file that does not hold is
    made again.
    """
    made_from = {
        "corpus": corpus.fingerprint(),
        "separator": corpus.separator,
        "text_model": text_model.weights_hash,
        "max_length": text_model.max_length,
    }
    path = run / FOLDER / f"{digest(made_from)}.safetensors"
    found = _kept(path)
    if found is None:
        found = _tokenised(text_model, corpus)
        make_folder(path.parent)
        _keep(path, *found)
    return found


def _tokenised(text_model: TextModel, corpus: Corpus) -> tuple[torch.Tensor, NDArray[np.int64]]:
    texts = [example.text for example in corpus.examples]
    own = text_model.tokenizer.sep_token
    if corpus.separator and own and own != corpus.separator:
        texts = [text.replace(corpus.separator, own) for text in texts]
    parts, lengths = [], []
    for start in range(0, len(texts), _AT_ONCE):
        for one in text_model.tokenizer(texts[start : start + _AT_ONCE], truncation=True, max_length=text_model.max_length)["input_ids"]:
            parts.append(np.asarray(one, np.int32))
            lengths.append(len(one))
    return torch.from_numpy(np.concatenate(parts)), np.asarray(lengths, np.int64)


def _keep(path: Path, flat_S: torch.Tensor, lengths_N: NDArray[np.int64]) -> None:
    from safetensors.torch import save_file

    tensors = {"ids": flat_S, "lengths": torch.from_numpy(lengths_N)}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={_ABOUT: json.dumps({"xxh3": _hash(flat_S, lengths_N)})})


def _kept(path: Path) -> tuple[torch.Tensor, NDArray[np.int64]] | None:
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
