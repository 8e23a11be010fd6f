"""Predictions of a model for rows of the data.

Shapes: R rows, K classes, D embedding width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from lugpi_core.runtime.device import Compute
from train.data.batching import prediction_batches
from train.data.training_data import TrainingData
from train.learning.distributed import Processes
from train.learning.networks import Output

PREDICTION_BATCH = 64


def predict(
    model: nn.Module, data: TrainingData, rows: Sequence[int], compute: Compute, processes: Processes, *, precise: bool = False
) -> Output:
    """Return logits [R, K] and embeddings [R, D] of the rows, in their order, float32 on the CPU; dropout is off.

    Each process computes a part and returns the whole. With ``precise`` the forward pass is in float32 as well, as it will be in the
    exported model.
    """
    model.eval()
    ordered = data.by_length(rows)
    rows_here = ordered[processes.rank :: processes.count]
    computed = rows_here if len(rows_here) else ordered[:1]  # with fewer rows than processes, one row anyway: it gives the widths
    most_padding = 0 if data.texts is not None and data.texts.equal_lengths else None
    batches = prediction_batches(computed, data.lengths[computed], PREDICTION_BATCH, most_padding=most_padding)
    outputs: list[Output] = []
    with torch.inference_mode():
        for batch in data.batches(batches):
            with compute.autocast(enabled=not precise):
                output = model(batch.inputs)
            outputs.append(Output(output.logits.float(), output.embeddings.float()))
        logits, embeddings = torch.cat([output.logits for output in outputs]), torch.cat([output.embeddings for output in outputs])
        if processes.count > 1:
            positions = torch.from_numpy(np.arange(processes.rank, len(ordered), processes.count)).to(data.device)
            logits, embeddings = (_gathered(part, positions, len(ordered), processes) for part in (logits, embeddings))
    position = {row: n for n, row in enumerate(ordered.tolist())}
    in_order = torch.tensor([position[row] for row in rows])
    return Output(logits.cpu()[in_order], embeddings.cpu()[in_order])


def _gathered(part: torch.Tensor, positions: torch.Tensor, rows: int, processes: Processes) -> torch.Tensor:
    """Return the results of all processes. Each contributes zero for the rows of the others, so that the sum is the whole."""
    part = part[: len(positions)]
    return processes.sum(part.new_zeros((rows, part.shape[1])).index_copy_(0, positions, part))
