"""``python -m featurize score``: the CLIP score of every image and its prompt, kept beside the store for ``--several-images``.

Shapes: N examples, K images each, P distinct prompts, n pairs of a prompt and an image, E width of the joint space.
"""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.encode.joint_space import JointSpace
from featurize.inspect.decoded_images import generator_of
from featurize.inspect.inspect_store import OpenStore, folder_of
from featurize.inspect.records import LeftOut
from featurize.inspect.text_agreement import encoder_of
from featurize.options import Generation, PromptStrategy
from featurize.plan.prompt_reader import prompt_reader
from featurize.plan.prompts import plan_of
from lugpi_core.command_line import say
from lugpi_core.corpora.columns import TextColumn, numbered
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.fields import require_type
from lugpi_core.files import is_writable
from lugpi_core.runtime.device import DeviceChoice, resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.runtime.pretrained import only_local_files
from lugpi_core.store.clip_scores import CLIP_SCORES, ClipScores, columns_with_text_tower, content_of, read_clip_scores, write_clip_scores
from lugpi_core.store.example_table import ExampleTable, read_example_table
from lugpi_core.store.lease import locked
from lugpi_core.store.manifest import ColumnSpec, is_of_own_pictures, load_manifest
from lugpi_core.store.object_store import mirror_of
from lugpi_core.store.reader import ColumnReader, image_columns_of

_PROMPTS_AT_ONCE, _IMAGES_AT_ONCE = 32, 128


def score_images(store: str | Path | OpenStore, corpus: Corpus, *, column: str | None = None, device: DeviceChoice = "auto") -> ClipScores:
    """Return the CLIP score of every image of a store and its prompt, and keep them in ``clip-scores.h5``, which weighted images and the
    best of several are chosen by. Scores of the same column that are there already are returned as they are.

    The prompt is what the image was generated from: the text, a passage of it, its keywords, or what names no class; of your own pictures,
    the text. The text tower reads as much of it as its context holds. No image is generated, and no model is downloaded. Memory: the model
    and 128 images' tokens.

    Args:
        store: its folder, or an open store.
        corpus: that the store was filled for.
        column: whose tokens and text tower are asked; None = the only one that has a text tower.
        device: where to compute; auto takes CUDA if there is any.

    Raises:
        InputError: no store, or another corpus's; no such column, or none with a text tower, or several; its encoder is not within reach.
    """
    require_type("corpus", corpus, Corpus)
    prepare_libraries()
    folder = folder_of(store)
    table = read_example_table(folder, corpus)
    name = _column_to_ask(folder, column)
    spec, records = load_manifest(folder / name)
    try:
        found = read_clip_scores(folder, corpus_fingerprint=table.corpus_fingerprint, shape=table.drawings.shape)
        if found.column == name:
            say(f"already done: {folder}")
            return found
        say(f"the scores by {found.column} are replaced")
    except InputError:
        pass  # there are none, or those of other images
    if not is_writable(folder):
        raise InputError(
            got=f"{folder} (no permission to write)",
            expected=f"a folder in which {CLIP_SCORES} can be written",
            do="give yourself permission",
        )
    with only_local_files():
        files = encoder_of(spec)
        reader = ColumnReader(folder, name)
        prompts, numbers_NK = prompts_of_images(corpus, table, spec)
        space = JointSpace(files, resolve_compute(device, "float32", half="float16"))
    say(f"{name}: scores of {len(reader):,} images and {len(prompts):,} prompts")
    scores = ClipScores(
        column=name,
        encoder=str(spec.fingerprint["encoder"]["weights"]),
        content=content_of(records),
        corpus_fingerprint=table.corpus_fingerprint,
        logit_scale=space.logit_scale,
        scores_NK=_scores(space, reader, prompts, numbers_NK, table.drawings),
    )
    with locked(folder):
        write_clip_scores(folder, scores)
    if mirror := mirror_of(folder):
        mirror.finish()
    return scores


def kept_scores(store: Path, corpus: Corpus) -> ClipScores | LeftOut | None:
    """Return the scores that a store has; left out if they are not those of its images, None if there are none."""
    if not (store / CLIP_SCORES).is_file():
        return None
    try:
        return read_clip_scores(store, corpus_fingerprint=corpus.fingerprint(), shape=read_example_table(store, corpus).drawings.shape)
    except InputError as error:
        return LeftOut(left_out=str(error))


def prompts_of_images(corpus: Corpus, table: ExampleTable, column: ColumnSpec) -> tuple[TextColumn, NDArray[np.int64]]:
    """Return the P distinct prompts of a store, and the number of the one that each example's images are of, int64 [N, K]; -1 = of none.

    Raises:
        InputError: the images are not those that featurize plans for the corpus; or the tokenizers that chose keywords are not within
            reach.
    """
    several = table.drawings.shape[1]
    if is_of_own_pictures(column):
        rows, numbers_N = numbered(corpus.columns.prompts)
        return corpus.columns.prompts.take(rows), np.repeat(numbers_N[:, None], several, axis=1)
    flags, figures = column.made_by or {}, table.prompt_figures
    strategy = str(flags.get("prompts", "whole")) if figures is None else figures.strategy
    settings = Generation(  # which checks it
        images_per_text=several,
        prompts=cast(PromptStrategy, strategy),
        **({} if table.subset is None else {name: flags[name] for name in ("subset", "subset_by", "seed") if name in flags}),
    )
    plan = plan_of(corpus, settings, lambda: prompt_reader(generator_of(column)))
    if not np.array_equal(plan.images_of_example, table.drawings):
        raise InputError(
            got=f"images of {column.name} in another order than featurize plans them",
            expected="a store whose examples.h5 featurize wrote",
            do="run python -m featurize for this corpus",
        )
    return TextColumn.of(plan.prompts), plan.images_of_example // plan.images_per_prompt


def _column_to_ask(store: Path, column: str | None) -> str:
    """Return the column whose encoder has a text tower. Raises InputError if there is none, or there are several."""
    there = image_columns_of(store)
    if column is not None and column not in there:
        raise InputError(got=f"--column {column}", expected=f"one of {', '.join(there) or 'none, as there is none'}", do="choose another")
    names = columns_with_text_tower(store, there if column is None else [column])
    if not names:
        raise InputError(
            got=f"{column or ', '.join(there) or 'no images'} in {store}, without a text tower that is read here",
            expected="a column of an open_clip encoder, without --encoder-layer and --pool 1",
            do="add one with python -m featurize --encoders, such as clip-vit-b32",
        )
    if len(names) > 1:
        raise InputError(got=f"several columns with a text tower, {', '.join(names)}", expected="one of them", do="name it with --column")
    return names[0]


def _scores(
    space: JointSpace, reader: ColumnReader, prompts: TextColumn, numbers_NK: NDArray[np.int64], drawings_NK: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the cosine of each example's images and their prompts, float32 [N, K]; NaN where the image failed, or there is none."""
    pairs_n2, place_NK = np.unique(np.stack([numbers_NK.reshape(-1), drawings_NK.reshape(-1)], axis=1), axis=0, return_inverse=True)
    cosines_n = np.full(len(pairs_n2), np.nan, np.float32)
    for first in range(0, len(prompts), _PROMPTS_AT_ONCE):
        texts_PE = space.embed_texts(list(prompts[first : first + _PROMPTS_AT_ONCE]))
        begin, end = np.searchsorted(pairs_n2[:, 0], [first, first + _PROMPTS_AT_ONCE]).tolist()
        for start in range(begin, end, _IMAGES_AT_ONCE):
            part = slice(start, min(start + _IMAGES_AT_ONCE, end))
            numbers_B, rows_B = pairs_n2[part].T
            tokens_BTD = torch.from_numpy(reader.gather(np.ascontiguousarray(rows_B)))
            images_BE = space.images(tokens_BTD if space.reads_all_tokens else tokens_BTD[:, 0])
            of_text_BE = texts_PE[torch.from_numpy(numbers_B - first).to(texts_PE.device)]
            cosines_n[part] = (of_text_BE * images_BE).sum(dim=-1).cpu().numpy()
    cosines_n[np.isin(pairs_n2[:, 1], list(reader.flagged))] = np.nan  # those of no image are NaN still
    return cosines_n[place_NK].reshape(drawings_NK.shape)
