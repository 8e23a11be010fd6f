"""``inspect --stores``: several stores of one corpus side by side, such as those of several generators.

Shapes: n texts, S side of an image.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.cost.stage_cost import DECODE, PROMPT, denoising_flops, stage_flops
from featurize.generate.decoders import check_decoder_name, find_decoder
from featurize.generate.fidelity import shortcuts_in_words
from featurize.generate.generators import Generator, weight_bytes
from featurize.inspect.columns import MOST_DIVERSE_TEXTS, Subject, first_prompt, inspect_column, notice_of, open_subject, unfinished
from featurize.inspect.comparison import BetweenSeeds, ComparedStore, Comparison, PictureSheet, ProbeDifference, Work
from featurize.inspect.decoded_images import DECODE_TFLOP, generator_of, only_text_vectors, to_bytes
from featurize.inspect.diversity import Diversity, diversity_of
from featurize.inspect.generator_words import files_in_words
from featurize.inspect.inspect_store import OpenStore, caption_of, folder_of, open_images
from featurize.inspect.inspection import ColumnInspection
from featurize.inspect.own_pictures import images_from, is_own
from featurize.inspect.picture_sheet import COMPARISON_PNG, write_picture_sheet
from featurize.inspect.probes import paired_p_value
from featurize.inspect.records import LeftOut
from featurize.inspect.sample import pooled_tokens, prompts_cut
from featurize.options import OF_LABELLED, InspectSettings
from lugpi_core.corpora.corpus import SPLITS, Corpus
from lugpi_core.errors import InputError, number_of
from lugpi_core.fields import require_type
from lugpi_core.fingerprint import differences, flat
from lugpi_core.runtime.device import Compute, resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.runtime.meters import StageTimes, peak_memory_bytes, provenance
from lugpi_core.runtime.pretrained import only_local_files
from lugpi_core.store.example_table import read_stored_examples
from lugpi_core.store.layout import CANDIDATES, LATENTS, PROMPT_TEXT
from lugpi_core.store.manifest import ColumnSpec, is_of_own_pictures, load_manifest
from lugpi_core.store.reader import ColumnReader, columns_of, image_columns_of

SHEET_TEXTS = 12
_SHEET_SIDE_PX = 128
_ONLY_TEXT_VECTORS = "no images, only text vectors of its generator"


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A store that is compared.

    Attributes:
        label: its name in the table.
        subject: what is inspected.
        specs: of its columns that can be read, latents first and what is of no image last.
        generator: its files, or why they are not there.
    """

    label: str
    subject: Subject
    specs: Mapping[str, ColumnSpec]
    generator: Generator | LeftOut

    @property
    def generation(self) -> Mapping[str, Any]:
        """What decides the images, as the store states it; empty if it does not."""
        stated = (spec.fingerprint.get("generation") for spec in self.specs.values())
        return next((one for one in stated if isinstance(one, Mapping)), {})

    @property
    def flags(self) -> Mapping[str, Any]:
        """The flags of the command that began the store; empty if they are not known."""
        return next((spec.made_by for spec in self.specs.values() if spec.made_by), {})

    @property
    def prompts(self) -> str:
        """Its strategy, ``--prompts``."""
        return self.subject.strategy(self.flags)

    @property
    def candidates(self) -> int:
        """How many were drawn for each image."""
        best_of = self.generation.get("best_of")
        return int(best_of["candidates"]) if isinstance(best_of, Mapping) else 1

    @property
    def seed(self) -> int | None:
        """Of the images."""
        seed = self.generation.get("seed")
        return seed if isinstance(seed, int) else None


def compare_stores(
    stores: Sequence[str | Path | OpenStore],
    corpus: Corpus,
    *,
    settings: InspectSettings | None = None,
    run_dir: str | Path,
) -> Comparison:
    """Compare stores of one corpus: do their images predict the class, agree with their texts, answer to the seed, and what does an image
    cost? Writes ``comparison.png`` to a folder: the same texts in rows, stores in columns.

    As ``inspect``, it is seeded, downloads no model and changes no store. Memory: that of ``inspect``, one store after the other.

    Args:
        stores: their folders, or open stores; at least two.
        corpus: of all of them.
        settings: defaults if None; at most 12 of ``thumbnails`` texts are on the sheet.
        run_dir: where the sheet is written.

    Raises:
        InputError: fewer than two stores, no store, the store of another corpus, or a decoder or device that is not there.
    """
    require_type("corpus", corpus, Corpus)
    prepare_libraries()
    settings = InspectSettings() if settings is None else settings
    require_type("settings", settings, InspectSettings)
    check_decoder_name(settings.decoder)
    compute = resolve_compute(settings.device, "auto", half="float16")
    given = stores if isinstance(stores, Sequence) and not isinstance(stores, str) else [stores]
    with only_local_files():
        entries = _entries([folder_of(store) for store in given], corpus, settings, compute)
        compared = tuple(_compared(entry) for entry in entries)
        between = tuple(pair for left, right in combinations(entries, 2) for pair in _between_seeds(left, right))
        with entries[0].subject.times.stage("sheet"):
            sheet = _picture_sheet(entries, Path(run_dir))
    return Comparison(
        corpus=corpus.fingerprint(),
        no_classes=entries[0].subject.no_classes,
        stores=compared,
        probe_differences=tuple(_probe_differences(entries, compared)),
        between_seeds=between,
        sheet=sheet,
        notes=tuple(_notes(entries, compared)),
        compute=compute.record(),
        times=entries[0].subject.times.record(),
        peak_memory=peak_memory_bytes(),
        provenance=provenance(),
    )


def _entries(stores: Sequence[Path], corpus: Corpus, settings: InspectSettings, compute: Compute) -> list[_Entry]:
    if len(stores) < 2:
        raise InputError(got=f"{len(stores)} store to compare", expected="two or more", do="name another one, or inspect it alone")
    places = [store.resolve() for store in stores]
    if twice := [str(store) for store, place in zip(stores, places, strict=True) if places.count(place) > 1]:
        raise InputError(got=f"the store {twice[0]} twice", expected="different stores", do="name each once")
    times = StageTimes(compute.device)
    subjects = [open_subject(_checked(store, corpus), corpus, settings=settings, compute=compute, times=times) for store in stores]
    return [_entry(label, subject) for label, subject in zip(_labels(stores), subjects, strict=True)]


def _checked(store: Path, corpus: Corpus) -> Path:
    """Return the store; raise InputError if it is one of another corpus."""
    if columns_of(store):
        examples = read_stored_examples(store)
        if examples.table.corpus_fingerprint != corpus.fingerprint():
            raise InputError(
                got=f"{store}, a store of {examples.corpus_name!r} with other examples, prompts, labels or splits than {corpus.name!r} as "
                "it is loaded now",
                expected="stores of one corpus",
                do="leave it out, or give the flags with which its corpus was read",
            )
    return store


def _entry(label: str, subject: Subject) -> _Entry:
    store = subject.store
    specs: dict[str, ColumnSpec] = {}
    for name in sorted(columns_of(store), key=lambda name: (name != LATENTS, name in (PROMPT_TEXT, CANDIDATES), name)):
        try:
            specs[name] = load_manifest(store / name)[0]
        except InputError:
            continue  # reported as a column that is left out
    generator = LeftOut(left_out=_ONLY_TEXT_VECTORS) if only_text_vectors(store) else _generator(specs)
    return _Entry(label=label, subject=subject, specs=specs, generator=generator)


def _generator(specs: Mapping[str, ColumnSpec]) -> Generator | LeftOut:
    if not specs:
        return LeftOut(left_out="no column can be read")
    spec = next(iter(specs.values()))
    if is_of_own_pictures(spec):
        return LeftOut(left_out="the pictures are the user's own")
    try:
        return generator_of(spec)
    except InputError as error:
        return LeftOut(left_out=str(error))


def _labels(stores: Sequence[Path]) -> list[str]:
    """Return the name of each store's run, or its path where two have the same."""
    names = [store.resolve().parent.name for store in stores]
    return [name if names.count(name) == 1 else str(store) for name, store in zip(names, stores, strict=True)]


def _compared(entry: _Entry) -> ComparedStore:
    subject, store = entry.subject, entry.subject.store
    has_images = not only_text_vectors(store)
    record = entry.generation.get("generator")
    about: Mapping[str, Any] = record if isinstance(record, Mapping) else {}
    return ComparedStore(
        label=entry.label,
        store=store,
        generator=str(about.get("name", entry.generation.get("generator", "unknown" if has_images else _ONLY_TEXT_VECTORS))),
        settings=_settings_in_words(entry, about),
        seed=entry.seed,
        images=max((spec.rows for name, spec in entry.specs.items() if name != PROMPT_TEXT), default=0),
        images_per_text=subject.table.drawings.shape[1] if has_images else 0,
        side_px=about.get("size_px"),
        license=next((spec.license for spec in entry.specs.values()), ""),
        generator_bytes=entry.generator if isinstance(entry.generator, LeftOut) else weight_bytes(entry.generator),
        store_bytes=sum(path.stat().st_size for path in store.rglob("*.h5")),
        work=_work(entry),
        prompts_cut=prompts_cut(subject.table, subject.corpus),
        columns={name: inspect_column(subject, name) for name in image_columns_of(store)},
        notice=notice_of(store),
        unfinished=unfinished(store),
    )


def _settings_in_words(entry: _Entry, about: Mapping[str, Any]) -> str:
    if not about:
        return "-"
    guidance = f"guidance {about.get('guidance'):g}" if isinstance(entry.generator, LeftOut) else entry.generator.guidance_in_words()
    words = [number_of(about["steps"], "step{s}"), guidance, f"{about.get('size_px')} px"]
    words += [f"scheduler {about['scheduler']}"] if about.get("scheduler", "own") != "own" else []
    words += shortcuts_in_words(about)
    words += files_in_words(about, entry.flags)
    words += [f"prompts {entry.prompts}"] if entry.prompts != "whole" else []
    words += [f"best of {entry.candidates}"] if entry.candidates > 1 else []
    if (subset := entry.subject.table.subset) is not None:
        words.append(f"images for {subset['texts']:,} of {subset['of']:,} train texts")
    return ", ".join([*words, str(entry.generation.get("dtype", ""))])


def _work(entry: _Entry) -> Work | LeftOut:
    generator = entry.generator
    if isinstance(generator, LeftOut):
        return generator
    try:
        decoder = find_decoder(str(entry.flags.get("decoder", "full")), generator)
        flops = stage_flops(generator, (), decoder=decoder)
    except InputError as error:
        return LeftOut(left_out=str(error))
    images_of_prompt = 1 if entry.prompts == "chunks" else entry.subject.table.drawings.shape[1]
    decoded = 1 if entry.candidates == 1 else entry.candidates + 1  # the best once more, for all encoders
    return Work(
        denoise_tflop=entry.candidates * denoising_flops(generator, flops) / 1e12,
        prompt_tflop=flops[PROMPT] / images_of_prompt / 1e12,
        decode_tflop=decoded * flops[DECODE] / 1e12,
    )


def _probe_differences(entries: Sequence[_Entry], compared: Sequence[ComparedStore]) -> list[ProbeDifference]:
    """Return, for each column, how the probe of the best store differs from that of the others, on the examples that both scored."""
    found = []
    for name in dict.fromkeys(name for store in compared for name in store.columns):
        scored = [
            (entry, column.classes.probe)
            for entry, store in zip(entries, compared, strict=True)
            if (column := store.column(name)) is not None and not isinstance(column.classes, LeftOut)
        ]
        if len(scored) < 2:
            continue
        best, best_score = max(scored, key=lambda pair: pair[1].accuracy)
        for entry, score in scored:
            rows = [row for row in best_score.hits if row in score.hits]
            if entry is not best and rows:
                gains = np.array([int(best_score.hits[row]) - int(score.hits[row]) for row in rows], np.int64)
                images = best.subject.table.drawing[rows]
                p = paired_p_value(gains, images, best.subject.settings.seed)
                found.append(
                    ProbeDifference(column=name, stores=(best.label, entry.label), examples=len(rows), difference=float(gains.mean()), p=p)
                )
    return found


def _between_seeds(left: _Entry, right: _Entry) -> list[BetweenSeeds]:
    """Return how different the images of two stores are that differ in the seed only, for each column of the same encoder."""
    if left.seed is None or right.seed is None or left.seed == right.seed or not _differ_in_seed_only(left, right):
        return []
    found = []
    for name, spec in left.specs.items():
        if spec.what == "tokens" and name in image_columns_of(left.subject.store) and not _encoder_differences(spec, right.specs.get(name)):
            diversity = _paired_diversity(left.subject, right.subject, name)
            if isinstance(diversity, Diversity):
                found.append(
                    BetweenSeeds(stores=(left.label, right.label), seeds=(left.seed, right.seed), column=name, diversity=diversity)
                )
    return found


def _differ_in_seed_only(left: _Entry, right: _Entry) -> bool:
    kept = [{key: value for key, value in entry.generation.items() if key not in ("seed", "drawings")} for entry in (left, right)]
    return bool(kept[0]) and not differences(kept[0], kept[1]) and _have_same_first_prompts(left, right)


def _have_same_first_prompts(left: _Entry, right: _Entry) -> bool:
    if {left.prompts, right.prompts} & set(OF_LABELLED):
        return left.prompts == right.prompts  # one generator reads as many of one corpus's keywords
    rows = np.concatenate(list(left.subject.sample.rows.values())).tolist()
    return all(first_prompt(left.subject, row, left.prompts) == first_prompt(right.subject, row, right.prompts) for row in rows)


def _encoder_differences(spec: ColumnSpec, other: ColumnSpec | None) -> list[str]:
    if other is None:
        return ["no such column"]
    both = (spec, other)
    kept: list[dict[str, Any]] = [{key: each.fingerprint.get(key) for key in ("encoder", "decoder")} for each in both]
    if is_of_own_pictures(spec) != is_of_own_pictures(other):
        # Own pictures are of no decoder; how they become squares is no question for generated ones, which are square.
        kept = [{key: value for key, value in flat({"encoder": each["encoder"]}) if key != "encoder.fit"} for each in kept]
    return differences(kept[0], kept[1])


def _paired_diversity(left: Subject, right: Subject, column: str) -> Diversity | LeftOut:
    rows = np.sort(np.concatenate(list(left.sample.rows.values())))
    rows = rows[right.table.has_image[rows]]
    _, first = np.unique(left.table.drawing[rows], return_index=True)
    chosen = np.random.default_rng(left.settings.seed).permutation(rows[first])[:MOST_DIVERSE_TEXTS]
    try:
        pooled = [
            pooled_tokens(ColumnReader(subject.store, column, check_content=False), subject.table.drawing[chosen], subject.drawings_in_all)
            for subject in (left, right)
        ]
    except InputError as error:
        return LeftOut(left_out=str(error))
    good_n = pooled[0].good_M & pooled[1].good_M
    features = np.concatenate([part.features_MF[good_n] for part in pooled])
    return diversity_of(features, np.tile(np.arange(int(good_n.sum())), 2), left.settings.near_copy)


def _picture_sheet(entries: Sequence[_Entry], run_dir: Path) -> PictureSheet | LeftOut:
    """Write the sheet. The work of decoding is shared equally among the stores."""
    subject = entries[0].subject
    corpus, settings = subject.corpus, subject.settings
    if settings.thumbnails == 0:
        return LeftOut(left_out="--thumbnails 0")
    rows = next(rows for split in reversed(SPLITS) if len(rows := subject.sample.rows[split]))
    chosen = np.sort(np.random.default_rng(settings.seed).permutation(rows)[: min(SHEET_TEXTS, settings.thumbnails)])
    budget_tflop = (settings.decode_tflop or DECODE_TFLOP[subject.compute.device]) / len(entries)
    images: dict[str, dict[int, NDArray[np.uint8]]] = {}
    left_out: dict[str, str] = {}
    own = {entry.label: str(images_from(entry.subject.store)) for entry in entries if is_own(entry.subject.store)}
    for entry in entries:
        if entry.label in own and len(set(own.values())) > 1:
            left_out[entry.label] = f"the pictures of these stores are of several columns, {', '.join(sorted(set(own.values())))}"
            continue
        try:
            images[entry.label] = _images_of(entry, chosen, budget_tflop)
        except InputError as error:
            left_out[entry.label] = str(error)
    shown = [row for row in chosen.tolist() if any(row in of_store for of_store in images.values())]
    if not shown:
        return LeftOut(left_out="; ".join(f"{label}: {reason}" for label, reason in left_out.items()) or "no image could be decoded")
    captions = [caption_of(corpus, row) for row in shown]
    columns = {label: [of_store.get(row) for row in shown] for label, of_store in images.items()}
    path = write_picture_sheet(captions, columns, run_dir / COMPARISON_PNG)
    return PictureSheet(path=path, texts=len(shown), stores=tuple(images), left_out=left_out)


def _images_of(entry: _Entry, rows: NDArray[np.int64], budget_tflop: float) -> dict[int, NDArray[np.uint8]]:
    """Return the first image of each example row, uint8 [S, S, 3], as far as the work allows."""
    decoded = open_images(entry.subject)
    rows = rows[entry.subject.table.has_image[rows]]
    affordable = int(budget_tflop * 1e12 / decoded.flops)
    if affordable < len(rows):
        warnings.warn(
            f"{entry.label}: {affordable:,} of {len(rows)} images are decoded, at {decoded.flops / 1e12:.3g} TFLOP each (--decode-tflop)",
            stacklevel=4,
        )
    places, small_n3SS = decoded.decode(entry.subject.table.drawing[rows[:affordable]], _SHEET_SIDE_PX)
    return dict(zip(rows[places].tolist(), to_bytes(small_n3SS), strict=True))


def _notes(entries: Sequence[_Entry], compared: Sequence[ComparedStore]) -> list[str]:
    notes = []
    for name in dict.fromkeys(name for store in compared for name in store.columns):
        have = [entry for entry in entries if name in entry.specs]
        for entry in have[1:]:
            if unlike := _encoder_differences(have[0].specs[name], entry.specs[name]):
                pair = f"{have[0].label} and {entry.label}"
                what = "decoders" if all(one.startswith("decoder") for one in unlike) else "encoders"
                notes.append(f"{name}: the tokens of {pair} are of different {what} and do not compare: {'; '.join(unlike)}")
        notes += [
            f"{store.label}: {name} left out: {column.left_out}"
            for store in compared
            if isinstance(column := store.columns.get(name), LeftOut)
        ]
    notes += [f"class prediction left out: {reason}"] if (reason := entries[0].subject.no_classes) else []
    if any(store.images_per_text > 1 for store in compared):
        notes.append("of several images of a text, the first is compared")
    for store in compared:
        if not store.has_images:
            notes.append(f"{store.label}: {_ONLY_TEXT_VECTORS}")
        elif isinstance(store.work, LeftOut) and store.is_generated:
            notes.append(f"{store.label}: work of an image unknown: {store.work.left_out}")
        notes += [
            f"{store.label}: {name}: {column.diversity.sentence()}"
            for name, column in store.columns.items()
            if isinstance(column, ColumnInspection) and isinstance(column.diversity, Diversity) and column.diversity.is_little
        ]
    return notes + list(dict.fromkeys(f"note: {store.notice}" for store in compared if store.notice))
