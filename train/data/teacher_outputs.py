"""The teacher's logits and embeddings for every text, written once and bound to the teacher's weights: all that the student needs of
it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import xxhash

from lugpi_core.errors import InputError
from lugpi_core.files import whole_file
from lugpi_core.fingerprint import hash_file
from train.learning.networks import Output

WEIGHTS = "model.safetensors"
# One entry, for safetensors writes several in no fixed order, and equal outputs should be equal bytes.
BOUND = "made_from"


@dataclass(frozen=True, kw_only=True)
class TeacherOutputs:
    """Logits [N, K] in float32 and embeddings [N, D] in float32 or float16, row i for example i of the corpus, with the hash of the
    teacher that gave them."""

    logits: torch.Tensor
    embeddings: torch.Tensor
    teacher: str

    def to(self, device: torch.device) -> "TeacherOutputs":
        """Return the outputs on a device."""
        return replace(self, logits=self.logits.to(device), embeddings=self.embeddings.to(device))

    def followed_by(self, others: "TeacherOutputs") -> "TeacherOutputs":
        """Return the outputs with those of other texts behind them."""
        return replace(self, logits=torch.cat([self.logits, others.logits]), embeddings=torch.cat([self.embeddings, others.embeddings]))


def outputs_path(folder: Path, unlabelled: str | None = None) -> Path:
    """Return where a teacher's outputs are: those for its corpus, or for texts without labels of that name."""
    return folder / ("outputs.safetensors" if unlabelled is None else f"outputs-{unlabelled}.safetensors")


def write_teacher_outputs(path: Path, output: Output, *, corpus_fingerprint: str, dtype: Literal["float32", "float16"] = "float32") -> None:
    """Write the outputs beside the teacher's weights, with both fingerprints and a hash of the content in the file's metadata; ``dtype`` is
    the embeddings'."""
    from safetensors.torch import save_file

    logits_NK, embeddings_ND = output.logits.contiguous(), output.embeddings.to(getattr(torch, dtype)).contiguous()
    content = _content_hash(logits_NK, embeddings_ND)
    bound = {"teacher": hash_file(path.parent / WEIGHTS), "corpus": corpus_fingerprint, "xxh3": content}
    with whole_file(path) as partial:
        save_file({"logits": logits_NK, "embeddings": embeddings_ND}, partial, metadata={BOUND: json.dumps(bound)})


def has_teacher_outputs(path: Path, *, corpus_fingerprint: str, dtype: Literal["float32", "float16"] | None = None) -> bool:
    """Whether the teacher's outputs are there, whole, and its own; and, where that is asked, with embeddings of that precision."""
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
    remedy = "run python -m train teacher with the teacher's settings again; it only writes its outputs anew"
    try:
        with safe_open(path, framework="pt") as file:
            bound = json.loads((file.metadata() or {})[BOUND])
            outputs = TeacherOutputs(logits=file.get_tensor("logits"), embeddings=file.get_tensor("embeddings"), teacher=bound["teacher"])
            is_whole = bound["xxh3"] == _content_hash(outputs.logits, outputs.embeddings)
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
    if not weights.is_file() or hash_file(weights) != outputs.teacher:
        raise InputError(got=f"{path}, made by other weights than {weights}", expected="outputs of that teacher", do=remedy)
    return outputs


def _content_hash(logits_NK: torch.Tensor, embeddings_ND: torch.Tensor) -> str:
    hasher = xxhash.xxh3_128(logits_NK.cpu().numpy().tobytes())
    hasher.update(embeddings_ND.cpu().numpy().tobytes())
    return hasher.hexdigest()
