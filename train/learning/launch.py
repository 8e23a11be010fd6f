"""Where the processes that train one model meet: of torchrun, accelerate, SLURM's srun, Open MPI or another MPI, as the environment says.

Which process this is, and the sources: ``lugpi_core/runtime/ranks.py``.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from lugpi_core.runtime.ranks import MPI, OPEN_MPI, SLURM, TORCHRUN, Rank, find_rank, number_in, require_variables

_FIRST_PORT, _PORTS = 20_000, 10_000
_PLACE = ("MASTER_ADDR", "MASTER_PORT")
# Processes on this machine, and what the processes of one start have in common.
_MPI = {OPEN_MPI: ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_MCA_ess_base_jobid"), MPI: ("MPI_LOCALNRANKS", "PMI_ID")}
_NODES = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")


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
    rank = find_rank(environment)
    if rank is None:
        return None
    if rank.by == TORCHRUN:
        return _launch(rank, environment)
    return _of_slurm(rank, environment) if rank.by == SLURM else _of_mpi(rank, environment)


def _of_slurm(rank: Rank, environment: Mapping[str, str]) -> Launch:
    nodes = next((environment[name] for name in _NODES if environment.get(name)), "")
    job = environment.get("SLURM_JOB_ID", "")
    start = f"{job}.{environment.get('SLURM_STEP_ID', '')}" if job else ""
    # Where an id of the job is missing or a node has no name, only the user can say where to meet.
    place = {"MASTER_ADDR": _first_node(nodes), "MASTER_PORT": _port_of(start), **_given(environment)}
    return _launch(rank, place, local_count=rank.count if nodes and _first_node(nodes) == nodes else None)


def _of_mpi(rank: Rank, environment: Mapping[str, str]) -> Launch:
    local_count, start = _MPI[rank.by]
    address = "127.0.0.1" if environment.get(local_count) == str(rank.count) else ""
    return _launch(rank, {"MASTER_ADDR": address, "MASTER_PORT": _port_of(environment.get(start, "")), **_given(environment)})


def _launch(rank: Rank, place: Mapping[str, str], *, local_count: int | None = None) -> Launch:
    require_variables(place, _PLACE, rank.by, rank.count)
    return Launch(
        by=rank.by,
        rank=rank.rank,
        count=rank.count,
        local_rank=rank.local_rank,
        address=place["MASTER_ADDR"],
        port=number_in(place, "MASTER_PORT", least=1, most=65_535),
        local_count=local_count,
    )


def _given(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in _PLACE if environment.get(name)}


def _first_node(nodes: str) -> str:
    """Return the first host of SLURM's list: ``gpu07`` of ``gpu[07-09,12],cpu1``."""
    first = re.match(r"(?P<name>[^,\[]*)(?:\[(?P<number>[0-9]+)[^\]]*\](?P<rest>[^,\[]*))?", nodes)
    return "" if first is None else f"{first['name']}{first['number'] or ''}{first['rest'] or ''}"


def _port_of(start: str) -> str:
    """Return a port that all processes of one start find alike, or nothing if the start has no name."""
    return str(_FIRST_PORT + zlib.crc32(start.encode()) % _PORTS) if start else ""
