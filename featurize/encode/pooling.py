"""``--pool``: fewer tokens of an image, as a function of the encoder's tokens alone.

Shapes: B images, T tokens, N patches of them in rows of n, D width, g cells a side.
"""

from dataclasses import replace
from math import isqrt

import torch
from torch import nn

from featurize.encode.encoder_files import ATTENTION_POOLED, CLASS_TOKEN, MEAN, QUERIES, EncoderFiles
from lugpi_core.errors import InputError


def as_pooled(files: EncoderFiles, pool: str | None) -> EncoderFiles:
    """Return an encoder whose tokens are pooled, or as it is.

    Args:
        files: with T and D of the encoder itself.
        pool: ``cls`` for the first token alone, ``1`` for the mean of the patches alone, ``gxg`` for the first token and the means of g × g
            cells of the grid of patches; None = all tokens.

    Raises:
        InputError: the encoder has no class token, no grid of patches, or a smaller one.
    """
    if pool is None:
        return files
    pooled = replace(files, name=f"{files.name}-pool-{pool}", pool=pool, tokens=1 + cells_of(pool) ** 2 if "x" in pool else 1)
    if pool == "cls":
        if files.first_token not in (CLASS_TOKEN, ATTENTION_POOLED):
            raise InputError(
                got=f"--pool cls for {files.name}, whose first token is the {files.first_token}",
                expected="an encoder with a class token, or one that pools by attention",
                do="give --pool 1, the mean of its patches",
            )
        return pooled
    patches = files.tokens - files.prefix
    side = isqrt(max(0, patches))
    if files.output == QUERIES or side**2 != patches or not side:
        raise InputError(
            got=f"--pool {pool} for {files.name}, whose tokens are no square grid of patches",
            expected="an encoder of patches",
            do="give --pool cls, or leave --pool out" if files.first_token != MEAN else "leave --pool out",
        )
    if cells_of(pool) > side:
        raise InputError(
            got=f"--pool {pool} for {files.name}, which has {side} x {side} patches",
            expected=f"at most {side}x{side}",
            do="give fewer cells" if side > 2 else "give --pool 1",
        )
    return pooled


def cells_of(pool: str) -> int:
    """Return the cells a side of ``gxg``; 1 for what is no grid."""
    return int(pool.partition("x")[0]) if "x" in pool else 1


def pooled_tokens(tokens_BTD: torch.Tensor, files: EncoderFiles) -> torch.Tensor:
    """Return what ``files.pool`` leaves of the tokens of the encoder itself, float32 [B, T', D]; the tokens as they are without it.

    A cell is the mean of the patches that it covers. Where g does not divide n, cells overlap, as in adaptive average pooling: cell i of a
    side has the patches ⌊i n / g⌋ to ⌈(i + 1) n / g⌉. Prefix tokens but the first, such as registers, are left out.
    """
    if files.pool is None:
        return tokens_BTD
    tokens_BTD = tokens_BTD.float()
    if files.pool == "cls":
        return tokens_BTD[:, :1]
    patches_BND = tokens_BTD[:, files.prefix :]
    side = isqrt(patches_BND.shape[1])
    grid_BDnn = patches_BND.transpose(1, 2).reshape(len(patches_BND), -1, side, side)
    cells_BCD = nn.functional.adaptive_avg_pool2d(grid_BDnn, cells_of(files.pool)).flatten(2).transpose(1, 2)
    return cells_BCD if files.pool == "1" else torch.cat([tokens_BTD[:, :1], cells_BCD], dim=1)
