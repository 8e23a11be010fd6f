"""Several processes that train one model, as ``torchrun`` and ``accelerate launch`` start them; both set rank and count in the environment.

Every process computes its share of each batch; gradients are averaged, so that all have the same weights after every step.
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
    """This process among those that train one model. ``rank`` counts from 0; process 0 writes files and reports. ``device`` is the kind of
    device that their tensors are exchanged on."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def averaged(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the model wrapped so that its gradients are averaged over all processes; the model itself if there is only one."""
        if self.count == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        # Buffers are constants such as position ids.
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of the tensor over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, here: bool) -> bool:
        """Return whether ``here`` is true in any process; the same in every process."""
        return bool(self.sum(torch.tensor(float(here), device=self.device)).item()) if self.count > 1 else here

    def wait(self) -> None:
        """Wait for every process to arrive here."""
        if self.count > 1:
            torch.distributed.barrier()

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Run the block in the first process, then in the others, which find the files it wrote. If it fails in the first one, the
        others exit silently: the first one reports why."""
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
    """Join the other processes of a launcher for the block; a block inside another one shares its process group.

    Without a launcher, this process is the only one.

    Raises:
        InputError: there are more processes on this machine than CUDA devices.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    if torch.distributed.is_initialized():
        yield Processes(rank=torch.distributed.get_rank(), count=count, device=device_type)
        return
    # While the others wait, the first process may download, hash a store, or compute teachers' outputs for a million texts.
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
