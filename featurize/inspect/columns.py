"""What is inspected, and the questions about one column of its tokens.

Shapes: M distinct images of the sample, F features, N texts with K images each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.inspect.decoded_images import generator_of
from featurize.inspect.diversity import Diversity, diversity_of
from featurize.inspect.inspection import ColumnInspection
from featurize.inspect.near_copies import NearCopies, near_copies
from featurize.inspect.probes import ClassProbes, LabelledFeatures, probe_classes, standardised
from featurize.inspect.records import LeftOut
from featurize.inspect.sample import PooledTokens, Sample, pooled_tokens, take_sample
from featurize.inspect.text_agreement import MOST_TEXTS, Agreement, encoder_of, text_agreement
from featurize.inspect.transport import ClassTransport, class_transport
from featurize.options import OF_LABELLED, InspectSettings
from featurize.plan.keywords import keyword_prompts
from featurize.plan.prompt_reader import prompt_reader
from featurize.plan.wordnet_prompts import class_names_of
from featurize.plan.words import passages_of
from lugpi_core.corpora.corpus import UNLABELLED, Corpus
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute
from lugpi_core.runtime.meters import StageTimes
from lugpi_core.store.example_table import ExampleTable, read_example_table
from lugpi_core.store.manifest import ColumnSpec, is_of_own_pictures, load_manifest
from lugpi_core.store.reader import ColumnReader, columns_of

# At most this many texts, and images, whose K images are compared with one another.
MOST_DIVERSE_TEXTS, _MOST_DIVERSE_IMAGES = 500, 4000

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A store that is inspected, and with what."""

    store: Path
    corpus: Corpus
    table: ExampleTable
    sample: Sample
    settings: InspectSettings
    compute: Compute
    times: StageTimes

    @property
    def drawings_in_all(self) -> int:
        """The rows of a column of this corpus."""
        return int(self.table.drawings.max()) + 1

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

    def strategy(self, flags: Mapping[str, Any] | None) -> str:
        """Return ``--prompts`` of the store, of which a column has these flags."""
        figures = self.table.prompt_figures
        return str((flags or {}).get("prompts", "whole")) if figures is None else figures.strategy

    def ask(self, stage: str, question: Callable[[], Answer | LeftOut]) -> Answer | LeftOut:
        """Return the answer, timed as ``stage``; left out if it raises InputError."""
        try:
            with self.times.stage(stage):
                return question()
        except InputError as error:
            return LeftOut(left_out=str(error))


def open_subject(store: Path, corpus: Corpus, *, settings: InspectSettings, compute: Compute, times: StageTimes | None = None) -> Subject:
    """Return a store with the sample of its corpus that is inspected.

    Args:
        store: its folder.
        corpus: that the store was generated for.
        settings: of the inspection.
        compute: the device.
        times: to which those of the inspection are added; new ones if None.

    Raises:
        InputError: no store, or the store of another corpus.
    """
    if not columns_of(store):
        raise InputError(got=f"no token store in {store}", expected="one that featurize wrote", do="run python -m featurize first")
    table = read_example_table(store, corpus)
    return Subject(
        store=store,
        corpus=corpus,
        table=table,
        sample=take_sample(corpus, table, settings.seed),
        settings=settings,
        compute=compute,
        times=times or StageTimes(compute.device),
    )


def unfinished(store: Path) -> dict[str, tuple[int, int]]:
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


def notice_of(store: Path) -> str | None:
    """Return what a reader must know about the store's images, from the first column that has a notice."""
    for name in columns_of(store):
        try:
            if notice := load_manifest(store / name)[0].notice:
                return notice
        except InputError:
            continue  # reported as a column that is left out
    return None


def inspect_column(subject: Subject, name: str) -> ColumnInspection | LeftOut:
    """Return the answers about one column of tokens; left out if it cannot be read."""
    try:
        reader = ColumnReader(subject.store, name, check_content=False)
        with subject.times.stage("read"):
            pooled = pooled_tokens(reader, subject.sample.drawings, subject.drawings_in_all)
    except InputError as error:
        return LeftOut(left_out=str(error))
    return ColumnInspection(
        drawings=len(reader),
        flagged=len(reader.flagged),
        bytes_per_image=reader.row_bytes,
        features=pooled.features_MF.shape[1],
        classes=subject.ask("probe", lambda: _class_probes(subject, pooled)),
        near_copies=subject.ask("near_copies", lambda: _near_copies(subject, pooled)),
        agreement=subject.ask("text_agreement", lambda: _agreement(subject, pooled, reader)),
        transport=subject.ask("transport", lambda: _transport(subject, pooled)),
        diversity=None if subject.table.drawings.shape[1] == 1 else subject.ask("diversity", lambda: _diversity(subject, reader)),
    )


def _class_probes(subject: Subject, pooled: PooledTokens) -> ClassProbes | LeftOut:
    if reason := subject.no_classes:
        return LeftOut(left_out=reason)
    features: dict[str, NDArray[np.float32]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    images: dict[str, NDArray[np.int64]] = {}
    rows: dict[str, NDArray[np.int64]] = {}
    for split in ("train", "validation"):
        good = pooled.good_M[subject.sample.places[split]] & (subject.sample.labels[split] != UNLABELLED)
        places = subject.sample.places[split][good]
        features[split], labels[split] = pooled.features_MF[places], subject.sample.labels[split][good]
        images[split], rows[split] = subject.sample.drawings[places], subject.sample.rows[split][good]
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
        row_V=rows["validation"],
    )
    return probe_classes(data, subject.settings.seed)


def _transport(subject: Subject, pooled: PooledTokens) -> ClassTransport | LeftOut:
    if reason := subject.no_classes:
        return LeftOut(left_out=reason)
    good = pooled.good_M[subject.sample.places["train"]] & (subject.sample.labels["train"] != UNLABELLED)
    if not good.any():
        return LeftOut(left_out="too many images failed")
    # Each image once: examples that share one would make clouds alike.
    places, first = np.unique(subject.sample.places["train"][good], return_index=True)
    features_MF, _ = standardised(pooled.features_MF[places], pooled.features_MF[:0])
    return class_transport(features_MF, subject.sample.labels["train"][good][first], subject.corpus.label_names, subject.settings.seed)


def _near_copies(subject: Subject, pooled: PooledTokens) -> NearCopies | LeftOut:
    if pooled.good_M.sum() < 2:
        return LeftOut(left_out="fewer than two images are usable")
    images = subject.sample.drawings[pooled.good_M]
    is_of = {split: np.isin(images, subject.table.drawing[subject.corpus.rows(split)]) for split in ("train", "test")}
    features_MF = torch.from_numpy(pooled.features_MF[pooled.good_M]).to(subject.compute.device)
    # In a sample, the image that another is a near-duplicate of may be missing.
    return near_copies(features_MF, is_of["train"], is_of["test"], subject.settings.near_copy, lower_bound=subject.sample.is_capped)


def _agreement(subject: Subject, pooled: PooledTokens, reader: ColumnReader) -> Agreement | LeftOut:
    files = encoder_of(reader.spec)
    good = np.flatnonzero(pooled.good_M)
    if len(good) < 2:
        return LeftOut(left_out="fewer than two images are usable")
    chosen = np.sort(np.random.default_rng(subject.settings.seed).permutation(good)[: MOST_TEXTS[subject.compute.device]])
    prompts = first_prompts(subject, subject.sample.drawings[chosen], reader.spec)

    def all_tokens(part: slice) -> torch.Tensor:
        return torch.from_numpy(reader.gather(subject.sample.drawings[chosen[part]]))

    first_nD = torch.from_numpy(pooled.features_MF[chosen, : pooled.width])
    return text_agreement(files, subject.compute, first_nD, prompts, all_tokens)


def first_prompts(subject: Subject, drawings: NDArray[np.int64], column: ColumnSpec) -> list[str]:
    """Return the prompts of some first images: the texts, their first passages, their keywords, or what names no class.

    Raises:
        InputError: the tokenizers that chose the keywords are not within reach, or the corpus has no class names to keep out.
    """
    row_of = {int(drawing): row for row, drawing in enumerate(subject.table.drawing)}
    rows, strategy = [row_of[drawing] for drawing in drawings.tolist()], subject.strategy(column.made_by)
    if strategy not in OF_LABELLED:
        return [first_prompt(subject, row, strategy) for row in rows]
    texts = [subject.corpus.examples[row].prompt for row in rows]
    if strategy == "wordnet":
        return list(map(class_names_of(subject.corpus).relaxed, texts))
    return list(keyword_prompts(texts, subject.corpus.train_prompts(), prompt_reader(generator_of(column))))


def first_prompt(subject: Subject, row: int, strategy: str) -> str:
    """Return the prompt of the first image of an example, if it is the text or its first passage."""
    text = subject.corpus.examples[row].prompt
    return passages_of(text, subject.table.drawings.shape[1])[0] if strategy == "chunks" else text


def _diversity(subject: Subject, reader: ColumnReader) -> Diversity | LeftOut:
    drawings_NK = np.unique(subject.table.drawings[np.concatenate(list(subject.sample.rows.values()))], axis=0)
    most = max(2, min(MOST_DIVERSE_TEXTS, _MOST_DIVERSE_IMAGES // drawings_NK.shape[1]))
    chosen_NK = drawings_NK[np.random.default_rng(subject.settings.seed).permutation(len(drawings_NK))[:most]]
    # A text of fewer passages than K has some images twice.
    text_M = np.repeat(np.arange(len(chosen_NK)), chosen_NK.shape[1])
    _, first = np.unique(np.stack([text_M, chosen_NK.reshape(-1)]), axis=1, return_index=True)
    drawings, text_M = chosen_NK.reshape(-1)[first], text_M[first]
    pooled = pooled_tokens(reader, drawings, subject.drawings_in_all)
    found = diversity_of(pooled.features_MF[pooled.good_M], text_M[pooled.good_M], subject.settings.near_copy)
    if isinstance(found, LeftOut):
        return found
    is_of_passages = subject.strategy(reader.spec.made_by) == "chunks"
    return replace(found, of="pictures" if is_of_own_pictures(reader.spec) else "passages" if is_of_passages else "seeds")
