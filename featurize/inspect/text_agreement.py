"""Do the images agree with their texts? Cosines of texts and images in the joint space of the encoder's own text tower.

Shapes: B texts or images, L text tokens, D width of the image tokens, E width of the joint space, n pairs of a text and its image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from featurize.encode.encoders import EncoderFiles, expand_encoders, find_encoder
from featurize.encode.joint_space import JointSpace
from featurize.inspect.records import Record, decimal, interval_text
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import agree
from lugpi_core.runtime.device import Compute
from lugpi_core.store.manifest import ColumnSpec

# At most this many texts: the text tower of CLIP B/32 takes 6 GFLOP per text.
MOST_TEXTS: Mapping[str, int] = {"cpu": 256, "cuda": 2048}
_TEXTS_AT_ONCE = 32
AllTokens = Callable[[slice], torch.Tensor]
# Standard errors above .5 from which on the agreement is significant, and the texts that a standard error needs.
_ERRORS, _FEW_TEXTS = 3, 20


@dataclass(frozen=True, kw_only=True)
class Agreement(Record):
    """How much nearer texts are to their own image than to others.

    Attributes:
        texts: n.
        matching: mean cosine of the n pairs of a text and its image.
        others: mean cosine of the n · (n - 1) other combinations.
        own_is_nearer: the share of those in which the text is nearer to its own image than to the other; ties count half. .5 by chance.
        standard_error: of ``own_is_nearer``, over texts.
    """

    texts: int
    matching: float
    others: float
    own_is_nearer: float
    standard_error: float

    @property
    def is_significant(self) -> bool:
        """Whether the images agree with their texts more than by chance."""
        return self.texts >= _FEW_TEXTS and self.own_is_nearer - _ERRORS * self.standard_error > 0.5

    def sentence(self) -> str:
        """Return the answer in one sentence."""
        agree = "the images agree with their texts"
        if not self.is_significant:
            asked = f"fewer than {_FEW_TEXTS} texts" if self.texts < _FEW_TEXTS else f"less than {_ERRORS} standard errors above chance"
            agree = f"no significant agreement of the images with their texts ({asked})"
        error = 1.96 * self.standard_error
        interval = interval_text((max(0.0, self.own_is_nearer - error), min(1.0, self.own_is_nearer + error)))
        return (
            f"{agree}: a text is nearer to its own image than to another in {decimal(self.own_is_nearer)} of comparisons "
            f"({interval}; chance .500); mean cosine {self.matching:.3f} and {self.others:.3f}"
        )


def encoder_of(column: ColumnSpec) -> EncoderFiles:
    """Return the files of the open_clip model that a column of tokens comes from.

    Raises:
        InputError: another kind of encoder, or its files are not within reach or have changed.
    """
    encoder = column.fingerprint.get("encoder")
    if not isinstance(encoder, Mapping) or encoder.get("family") != "open_clip":
        family = encoder.get("family", "unknown") if isinstance(encoder, Mapping) else "unknown"
        raise InputError(
            got=f"an encoder of the family {family}",
            expected="open_clip, whose text towers are read here",
            do="add an encoder such as clip-vit-b32",
        )
    return files_of(column)


def files_of(column: ColumnSpec) -> EncoderFiles:
    """Return the files of the encoder that a column of tokens comes from.

    Raises:
        InputError: no encoder is recorded, or its files are not within reach or have changed.
    """
    encoder = column.fingerprint.get("encoder")
    if not isinstance(encoder, Mapping):
        raise _unrecorded(column.name)
    if "pca" in encoder:
        raise InputError(
            got=f"{column.name}, components of tokens (featurize reduce)",
            expected="the tokens themselves",
            do="look at the column that they were projected from",
        )
    files = _encoder_named(str(encoder.get("name")), column.made_by or {})
    if not agree(encoder.get("weights"), files.weights_hash):
        raise InputError(
            got=f"{files.folder} with other weights than those of the column",
            expected=f"weights {encoder.get('weights')}",
            do="restore the original files",
        )
    return files


def _encoder_named(name: str, flags: Mapping[str, Any]) -> EncoderFiles:
    """Return the encoder of the flags that gives the name to its column."""
    candidates = tuple(map(str, flags.get("encoders") or ()))
    missing = _unrecorded(name)
    # A preset has its column's name; of others only the files tell.
    for candidate in sorted(expand_encoders(candidates), key=lambda candidate: candidate != name):
        try:
            files = find_encoder(candidate, flags.get("encoder_size"), flags.get("encoder_layer"), flags.get("pool"))
        except InputError as error:
            missing = error
            continue
        if files.name == name:
            return files
    raise missing


def _unrecorded(name: str) -> InputError:
    return InputError(
        got=f"a column {name!r} that no featurize command wrote",
        expected="one whose encoder is recorded",
        do="encode the images with python -m featurize --encoders",
    )


def text_agreement(
    files: EncoderFiles, compute: Compute, class_tokens_nD: torch.Tensor, prompts: Sequence[str], all_tokens: AllTokens | None = None
) -> Agreement:
    """Return how much nearer texts are to their own image than to others.

    Memory: the model, and similarities [n, n]: 17 MB for 2,048 texts.

    Args:
        files: of an open_clip model.
        compute: the device.
        class_tokens_nD: as cached; at least two.
        prompts: of the same images, all distinct.
        all_tokens: returns all tokens [b, T, D] of some of these images, for encoders whose embedding is made of them.

    Raises:
        InputError: as for ``JointSpace``.
    """
    space = JointSpace(files, compute)
    parts = [slice(start, min(start + _TEXTS_AT_ONCE, len(prompts))) for start in range(0, len(prompts), _TEXTS_AT_ONCE)]
    if space.reads_all_tokens:
        assert all_tokens is not None, files.name
        images_nE = torch.cat([space.images(all_tokens(part)) for part in parts])
    else:
        images_nE = space.images(class_tokens_nD)
    texts_nE = torch.cat([space.embed_texts(prompts[part]) for part in parts])
    return agreement_of((texts_nE @ images_nE.T).double().cpu())


def agreement_of(cosines_nn: torch.Tensor) -> Agreement:
    """Return the agreement for cosines of texts (rows) and images (columns), float64."""
    count = len(cosines_nn)
    own_n1 = cosines_nn.diagonal()[:, None]
    # Less one half: the comparison of the own image with itself, a tie.
    nearer_n = ((own_n1 > cosines_nn).double() + 0.5 * (own_n1 == cosines_nn).double()).sum(dim=1) - 0.5
    shares_n = (nearer_n / (count - 1)).numpy()
    matching = float(own_n1.mean())
    return Agreement(
        texts=count,
        matching=matching,
        others=(float(cosines_nn.sum()) - matching * count) / (count * (count - 1)),
        own_is_nearer=float(shares_n.mean()),
        standard_error=float(np.std(shares_n, ddof=1) / count**0.5),
    )
