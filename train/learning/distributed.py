"""Several processes that train one model, as ``torchrun``, ``accelerate launch``, ``srun`` and ``mpirun`` start them (``launch.py``).

Every process computes its share of each batch; gradients are averaged, so that all have the same weights after every step.
"""

import os
import socket
import sys
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from lugpi_core.errors import EXIT_BAD_INPUT, InputError
from lugpi_core.runtime.pretrained import reason
from train.learning.heartbeat import Heartbeat
from train.learning.launch import Launch, find_launch

_PATIENCE_S = 300.0  # launchers start all processes within a minute or two
_SAY_AFTER_S = 10.0
_POLL_S = 0.2
_ATTEMPT_S = 2.0  # signals are heeded between attempts
# A launcher passes on a signal that its processes may have got from the terminal or the batch system already.
_ECHO_S = 10.0
# The group of the latest block. Freed at the end of the block, with the GIL held, it waits for its threads, and torch 2.13 hangs if one of
# them frees what a broken operation has kept, for which it needs the GIL (pytorch/pytorch#56297). By the next block they are idle.
_latest_group: list[Any] = []
# What gloo and NCCL say when a process at the other end is gone.
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


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

    @property
    def echo_s(self) -> float:
        """For how long after a signal others are the same request."""
        return _ECHO_S if self.count > 1 else 0.0

    def averaged(self, model: nn.Module, device: torch.device, *, reaches_all: bool) -> nn.Module:
        """Return the model wrapped so that its gradients are averaged over all processes; the model itself if there is only one.

        Args:
            model: on its device.
            device: that device.
            reaches_all: whether the loss depends on all weights that are trained.
        """
        if self.count == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # since torch 2.13; older have no other
            return DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,  # they are constants such as position ids
                find_unused_parameters=not reaches_all,
            )

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of the tensor over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, here: bool) -> bool:
        """Return whether ``here`` is true in any process; the same in every process."""
        return bool(self.sum(torch.tensor(float(here), device=self.device)).item()) if self.count > 1 else here

    def gathered(self, numbers: Sequence[int]) -> list[list[int]]:
        """Return the numbers of every process, by rank; as many in each."""
        table = torch.zeros((self.count, len(numbers)), dtype=torch.int64, device=self.device)
        table[self.rank] = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        found: list[list[int]] = self.sum(table).tolist()
        return found

    def require_same(self, what: str, text: str, *, do: str) -> None:
        """Raise InputError in every process unless the text is the same in all."""
        hashes = [numbers[0] for numbers in self.gathered([zlib.crc32(text.encode())])]
        others = [rank for rank, one in enumerate(hashes) if one != hashes[0]]
        if others:
            raise InputError(
                got=f"{what} of process {others[0]}, unlike process 0",
                expected=f"the same in all {self.count}",
                do=do,
            )

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
        InputError: what the launcher says is incomplete; the others do not come within five minutes; one of them ends inside the block;
            there are more processes on this machine than CUDA devices.
    """
    launch = find_launch(os.environ)
    if launch is None:
        yield Processes()
        return
    if torch.distributed.is_initialized():
        yield Processes(rank=torch.distributed.get_rank(), count=launch.count, device=device_type)
        return
    os.environ.update(launch.variables())
    # While the others wait, the first process may download, hash a store, or compute teachers' outputs for a million texts.
    options: dict[str, Any] = {"backend": "gloo", "timeout": timedelta(days=1)}
    if device_type == "cuda":
        # srun --gpus-per-task shows each process its own device only.
        local = 0 if launch.by == "SLURM" and torch.cuda.device_count() == 1 else launch.local_rank
        if local >= torch.cuda.device_count():
            raise InputError(
                got=f"process {local} of this machine, which has {torch.cuda.device_count()} CUDA devices",
                expected="a device for each process",
                do="start fewer processes",
            )
        torch.cuda.set_device(local)
        options |= {"backend": "nccl", "device_id": torch.device("cuda", local)}
    _latest_group.clear()
    try:
        with Heartbeat(launch) as heartbeat:
            store = meet(launch, says=heartbeat.place)
            heartbeat.start(store.get("here/0").decode())
            torch.distributed.init_process_group(store=store, rank=launch.rank, world_size=launch.count, **options)
            _latest_group.append(torch.distributed.group.WORLD)
            yield Processes(rank=launch.rank, count=launch.count, device=device_type)
    except RuntimeError as error:
        if not any(words in str(error) for words in _GONE):
            raise
        raise InputError(
            got=f"an end of another of the {launch.count} processes, seen by process {launch.rank}",
            expected="all of them until the model is trained",
            do="see its own output for the reason; the same command continues from the last checkpoint",
        ) from None
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def meet(launch: Launch, *, says: str = "", patience_s: float = _PATIENCE_S) -> Any:
    """Return a store of torch.distributed in which all processes of a launch have said that they are there: ``here/RANK``, with what each
    ``says``.

    Waits in short steps, so that signals are heeded; says after some seconds who is awaited.

    Raises:
        InputError: the port is taken, or somebody has not come in time.
    """
    where, ranks = f"{launch.address}:{launch.port}", [str(rank) for rank in range(launch.count)]
    started = told = time.monotonic()
    store: Any = None
    while True:
        absent, store = ["0"], store or _connect(launch)
        if store is not None:
            try:
                store.set(f"here/{launch.rank}", says)
                absent = [rank for rank in ranks if not store.check([f"here/{rank}"])]
            except RuntimeError:  # process 0 has ended; another may be started in its place
                store = None
        if not absent:
            return store
        awaited = f"process{'es' * (len(absent) > 1)} {', '.join(absent)} of {launch.count} at {where}"
        if time.monotonic() - started > patience_s:
            raise InputError(
                got=f"no sign of {awaited} for {patience_s / 60:.0f} minutes",
                expected=f"{launch.count} processes, as {launch.by} says",
                do="start all of them with one launcher, or unset WORLD_SIZE and its like to train alone",
            )
        if time.monotonic() - told > _SAY_AFTER_S:
            told = time.monotonic() + patience_s
            print(f"process {launch.rank} is waiting for {awaited}", file=sys.stderr, flush=True)
        time.sleep(_POLL_S)


def _connect(launch: Launch) -> Any:
    """Return the store of the processes, or None if process 0 does not answer yet."""
    stores: Any = torch.distributed  # whose stubs export neither store

    # torchrun's agent has a store of its own; otherwise the first process has it.
    serves = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        # TCPStore would log a C++ traceback at every attempt, and for a name that no address belongs to.
        if serves:
            socket.getaddrinfo(launch.address, launch.port)
        else:
            socket.create_connection((launch.address, launch.port), timeout=_ATTEMPT_S).close()
        store = stores.TCPStore(launch.address, launch.port, None, serves, timedelta(seconds=_ATTEMPT_S), wait_for_workers=False)
    except (OSError, RuntimeError, ValueError) as error:
        if not serves:
            return None
        raise InputError(
            got=f"{launch.address}:{launch.port}, on which process 0 cannot listen ({reason(error)})",
            expected="an address of this machine and a free port",
            do="set MASTER_ADDR and MASTER_PORT to others in all processes",
        ) from None
    return stores.PrefixStore(f"lugpi/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
