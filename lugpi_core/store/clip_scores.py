"""``clip-scores.h5``: how well each image agrees with its prompt, by the text tower of the encoder of one column of the store.

A score is the cosine of prompt and image in the joint space of a CLIP (Hessel et al. 2021, arXiv 2104.08718, without its factor of 2.5).

Shapes: N examples, K images each.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest, digest_of_lists
from lugpi_core.store.manifest import Record, load_manifest
from lugpi_core.store.reader import image_columns_of
from lugpi_core.store.sealed_file import read_sealed, write_sealed

CLIP_SCORES = "clip-scores.h5"
_SCORE = "run python -m featurize score with its flags"
_AGAIN = f"{_SCORE} again"


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """The scores of a store's images, and what they were computed from.

    Attributes:
        column: whose tokens and text tower they are of.
        encoder: the weights hash of that encoder.
        content: ``content_of`` the column's records.
        corpus_fingerprint: ``Corpus.fingerprint()`` of the texts.
        logit_scale: by which the encoder multiplies cosines before its softmax (about 100 for a CLIP).
        scores_NK: float32, cosines; NaN where the image failed.
    """

    column: str
    encoder: str
    content: str
    corpus_fingerprint: str
    logit_scale: float
    scores_NK: NDArray[np.float32] = field(repr=False)

    @cached_property
    def values_digest(self) -> str:
        """The hash of the scores."""
        return digest_of_lists(*self.scores_NK.shape, self.scores_NK.view(np.int32).reshape(-1).astype(np.int64))

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides a model that reads them."""
        return {"column": self.column, "encoder": self.encoder, "logit_scale": self.logit_scale, "scores": self.values_digest}

    def figures(self) -> dict[str, Any]:
        """Return as JSON values: K and the mean score; of several images a text, that of the best ones, the share 1/K that they are, and
        how many of them are the first. Means are None if every image failed."""
        has_score_N = np.isfinite(self.scores_NK).any(axis=1)
        scores_NK, several = self.scores_NK[has_score_N], self.scores_NK.shape[1]
        best_N = best_image(scores_NK, np.isfinite(scores_NK))
        best_N1 = np.take_along_axis(scores_NK, best_N[:, None], axis=1)
        mean, of_best, first = (
            float(np.nanmean(values, dtype=np.float64)) if len(values) else None for values in (scores_NK, best_N1, best_N == 0)
        )
        of_several = {"mean_of_best": of_best, "kept_share": 1 / several, "first_is_best": first}
        return {"images_per_text": several, "logit_scale": self.logit_scale, "mean": mean, **(of_several if several > 1 else {})}

    def sentence(self) -> str:
        """Return the figures in one sentence."""
        figures, by = self.figures(), f"CLIP scores by {self.column}"
        if figures["mean"] is None:
            return f"{by}: every image failed"
        if figures["images_per_text"] == 1:
            return f"{by}: mean {figures['mean']:.3f}"
        return (
            f"{by}: mean {figures['mean']:.3f}; of the best of {figures['images_per_text']} images of each text, "
            f"{figures['kept_share']:.1%} of all, {figures['mean_of_best']:.3f}, and {figures['first_is_best']:.1%} of these are the first"
        )


def best_image(scores_NK: NDArray[np.floating[Any]], usable_NK: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return which usable image of each example has the highest score, int64 [N]: of equals the first; 0 where none is usable."""
    best_N: NDArray[np.int64] = np.where(usable_NK, scores_NK, -np.inf).argmax(axis=1)
    return best_N


def content_of(records: Mapping[int, Record]) -> str:
    """Return the hash of a column's rows: that of the hashes of its shards."""
    return digest([record["xxh3_128"] for _, record in sorted(records.items())])


def write_clip_scores(store: Path, scores: ClipScores) -> None:
    """Write ``clip-scores.h5`` in place of one that is there, whole or not at all."""
    about = {name: getattr(scores, name) for name in ("column", "encoder", "content", "corpus_fingerprint", "logit_scale")}

    def build(file: Any) -> None:
        file["score"] = scores.scores_NK.astype("<f4")

    write_sealed(store / CLIP_SCORES, about, build)


def read_clip_scores(store: Path, *, corpus_fingerprint: str, shape: tuple[int, ...]) -> ClipScores:
    """Return the scores of a store.

    Args:
        store: its folder.
        corpus_fingerprint: of the texts that are used.
        shape: (N, K) of the table of examples.

    Raises:
        InputError: there are none, they are damaged, or they are of other texts or of other images than those that are there now.
    """
    path = store / CLIP_SCORES
    if not path.is_file():
        raise InputError(
            got=f"{store} without CLIP scores",
            expected="how well each image agrees with its text",
            do=_SCORE if has_text_tower(store) else f"add an encoder with a text tower, such as clip-vit-b32, then {_SCORE}",
        )
    try:
        about, arrays = read_sealed(path)
        scores = ClipScores(
            column=str(about["column"]),
            encoder=str(about["encoder"]),
            content=str(about["content"]),
            corpus_fingerprint=str(about["corpus_fingerprint"]),
            logit_scale=float(about["logit_scale"]),
            scores_NK=arrays["score"].astype(np.float32),
        )
    except (KeyError, TypeError, ValueError, InputError):
        raise InputError(got=f"{path}, which is damaged", expected="the scores as lugpi wrote them", do=_AGAIN) from None
    if scores.corpus_fingerprint != corpus_fingerprint or scores.scores_NK.shape != shape:
        raise InputError(got=f"{path}, scores of other texts", expected="those of the corpus as it is loaded now", do=_AGAIN)
    if scores.column not in image_columns_of(store) or content_of(load_manifest(store / scores.column)[1]) != scores.content:
        raise InputError(
            got=f"{path}, scores of other images than {scores.column} has now", expected="scores of the images that are there", do=_AGAIN
        )
    return scores


def has_text_tower(store: Path) -> bool:
    """Whether a column of the store is of an encoder whose text tower is read."""
    return bool(columns_with_text_tower(store, image_columns_of(store)))


def columns_with_text_tower(store: Path, columns: Iterable[str]) -> list[str]:
    """Return those of some columns that are of an encoder of open_clip, whose text towers are read, and have the token that is compared:
    none of an earlier layer (``--encoder-layer``) or of the mean of the patches alone (``--pool 1``)."""
    encoders = {name: load_manifest(store / name)[0].fingerprint.get("encoder") for name in columns}
    return [name for name, encoder in encoders.items() if isinstance(encoder, Mapping) and _is_compared(encoder)]


def _is_compared(encoder: Mapping[str, Any]) -> bool:
    is_of_last_block = not str(encoder.get("layer")).startswith("after block ")
    return encoder.get("family") == "open_clip" and is_of_last_block and encoder.get("pool") != "1" and "pca" not in encoder
