"""Who started this process, and beside which others: torchrun, accelerate, SLURM's srun, Open MPI or another MPI, as the environment says.

Sources: torchrun's variables, https://docs.pytorch.org/docs/stable/elastic/run.html; SLURM's, https://slurm.schedmd.com/srun.html (output
environment variables); Open MPI's, https://docs.open-mpi.org/en/v5.0.x/tuning-apps/environment-var.html; Hydra's PMI_RANK and PMI_SIZE.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from lugpi_core.errors import InputError

_FIRST_PORT, _PORTS = 20_000, 10_000
_LARGEST_STEP = 0xFFFF_FFF0  # above are steps that srun did not start: batch, interactive, extern
# Rank, count, rank and count on this machine, and what the processes of one start have in common.
_MPI = {
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_MCA_ess_base_jobid",
    ),
    "MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PMI_ID"),
}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process among those of one start.

    Attributes:
        by: the launcher.
        rank, count: of all processes; ``rank`` counts from 0.
        local_rank: on this machine.
        address, port: where process 0 listens.
        local_count: processes on this machine; None if that is not said.
    """

    by: str
    rank: int
    count: int
    local_rank: int
    address: str
    port: int
    local_count: int | None = None

    def variables(self) -> dict[str, str]:
        """Return the variables as torchrun would set them."""
        local = {} if self.local_count is None else {"LOCAL_WORLD_SIZE": str(self.local_count)}
        return local | {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.count),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def find_launch(environment: Mapping[str, str]) -> Launch | None:
    """Return how this process was started beside others, or None if it is alone.

    Raises:
        InputError: there are others, but something that is needed to meet them is missing or no number.
    """
    if environment.get("WORLD_SIZE"):
        return _of_torchrun(environment)
    if environment.get("SLURM_PROCID") and _is_task_of_srun(environment):
        return _of_slurm(environment)
    for by, names in _MPI.items():
        if environment.get(names[0]) and environment.get(names[1]):
            return _of_mpi(environment, by, names)
    return None


def _of_torchrun(environment: Mapping[str, str]) -> Launch | None:
    by = "the variable WORLD_SIZE"
    count = _number(environment, "WORLD_SIZE", least=1)
    if count == 1:
        return None
    _require(environment, ("RANK", "MASTER_ADDR", "MASTER_PORT"), by, count)
    rank = _number(environment, "RANK", most=count - 1)
    local = _number(environment, "LOCAL_RANK") if environment.get("LOCAL_RANK") else 0
    port = _number(environment, "MASTER_PORT", least=1, most=65_535)
    return Launch(by=by, rank=rank, count=count, local_rank=local, address=environment["MASTER_ADDR"], port=port)


def _is_task_of_srun(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process. A batch script and the shell of ``salloc`` also know the job's number of tasks, but are alone."""
    step = environment.get("SLURM_STEP_ID") or environment.get("SLURM_STEPID")
    if step is not None and step.isdecimal():
        return int(step) < _LARGEST_STEP
    return bool(environment.get("SLURM_STEP_NUM_TASKS")) or not environment.get("SLURM_JOB_ID") or environment["SLURM_PROCID"] != "0"


def _of_slurm(environment: Mapping[str, str]) -> Launch | None:
    name = next((name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS") if environment.get(name)), None)
    count = 1 if name is None else _number(environment, name, least=1)
    if count == 1:
        return None
    rank = _number(environment, "SLURM_PROCID", most=count - 1)
    nodes = next(
        (environment[name] for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST") if environment.get(name)), ""
    )
    job = environment.get("SLURM_JOB_ID", "")
    start = f"{job}.{environment.get('SLURM_STEP_ID', '')}" if job else ""
    # Where an id of the job is missing or a node has no name, only the user can say where to meet.
    complete = {"MASTER_ADDR": _first_node(nodes), "MASTER_PORT": _port_of(start), **_given(environment)}
    _require(complete, ("MASTER_ADDR", "MASTER_PORT"), "SLURM", count)
    local = _number(environment, "SLURM_LOCALID") if environment.get("SLURM_LOCALID") else rank
    return Launch(
        by="SLURM",
        rank=rank,
        count=count,
        local_rank=local,
        address=complete["MASTER_ADDR"],
        port=_number(complete, "MASTER_PORT", least=1, most=65_535),
        local_count=count if nodes and _first_node(nodes) == nodes else None,
    )


def _of_mpi(environment: Mapping[str, str], by: str, names: tuple[str, ...]) -> Launch | None:
    count = _number(environment, names[1], least=1)
    if count == 1:
        return None
    rank = _number(environment, names[0], most=count - 1)
    local = _number(environment, names[2]) if environment.get(names[2]) else rank
    on_one_machine = environment.get(names[3]) == str(count)
    complete = {
        "MASTER_ADDR": "127.0.0.1" if on_one_machine else "",
        "MASTER_PORT": _port_of(environment.get(names[4], "")),
        **_given(environment),
    }
    _require(complete, ("MASTER_ADDR", "MASTER_PORT"), by, count)
    port = _number(complete, "MASTER_PORT", least=1, most=65_535)
    return Launch(by=by, rank=rank, count=count, local_rank=local, address=complete["MASTER_ADDR"], port=port)


def _given(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in ("MASTER_ADDR", "MASTER_PORT") if environment.get(name)}


def _first_node(nodes: str) -> str:
    """Return the first host of SLURM's list: ``gpu07`` of ``gpu[07-09,12],cpu1``."""
    first = re.match(r"(?P<name>[^,\[]*)(?:\[(?P<number>[0-9]+)[^\]]*\](?P<rest>[^,\[]*))?", nodes)
    return "" if first is None else f"{first['name']}{first['number'] or ''}{first['rest'] or ''}"


def _port_of(start: str) -> str:
    """Return a port that all processes of one start find alike, or nothing if the start has no name."""
    return str(_FIRST_PORT + zlib.crc32(start.encode()) % _PORTS) if start else ""


def _number(environment: Mapping[str, str], name: str, *, least: int = 0, most: int = 1 << 20) -> int:
    text = environment[name]
    if not re.fullmatch(r"[0-9]{1,7}", text) or not least <= int(text) <= most:
        raise InputError(
            got=f"{name}={text} in the environment",
            expected=f"a whole number from {least} to {most}",
            do="start the processes with torchrun, or unset the variable",
        )
    return int(text)


def _require(environment: Mapping[str, str], names: tuple[str, ...], by: str, count: int) -> None:
    if missing := [name for name in names if not environment.get(name)]:
        raise InputError(
            got=f"one of {count} processes, as {by} says, without {' and '.join(missing)} in the environment",
            expected="every variable by which they find each other",
            do=f"set {' and '.join(missing)}, start the processes with torchrun, or unset WORLD_SIZE and its like to train alone",
        )
