"""An ONNX classifier in onnxruntime on the CPU, and the batches that it reads.

Shapes: B texts in a batch, L tokens of the longest, K classes, N texts.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import reason
from train.data.text_model import TextModel
from train.data.token_ids import TokenIds

OUTPUT = "logits"


class OnnxSession:
    """A file in onnxruntime, with torch's number of threads."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 4  # what it raises is told in one line
        self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        self._inputs = [one.name for one in self._session.get_inputs()]

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits, float32 [B, K], of a batch of the model's inputs.

        Raises:
            InputError: onnxruntime cannot compute them for a batch of this shape.
        """
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

        try:
            (logits_BK,) = self._session.run([OUTPUT], {name: batch[name].numpy() for name in self._inputs})
        except (Fail, InvalidArgument, RuntimeException) as error:
            shape = " × ".join(map(str, batch["input_ids"].shape))
            raise InputError(
                got=f"an exported graph that onnxruntime cannot compute for {shape} tokens ({reason(error)})",
                expected="one for any number of texts of any length",
                do="nothing was written; give a --model of another kind",
            ) from None
        return torch.from_numpy(logits_BK)

    def logits_of(self, text_model: TextModel, ids: TokenIds, batches: Sequence[NDArray[np.int64]]) -> torch.Tensor:
        """Return the logits, float32 [N, K], of texts in batches, in the batches' order."""
        return torch.cat([self.logits(whole_batch(text_model, ids, rows)) for rows in batches])


def whole_batch(text_model: TextModel, ids: TokenIds, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
    """Return every input of a model for these rows, int64 [B, L] each, an attention mask of ones where no text is padded."""
    batch = ids.padded(rows, torch.from_numpy(rows))
    ones = {"attention_mask": torch.ones_like(batch["input_ids"])} if "attention_mask" in text_model.inputs else {}
    whole = ones | batch
    return {name: whole[name] for name in ("input_ids", *text_model.inputs) if name in whole}
