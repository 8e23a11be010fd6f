"""Which of the processes of one start this is: what torchrun, SLURM's srun, Open MPI or another MPI say in the environment.

Sources: torchrun's variables, https://docs.pytorch.org/docs/stable/elastic/run.html; SLURM's, https://slurm.schedmd.com/srun.html (output
environment variables); Open MPI's, https://docs.open-mpi.org/en/v5.0.x/tuning-apps/environment-var.html; Hydra's PMI_RANK and PMI_SIZE.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lugpi_core.errors import InputError

TORCHRUN, SLURM, OPEN_MPI, MPI = "the variable WORLD_SIZE", "SLURM", "Open MPI", "MPI"
_LARGEST_STEP = 0xFFFF_FFF0  # above are steps that srun did not start: batch, interactive, extern
_STEP_COUNTS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
# Rank, count, and rank on this machine.
_MPI = {
    OPEN_MPI: ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    MPI: ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
}


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This process among those of one start.

    Attributes:
        by: who says so.
        rank, count: of all processes, at least two; ``rank`` counts from 0.
        local_rank: on this machine.
    """

    by: str
    rank: int
    count: int
    local_rank: int


def find_rank(environment: Mapping[str, str]) -> Rank | None:
    """Return which of several processes this is, or None if it is alone.

    Raises:
        InputError: there are others, but which one this is is missing or no number.
    """
    if environment.get("WORLD_SIZE"):
        return _rank(environment, TORCHRUN, ("RANK", "WORLD_SIZE", "LOCAL_RANK"), local_rank=0)
    if environment.get("SLURM_PROCID") and _is_task_of_srun(environment):
        count = next((name for name in _STEP_COUNTS if environment.get(name)), None)
        return None if count is None else _rank(environment, SLURM, ("SLURM_PROCID", count, "SLURM_LOCALID"))
    for by, names in _MPI.items():
        if environment.get(names[0]) and environment.get(names[1]):
            return _rank(environment, by, names)
    return None


def number_in(environment: Mapping[str, str], name: str, *, least: int = 0, most: int = 1 << 20) -> int:
    """Return a whole number from the environment.

    Raises:
        InputError: another value.
    """
    text = environment[name]
    if not re.fullmatch(r"[0-9]{1,7}", text) or not least <= int(text) <= most:
        raise InputError(
            got=f"{name}={text} in the environment",
            expected=f"a whole number from {least} to {most}",
            do="start the processes with torchrun, or unset the variable",
        )
    return int(text)


def require_variables(environment: Mapping[str, str], names: tuple[str, ...], by: str, count: int) -> None:
    """Raise InputError unless all of these variables have a value."""
    if missing := [name for name in names if not environment.get(name)]:
        raise InputError(
            got=f"one of {count} processes, as {by} says, without {' and '.join(missing)} in the environment",
            expected="every variable by which they find each other",
            do=f"set {' and '.join(missing)}, start the processes with torchrun, or unset WORLD_SIZE and its like to run alone",
        )


def _rank(environment: Mapping[str, str], by: str, names: tuple[str, str, str], *, local_rank: int | None = None) -> Rank | None:
    count = number_in(environment, names[1], least=1)
    if count == 1:
        return None
    require_variables(environment, names[:1], by, count)
    rank = number_in(environment, names[0], most=count - 1)
    if environment.get(names[2]):
        local_rank = number_in(environment, names[2])
    return Rank(by=by, rank=rank, count=count, local_rank=rank if local_rank is None else local_rank)


def _is_task_of_srun(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process. A batch script and the shell of ``salloc`` also know the job's number of tasks, but are alone."""
    step = environment.get("SLURM_STEP_ID") or environment.get("SLURM_STEPID")
    if step is not None and step.isdecimal():
        return int(step) < _LARGEST_STEP
    return bool(environment.get("SLURM_STEP_NUM_TASKS")) or not environment.get("SLURM_JOB_ID") or environment["SLURM_PROCID"] != "0"
