"""What a model says of rows of the data, without learning from them.

Shapes: R rows, K classes, D embedding width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from lugpi_core.runtime.device import Compute
from train.data.training_data import TrainingData
from train.learning.distributed import Processes
from train.learning.networks import Output

PREDICTION_BATCH = 64


def autocast(compute: Compute, *, enabled: bool = True) -> torch.autocast:
    """Return the context of a forward pass in the run's precision; weights stay float32."""
    half = compute.dtype in ("bfloat16", "float16")
    return torch.autocast(compute.device, dtype=compute.torch_dtype if half else torch.bfloat16, enabled=enabled and half)


def predict(
    model: nn.Module, data: TrainingData, rows: Sequence[int], compute: Compute, processes: Processes, *, precise: bool = False
) -> Output:
    """Return logits [R, K] and embeddings [R, D] of the rows, in their order, float32 on the CPU; dropout is off.

    Each process computes a part and has the whole. With ``precise`` they are computed in float32 too, as whoever loads the exported model
    will.
    """
    model.eval()
    ordered = data.by_length(rows)
    own = ordered[processes.rank :: processes.count]
    fed = own if len(own) else ordered[:1]  # with fewer rows than processes, one says the width and nothing else
    batches = [fed[start : start + PREDICTION_BATCH] for start in range(0, len(fed), PREDICTION_BATCH)]
    outputs: list[Output] = []
    with torch.inference_mode():
        for batch in data.batches(batches):
            with autocast(compute, enabled=not precise):
                output = model(batch)
            outputs.append(Output(output.logits.float(), output.embeddings.float()))
        place = {row: n for n, row in enumerate(ordered.tolist())}
        back = torch.tensor([place[row] for row in rows])
        # Nought where another process has computed: the sum is the whole.
        mine = torch.from_numpy(np.arange(processes.rank, len(ordered), processes.count)).to(data.device)
        logits, embeddings = (
            _gathered(parts, mine, len(ordered), processes)
            for parts in ([one.logits for one in outputs], [one.embeddings for one in outputs])
        )
    return Output(logits.cpu()[back], embeddings.cpu()[back])


def _gathered(parts: list[torch.Tensor], mine: torch.Tensor, rows: int, processes: Processes) -> torch.Tensor:
    if processes.count == 1:
        return torch.cat(parts)
    own = torch.cat(parts)[: len(mine)]
    return processes.sum(own.new_zeros((rows, own.shape[1])).index_copy_(0, mine, own))


def accuracy(logits_RK: torch.Tensor, labels_R: torch.Tensor) -> float:
    """Return the share of rows whose largest logit is the label's."""
    return float((logits_RK.argmax(dim=1) == labels_R).float().mean())
