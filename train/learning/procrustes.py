"""Embeddings of one model brought into the space of another by a rotation: orthogonal Procrustes (Schönemann 1966, *A generalized
solution of the orthogonal Procrustes problem*).

Shapes: V texts that both models read, R texts of one, D embedding width.
"""

import torch


def rotation(theirs_VD: torch.Tensor, ours_VD: torch.Tensor) -> torch.Tensor:
    """Return the orthogonal Q, float64 [D, D], that minimizes ``‖A Q - B‖²`` (Frobenius): ``U Wᵀ`` of the singular value decomposition
    ``Aᵀ B = U S Wᵀ``. Where texts leave directions free (fewer than D of them, or units that are always 0), the Q nearest to the identity.

    Args:
        theirs_VD: A, embeddings of one model.
        ours_VD: B, those of the other for the same texts.
    """
    left, sizes, right = torch.linalg.svd(theirs_VD.double().T @ ours_VD.double())
    rank = int((sizes > sizes.max() * len(sizes) * torch.finfo(torch.float64).eps).sum())
    fixed = left[:, :rank] @ right[:rank]
    free_left, free_right = left[:, rank:], right[rank:].T
    inner_left, _, inner_right = torch.linalg.svd(free_left.T @ free_right)
    orthogonal_DD: torch.Tensor = fixed + free_left @ inner_left @ inner_right @ free_right.T
    return orthogonal_DD


def align(embeddings_RD: torch.Tensor, theirs_VD: torch.Tensor, ours_VD: torch.Tensor) -> torch.Tensor:
    """Return embeddings of one model moved into the space of another: ``(e - mean A) Q + mean B`` with the ``rotation`` Q of the centred
    embeddings A and B of texts that both have read, float32 [R, D].

    Args:
        embeddings_RD: of the one model.
        theirs_VD: A, its own of V texts.
        ours_VD: B, the other model's of the same texts.
    """
    mean_theirs, mean_ours = theirs_VD.double().mean(dim=0), ours_VD.double().mean(dim=0)
    rotation_DD = rotation(theirs_VD.double() - mean_theirs, ours_VD.double() - mean_ours)
    return ((embeddings_RD.double() - mean_theirs) @ rotation_DD + mean_ours).float()
