"""Several processes that train one model, as ``torchrun`` and ``accelerate launch`` start them: both say in the environment who is who.

Every process computes its share of each batch; gradients are averaged, so that all hold the same weights after every step.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from lugpi_core.errors import EXIT_BAD_INPUT, InputError


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Who this process is among those that train together. ``rank`` counts from 0; process 0 writes and speaks. ``device`` is where they
    talk to each other."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def averaged(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the model with its gradients averaged over all processes; the model itself when there is but one."""
        if self.count == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        # Buffers are positions and the like, which never change.
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of the tensor over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, here: bool) -> bool:
        """Return whether it holds in any process: every process gets the same answer."""
        return bool(self.sum(torch.tensor(float(here), device=self.device)).item()) if self.count > 1 else here

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            torch.distributed.barrier()

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let the first process through the block, then the others, which find what it made. Where it fails, they end without a word: the
        first one says why."""
        if not self.is_first:
            if self.any(False):
                raise SystemExit(EXIT_BAD_INPUT)
            yield
            return
        failed = True
        try:
            yield
            failed = False
        finally:
            self.any(failed)


@contextmanager
def joined(device_type: str) -> Iterator[Processes]:
    """Join the other processes for as long as the block lasts; alone when nothing in the environment speaks of others.

    Raises:
        InputError: there are more processes on this machine than CUDA devices.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    # The first process may download, hash a store, or let teachers read a million texts while the others wait for it.
    options: dict[str, Any] = {"backend": "gloo", "timeout": timedelta(days=1)}
    if device_type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise InputError(
                got=f"process {local} of this machine, which has {torch.cuda.device_count()} CUDA devices",
                expected="a device for each process",
                do="start fewer processes",
            )
        torch.cuda.set_device(local)
        options |= {"backend": "nccl", "device_id": torch.device("cuda", local)}
    torch.distributed.init_process_group(**options)
    try:
        yield Processes(rank=torch.distributed.get_rank(), count=count, device=device_type)
    finally:
        torch.distributed.destroy_process_group()
