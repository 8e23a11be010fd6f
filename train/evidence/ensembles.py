"""Ensembles of teachers: what several together answer."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from train.evidence.row_figures import ScoredModel, sharpness_of
from train.file_names import PREDICTIONS
from train.learning.task_rules import rules_of
from train.models.predictions import Predicted, read_predictions

_TINY = np.finfo(np.float64).tiny


def joint(teachers: Sequence[ScoredModel]) -> ScoredModel:
    """Return the first of several teachers with the predictions of all together in place of its own."""
    predicted = {split: joint_predictions([teacher.predicted[split] for teacher in teachers]) for split in teachers[0].predicted}
    train = None
    if teachers[0].train is not None:
        train = sharpness_of(joint_predictions([read_predictions(teacher.folder / PREDICTIONS)["train"] for teacher in teachers]))
    return replace(teachers[0], predicted=predicted, train=train)


def joint_predictions(each: Sequence[Predicted]) -> Predicted:
    """Return the mean of several models' probabilities of the same examples, or of their numbers: what a student with equal shares is
    distilled from. The logits of one label are ``log p``, of several ``log(p / (1 - p))``, with the mean of their thresholds."""
    first = each[0]
    mean_NK = np.mean([rules_of(one.task).outputs(one.logits) for one in each], axis=0)
    match first.task:
        case "single-label":
            return replace(first, logits=np.log(np.maximum(mean_NK, _TINY)))
        case "multi-label":
            thresholds = tuple(np.mean([one.thresholds or () for one in each], axis=0).tolist())
            logits_NK = np.log(np.maximum(mean_NK, _TINY)) - np.log(np.maximum(1 - mean_NK, _TINY))
            return replace(first, logits=logits_NK, thresholds=thresholds)
        case "regression":
            return replace(first, logits=mean_NK)
