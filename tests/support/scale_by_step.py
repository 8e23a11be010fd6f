"""A guidance scale that changes from step to step, for pipelines of diffusers that take one for all steps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class ScaleByStep(float):
    """A number that multiplies the difference of two predictions once a step, by the scale of that step.

    Its own value is the largest, by which pipelines decide whether they guide at all.
    """

    scales: tuple[float, ...]
    step: int

    def __new__(cls, scales: Sequence[float]) -> "ScaleByStep":
        """Return a scale whose value is the largest of those of the steps."""
        new = super().__new__(cls, max(scales))
        new.scales, new.step = tuple(scales), 0
        return new

    def __mul__(self, difference: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return the difference times the scale of this step; the next product is of the next one."""
        self.step += 1
        return self.scales[self.step - 1] * difference


@contextmanager
def counted_rows(denoiser: Any) -> Iterator[list[int]]:
    """Return a list to which the rows of every forward inside the block are added."""
    rows: list[int] = []

    def count(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows.append(len(given[0] if given else next(iter(named.values()))))

    handle = denoiser.register_forward_pre_hook(count, with_kwargs=True)
    yield rows
    handle.remove()
