"""Samples at a teacher's decision boundary (Heo, Lee, Yun & Choi 2019, *Knowledge distillation with adversarial samples supporting decision
boundary*, arXiv 1805.05532), by adversarial steps in the student's space of embeddings.

A text has no pixels that could be moved, and a student's teacher is not run. In the space of embeddings a teacher is its last Linear, so
that the paper's attack on it, which follows the gradient until another class wins, arrives in one step.

Shapes: B examples, K classes, D width of the student's embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

# How far behind the boundary a sample is, in logits, as in the authors' code.
BEHIND = 1e-4
_NO_DIRECTION = 1e-12  # the square of a gradient that leads from no class to another


class Heads(NamedTuple):
    """What a step in the student's space of embeddings adds to logits: the weight [K, D] of the student's last Linear, and that of a
    teacher's, of whatever width, times the matrix that projects the student's embeddings to that width."""

    student_KD: torch.Tensor
    teacher_KD: torch.Tensor


def drawn_classes(teacher_BK: torch.Tensor, base_B: torch.Tensor) -> torch.Tensor:
    """Return for each example a class other than ``base_B``, int64 [B], drawn by torch's generator with the probabilities that the teacher
    gives them."""
    import torch

    others_BK = teacher_BK.log_softmax(dim=-1).scatter(1, base_B[:, None], -torch.inf)
    # The largest of logits and noise of Gumbel's distribution is a draw from their softmax; nothing waits for the device.
    noise_BK = -torch.empty_like(others_BK).exponential_().log()
    return (others_BK + noise_BK).argmax(dim=-1)


def boundary_samples(
    teacher_BK: torch.Tensor, teacher_KD: torch.Tensor, labels_B: torch.Tensor, targets_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a step from each example behind the teacher's boundary to another class, [B, D], and which are samples, bool [B].

    With ``L = t_b - t_k`` and its gradient ``g = m_b - m_k`` the step is ``δ = -(L + ε)·g / |g|²``, and there ``t_b - t_k = -ε``. It is one
    from a text that the teacher answers right, with b, and if no third class wins there; other steps are 0.

    Args:
        teacher_BK: its logits.
        teacher_KD: what a step adds to them: see ``Heads``.
        labels_B: b, int64; -1 for a text without a label.
        targets_B: k, other than b.
    """
    import torch

    base_B, rows_B = labels_B.clamp(min=0), torch.arange(len(teacher_BK), device=teacher_BK.device)
    gap_B = teacher_BK[rows_B, base_B] - teacher_BK[rows_B, targets_B]
    gradient_BD = teacher_KD[base_B] - teacher_KD[targets_B]
    squared_B = gradient_BD.square().sum(dim=-1)
    steps_BD = -((gap_B + BEHIND) / squared_B.clamp(min=_NO_DIRECTION))[:, None] * gradient_BD
    others_BK = (teacher_BK + steps_BD @ teacher_KD.T).scatter(1, base_B[:, None], -torch.inf)
    is_right_B, wins_B = teacher_BK.argmax(dim=-1) == labels_B, others_BK.argmax(dim=-1) == targets_B
    is_sample_B = is_right_B & wins_B & (squared_B > _NO_DIRECTION)
    return torch.where(is_sample_B[:, None], steps_BD, 0), is_sample_B


def boundary_loss(
    student_BK: torch.Tensor, teacher_BK: torch.Tensor, heads: Heads, labels_B: torch.Tensor, *, temperature: float, soften_student: bool
) -> torch.Tensor:
    """Return ``-1/B·Σ_samples Σ_k softmax(t'/τ)_k·log softmax(s')_k``, a scalar in float32, with ``t' = t + M δ`` and ``s' = s + W δ``, M
    and W being ``heads``; with ``soften_student`` s' is divided by τ too, the term multiplied by τ². No gradient reaches δ, t' or M."""
    import torch
    from torch.nn import functional as F

    with torch.autocast(student_BK.device.type, enabled=False):  # products of matrices would be in half precision
        teacher_BK, teacher_KD = teacher_BK.float(), heads.teacher_KD.detach().float()
        steps_BD, is_sample_B = boundary_samples(teacher_BK, teacher_KD, labels_B, drawn_classes(teacher_BK, labels_B.clamp(min=0)))
        there_BK = F.softmax((teacher_BK + steps_BD @ teacher_KD.T) / temperature, dim=-1)
        moved_BK = student_BK.float() + steps_BD @ heads.student_KD.float().T
        entropy_B = F.cross_entropy(moved_BK / temperature if soften_student else moved_BK, there_BK, reduction="none")
        return torch.where(is_sample_B, entropy_B, 0).sum() / len(entropy_B) * (temperature**2 if soften_student else 1.0)
