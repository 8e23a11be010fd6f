"""``inspect``: what do the cached tokens and latents of a store say before any training?

Shapes: M distinct images of the sample, F features, n images, S their side.
"""

import warnings
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from featurize.generate.decoders import check_decoder_name
from featurize.inspect.class_similarity import WINDOW, ClassSimilarity, class_similarity, spread_over_classes
from featurize.inspect.columns import Subject, inspect_column, notice_of, open_subject, unfinished
from featurize.inspect.decoded_images import DECODE_TFLOP, DecodedImages, to_bytes, to_grey
from featurize.inspect.drawings_png import DRAWINGS_PNG, write_drawings_png
from featurize.inspect.inspection import Inspection, Thumbnails
from featurize.inspect.own_pictures import OwnPictures, is_own
from featurize.inspect.records import LeftOut
from featurize.inspect.sample import prompts_cut
from featurize.options import InspectSettings
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.fields import require_type
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.runtime.meters import peak_memory_bytes, provenance
from lugpi_core.runtime.pretrained import only_local_files
from lugpi_core.store.reader import image_columns_of
from lugpi_core.thumbnails import FOLDER, MOST_SIDE_PX, ThumbnailSource, write_thumbnails

MOST_CLASS_IMAGES = 280
_SIMILARITY_SIDE_PX = 64
_MOST_IN_GRID = 64


@runtime_checkable
class OpenStore(Protocol):
    """A store that is open already, such as a ``TokenStore``."""

    @property
    def path(self) -> Path:
        """Its folder."""


def folder_of(store: str | Path | OpenStore) -> Path:
    """Return the folder of a store. Raises TypeError for what is none."""
    require_type("store", store, str, Path, OpenStore)
    return Path(store) if isinstance(store, (str, Path)) else store.path


def open_images(subject: Subject) -> DecodedImages | OwnPictures:
    """Return what shows the images of a store: the decoder of its latents, or the pictures of its texts.

    Raises:
        InputError: as these.
    """
    if is_own(subject.store):
        return OwnPictures(subject.corpus, subject.table)
    return DecodedImages(subject.store, subject.settings.decoder, subject.compute)


def inspect(
    store: str | Path | OpenStore,
    corpus: Corpus,
    *,
    settings: InspectSettings | None = None,
    run_dir: str | Path | None = None,
) -> Inspection:
    """Inspect a store: do its images predict the class, do they agree with their texts, how many are near-duplicates?

    Everything is seeded: the same store gives the same figures on the same machine. A question that cannot be answered is left out, with
    the reason. No model is downloaded, and the store is not changed. Thumbnails of test examples are written to the run's folder.

    Memory: the pooled tokens of at most 10,000 examples three times (250 MB for width 1,024), 32 MB of tokens, similarities of 20 MB;
    then the text tower; then the decoder, with at most 1,000 images of 64 px and 500 of 128 px (150 MB). Nothing grows with the store.

    Args:
        store: its folder, or an open store.
        corpus: that the store was generated for.
        settings: defaults if None.
        run_dir: where thumbnails and drawings.png are written; the folder that contains the store if None.

    Raises:
        InputError: no store, the store of another corpus, or a decoder or device that is not there.
    """
    require_type("corpus", corpus, Corpus)
    prepare_libraries()
    settings = InspectSettings() if settings is None else settings
    require_type("settings", settings, InspectSettings)
    check_decoder_name(settings.decoder)
    subject = open_subject(
        folder_of(store),
        corpus,
        settings=settings,
        compute=resolve_compute(settings.device, "auto", half="float16"),
    )
    with only_local_files():
        columns = {name: inspect_column(subject, name) for name in image_columns_of(subject.store)}
        similarity, thumbnails = _inspect_images(subject, subject.store.parent if run_dir is None else Path(run_dir))
    return Inspection(
        store=subject.store,
        corpus=corpus.fingerprint(),
        examples=subject.sample.inspected(),
        capped=subject.sample.is_capped,
        without_image={split: count for split, count in subject.sample.without_image.items() if count},
        no_classes=subject.no_classes,
        columns=columns,
        class_similarity=similarity,
        thumbnails=thumbnails,
        prompts_cut=prompts_cut(subject.table, corpus),
        prompt_figures=subject.table.prompt_figures,
        notice=notice_of(subject.store),
        compute=subject.compute.record(),
        times=subject.times.record(),
        peak_memory=peak_memory_bytes(),
        provenance=provenance(),
        unfinished=unfinished(subject.store),
    )


def _inspect_images(subject: Subject, run_dir: Path) -> tuple[ClassSimilarity | LeftOut, Thumbnails | LeftOut]:
    """Return the similarity of the classes and the thumbnails; both decode latents, and share the work allowed for it."""
    try:
        with subject.times.stage("find_generator"):
            decoded = open_images(subject)
    except InputError as error:
        return LeftOut(left_out=str(error)), LeftOut(left_out=str(error))
    budget_tflop = subject.settings.decode_tflop or DECODE_TFLOP[subject.compute.device]
    affordable = int(budget_tflop * 1e12 / decoded.flops)
    wanted = min(subject.settings.thumbnails, len(subject.sample.rows["test"]))
    thumbnails = min(wanted, max(affordable // 2, affordable - MOST_CLASS_IMAGES))
    class_images = min(MOST_CLASS_IMAGES, affordable - thumbnails)
    if thumbnails < wanted or class_images < MOST_CLASS_IMAGES:
        warnings.warn(
            f"at most {affordable:,} images are decoded, at {decoded.flops / 1e12:.3g} TFLOP each (--decode-tflop {budget_tflop:g})",
            stacklevel=3,
        )
    return (
        subject.ask("class_similarity", lambda: _class_similarity(subject, decoded, class_images)),
        subject.ask("thumbnails", lambda: _thumbnails(subject, decoded, thumbnails, run_dir)),
    )


def _class_similarity(subject: Subject, decoded: DecodedImages | OwnPictures, most: int) -> ClassSimilarity | LeftOut:
    if reason := subject.no_classes:
        return LeftOut(left_out=reason)
    # Each image once: examples that share one would make their classes look alike.
    _, first = np.unique(subject.sample.places["train"], return_index=True)
    labels, drawings = subject.sample.labels["train"][first], subject.sample.drawings[subject.sample.places["train"][first]]
    chosen = spread_over_classes(labels, most, subject.settings.seed)
    if not len(chosen):
        return LeftOut(left_out=f"fewer than two classes with two images each, of the {most:,} that may be decoded (--decode-tflop)")
    places, small_n3SS = decoded.decode(drawings[chosen], _SIMILARITY_SIDE_PX)
    label_n = labels[chosen][places]
    present, counts = np.unique(label_n, return_counts=True)
    paired_n = np.isin(label_n, present[counts > 1])
    if small_n3SS.shape[-1] < WINDOW or (counts > 1).sum() < 2:
        return LeftOut(left_out="too many images failed, or they are too small")
    grey_nSS = to_grey(small_n3SS[torch.from_numpy(paired_n)].to(subject.compute.device))
    return class_similarity(grey_nSS, label_n[paired_n], subject.corpus.label_names, subject.settings.seed)


def _thumbnails(subject: Subject, decoded: DecodedImages | OwnPictures, most: int, run_dir: Path) -> Thumbnails | LeftOut:
    rows = subject.sample.rows["test"]
    if subject.settings.thumbnails == 0:
        return LeftOut(left_out="--thumbnails 0")
    if not len(rows):
        return LeftOut(left_out="there is no test example")
    if not most:
        return LeftOut(left_out="one image is more work than may be done (--decode-tflop)")
    chosen = np.sort(np.random.default_rng(subject.settings.seed).permutation(rows)[:most])
    places, small_n3SS = decoded.decode(subject.table.drawing[chosen], MOST_SIDE_PX)
    if not len(places):
        return LeftOut(left_out="no test image can be shown")
    source = ThumbnailSource(corpus=subject.corpus.fingerprint(), generator=decoded.name, notice=decoded.notice)
    images_nSS3 = to_bytes(small_n3SS)
    image_of_row = dict(zip(chosen[places].tolist(), images_nSS3, strict=True))
    captions = [caption_of(subject.corpus, row) for row in list(image_of_row)[:_MOST_IN_GRID]]
    folder = run_dir / FOLDER
    return Thumbnails(
        folder=folder,
        sheet=write_drawings_png(captions, images_nSS3[:_MOST_IN_GRID], run_dir / DRAWINGS_PNG),
        examples=len(image_of_row),
        side_px=small_n3SS.shape[-1],
        bytes=write_thumbnails(folder, image_of_row, source),
    )


def caption_of(corpus: Corpus, row: int) -> str:
    """Return label and prompt of an example, for below its image."""
    example = corpus.examples[row]
    if not example.is_labelled:
        return example.prompt
    label = f"{example.target:g}" if isinstance(example.target, float) else ", ".join(corpus.label_names[n] for n in example.classes)
    return f"[{label}]\n{example.prompt}"
