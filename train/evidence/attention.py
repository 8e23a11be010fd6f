"""How much the attention of several teachers over the tokens of the same images has in common.

Shapes: M teachers, R texts, T image tokens, n of them in the top share.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.runtime.device import Compute
from train.data.batching import prediction_batches
from train.data.image_tokens import ImageTokens
from train.evidence.records import AttentionFigures
from train.learning.predict import PREDICTION_BATCH
from train.models.teachers import FoundTeacher, find_teacher, load_teacher, open_tokens_of

TOP_SHARE = 0.2
MOST_TEXTS = 1000


def attention_overlap(folders: Sequence[Path], corpus: Corpus, compute: Compute) -> AttentionFigures | None:
    """Return the overlap of two teachers or more that read the same column, over the test texts, or 1,000 of them in equal steps; None if
    an image has no two tokens besides the first.

    Args:
        folders: of the teachers.
        corpus: theirs.
        compute: where they are computed; in float32.

    Raises:
        InputError: a teacher is gone, or its text model or its images are other ones than it was trained with.
    """
    teachers = [find_teacher(folder) for folder in folders]
    open_once = cache(lambda: open_tokens_of(teachers[0], corpus, teachers[0].run / "tokens"))  # every shard is checked once
    rows = corpus.rows("test")
    rows = [rows[n * len(rows) // MOST_TEXTS] for n in range(MOST_TEXTS)] if len(rows) > MOST_TEXTS else rows
    each: list[torch.Tensor] = []
    for teacher in teachers:
        say(f"attention of {teacher.folder.name} on {len(rows):,} test texts")
        each.append(_attention(teacher, corpus, open_once, rows, compute))
    patches_MRT = torch.stack(each)[:, :, 1:]  # the class token, which stands for the whole image, is read anyway
    tokens_count = patches_MRT.shape[2]
    if tokens_count < 2:
        return None
    top = max(1, round(TOP_SHARE * tokens_count))
    return AttentionFigures(
        iou=top_overlap(patches_MRT, top),
        chance=chance_overlap(tokens_count, top),
        on_images=float(torch.stack(each).sum(dim=2).mean()),
        top=top,
        tokens=tokens_count,
        texts=len(rows),
    )


def _attention(
    teacher: FoundTeacher, corpus: Corpus, open_tokens: Callable[[], ImageTokens], rows: Sequence[int], compute: Compute
) -> torch.Tensor:
    """Return how much a teacher attends to each image token, float32 [R, T] on the CPU."""
    model, data = load_teacher(teacher, corpus, len(corpus.label_names), compute, open_tokens)
    model.eval()
    ordered = data.by_length(rows)
    most_padding = 0 if data.texts is not None and data.texts.equal_lengths else None
    batches = prediction_batches(ordered, data.lengths[ordered], PREDICTION_BATCH, most_padding=most_padding)
    with torch.inference_mode():
        attention_RT = torch.cat([model.image_attention(batch.inputs).float().cpu() for batch in data.batches(batches)])
    return attention_RT[torch.from_numpy(np.argsort(ordered))]


def top_overlap(attention_MRT: torch.Tensor, top: int) -> float:
    """Return the intersection over union of the ``top`` tokens with the most attention, mean over texts and pairs of teachers."""
    chosen_MRT = torch.zeros_like(attention_MRT, dtype=torch.bool).scatter_(2, attention_MRT.topk(top, dim=2).indices, True)
    pairs = list(combinations(chosen_MRT, 2))
    each = [((one & other).sum(dim=1) / (one | other).sum(dim=1)).double().mean() for one, other in pairs]
    return float(torch.stack(each).mean())


def chance_overlap(tokens: int, top: int) -> float:
    """Return the expected intersection over union of two sets of ``top`` out of ``tokens``, drawn at random: with i in both,
    ``Σ_i P(i) · i / (2n - i)``, P being hypergeometric. For many tokens and a share q it is near to ``q / (2 - q)``."""
    from scipy.stats import hypergeom

    return float(sum(hypergeom.pmf(i, tokens, top, top) * i / (2 * top - i) for i in range(top + 1)))
