"""Shares of several teachers in the soft labels, learnt for each group of classes that the teachers confuse with each other.

Shapes: N texts, K classes, G groups of classes, T teachers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus, Split
from lugpi_core.errors import InputError
from train.learning.task_rules import rules_of
from train.options.distillation import LEARNT, Shares

if TYPE_CHECKING:  # tables and reports read what was learnt without torch
    from train.data.teacher_outputs import TeacherOutputs
    from train.models.teachers import FoundTeacher

# A group's shares are drawn to those of all texts as if by that many texts more: groups of a few texts say little.
PRIOR_TEXTS = 10.0
_GAP = 1e-6  # in nats a text, between the shares found and the best ones
_STEPS = 10_000
_DIGITS = 4  # of shares that are recorded and used: rounding of sums must not make another model
_SHOWN_CLASSES = 4

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ClassShares:
    """The shares of several teachers, by the group of classes that their joint answer is in.

    Attributes:
        groups: the classes of each group; every class is in one.
        shares: of the teachers in each group, float64 [G, T]; they sum to 1.
        overall: of the teachers over all texts, float64 [T].
    """

    groups: tuple[tuple[int, ...], ...]
    shares: Floats
    overall: Floats

    def mixed(self, probabilities_TNK: Floats) -> Floats:
        """Return the teachers' probabilities, mixed by the shares of each text's group, float64 [N, K]."""
        shares_NT = self.shares[self.group_of(probabilities_TNK)]
        return np.asarray(np.einsum("nt,tnk->nk", shares_NT, probabilities_TNK))

    def group_of(self, probabilities_TNK: Floats) -> Integers:
        """Return the group of each text, int64 [N]: that of the most likely class by the probabilities of all teachers, weighted by their
        overall shares. No label is read, so that labelled and unlabelled texts are treated alike."""
        group_K = np.empty(probabilities_TNK.shape[2], np.int64)
        for group, classes in enumerate(self.groups):
            group_K[list(classes)] = group
        return np.asarray(group_K[np.tensordot(self.overall, probabilities_TNK, 1).argmax(axis=1)])

    def mixed_logits(self, logits_TNK: Floats, temperature: float) -> Floats:
        """Return logits whose softened softmax is the mixture of the teachers' softened ones, float64 [N, K]:
        ``softmax(z / τ) = Σ_i w_i(x) softmax(t_i / τ)``, so that the cross-entropy with it is ``Σ_i w_i(x) CE(softmax(t_i / τ), s)``."""
        from scipy.special import log_softmax, logsumexp

        shares_NT = self.shares[self.group_of(_probabilities(logits_TNK))]
        softened_TNK = log_softmax(logits_TNK / temperature, axis=2)
        return np.asarray(temperature * logsumexp(softened_TNK, b=shares_NT.T[:, :, None], axis=0))

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides a student's soft labels, as JSON."""
        return {"groups": [list(classes) for classes in self.groups], "shares": self.shares.tolist()}

    @classmethod
    def of_training(cls, training: Mapping[str, Any]) -> ClassShares | None:
        """Return the shares of a student from its ``training.json``; None if they were given."""
        if "class_shares" not in training:
            return None
        recorded = training["class_shares"]
        return cls(groups=tuple(map(tuple, recorded["groups"])), shares=np.array(recorded["shares"]), overall=np.array(training["shares"]))


def learn_class_shares(logits_TNK: Floats, labels_N: Integers) -> ClassShares:
    """Return the shares that fit texts that the teachers have not been trained on best: over all texts, and for each group of classes.

    Of each group they minimise the negative log-likelihood of the labels under the mixture of the teachers' probabilities, over the texts
    whose joint answer is in the group.

    Args:
        logits_TNK: of held-out texts.
        labels_N: their classes.
    """
    probabilities_TNK = _probabilities(logits_TNK)
    of_label_TN = probabilities_TNK[:, np.arange(len(labels_N)), labels_N]
    equal_T = np.full(len(logits_TNK), 1 / len(logits_TNK))
    overall_T = best_shares(of_label_TN, equal_T)
    groups = class_groups(np.tensordot(overall_T, probabilities_TNK, 1), labels_N)
    found = ClassShares(groups=groups, shares=np.tile(overall_T, (len(groups), 1)), overall=overall_T)
    group_N = found.group_of(probabilities_TNK)
    shares = [best_shares(of_label_TN[:, group_N == group], overall_T) for group in range(len(groups))]
    return ClassShares(groups=groups, shares=np.stack(shares), overall=overall_T)


def best_shares(of_label_TN: Floats, prior_T: Floats) -> Floats:
    """Return the shares w that maximise ``Σ_n ln Σ_i w_i p_in + c Σ_i v_i ln w_i``, float64 [T].

    This is the labels' likelihood under the mixture with a Dirichlet prior of ``PRIOR_TEXTS`` = c texts. It is concave; expectation
    maximisation (Dempster, Laird & Rubin 1977) ends when no shares can be better by more than 10⁻⁶ nats a text.

    Args:
        of_label_TN: p, the probability that each teacher gives each text's label; there may be no text.
        prior_T: v, positive shares that no text would change.
    """
    of_label_TN = np.maximum(of_label_TN, 1e-300)
    total, shares_T = of_label_TN.shape[1] + PRIOR_TEXTS, prior_T
    for _ in range(_STEPS):
        gradient_T = (of_label_TN / (shares_T @ of_label_TN)).sum(axis=1) + PRIOR_TEXTS * prior_T / shares_T
        if gradient_T.max() - total <= _GAP * total:  # of a concave function on the simplex, a bound of what is missing
            break
        shares_T = shares_T * gradient_T / total
    rounded_T = np.maximum(shares_T.round(_DIGITS), 10.0**-_DIGITS)
    rounded_T[rounded_T.argmax()] += 1 - rounded_T.sum()
    return np.asarray(rounded_T.round(_DIGITS))


def class_groups(joint_NK: Floats, labels_N: Integers) -> tuple[tuple[int, ...], ...]:
    """Return ``⌊√K⌋`` groups of classes at most, in the order of their first class. Classes that the teachers confuse are in one group.

    The groups are Ward's (1963) clusters of the classes, each being what the teachers together say of its texts on average.

    Args:
        joint_NK: the probabilities of the teachers together, for held-out texts.
        labels_N: their classes; one without a text is taken as never confused.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    classes = joint_NK.shape[1]
    if isqrt(classes) < 2:
        return (tuple(range(classes)),)
    said_KK = np.stack([joint_NK[labels_N == k].mean(axis=0) if (labels_N == k).any() else np.eye(classes)[k] for k in range(classes)])
    cluster_K = fcluster(linkage(said_KK, method="ward"), isqrt(classes), criterion="maxclust")
    members = [tuple(np.flatnonzero(cluster_K == cluster).tolist()) for cluster in np.unique(cluster_K)]
    return tuple(sorted(members))


@dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """What a student's soft terms read.

    Attributes:
        outputs: of each teacher. Where shares were learnt, the logits of all are those of the mixture, so that the terms of the soft
            labels, whose weights sum to 1, are that of the mixture; the other soft terms stay each teacher's.
        shares: of each teacher; learnt ones are those of all texts.
        learnt: the shares by group of classes, or None if they were given.
        record: of the learnt shares by name, for ``metrics.json``, or None.
    """

    outputs: tuple[TeacherOutputs, ...]
    shares: tuple[float, ...]
    learnt: ClassShares | None = None
    record: dict[str, Any] | None = None


def require_one_class(corpus: Corpus) -> None:
    """Raise InputError if shares are to be learnt for a corpus whose texts have not one class each."""
    if corpus.task != "single-label":
        raise InputError(
            got=f"--teacher-weights learnt for {corpus.name}, a {corpus.task} corpus",
            expected="one class for each text, by whose groups shares are learnt",
            do="give the shares as numbers, for instance 2 1, or leave --teacher-weights out",
        )


def soft_labels(
    corpus: Corpus,
    teachers: Sequence[FoundTeacher],
    outputs: tuple[TeacherOutputs, ...],
    shares: Shares,
    temperature: float,
    *,
    left_out: Sequence[int] = (),
) -> SoftLabels:
    """Return the outputs and shares of a student's teachers, and print shares that are learnt: on texts that the teachers have not been
    trained on, with folds the train texts, else the validation texts. Labels of ``left_out`` train texts are not read.

    Raises:
        InputError: shares are to be learnt for a corpus whose texts have not one class each.
    """
    import torch

    if shares != LEARNT:
        return SoftLabels(outputs=outputs, shares=shares)
    require_one_class(corpus)
    are_crossed = all(one.folds is not None for one in outputs) and not any("shots" in one.fingerprint for one in teachers)
    split: Split = "train" if are_crossed else "validation"
    rows = sorted(set(corpus.rows(split)).difference(left_out))
    logits_TNK = np.stack([one.logits.numpy().astype(np.float64) for one in outputs])
    learnt = learn_class_shares(logits_TNK[:, rows], corpus.targets()[rows])
    names = [teacher.folder.name for teacher in teachers]
    record = shares_record(learnt, logits_TNK[:, rows], split, label_names=corpus.label_names, teachers=names)
    for line in shares_in_words(record):
        say(line)
    mixed = torch.from_numpy(learnt.mixed_logits(logits_TNK, temperature)).float()
    shares_T = tuple(learnt.overall.tolist())
    return SoftLabels(outputs=tuple(replace(one, logits=mixed) for one in outputs), shares=shares_T, learnt=learnt, record=record)


def shares_record(
    shares: ClassShares, logits_TNK: Floats, split: str, *, label_names: Sequence[str], teachers: Sequence[str]
) -> dict[str, Any]:
    """Return the learnt shares by name, for ``metrics.json``.

    Args:
        shares: of the teachers.
        logits_TNK: of the texts that they were learnt on.
        split: these texts'.
        label_names: of the classes.
        teachers: their names.
    """
    texts_G = np.bincount(shares.group_of(_probabilities(logits_TNK)), minlength=len(shares.groups))
    groups = [
        {
            "classes": [label_names[k] for k in classes],
            "texts": count,
            "shares": dict(zip(teachers, of_group.tolist(), strict=True)),
        }
        for classes, count, of_group in zip(shares.groups, texts_G.tolist(), shares.shares, strict=True)
    ]
    return {"split": split, "overall": dict(zip(teachers, shares.overall.tolist(), strict=True)), "groups": groups}


def shares_in_words(record: Mapping[str, Any]) -> list[str]:
    """Return the lines that say which shares were learnt."""

    def numbers(shares: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {share:.2f}" for name, share in shares.items())

    lines = [f"shares of the teachers, learnt on the {record['split']} texts: {numbers(record['overall'])}"]
    for group in record["groups"] if len(record["groups"]) > 1 else ():
        names = ", ".join(group["classes"][:_SHOWN_CLASSES])
        more = f" and {len(group['classes']) - _SHOWN_CLASSES} more" if len(group["classes"]) > _SHOWN_CLASSES else ""
        lines.append(f"  answers {names}{more} ({group['texts']:,} texts): {numbers(group['shares'])}")
    return lines


def _probabilities(logits_TNK: Floats) -> Floats:
    return np.stack([rules_of("single-label").outputs(logits_NK) for logits_NK in logits_TNK])
