"""The teacher's logits and embeddings for every example, written once and bound to the teacher's weights: all that the student needs of
it."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from lugpi_core.errors import InputError
from lugpi_core.files import whole_file
from lugpi_core.fingerprint import hash_file
from train.models import Output

OUTPUTS = "outputs.safetensors"
WEIGHTS = "model.safetensors"
# One entry, for safetensors writes several in no fixed order, and equal outputs should be equal bytes.
BOUND = "made_from"


@dataclass(frozen=True, kw_only=True)
class TeacherOutputs:
    """Float32 logits [N, K] and embeddings [N, D], row i for example i of the corpus, with the hash of the teacher that gave them."""

    logits: torch.Tensor
    embeddings: torch.Tensor
    teacher: str


def write_teacher_outputs(folder: Path, output: Output, *, corpus_fingerprint: str) -> None:
    """Write the outputs beside the teacher's weights, with both fingerprints in the file's metadata."""
    from safetensors.torch import save_file

    bound = {"teacher": hash_file(folder / WEIGHTS), "corpus": corpus_fingerprint}
    with whole_file(folder / OUTPUTS) as partial:
        tensors = {"logits": output.logits.contiguous(), "embeddings": output.embeddings.contiguous()}
        save_file(tensors, partial, metadata={BOUND: json.dumps(bound)})


def has_teacher_outputs(folder: Path, *, corpus_fingerprint: str) -> bool:
    """Whether the teacher's outputs are there, whole, and its own."""
    try:
        read_teacher_outputs(folder, corpus_fingerprint=corpus_fingerprint)
    except InputError:
        return False
    return True


def read_teacher_outputs(folder: Path, *, corpus_fingerprint: str) -> TeacherOutputs:
    """Return the outputs of a teacher.

    Raises:
        InputError: there are none, they are damaged, they come from other weights, or the teacher read another corpus.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / OUTPUTS
    remedy = "run python -m train teacher with the teacher's settings again; it only writes its outputs anew"
    try:
        with safe_open(path, framework="pt") as file:
            bound = json.loads((file.metadata() or {})[BOUND])
            outputs = TeacherOutputs(logits=file.get_tensor("logits"), embeddings=file.get_tensor("embeddings"), teacher=bound["teacher"])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise InputError(got=f"{path} ({str(error)[:120]})", expected="the outputs of a finished teacher", do=remedy) from None
    if bound["corpus"] != corpus_fingerprint:
        raise InputError(
            got=f"the teacher in {folder}, which read another dataset, other splits or another --limit",
            expected="a teacher of the dataset of this command",
            do="repeat the teacher's corpus flags, or train a teacher for this dataset",
        )
    if not (folder / WEIGHTS).is_file() or hash_file(folder / WEIGHTS) != outputs.teacher:
        raise InputError(got=f"{path}, made by other weights than {folder / WEIGHTS}", expected="outputs of that teacher", do=remedy)
    return outputs
