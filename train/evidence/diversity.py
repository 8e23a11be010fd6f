"""How much teachers of one kind, which differ in their seeds alone, differ in what they answer and in what they look at."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from lugpi_core.corpora.options import Task
from lugpi_core.errors import InputError
from lugpi_core.files import read_json, write_json
from lugpi_core.fingerprint import hash_file
from train.evidence.ensembles import joint_predictions
from train.evidence.fidelity import FIDELITY
from train.evidence.records import AttentionFigures, DiversityRow, DiversityTable, json_of
from train.evidence.row_figures import ScoredModel, is_defined
from train.file_names import ATTENTION, PREDICTIONS
from train.learning.task_rules import rules_of
from train.models.model_folder import training_of

TITLE = "Teachers of one kind: what their ensemble is right in, and how alike they are"
CAPTION = (
    "Of teachers that differ in their seeds alone, those of a row over its seeds or those of each ensemble: their mean score on the test "
    "split, the score of all together (of their mean probabilities, as a student with equal shares reads them), how far two of them agree, "
    "and each with all together, right or wrong. Teachers that agree less gain more from each other."
)
_ATTENTION = (
    " Attention: the top fifth of the image tokens but the first, by the attention of the class tokens in the teacher's block. IoU is "
    "the intersection over union of two teachers' top tokens, mean over texts and pairs, of several ensembles those of the first; beside "
    "it are that of as many tokens drawn at random, and which share of the attention image tokens get at all."
)
Attend = Callable[[Sequence[Path]], AttentionFigures | None]


Groups = Sequence[Sequence[ScoredModel]]


def diversity_table(groups: Mapping[str, Groups], attend: Attend | None) -> DiversityTable:
    """Return the table of teachers of one kind.

    Args:
        groups: by a name, teachers that differ in their seeds alone: all of a row, or those of each ensemble. A group counts if it has two
            that were scored on the same examples.
        attend: returns how the attention of teachers to the same images overlaps, for the first group, or None if it does not know; None
            if that is not wanted.
    """
    found = [_row(name, of_name, attend) for name, of_name in groups.items()]
    shown = tuple(row for row in found if row is not None)
    return DiversityTable(title=TITLE, caption=CAPTION + (_ATTENTION if any(row.attention for row in shown) else ""), rows=shown)


def _row(name: str, groups: Groups, attend: Attend | None) -> DiversityRow | None:
    same = [[one for one in group if one.test.examples == group[0].test.examples and is_defined(one.test)] for group in groups]
    several = [group for group in same if len(group) > 1]
    if not several:
        return None
    task: Task = several[0][0].test.task
    metric, agreement = rules_of(task).metrics[0], FIDELITY[task].agreement
    joint = [(group, joint_predictions([one.test for one in group])) for group in several]
    pairs = [pair for group in several for pair in combinations(group, 2)]
    training = training_of(several[0][0].folder)
    # Teachers of shuffled images read those of another text with each seed.
    reads_same_images = training["privileged"] == "images"
    return DiversityRow(
        row=name,
        teachers=max(map(len, several)),
        groups=len(several),
        folders=tuple(one.folder.name for one in several[0]),
        score=_mean([one.test.scores[metric] for group in several for one in group]),
        together=_mean([together.scores[metric] for _, together in joint]),
        agreement=_mean([agreement(one.test.predicted, other.test.predicted) for one, other in pairs]),
        with_all=_mean([agreement(one.test.predicted, together.predicted) for group, together in joint for one in group]),
        attention=attend([one.folder for one in several[0]]) if attend is not None and reads_same_images else None,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def record_attention(run: Path, rows: Sequence[DiversityRow]) -> None:
    """Write ``attention.json`` into the run: how the attention of each row's teachers overlaps, with the hashes of their answers. Rows of
    an earlier command that are not among these stay."""
    recorded = {
        row.row: {
            "models": {name: hash_file(run / name / PREDICTIONS) for name in row.folders},
            "figures": json_of(row.attention),
        }
        for row in rows
        if row.attention is not None
    }
    if not recorded:
        return
    try:
        earlier = dict(read_json(run / ATTENTION)["rows"])
    except (InputError, KeyError, TypeError, ValueError):
        earlier = {}  # none yet, or damaged
    write_json(run / ATTENTION, {"rows": {**earlier, **recorded}})
