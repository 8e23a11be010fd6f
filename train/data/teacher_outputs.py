"""The teacher's logits and embeddings for every text, written once and bound to the teacher's weights: all that a student reads of it.

Shapes: N texts, B of them in a batch, K classes, D embedding width.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash

from lugpi_core.errors import InputError
from lugpi_core.files import whole_file
from lugpi_core.fingerprint import agree, hash_weights_file
from train.file_names import OUTPUTS, WEIGHTS
from train.options.settings import OutputsDtype

# A single entry of metadata: safetensors writes several in no fixed order, and equal outputs should be equal bytes.
BOUND = "made_from"


@dataclass(frozen=True, kw_only=True)
class TeacherOutputs:
    """What one teacher computed for N texts, row i for text i; with folds, for a train text what the teacher of its fold computed.

    Attributes:
        logits: float32 [N, K].
        embeddings: float32 or float16 [N, D].
        teacher: hash of the teacher's weights.
        folds: of cross-fitted outputs number and seed of the folds, and the hash of the logits; None if one teacher computed all.
    """

    logits: torch.Tensor
    embeddings: torch.Tensor
    teacher: str
    folds: Mapping[str, Any] | None = None

    def to(self, device: torch.device) -> "TeacherOutputs":
        """Return the outputs on a device."""
        return replace(self, logits=self.logits.to(device), embeddings=self.embeddings.to(device))

    def followed_by(self, others: "TeacherOutputs") -> "TeacherOutputs":
        """Return these outputs followed by those for other texts."""
        return replace(self, logits=torch.cat([self.logits, others.logits]), embeddings=torch.cat([self.embeddings, others.embeddings]))

    def rows(self, rows_B: torch.Tensor) -> "TeacherOutputs":
        """Return the outputs for the texts of a batch."""
        return replace(self, logits=self.logits[rows_B], embeddings=self.embeddings[rows_B])


def outputs_path(folder: Path, unlabelled: str | None = None) -> Path:
    """Return the file of a teacher's outputs: for its corpus, or for the unlabelled texts of that name."""
    return folder / (OUTPUTS if unlabelled is None else f"outputs-{unlabelled}.safetensors")


def write_teacher_outputs(
    path: Path,
    logits_NK: torch.Tensor,
    embeddings_ND: torch.Tensor,
    *,
    corpus_fingerprint: str,
    dtype: OutputsDtype = "float32",
    folds: Mapping[str, int] | None = None,
) -> None:
    """Write the outputs next to the teacher's weights, with the fingerprints of weights and corpus and a hash of the content in the file's
    metadata.

    Args:
        path: of the file.
        logits_NK: for each text.
        embeddings_ND: for each text.
        corpus_fingerprint: of the texts.
        dtype: of the embeddings in the file.
        folds: number and seed of the folds, if the outputs are cross-fitted.
    """
    from safetensors.torch import save_file

    logits_NK, embeddings_ND = logits_NK.contiguous(), embeddings_ND.to(getattr(torch, dtype)).contiguous()
    content = content_hash(logits_NK, embeddings_ND)
    bound: dict[str, Any] = {"teacher": hash_weights_file(path.parent / WEIGHTS), "corpus": corpus_fingerprint, "xxh3": content}
    if folds is not None:
        bound["folds"] = {**folds, "logits": content_hash(logits_NK)}
    with whole_file(path) as partial:
        save_file({"logits": logits_NK, "embeddings": embeddings_ND}, partial, metadata={BOUND: json.dumps(bound)})


def has_teacher_outputs(path: Path, *, corpus_fingerprint: str, dtype: OutputsDtype | None = None) -> bool:
    """Whether the file holds this teacher's outputs, undamaged and, unless ``dtype`` is None, with embeddings of that precision."""
    try:
        outputs = read_teacher_outputs(path, corpus_fingerprint=corpus_fingerprint)
    except InputError:
        return False
    return dtype is None or outputs.embeddings.dtype == getattr(torch, dtype)


def read_teacher_outputs(path: Path, *, corpus_fingerprint: str) -> TeacherOutputs:
    """Return the outputs of a teacher.

    Raises:
        InputError: there are none, they are damaged, they come from other weights, or the teacher read another corpus.
    """
    from safetensors import SafetensorError, safe_open

    weights = path.parent / WEIGHTS
    remedy = "run python -m train teacher with the teacher's settings again; it only rewrites its outputs"
    try:
        with safe_open(path, framework="pt") as file:
            bound = json.loads((file.metadata() or {})[BOUND])
            tensors = {name: file.get_tensor(name) for name in ("logits", "embeddings")}
            outputs = TeacherOutputs(**tensors, teacher=bound["teacher"], folds=bound.get("folds"))
            is_whole = bound["xxh3"] == content_hash(outputs.logits, outputs.embeddings)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise InputError(got=f"{path} ({str(error)[:120]})", expected="the outputs of a finished teacher", do=remedy) from None
    if not is_whole:
        raise InputError(got=f"{path}, whose content is not what was written", expected="the outputs of a finished teacher", do=remedy)
    if bound["corpus"] != corpus_fingerprint:
        raise InputError(
            got=f"the teacher in {path.parent}, which read another dataset, other splits or another --limit",
            expected="a teacher of the dataset of this command",
            do="repeat the teacher's corpus flags, or train a teacher for this dataset",
        )
    if not weights.is_file() or not agree(outputs.teacher, hash_weights_file(weights)):
        raise InputError(got=f"{path}, computed from other weights than {weights}", expected="outputs of that teacher", do=remedy)
    return outputs


def content_hash(*tensors: torch.Tensor) -> str:
    """Return the xxh3-128 of the bytes of tensors, one after another."""
    hasher = xxhash.xxh3_128()
    for tensor in tensors:
        hasher.update(tensor.cpu().numpy().tobytes())
    return hasher.hexdigest()
