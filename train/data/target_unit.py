"""The unit in which a regression is learnt: numbers of any size become numbers around 0 and 1, and the finished model gives them back.

AdamW moves a weight by about the learning rate per step, however large the loss is. A target such as 1e5 would be out of its reach, and
ratings around 3 would take most of the training. So the labels are standardized by the train split, and at the end the last Linear is
rescaled: ``y = mean + sd · (W e + b) = (sd · W) e + (sd · b + mean)``. The exported classifier needs to know nothing of it.

Shapes: N examples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


@dataclass(frozen=True)
class TargetUnit:
    """``number = mean + sd · learnt``."""

    mean: float = 0.0
    sd: float = 1.0

    def learnt(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return numbers, labels or a teacher's outputs, in this unit."""
        return numbers if self == TargetUnit() else ((numbers.double() - self.mean) / self.sd).float()

    def undo(self, last: nn.Linear) -> None:
        """Rescale the model's last Linear so that it gives the numbers themselves."""
        if self == TargetUnit():
            return
        with torch.no_grad():
            last.weight.copy_(last.weight.double() * self.sd)
            if last.bias is not None:
                last.bias.copy_(last.bias.double() * self.sd + self.mean)


def unit_of(numbers_N: NDArray[Any], *, has_bias: bool) -> TargetUnit:
    """Return the unit for the train split's numbers: their mean and standard deviation, or without a bias, which would have to carry the
    mean, 0 and their root mean square. Equal numbers, or numbers that are all 0, are learnt as they are, less the mean."""
    numbers_N = numbers_N.astype(np.float64)
    mean = float(numbers_N.mean()) if has_bias else 0.0
    sd = float(np.sqrt(((numbers_N - mean) ** 2).mean()))
    # Equal numbers differ from their mean by rounding at most.
    return TargetUnit(mean, sd if sd > 1e-9 * max(abs(mean), 1e-300) else 1.0)
