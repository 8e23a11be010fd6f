"""How many rows a stage computes at once. When memory runs out, half as many for the rest of the run."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from lugpi_core.command_line import say
from lugpi_core.errors import InputError

# What makes a single row of a stage smaller.
_SMALLER: Mapping[str, str] = {
    "prompt": "take a generator with a smaller text encoder",
    "denoise": "take a smaller --size-px or generator",
    "decode": "take a smaller --size-px, or --decoder tiny",
    "encode": "take a smaller encoder or --encoder-size",
}
Result = TypeVar("Result")

# CUDA's libraries and the allocator of the CPU report it with messages of their own.
_MESSAGES = ("out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


class StageBatches:
    """The batch size of each stage.

    Args:
        rows: the sizes to begin with, by stage.
        is_limited: whether ``--memory-gb`` keeps the run from memory that the device has.

    Attributes:
        halvings: every halving, in order: ``{"stage", "from", "to"}``.
    """

    def __init__(self, rows: Mapping[str, int], *, is_limited: bool = False) -> None:
        self.rows = dict(rows)
        self._is_limited = is_limited
        self.halvings: list[dict[str, Any]] = []

    def run(self, stage: str, rows: int, compute: Callable[[slice], Result]) -> list[Result]:
        """Return ``compute`` of consecutive parts of 0 … rows, each of at most the stage's size. After an out-of-memory a part is halved.

        Every row is computed by one call that succeeds, so a stage of B rows fails at most log2(B) times in a run.

        Raises:
            InputError: a single row does not fit.
        """
        results: list[Result] = []
        first = 0
        while first < rows:
            part = slice(first, min(first + self.rows[stage], rows))
            failed_rows = 0
            try:
                results.append(compute(part))
                first = part.stop
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failed_rows = part.stop - part.start
            if failed_rows:  # outside the handler, because its traceback holds what the failed part had allocated
                self._halve(stage, failed_rows)
        return results

    def _halve(self, stage: str, failed_rows: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if failed_rows == 1:
            limit = "raise --memory-gb, " if self._is_limited else ""
            raise InputError(
                got=f"too little memory for one row at a time ({stage})",
                expected="a device that one image fits on",
                do=f"free its memory, {limit}or {_SMALLER.get(stage, _SMALLER['denoise'])}; what is written is kept",
            )
        self.rows[stage] = failed_rows // 2
        self.halvings.append({"stage": stage, "from": failed_rows, "to": failed_rows // 2})
        say(f"out of memory at {stage} of {failed_rows} rows: continuing with {failed_rows // 2} at once, with the same seeds")
