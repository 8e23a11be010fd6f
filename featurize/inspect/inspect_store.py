"""``inspect``: what do the cached tokens and latents of a store say before any training?

Shapes: M distinct images of the sample, F features, n images, S their side.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.generate.decoders import check_decoder_name
from featurize.inspect.class_similarity import WINDOW, ClassSimilarity, class_similarity, spread_over_classes
from featurize.inspect.decoded_images import DECODE_TFLOP, DecodedImages, to_bytes, to_grey
from featurize.inspect.drawings_png import DRAWINGS_PNG, write_drawings_png
from featurize.inspect.inspection import ColumnInspection, Inspection, Thumbnails
from featurize.inspect.near_copies import NearCopies, near_copies
from featurize.inspect.probes import ClassProbes, LabelledFeatures, probe_classes
from featurize.inspect.records import LeftOut
from featurize.inspect.sample import PooledTokens, Sample, pooled_tokens, prompts_cut, take_sample
from featurize.inspect.text_agreement import MOST_TEXTS, Agreement, encoder_of, text_agreement
from featurize.options import InspectSettings
from lugpi_core.corpora.corpus import UNLABELLED, Corpus
from lugpi_core.errors import InputError
from lugpi_core.fields import require_type
from lugpi_core.runtime.device import Compute, resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.runtime.meters import StageTimes, peak_memory_bytes, provenance
from lugpi_core.runtime.pretrained import only_local_files
from lugpi_core.store.example_table import ExampleTable, read_example_table
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.reader import ColumnReader, columns_of, token_columns_of
from lugpi_core.thumbnails import FOLDER, MOST_SIDE_PX, ThumbnailSource, write_thumbnails

MOST_CLASS_IMAGES = 280
_SIMILARITY_SIDE_PX = 64
_MOST_IN_GRID = 64

Answer = TypeVar("Answer")


class OpenStore(Protocol):
    """A store that is open already, such as a ``TokenStore``."""

    @property
    def path(self) -> Path:
        """Its folder."""


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is inspected, and with what."""

    store: Path
    run_dir: Path
    corpus: Corpus
    table: ExampleTable
    sample: Sample
    settings: InspectSettings
    compute: Compute
    times: StageTimes

    @property
    def no_classes(self) -> str | None:
        """Why no question about classes can be answered, or None."""
        if not self.corpus.label_names:
            return "these texts have no labels"
        if self.corpus.task != "single-label":
            return f"the corpus is a {self.corpus.task} task, and these questions need one class for each text"
        if not len(self.sample.rows["validation"]):
            return "there is no validation example"
        if not (self.sample.labels["validation"] != UNLABELLED).any():
            return "no validation example has a label"
        return "the train examples are all of one class" if len(np.unique(self.sample.labels["train"])) < 2 else None

    def ask(self, stage: str, question: Callable[[], Answer | LeftOut]) -> Answer | LeftOut:
        """Return the answer, timed as ``stage``; left out if it raises InputError."""
        try:
            with self.times.stage(stage):
                return question()
        except InputError as error:
            return LeftOut(left_out=str(error))


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
    folder = Path(store) if isinstance(store, (str, Path)) else store.path
    if not columns_of(folder):
        raise InputError(got=f"no token store in {folder}", expected="one that featurize wrote", do="run python -m featurize first")
    table = read_example_table(folder, corpus)
    compute = resolve_compute(settings.device, "auto", half="float16")
    subject = _Subject(
        store=folder,
        run_dir=folder.parent if run_dir is None else Path(run_dir),
        corpus=corpus,
        table=table,
        sample=take_sample(corpus, table, settings.seed),
        settings=settings,
        compute=compute,
        times=StageTimes(compute.device),
    )
    with only_local_files():
        columns = {name: _inspect_column(subject, name) for name in token_columns_of(folder)}
        similarity, thumbnails = _inspect_images(subject)
    return Inspection(
        store=folder,
        corpus=corpus.fingerprint(),
        examples=subject.sample.inspected(),
        capped=subject.sample.is_capped,
        no_classes=subject.no_classes,
        columns=columns,
        class_similarity=similarity,
        thumbnails=thumbnails,
        prompts_cut=prompts_cut(table, corpus),
        notice=_notice(folder),
        compute=compute.record(),
        times=subject.times.record(),
        peak_memory=peak_memory_bytes(),
        provenance=provenance(),
        unfinished=_unfinished(folder),
    )


def _unfinished(store: Path) -> dict[str, tuple[int, int]]:
    """Return the columns that lack rows: how many each has, and of how many."""
    found: dict[str, tuple[int, int]] = {}
    for name in columns_of(store):
        try:
            spec, records = load_manifest(store / name)
        except InputError:
            continue  # reported as a column that is left out
        rows = sum(record["rows"] for record in records.values())
        if rows < spec.rows:
            found[name] = (rows, spec.rows)
    return found


def _inspect_column(subject: _Subject, name: str) -> ColumnInspection | LeftOut:
    try:
        reader = ColumnReader(subject.store, name, check_content=False)
        with subject.times.stage("read"):
            pooled = pooled_tokens(reader, subject.sample.drawings, int(subject.table.drawings.max()) + 1)
    except InputError as error:
        return LeftOut(left_out=str(error))
    return ColumnInspection(
        drawings=len(reader),
        flagged=len(reader.flagged),
        features=pooled.features_MF.shape[1],
        classes=subject.ask("probe", lambda: _class_probes(subject, pooled)),
        near_copies=subject.ask("near_copies", lambda: _near_copies(subject, pooled)),
        agreement=subject.ask("text_agreement", lambda: _agreement(subject, pooled, reader)),
    )


def _class_probes(subject: _Subject, pooled: PooledTokens) -> ClassProbes | LeftOut:
    if reason := subject.no_classes:
        return LeftOut(left_out=reason)
    features: dict[str, NDArray[np.float32]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    images: dict[str, NDArray[np.int64]] = {}
    for split in ("train", "validation"):
        good = pooled.good_M[subject.sample.places[split]] & (subject.sample.labels[split] != UNLABELLED)
        places = subject.sample.places[split][good]
        features[split], labels[split] = pooled.features_MF[places], subject.sample.labels[split][good]
        images[split] = subject.sample.drawings[places]
    if len(np.unique(labels["train"])) < 2 or not len(labels["validation"]):
        return LeftOut(left_out="too many images failed")
    train_images = subject.table.drawing[subject.corpus.rows("train")]
    data = LabelledFeatures(
        train_NF=features["train"],
        train_N=labels["train"],
        validation_VF=features["validation"],
        validation_V=labels["validation"],
        picture_V=images["validation"],
        is_new_V=~np.isin(images["validation"], train_images),
        classes=len(subject.corpus.label_names),
    )
    return probe_classes(data, subject.settings.seed)


def _near_copies(subject: _Subject, pooled: PooledTokens) -> NearCopies | LeftOut:
    if pooled.good_M.sum() < 2:
        return LeftOut(left_out="fewer than two images are usable")
    images = subject.sample.drawings[pooled.good_M]
    is_of = {split: np.isin(images, subject.table.drawing[subject.corpus.rows(split)]) for split in ("train", "test")}
    features_MF = torch.from_numpy(pooled.features_MF[pooled.good_M]).to(subject.compute.device)
    # In a sample, the image that another is a near-duplicate of may be missing.
    return near_copies(features_MF, is_of["train"], is_of["test"], subject.settings.near_copy, lower_bound=subject.sample.is_capped)


def _agreement(subject: _Subject, pooled: PooledTokens, reader: ColumnReader) -> Agreement | LeftOut:
    files = encoder_of(reader.spec)
    good = np.flatnonzero(pooled.good_M)
    if len(good) < 2:
        return LeftOut(left_out="fewer than two images are usable")
    chosen = np.sort(np.random.default_rng(subject.settings.seed).permutation(good)[: MOST_TEXTS[subject.compute.device]])
    prompt_of = {int(drawing): example.prompt for drawing, example in zip(subject.table.drawing, subject.corpus.examples, strict=True)}
    prompts = [prompt_of[drawing] for drawing in subject.sample.drawings[chosen].tolist()]
    return text_agreement(files, subject.compute, torch.from_numpy(pooled.features_MF[chosen, : pooled.width]), prompts)


def _inspect_images(subject: _Subject) -> tuple[ClassSimilarity | LeftOut, Thumbnails | LeftOut]:
    """Return the similarity of the classes and the thumbnails; both decode latents, and share the work allowed for it."""
    try:
        with subject.times.stage("find_generator"):
            decoded = DecodedImages(subject.store, subject.settings.decoder, subject.compute)
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
        subject.ask("thumbnails", lambda: _thumbnails(subject, decoded, thumbnails)),
    )


def _class_similarity(subject: _Subject, decoded: DecodedImages, most: int) -> ClassSimilarity | LeftOut:
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


def _thumbnails(subject: _Subject, decoded: DecodedImages, most: int) -> Thumbnails | LeftOut:
    rows = subject.sample.rows["test"]
    if subject.settings.thumbnails == 0:
        return LeftOut(left_out="--thumbnails 0")
    if not len(rows):
        return LeftOut(left_out="there is no test example")
    if not most:
        return LeftOut(left_out="one image is more work than may be done (--decode-tflop)")
    chosen = np.sort(np.random.default_rng(subject.settings.seed).permutation(rows)[:most])
    places, small_n3SS = decoded.decode(subject.table.drawing[chosen], MOST_SIDE_PX)
    generator = decoded.generator
    source = ThumbnailSource(corpus=subject.corpus.fingerprint(), generator=generator.name, notice=generator.settings.notice)
    images_nSS3 = to_bytes(small_n3SS)
    image_of_row = dict(zip(chosen[places].tolist(), images_nSS3, strict=True))
    captions = [_caption(subject.corpus, row) for row in list(image_of_row)[:_MOST_IN_GRID]]
    folder = subject.run_dir / FOLDER
    return Thumbnails(
        folder=folder,
        sheet=write_drawings_png(captions, images_nSS3[:_MOST_IN_GRID], subject.run_dir / DRAWINGS_PNG),
        examples=len(image_of_row),
        side_px=small_n3SS.shape[-1],
        bytes=write_thumbnails(folder, image_of_row, source),
    )


def _caption(corpus: Corpus, row: int) -> str:
    example = corpus.examples[row]
    if not example.is_labelled:
        return example.prompt
    label = f"{example.target:g}" if isinstance(example.target, float) else ", ".join(corpus.label_names[n] for n in example.classes)
    return f"[{label}]\n{example.prompt}"


def _notice(store: Path) -> str | None:
    """Return what a reader must know about the store's images, from the first column that has a notice."""
    for name in columns_of(store):
        try:
            if notice := load_manifest(store / name)[0].notice:
                return notice
        except InputError:
            continue  # reported as a column that is left out
    return None
