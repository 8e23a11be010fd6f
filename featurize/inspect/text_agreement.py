"""Do the pictures show their texts? Cosines of texts and pictures in the space of the encoder's own text tower.

Shapes: B texts or images, L text tokens, D width of the tokens, E width of the joint space, n pairs of a text and its picture.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from featurize.encode.encoders import EncoderFiles, expand_encoders, find_encoder
from featurize.encode.image_encoder import loading_encoder, open_clip_model, open_clip_tokenizer
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute
from lugpi_core.store.manifest import ColumnSpec

# Texts that are read: a text tower of CLIP B/32 takes 6 GFLOP a text.
MOST_TEXTS: Mapping[str, int] = {"cpu": 256, "cuda": 2048}
_TEXTS_AT_ONCE = 32


class JointSpace:
    """The space in which an open_clip model compares texts with images: where its two towers project to. Holds the whole model.

    Args:
        files: of an open_clip model.
        compute: the device; it computes in float32.

    Raises:
        InputError: another family, no tokenizer in reach, or a model that does not project its class token.
    """

    def __init__(self, files: EncoderFiles, compute: Compute) -> None:
        if files.family != "open_clip":
            raise InputError(got=f"{files.name} ({files.family})", expected="an open_clip model", do="only those have a text tower here")
        with loading_encoder(files):
            model, self._tokenizer = open_clip_model(files), open_clip_tokenizer(files)
        if model.visual.pool_type != "tok" or model.visual.proj is None:
            raise InputError(
                got=f"{files.name}, whose image embedding is not the class token's", expected="a CLIP", do="nothing is to be done"
            )
        self._name, self._device = files.name, torch.device(compute.device)
        self._model = model.eval().requires_grad_(False).float().to(self._device)

    @torch.inference_mode()
    def images(self, class_tokens_BD: torch.Tensor) -> torch.Tensor:
        """Return images as unit vectors, float32 [B, E]; their class tokens are those of the cache, after the final LayerNorm."""
        projected_BE: torch.Tensor = class_tokens_BD.to(self._device, torch.float32) @ self._model.visual.proj
        return nn.functional.normalize(projected_BE, dim=-1)

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return texts as unit vectors, float32 [B, E]; the text tower reads as much of each as its context takes.

        Raises:
            InputError: the tokenizer is another model's.
        """
        ids_BL = self._tokenizer(list(prompts))
        if int(ids_BL.max()) >= self._model.vocab_size:
            raise InputError(
                got=f"{self._name} with a vocabulary of {self._model.vocab_size} and no tokenizer of its own",
                expected="the tokenizer that its text tower was trained with",
                do="put it beside the weights",
            )
        said_BE: torch.Tensor = self._model.encode_text(ids_BL.to(self._device), normalize=True)
        return said_BE


def encoder_of(column: ColumnSpec) -> EncoderFiles:
    """Return the open_clip model that made a column of tokens, its files found.

    Raises:
        InputError: no open_clip model made the column, or its files are not in reach or have changed.
    """
    made = column.fingerprint.get("encoder")
    if not isinstance(made, Mapping) or made.get("family") != "open_clip":
        family = made.get("family", "unknown") if isinstance(made, Mapping) else "unknown"
        raise InputError(got=f"an encoder of the family {family}", expected="open_clip's", do="only those have a text tower here")
    files = _files_named(str(made.get("name")), tuple(map(str, (column.made_by or {}).get("encoders") or ())))
    if files.weights_hash != made.get("weights"):
        raise InputError(
            got=f"{files.folder} with other weights than those of the column", expected=f"weights {made.get('weights')}", do="put them back"
        )
    return files


def _files_named(name: str, wanted: tuple[str, ...]) -> EncoderFiles:
    """Return the one encoder of several whose column has the name."""
    missing = InputError(got=f"a column {name!r} that no featurize command made", expected="its encoder", do="nothing is to be done")
    # A preset is its column's name; of others only their files tell.
    for one in sorted(expand_encoders(wanted), key=lambda one: one != name):
        try:
            files = find_encoder(one)
        except InputError as error:
            missing = error
            continue
        if files.name == name:
            return files
    raise missing


def text_agreement(files: EncoderFiles, compute: Compute, class_tokens_nD: torch.Tensor, prompts: Sequence[str]) -> dict[str, Any]:
    """Return how much nearer texts are to their own picture than to others', as plain values.

    ``matching`` and ``others`` are mean cosines: of the n pairs, and of the n · (n - 1) other combinations. ``own_is_nearer`` is the share
    of those in which a text is nearer to its own picture than to the other (ties count half), .5 by chance; ``standard_error`` is over
    texts.

    Memory: the model, and similarities [n, n]: 17 MB for 2,048 texts.

    Args:
        files: of an open_clip model.
        compute: the device.
        class_tokens_nD: as cached; at least two.
        prompts: of the same drawings, all distinct.

    Raises:
        InputError: as for ``JointSpace``.
    """
    space = JointSpace(files, compute)
    images_nE = space.images(class_tokens_nD)
    texts_nE = torch.cat([space.texts(prompts[start : start + _TEXTS_AT_ONCE]) for start in range(0, len(prompts), _TEXTS_AT_ONCE)])
    return agreement_of((texts_nE @ images_nE.T).double().cpu())


def agreement_of(cosines_nn: torch.Tensor) -> dict[str, Any]:
    """Return the figures of ``text_agreement`` for cosines of texts (rows) and pictures (columns), float64."""
    count = len(cosines_nn)
    own_n1 = cosines_nn.diagonal()[:, None]
    # The text's own picture is no other: it is a tie, and taken off again.
    nearer_n = ((own_n1 > cosines_nn).double() + 0.5 * (own_n1 == cosines_nn).double()).sum(dim=1) - 0.5
    shares_n = (nearer_n / (count - 1)).numpy()
    matching = float(own_n1.mean())
    return {
        "texts": count,
        "matching": matching,
        "others": (float(cosines_nn.sum()) - matching * count) / (count * (count - 1)),
        "own_is_nearer": float(shares_n.mean()),
        "standard_error": float(np.std(shares_n, ddof=1) / count**0.5),
    }
