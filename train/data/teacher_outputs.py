"""The teacher's logits and embeddings for every text, written once and bound to the teacher's weights: all that a student reads of it.

Shapes: N texts, B of them in a batch, K classes, D embedding width, I width of the image tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash

from lugpi_core.errors import InputError
from lugpi_core.files import whole_file
from lugpi_core.fingerprint import agree, hash_weights_file
from train.file_names import OUTPUTS, WEIGHTS

# A single entry of metadata: safetensors writes several in no fixed order, and equal outputs should be equal bytes.
BOUND = "made_from"


@dataclass(frozen=True, kw_only=True)
class TeacherOutputs:
    """What one teacher computed for N texts, row i for text i; with folds, for a train text what the teacher of its fold computed.

    Attributes:
        logits: float32 [N, K].
        embeddings: float32 or float16 [N, D].
        teacher: hash of the teacher's weights.
        images: float16 [N, I], V_CLS of the image that it reads of each text, or ``standardized``; None if it reads none, if they were not
            asked for, or if an earlier version wrote the file.
        folds: of cross-fitted outputs number and seed of the folds, and the hash of the logits; None if one teacher computed all.
        unlabelled_images: hash of what it reads of the images of unlabelled texts; None for a corpus, for a teacher that reads none, and if
            an earlier version wrote the file.
    """

    logits: torch.Tensor
    embeddings: torch.Tensor
    teacher: str
    images: torch.Tensor | None = None
    folds: Mapping[str, Any] | None = None
    unlabelled_images: str | None = None

    def to(self, device: torch.device) -> "TeacherOutputs":
        """Return the outputs on a device."""
        images = None if self.images is None else self.images.to(device)
        return replace(self, logits=self.logits.to(device), embeddings=self.embeddings.to(device), images=images)

    def followed_by(self, others: "TeacherOutputs") -> "TeacherOutputs":
        """Return these outputs followed by those for unlabelled texts."""
        return replace(
            self,
            logits=torch.cat([self.logits, others.logits]),
            embeddings=torch.cat([self.embeddings, others.embeddings]),
            images=None if self.images is None or others.images is None else torch.cat([self.images, others.images]),
            unlabelled_images=others.unlabelled_images,
        )

    def rows(self, rows_B: torch.Tensor) -> "TeacherOutputs":
        """Return the outputs for the texts of a batch."""
        images = None if self.images is None else self.images[rows_B]
        return replace(self, logits=self.logits[rows_B], embeddings=self.embeddings[rows_B], images=images)


def outputs_path(folder: Path, unlabelled: str | None = None) -> Path:
    """Return the file of a teacher's outputs: for its corpus, or for the unlabelled texts of that name."""
    return folder / (OUTPUTS if unlabelled is None else f"outputs-{unlabelled}.safetensors")


def write_teacher_outputs(
    path: Path,
    logits_NK: torch.Tensor,
    embeddings_ND: torch.Tensor,
    *,
    images_NI: torch.Tensor | None,
    corpus_fingerprint: str,
    made_from: Mapping[str, Any] | None = None,
) -> None:
    """Write the outputs next to the teacher's weights, with the fingerprints of weights and corpus and a hash of the content in the file's
    metadata.

    Args:
        path: of the file.
        logits_NK: for each text.
        embeddings_ND: for each text, in the dtype that they have in the file.
        images_NI: V_CLS of each text's image; None if the teacher reads none.
        corpus_fingerprint: of the texts.
        made_from: ``folds``, number and seed of the folds, if the outputs are cross-fitted; ``unlabelled_images``, the hash of what the
            teacher reads of the images of unlabelled texts; None is as good as nothing.
    """
    from safetensors.torch import save_file

    tensors = {"logits": logits_NK.contiguous(), "embeddings": embeddings_ND.contiguous()}
    content = content_hash(*tensors.values())
    bound: dict[str, Any] = {"teacher": hash_weights_file(path.parent / WEIGHTS), "corpus": corpus_fingerprint, "xxh3": content}
    bound |= {name: value for name, value in (made_from or {}).items() if value is not None}
    if "folds" in bound:
        bound["folds"] = {**bound["folds"], "logits": content_hash(logits_NK)}
    if images_NI is not None:
        tensors["images"] = images_NI.contiguous()
        bound["images"] = content_hash(images_NI)
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={BOUND: json.dumps(bound)})


def find_teacher_outputs(path: Path, *, corpus_fingerprint: str, with_images: bool = False) -> TeacherOutputs | None:
    """Return ``read_teacher_outputs``; None if the file is missing or damaged, or of other weights or another corpus."""
    try:
        return read_teacher_outputs(path, corpus_fingerprint=corpus_fingerprint, with_images=with_images)
    except InputError:
        return None


def read_teacher_outputs(path: Path, *, corpus_fingerprint: str, with_images: bool = False) -> TeacherOutputs:
    """Return the outputs of a teacher; its image vectors only if they are asked for and in the file.

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
            is_whole = bound["xxh3"] == content_hash(*tensors.values())
            if with_images and "images" in bound:
                tensors["images"] = file.get_tensor("images")
                is_whole &= bound["images"] == content_hash(tensors["images"])
            outputs = TeacherOutputs(
                **tensors, teacher=bound["teacher"], folds=bound.get("folds"), unlabelled_images=bound.get("unlabelled_images")
            )
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


def standardized(images_NI: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Return image vectors as a student predicts them, float32 [N, I]: less their mean over some rows, each dimension divided by its
    standard deviation there; a dimension that is the same in all of these rows, by 1."""
    images_NI = images_NI.float()
    chosen_RI = images_NI[torch.as_tensor(rows)]
    deviation_I = torch.where((chosen_RI == chosen_RI[:1]).all(dim=0), 1.0, chosen_RI.std(dim=0, correction=0))
    return (images_NI - chosen_RI.mean(dim=0)) / deviation_I


def content_hash(*tensors: torch.Tensor) -> str:
    """Return the xxh3-128 of the bytes of tensors, one after another."""
    hasher = xxhash.xxh3_128()
    for tensor in tensors:
        hasher.update(tensor.cpu().numpy().tobytes())
    return hasher.hexdigest()
