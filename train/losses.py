"""The losses, as pure functions.

Shapes: B examples, K classes, D embedding width.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from lugpi_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Weights of the distillation loss.

    Attributes:
        hard: weight of the cross-entropy with the label.
        alpha: weight of the cross-entropy with the teacher's softened output.
        beta: weight of the mean squared distance between the embeddings.
        temperature: τ.
        soften_student: divide the student's logits by τ too, and multiply the term by τ² so that its gradient keeps its size.
    """

    hard: float
    alpha: float
    beta: float
    temperature: float
    soften_student: bool = False


# paper: Menadil, Georgescu & Ionescu 2023, Eq. 2 with their α, β and τ. hinton: Hinton, Vinyals & Dean 2015, §2. lopez-paz: Lopez-Paz et
# al. 2016, Eq. 6, whose imitation parameter λ weighs the soft labels against 1 - λ for the hard ones; both halves are 0.5 here.
KD_PRESETS = {
    "paper": Distillation(hard=1.0, alpha=3.0, beta=1.0, temperature=8.0),
    "hinton": Distillation(hard=0.5, alpha=0.5, beta=0.0, temperature=4.0, soften_student=True),
    "lopez-paz": Distillation(hard=0.5, alpha=0.5, beta=0.0, temperature=2.0),
}


def distillation(preset: str, *, hard: float | None, alpha: float | None, beta: float | None, temperature: float | None) -> Distillation:
    """Return a preset with the given weights in place of its own.

    Raises:
        InputError: every weight is zero, so there is nothing to learn from.
    """
    given: dict[str, Any] = {"hard": hard, "alpha": alpha, "beta": beta, "temperature": temperature}
    weights = replace(KD_PRESETS[preset], **{name: value for name, value in given.items() if value is not None})
    if weights.hard == weights.alpha == weights.beta == 0:
        raise InputError(got="hard, alpha and beta all 0", expected="at least one positive weight", do="give one, for instance --hard 1")
    return weights


def soft_cross_entropy(student_BK: torch.Tensor, teacher_BK: torch.Tensor, *, temperature: float, soften_student: bool) -> torch.Tensor:
    """Return the mean cross-entropy of the student's output with the teacher's softened one, a scalar.

    ``-Σ_k softmax(t/τ)_k · log softmax(s)_k``; with ``soften_student`` the student's logits are divided by τ too and the term is
    multiplied by τ².
    """
    target_BK = F.softmax(teacher_BK / temperature, dim=-1)
    if soften_student:
        return F.cross_entropy(student_BK / temperature, target_BK) * temperature**2
    return F.cross_entropy(student_BK, target_BK)


def embedding_distance(student_BD: torch.Tensor, teacher_BD: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of the embeddings, averaged over examples and dimensions, a scalar."""
    return F.mse_loss(student_BD, teacher_BD)


def distillation_loss(
    weights: Distillation,
    student: tuple[torch.Tensor, torch.Tensor],
    teacher: tuple[torch.Tensor, torch.Tensor],
    labels_B: torch.Tensor,
) -> torch.Tensor:
    """Return Eq. 2: ``hard·CE(y, s) + α·CE(softmax(t/τ), s) + β·MSE(e_T, e_S)``, a scalar in float32.

    Args:
        weights: hard, α, β, τ.
        student: logits [B, K] and embeddings [B, D] of the student.
        teacher: the same of the teacher, without gradient.
        labels_B: int64 [B].
    """
    (student_BK, student_BD), (teacher_BK, teacher_BD) = student, teacher
    loss = student_BK.new_zeros((), dtype=torch.float32)
    if weights.hard:
        loss = loss + weights.hard * F.cross_entropy(student_BK.float(), labels_B)
    if weights.alpha:
        soft = soft_cross_entropy(
            student_BK.float(), teacher_BK.float(), temperature=weights.temperature, soften_student=weights.soften_student
        )
        loss = loss + weights.alpha * soft
    if weights.beta:
        loss = loss + weights.beta * embedding_distance(student_BD.float(), teacher_BD.float())
    return loss
