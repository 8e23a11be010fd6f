"""``python -m featurize inspect``: do the pictures know anything about the classes? Asked of the cached tokens before any training.

Shapes: M distinct drawings of the sample, F features, n pictures, S their side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.generate.decoders import check_decoder_name
from featurize.inspect.class_similarity import WINDOW, class_similarity, spread_over_classes
from featurize.inspect.contact_sheet import contact_sheet
from featurize.inspect.decoded_images import DECODE_TFLOP, StoredPictures, to_bytes, to_grey
from featurize.inspect.near_copies import near_copies
from featurize.inspect.probes import LabelledFeatures, probe_classes
from featurize.inspect.sample import PooledTokens, Sample, pooled_tokens, shown_shares, take_sample
from featurize.inspect.text_agreement import MOST_TEXTS, encoder_of, text_agreement
from featurize.inspect.verdict import column_verdict, shown_accuracy, verdict
from featurize.options import InspectOptions
from lugpi_core.command_line import resolved_flags, say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.errors import InputError
from lugpi_core.files import write_json
from lugpi_core.runtime.device import Compute, resolve_compute
from lugpi_core.runtime.meters import StageTimes, peak_memory_bytes, provenance
from lugpi_core.runtime.pretrained import only_local_files
from lugpi_core.store.example_table import ExampleTable, read_example_table
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.reader import ColumnReader, columns_of, token_columns_of
from lugpi_core.thumbnails import FOLDER, MOST_SIDE_PX, ThumbnailSource, write_thumbnails

MOST_CLASS_PICTURES = 280
_SIMILARITY_SIDE_PX = 64
SHEET, MOST_ON_SHEET = "drawings.png", 64


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is looked at, and with what."""

    options: InspectOptions
    corpus: Corpus
    table: ExampleTable
    sample: Sample
    compute: Compute
    times: StageTimes


def inspect_store(options: InspectOptions) -> dict[str, Any]:
    """Look at a store, print what is found and write it to ``inspection.json`` in the run's folder; return it.

    Everything is seeded: the same store gives the same figures on the same machine. What cannot be answered has ``{"left_out": why}`` in
    its place. No model is downloaded.

    Memory: the pooled tokens of at most 10,000 examples three times (250 MB for width 1,024), 32 MB of tokens, similarities of 20 MB;
    then the text tower; then the decoder, with at most 1,000 pictures of 64 px and 500 of 128 px (150 MB). Nothing grows with the store.

    Raises:
        InputError: no store, the store of another corpus, or a bad flag.
    """
    check_decoder_name(options.decoder)
    corpus = load_corpus(options.dataset, options) if options.unlabelled is None else load_unlabelled(options.unlabelled, options)
    if not columns_of(options.store):
        raise InputError(got=f"no token store in {options.store}", expected="one that featurize made", do="run python -m featurize first")
    table = read_example_table(options.store, corpus)
    compute = resolve_compute(options.device, "auto", half="float16")
    sample = take_sample(corpus, table, options.seed)
    subject = Subject(options=options, corpus=corpus, table=table, sample=sample, compute=compute, times=StageTimes(compute.device))
    _announce(subject)
    with only_local_files():
        figures = {
            "no_classes": _no_classes(sample, corpus),
            "columns": {name: _inspect_column(subject, name) for name in token_columns_of(options.store)},
            **_inspect_pictures(subject),
            "prompts_cut": shown_shares(table, corpus),
            "notice": _notice(options),
        }
    found = {**_head(subject), **figures, "verdict": verdict(figures)}
    _say_verdict(found["verdict"])
    return _written(subject, found)


def _announce(subject: Subject) -> None:
    looked_at = ", ".join(f"{one['looked_at']:,} of {one['of']:,} {split}" for split, one in subject.sample.record().items() if one["of"])
    capped = f" (capped; seed {subject.options.seed})" if subject.sample.is_capped else ""
    say(f"{subject.options.store}: {looked_at} examples are looked at{capped}, on {subject.compute}")


def _no_classes(sample: Sample, corpus: Corpus) -> str | None:
    """Return why nothing can be asked of the classes, or None."""
    if not corpus.label_names:
        return "these texts have no labels"
    if not len(sample.rows["validation"]):
        return "there is no validation example"
    return "the train examples are all of one class" if len(np.unique(sample.labels["train"])) < 2 else None


def _inspect_column(subject: Subject, name: str) -> dict[str, Any]:
    """Return what a column of tokens knows; every answer is its figures, or ``{"left_out": why}``."""
    try:
        reader = ColumnReader(subject.options.store, name, check_content=False)
        with subject.times.stage("read"):
            pooled = pooled_tokens(reader, subject.sample.drawings, int(subject.table.drawings.max()) + 1)
    except InputError as error:
        say(f"{name}: not looked at: {error}")
        return {"left_out": str(error)}
    found: dict[str, Any] = {
        "drawings": len(reader),
        "flagged": len(reader.flagged),
        "flagged_share": len(reader.flagged) / len(reader),
        "features": pooled.features_MF.shape[1],
    }
    found["classes"] = _answer(subject, "probe", lambda: _classes(subject, pooled))
    if "left_out" not in found["classes"]:
        found["verdict"] = column_verdict(found["classes"])
    found["near_copies"] = _answer(subject, "near_copies", lambda: _near_copies(subject, pooled))
    found["agreement"] = _answer(subject, "text_agreement", lambda: _agreement(subject, pooled, reader))
    _say_column(name, found)
    return found


def _answer(subject: Subject, stage: str, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        with subject.times.stage(stage):
            return ask()
    except InputError as error:
        return {"left_out": str(error)}


def _classes(subject: Subject, pooled: PooledTokens) -> dict[str, Any]:
    if reason := _no_classes(subject.sample, subject.corpus):
        return {"left_out": reason}
    features: dict[str, NDArray[np.float32]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    drawings: dict[str, NDArray[np.int64]] = {}
    for split in ("train", "validation"):
        good = pooled.good_M[subject.sample.places[split]]
        places = subject.sample.places[split][good]
        features[split], labels[split] = pooled.features_MF[places], subject.sample.labels[split][good]
        drawings[split] = subject.sample.drawings[places]
    if len(np.unique(labels["train"])) < 2 or not len(labels["validation"]):
        return {"left_out": "too few drawings did not fail"}
    seen_in_train = subject.table.drawing[subject.corpus.rows("train")]
    data = LabelledFeatures(
        train_NF=features["train"],
        train_N=labels["train"],
        validation_VF=features["validation"],
        validation_V=labels["validation"],
        picture_V=drawings["validation"],
        is_new_V=~np.isin(drawings["validation"], seen_in_train),
        classes=len(subject.corpus.label_names),
    )
    return probe_classes(data, subject.options.seed)


def _near_copies(subject: Subject, pooled: PooledTokens) -> dict[str, Any]:
    if pooled.good_M.sum() < 2:
        return {"left_out": "fewer than two drawings did not fail"}
    drawings = subject.sample.drawings[pooled.good_M]
    is_in = {split: np.isin(drawings, subject.table.drawing[subject.corpus.rows(split)]) for split in ("train", "test")}
    features_MF = torch.from_numpy(pooled.features_MF[pooled.good_M]).to(subject.compute.device)
    found = near_copies(features_MF, is_in["train"], is_in["test"], subject.options.near_copy)
    # Where drawings are left out, so may be the one that another is a copy of.
    return {**found, "lower_bound": subject.sample.is_capped}


def _agreement(subject: Subject, pooled: PooledTokens, reader: ColumnReader) -> dict[str, Any]:
    files = encoder_of(reader.spec)
    good = np.flatnonzero(pooled.good_M)
    if len(good) < 2:
        return {"left_out": "fewer than two drawings did not fail"}
    chosen = np.sort(np.random.default_rng(subject.options.seed).permutation(good)[: MOST_TEXTS[subject.compute.device]])
    prompt_of = {int(drawing): example.prompt for drawing, example in zip(subject.table.drawing, subject.corpus.examples, strict=True)}
    prompts = [prompt_of[drawing] for drawing in subject.sample.drawings[chosen].tolist()]
    return text_agreement(files, subject.compute, torch.from_numpy(pooled.features_MF[chosen, : pooled.width]), prompts)


def _say_column(name: str, found: Mapping[str, Any]) -> None:
    say(f"{name}: {found['drawings']:,} drawings, {found['flagged']:,} of them failed")
    classes, copies, agreement = found["classes"], found["near_copies"], found["agreement"]
    for way in ("probe", "knn") if "left_out" not in classes else ():
        say(f"  {shown_accuracy(classes, way)}")
    if "left_out" not in agreement:
        say(
            f"  cosine of texts with their own picture {agreement['matching']:.3f}, with another {agreement['others']:.3f}; the own one is "
            f"nearer in {agreement['own_is_nearer']:.1%} of comparisons ({agreement['texts']:,} texts)"
        )
    if "left_out" not in copies:
        say(
            f"  near-copies (cosine {copies['threshold']:g} and above): {copies['share']:.1%} of {copies['drawings']:,} drawings; of "
            f"{copies['test_drawings']:,} test drawings {copies['test_copies_of_train']:,} copy a train drawing of another prompt"
        )
    for question, answer in (("classes", classes), ("texts and pictures", agreement), ("near-copies", copies)):
        if "left_out" in answer:
            say(f"  {question} left out: {answer['left_out']}")


def _inspect_pictures(subject: Subject) -> dict[str, Any]:
    """Return the likeness of the classes, and where the thumbnails are; both from pictures that are decoded for it."""
    options = subject.options
    try:
        with subject.times.stage("find_generator"):
            pictures = StoredPictures(options.store, options.decoder, subject.compute)
    except InputError as error:
        say(f"pictures left out: {error}")
        return {"class_similarity": {"left_out": str(error)}, "thumbnails": {"left_out": str(error)}}
    budget = options.decode_tflop or DECODE_TFLOP[subject.compute.device]
    affordable = int(budget * 1e12 / pictures.flops)
    thumbnails = min(options.thumbnails, len(subject.sample.rows["test"]))
    most = {"thumbnails": min(thumbnails, max(affordable // 2, affordable - MOST_CLASS_PICTURES))}
    most["classes"] = min(MOST_CLASS_PICTURES, affordable - most["thumbnails"])
    if most["thumbnails"] < thumbnails or most["classes"] < MOST_CLASS_PICTURES:
        say(f"at most {affordable:,} pictures are decoded, at {pictures.flops / 1e12:.3g} TFLOP each (--decode-tflop {budget:g})")
    likeness = _answer(subject, "class_similarity", lambda: _class_similarity(subject, pictures, most["classes"]))
    kept = _answer(subject, "thumbnails", lambda: _thumbnails(subject, pictures, most["thumbnails"]))
    _say_pictures(likeness, kept)
    return {"class_similarity": likeness, "thumbnails": kept}


def _class_similarity(subject: Subject, pictures: StoredPictures, most: int) -> dict[str, Any]:
    if reason := _no_classes(subject.sample, subject.corpus):
        return {"left_out": reason}
    # Each drawing once, lest examples that share one be taken for classes that are alike.
    _, first = np.unique(subject.sample.places["train"], return_index=True)
    labels, drawings = subject.sample.labels["train"][first], subject.sample.drawings[subject.sample.places["train"][first]]
    chosen = spread_over_classes(labels, most, subject.options.seed)
    if not len(chosen):
        return {"left_out": "fewer than two classes with two pictures each, of those that may be decoded"}
    places, small_n3SS = pictures.of(drawings[chosen], _SIMILARITY_SIDE_PX)
    label_n = labels[chosen][places]
    known, counts = np.unique(label_n, return_counts=True)
    paired_n = np.isin(label_n, known[counts > 1])
    if small_n3SS.shape[-1] < WINDOW or (counts > 1).sum() < 2:
        return {"left_out": "too few pictures did not fail, or they are too small"}
    grey_nSS = to_grey(small_n3SS[torch.from_numpy(paired_n)].to(subject.compute.device))
    return class_similarity(grey_nSS, label_n[paired_n], subject.corpus.label_names, subject.options.seed)


def _thumbnails(subject: Subject, pictures: StoredPictures, most: int) -> dict[str, Any]:
    rows = subject.sample.rows["test"]
    if subject.options.thumbnails == 0:
        return {"left_out": "--thumbnails 0"}
    if not len(rows) or not most:
        return {"left_out": "there is no test example" if not len(rows) else "too much work for one picture (--decode-tflop)"}
    chosen = np.sort(np.random.default_rng(subject.options.seed).permutation(rows)[:most])
    places, small_n3SS = pictures.of(subject.table.drawing[chosen], MOST_SIDE_PX)
    source = ThumbnailSource(
        corpus=subject.corpus.fingerprint(), generator=pictures.generator.name, notice=pictures.generator.settings.notice
    )
    folder = subject.options.run / FOLDER
    shown = to_bytes(small_n3SS)
    by_row = dict(zip(chosen[places].tolist(), shown, strict=True))
    captions = [_caption(subject.corpus, row) for row in list(by_row)[:MOST_ON_SHEET]]
    return {
        "folder": str(folder),
        "sheet": str(contact_sheet(captions, shown[:MOST_ON_SHEET], subject.options.run / SHEET)),
        "examples": len(by_row),
        "side_px": small_n3SS.shape[-1],
        "bytes": write_thumbnails(folder, by_row, source),
    }


def _caption(corpus: Corpus, row: int) -> str:
    example = corpus.examples[row]
    label = f"[{corpus.label_names[example.label]}]\n" if corpus.label_names else ""
    return f"{label}{example.prompt}"


def _say_pictures(likeness: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    if "left_out" in likeness:
        say(f"likeness of classes left out: {likeness['left_out']}")
    else:
        alike = "; ".join(f"{one} / {other} {value:.3f}" for one, other, value in likeness["most_alike"][:3])
        say(
            f"structural similarity of {likeness['pictures']:,} pictures: {likeness['within']:.3f} within a class, "
            f"{likeness['between']:.3f} between classes"
        )
        say(f"  most alike: {alike}")
    if "left_out" in kept:
        say(f"thumbnails left out: {kept['left_out']}")
    else:
        say(f"thumbnails of {kept['examples']:,} test examples, {kept['bytes'] / 1e6:.2f} MB: {kept['folder']}")
        say(f"the first of them on one sheet: {kept['sheet']}")


def _notice(options: InspectOptions) -> str | None:
    """Return what a reader must know about the store's pictures, as the first column that has such a sentence says it."""
    for name in columns_of(options.store):
        try:
            if notice := load_manifest(options.store / name)[0].notice:
                return notice
        except InputError:
            continue  # told where the column is looked at
    return None


def _say_verdict(found: Mapping[str, Any]) -> None:
    say(found["words"])
    for reason in found["reasons"]:
        say(f"  - {reason}")


def _head(subject: Subject) -> dict[str, Any]:
    return {
        "command": "inspect",
        "store": str(subject.options.store),
        "corpus": subject.corpus.fingerprint(),
        "examples": subject.sample.record(),
        "capped": subject.sample.is_capped,
    }


def _written(subject: Subject, found: dict[str, Any]) -> dict[str, Any]:
    unlabelled = subject.options.unlabelled
    path = subject.options.run / ("inspection.json" if unlabelled is None else f"inspection-{unlabelled.stem}.json")
    whole = {
        **found,
        "inspection": str(path),
        "compute": subject.compute.record(),
        "config": resolved_flags(subject.options),
        "times": subject.times.record(),
        "peak_memory": peak_memory_bytes(),
        "provenance": provenance(),
    }
    write_json(path, whole)
    return whole
