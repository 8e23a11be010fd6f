"""The losses, as pure functions.

Shapes: B examples, K classes, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from lugpi_core.corpora.options import Task
from lugpi_core.errors import InputError
from lugpi_core.fields import require_choice
from train.learning.boundary import Heads, boundary_loss
from train.learning.task_rules import rules_of
from train.options.settings import KD_EXTRA_WEIGHT, DistillationSettings, EmbeddingLoss, KdExtra

if TYPE_CHECKING:
    import torch

# Of InfoNCE, which divides the cosines: that of Wu et al. 2018 (arXiv 1805.01978), from which CLIP starts too.
INFONCE_TEMPERATURE = 0.07
# Directions of a teacher's embeddings that are nearer than this are one: those of equal texts, which rounding alone tells apart, and of
# texts with one image.
_ONE_DIRECTION = 1e-3
# Which soft terms a student is distilled with: both, without the distance of the embeddings, without the softened cross-entropy.
Terms = Literal["both", "ce", "l2"]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Weights of the distillation loss; ``distillation`` returns those of a preset.

    Attributes:
        hard: weight of the cross-entropy with the label.
        alpha: weight of the cross-entropy with the teacher's softened output.
        beta: weight of the distance between the embeddings.
        predict_image: γ, weight of the distance between the teacher's image vector and the student's prediction of it.
        temperature: τ.
        soften_student: divide the student's logits by τ too, and multiply the term by τ² so that its gradient keeps its size.
        embedding_loss: which distance both are.
        kd_extra: "bss" for the softened cross-entropy at samples behind the teacher's boundary too.
        kd_extra_weight: its weight.

    Raises:
        InputError: a weight is negative, the temperature is not positive, or there is no such distance.
    """

    hard: float
    alpha: float
    beta: float
    temperature: float
    soften_student: bool = False
    embedding_loss: EmbeddingLoss = "mse"
    predict_image: float = 0.0
    kd_extra: KdExtra = "none"
    kd_extra_weight: float = KD_EXTRA_WEIGHT

    def __post_init__(self) -> None:
        values = {name: value for name, value in vars(self).items() if name != "soften_student"}
        DistillationSettings(**values)  # for its checks


# paper: Menadil, Georgescu & Ionescu 2023, Eq. 2 with their α, β and τ. hinton: Hinton, Vinyals & Dean 2015, §2. lopez-paz: Lopez-Paz et
# al. 2016, Eq. 6, whose imitation parameter λ weighs the soft labels against 1 - λ for the hard ones; both halves are 0.5 here.
KD_PRESETS = {
    "paper": Distillation(hard=1.0, alpha=3.0, beta=1.0, temperature=8.0),
    "hinton": Distillation(hard=0.5, alpha=0.5, beta=0.0, temperature=4.0, soften_student=True),
    "lopez-paz": Distillation(hard=0.5, alpha=0.5, beta=0.0, temperature=2.0),
}


class TeacherTarget(NamedTuple):
    """One teacher's outputs for a batch, and the student's embeddings to compare with them.

    Attributes:
        weight: the teacher's share of the soft terms.
        logits_BK: of the teacher, without gradient.
        embeddings_BD: of the teacher, without gradient.
        student_BD: the student's embeddings in this teacher's width.
        images_BI: the teacher's image vectors, in the unit in which they are predicted; None if they are not.
        predicted_BI: what the student predicts of them.
        heads: what a step in the student's space of embeddings adds to the logits of both; None without boundary samples.
    """

    weight: float
    logits_BK: torch.Tensor
    embeddings_BD: torch.Tensor
    student_BD: torch.Tensor
    images_BI: torch.Tensor | None = None
    predicted_BI: torch.Tensor | None = None
    heads: Heads | None = None


def distillation(preset: str = "paper", **given: Any) -> Distillation:
    """Return the weights of a preset, "paper", "hinton" or "lopez-paz", with the given fields of ``Distillation`` replaced; None keeps the
    preset's value.

    Raises:
        InputError: no such preset; a value is out of its range; hard and α are both zero, so that nothing trains the last layer of the
            classifier.
        TypeError: no such field.
    """
    require_choice("preset", preset, tuple(KD_PRESETS))
    weights = replace(KD_PRESETS[preset], **{name: value for name, value in given.items() if value is not None})
    if weights.hard == weights.alpha == 0:
        raise InputError(
            got="hard and alpha both 0",
            expected="at least one positive weight of a term that depends on the class",
            do="give one, for instance --hard 1",
        )
    return weights


def embedding_distance(student_BD: torch.Tensor, teacher_BD: torch.Tensor, kind: EmbeddingLoss) -> torch.Tensor:
    """Return the distance of the embeddings, averaged over the examples, a scalar.

    ``mse``: ``1/D·Σ_d (s_d - t_d)²``. ``sum-of-squares``: without the ``1/D``, the squared l2 distance. ``cosine``: ``1 - cos(s, t)``.
    ``infonce``: ``-log(e^{cos(s_i, t_i)/κ} / Σ_j e^{cos(s_i, t_j)/κ})`` with κ = 0.07, j being i and the examples whose t has another
    direction (van den Oord, Li & Vinyals 2018, arXiv 1807.03748, Eq. 4).

    Raises:
        ValueError: their shapes differ; torch would broadcast them.
    """
    from torch.nn import functional as F  # tables and reports read the presets alone

    if student_BD.shape != teacher_BD.shape:
        raise ValueError(
            f"embeddings of the student {tuple(student_BD.shape)} and of the teacher {tuple(teacher_BD.shape)} differ in shape"
        )
    match kind:
        case "mse":
            return F.mse_loss(student_BD, teacher_BD)
        case "sum-of-squares":
            return F.mse_loss(student_BD, teacher_BD, reduction="sum") / len(student_BD)
        case "cosine":
            return 1 - F.cosine_similarity(student_BD, teacher_BD, dim=-1).mean()
        case "infonce":
            return _infonce(student_BD, teacher_BD)


def _infonce(student_BD: torch.Tensor, teacher_BD: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.nn import functional as F

    with torch.autocast(student_BD.device.type, enabled=False):  # products of matrices would be in half precision
        students_BD, teachers_BD = F.normalize(student_BD, dim=-1), F.normalize(teacher_BD, dim=-1)
        distances_BB = torch.cdist(teachers_BD, teachers_BD, compute_mode="donot_use_mm_for_euclid_dist")
        is_same_BB = (distances_BB < _ONE_DIRECTION).fill_diagonal_(False)
        logits_BB = (students_BD @ teachers_BD.T / INFONCE_TEMPERATURE).masked_fill(is_same_BB, -torch.inf)
        return F.cross_entropy(logits_BB, torch.arange(len(logits_BB), device=logits_BB.device))


def distillation_loss(
    weights: Distillation,
    student_BK: torch.Tensor,
    teachers: Sequence[TeacherTarget],
    labels_B: torch.Tensor,
    *,
    task: Task = "single-label",
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return Eq. 2, its soft terms summed over the teachers: ``hard·h(y, s) + Σ_i w_i·(α·f(t_i, s) + β·d(e_i, e_S) + γ·d(v_i, v̂_i))``, a
    scalar in float32; the term of γ, ``predict_image``, is not the paper's. With ``kd_extra`` each teacher has the term of
    ``boundary_loss`` too, of the weight ``kd_extra_weight``; only for one label per text.

    The task decides h and f: see docs/method.md. For one label per text both are the cross-entropy, f with ``softmax(t_i/τ)``; for several
    both are the binary cross-entropy of each class, f with ``σ(t_i/τ)``; for a number both are the squared error.

    Args:
        weights: hard, α, β, τ, d: ``distillation("paper")``, or ``Distillation(…)``.
        student_BK: logits of the student, one per class; of a regression [B, 1].
        teachers: each teacher's outputs, and the student's embeddings in its width: ``TeacherTarget(…)``.
        labels_B: int64 [B], -1 (UNLABELLED) for a text without a label; of a multi-label task float [B, K] of 0 and 1, of a regression
            float [B], both NaN for a text without one.
        task: "single-label", "multi-label" or "regression".
        class_weights: float [K], of the hard term: of each class, or of its positive examples in a multi-label task.

    Raises:
        InputError: there is no such task.
        TypeError: ``weights`` are no ``Distillation``.
        ValueError: embeddings or image vectors of student and teacher differ in shape, or the latter are missing, or labels or logits are
            not of the task's shape.
    """
    if not isinstance(weights, Distillation):
        raise TypeError(f"weights: got {weights!r}; expected a Distillation, for instance distillation('paper')")
    require_choice("task", task, get_args(Task))
    rules, student_BK = rules_of(task), student_BK.float()
    _require_shapes(task, student_BK, teachers, labels_B)
    loss = student_BK.new_zeros(())
    if weights.hard:
        loss = loss + weights.hard * rules.hard_loss(student_BK, labels_B, class_weights)
    for weight, logits_BK, embeddings_BD, student_BD, images_BI, predicted_BI, heads in teachers:
        if weights.alpha:
            soft = rules.soft_loss(student_BK, logits_BK.float(), temperature=weights.temperature, soften_student=weights.soften_student)
            loss = loss + weight * weights.alpha * soft
        if weights.beta:
            loss = loss + weight * weights.beta * embedding_distance(student_BD.float(), embeddings_BD.float(), weights.embedding_loss)
        if weights.predict_image:
            if images_BI is None or predicted_BI is None:
                raise ValueError("predict_image without images_BI and predicted_BI of a teacher")
            distance = embedding_distance(predicted_BI.float(), images_BI.float(), weights.embedding_loss)
            loss = loss + weight * weights.predict_image * distance
        if weights.kd_extra == "bss":
            if heads is None:
                raise ValueError("kd_extra without heads of a teacher")
            softening: Any = {"temperature": weights.temperature, "soften_student": weights.soften_student}
            loss = loss + weight * weights.kd_extra_weight * boundary_loss(student_BK, logits_BK, heads, labels_B, **softening)
    return loss


def anchored_loss(loss: torch.Tensor, student_BK: torch.Tensor, anchor_BK: torch.Tensor, *, weight: float, task: Task) -> torch.Tensor:
    """Return ``(1 - λ)·loss + λ·f(a, s)``, a scalar in float32: distillation from an earlier model, which bounds how many of its answers
    change (Jiang et al. 2022, arXiv 2106.02654). f is the task's, and the anchor's output is not softened.

    Args:
        loss: of the student without the anchor.
        student_BK: its logits.
        anchor_BK: those of the anchor, without gradient.
        weight: λ.
        task: of both.
    """
    near = rules_of(task).soft_loss(student_BK.float(), anchor_BK.float(), temperature=1.0, soften_student=False)
    return (1 - weight) * loss + weight * near


def _require_shapes(task: Task, student_BK: torch.Tensor, teachers: Sequence[TeacherTarget], labels_B: torch.Tensor) -> None:
    """Raise ValueError unless the shapes are the task's: torch would broadcast others."""
    batch, width = student_BK.shape
    if task != "multi-label" and (width == 1) != (task == "regression"):
        raise ValueError(f"logits {tuple(student_BK.shape)} of a {task} task; a regression has one per text, others one per class")
    shape = (batch, width) if task == "multi-label" else (batch,)
    kind = "int64" if task == "single-label" else "float"
    if labels_B.shape != shape or labels_B.is_floating_point() != (kind == "float"):
        raise ValueError(f"labels {tuple(labels_B.shape)} of {labels_B.dtype}; expected {shape} of {kind} for a {task} task")
    for teacher in teachers:
        if teacher.logits_BK.shape != student_BK.shape:
            shapes = f"{tuple(student_BK.shape)} and of the teacher {tuple(teacher.logits_BK.shape)}"
            raise ValueError(f"logits of the student {shapes} differ in shape")
