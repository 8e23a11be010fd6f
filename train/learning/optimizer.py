"""AdamW with a linearly decaying learning rate."""

from typing import Any, Literal

import torch
from torch import nn

from train.options.settings import OptimizerChoice

OptimizerName = Literal["adamw8bit", "adamw"]


def optimizer_on(device_type: str, choice: OptimizerChoice) -> OptimizerName:
    """Resolve ``auto``: 8-bit on CUDA, where its smaller state matters; on the CPU bitsandbytes takes 3.7 s for a step of DistilBERT on one
    thread, torch's fused AdamW 0.1 s."""
    if choice != "auto":
        return choice
    return "adamw8bit" if device_type == "cuda" else "adamw"


def make_optimizer(model: nn.Module, name: OptimizerName, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters: torch's fused one, or bitsandbytes' with 8-bit state (Dettmers et al. 2022, arXiv
    2110.02861; embeddings, and tensors below 4,096 elements, keep 32-bit state).

    Biases and norm weights have no weight decay, as in the Hugging Face Trainer, which also keeps 32-bit state for embeddings.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in learning if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "adamw8bit":
        embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        return _eight_bit(groups, learning_rate, embeddings)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def _eight_bit(groups: list[dict[str, Any]], learning_rate: float, embeddings: list[torch.Tensor]) -> torch.optim.Optimizer:
    import bitsandbytes

    with_32_bits = {id(parameter) for parameter in embeddings}

    class AdamW8bit(bitsandbytes.optim.AdamW8bit):  # type: ignore[misc]
        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            config: dict[str, Any] = super().get_config(gindex, pindex, group)
            if id(group["params"][pindex]) in with_32_bits:
                config["optim_bits"] = 32
            return config

    # The library synchronizes with the device after every tensor. That is needed only for paged state, which the host touches and which
    # is not used here; kernels launched on one stream run in order.
    bitsandbytes.optim.optimizer.sync_gpu = _do_not_wait
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=learning_rate)
    return optimizer


def _do_not_wait(_: torch.Tensor) -> None:
    return None


def rate_at(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step, counted from 0: it decays linearly from the peak to zero over ``steps`` steps."""
    return peak * max(0.0, 1.0 - step / steps)
