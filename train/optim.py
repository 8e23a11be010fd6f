"""AdamW with a linearly falling rate."""

from typing import Literal

import torch
from torch import nn


def make_optimizer(
    model: nn.Module, name: Literal["adamw", "adamw8bit"], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW over the parameters that learn: torch's fused one, or bitsandbytes' with 8-bit state (small tensors stay in 32 bits)."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "adamw8bit":
        import bitsandbytes

        eight_bit: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(learning, lr=learning_rate, weight_decay=weight_decay)
        return eight_bit
    return torch.optim.AdamW(learning, lr=learning_rate, weight_decay=weight_decay, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the schedule that falls linearly from the optimizer's rate to zero over ``steps`` steps."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / steps))
