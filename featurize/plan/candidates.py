"""``--best-of C``: which encoder chooses among the candidates of an image, and the column of what these scored."""

from collections.abc import Mapping, Sequence
from typing import Any

from featurize.encode.encoders import EncoderFiles
from featurize.plan.images import ImagePlan
from lugpi_core.errors import InputError
from lugpi_core.store.layout import CANDIDATES
from lugpi_core.store.manifest import ColumnSpec


def scoring_encoder(encoders: Sequence[EncoderFiles]) -> EncoderFiles:
    """Return the first encoder whose text tower is read. Raises InputError if there is none."""
    with_tower = [files for files in encoders if files.family == "open_clip"]
    for files in with_tower:
        if files.pool != "1" and files.layer is None:
            return files
    if layer := next((files.layer for files in with_tower if files.layer is not None), None):
        raise InputError(
            got=f"--best-of with --encoder-layer {layer}, whose tokens are not what is compared with the prompt",
            expected="tokens of the last block",
            do="leave --encoder-layer out, or leave --best-of out",
        )
    if with_tower:
        raise InputError(
            got="--best-of with --pool 1, which leaves out the token that is compared with the prompt",
            expected="that token",
            do="give --pool cls or a grid such as 4x4, or leave one of both out",
        )
    raise InputError(
        got=f"--best-of with the encoders {', '.join(files.name for files in encoders) or 'of no image'}, none of which has a text tower",
        expected="an encoder of open_clip among them, whose score with the prompt chooses",
        do="add one to --encoders, such as clip-vit-b32, or leave --best-of out",
    )


def candidates_column(plan: ImagePlan, fingerprint: Mapping[str, Any], common: Mapping[str, Any]) -> ColumnSpec:
    """Return the column of candidates, rows of [1, 1 + C]: the number of the one that was kept, and the score of each.

    A score is a cosine, rounded to float16; NaN where the candidate failed. An image of which all failed is a failed row.
    """
    return ColumnSpec(name=CANDIDATES, what="tokens", row_shape=(1, 1 + plan.candidates), fingerprint=fingerprint, **common)
