"""Who started this process: what the environment of torchrun, srun and mpirun says, and what is refused."""

from typing import Any

import pytest

from lugpi_core.errors import InputError
from train.learning.launch import Launch, find_launch

STEP = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "77"}
ONE_NODE = STEP | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "gpu07"}
TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "29500"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


def found(environment: dict[str, str]) -> Launch:
    launch = find_launch(environment)
    assert launch is not None
    return launch


def test_torchruns_variables_are_taken_as_they_are() -> None:
    launch = found(TORCHRUN)
    assert (launch.rank, launch.count, launch.local_rank, launch.address, launch.port) == (1, 2, 1, "h", 29500)
    assert TORCHRUN.items() <= launch.variables().items()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0"},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"WORLD_SIZE": "1", **ONE_NODE},
        {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "77"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "77", "SLURM_LOCALID": "0"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "4294967291"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"},
        {"SLURM_PROCID": "0", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "77"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_a_single_process_is_alone(environment: dict[str, str]) -> None:
    assert find_launch(environment) is None


def test_tasks_of_srun_are_processes_of_one_model() -> None:
    launch = found(ONE_NODE)
    assert (launch.by, launch.rank, launch.count, launch.local_rank, launch.address) == ("SLURM", 3, 4, 1, "gpu07")
    assert launch.local_count == 4
    assert found(ONE_NODE | {"SLURM_PROCID": "0"}).port == launch.port
    assert found(ONE_NODE | {"SLURM_JOB_ID": "78"}).port != launch.port
    assert found(ONE_NODE | {"SLURM_STEP_ID": "1"}).port != launch.port
    assert found(ONE_NODE | {"MASTER_ADDR": "h", "MASTER_PORT": "1234"}).variables()["MASTER_PORT"] == "1234"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("gpu[12,14]", "gpu12"),
        ("a1,b2", "a1"),
        ("rack[1-2]-ib", "rack1-ib"),
        ("n-01.cluster,n-02.cluster", "n-01.cluster"),
    ],
)
def test_process_0_is_on_the_first_node(nodes: str, first: str) -> None:
    assert found(ONE_NODE | {"SLURM_STEP_NODELIST": nodes}).address == first


def test_processes_of_mpirun_on_one_machine_meet_there() -> None:
    launch = found(OPEN_MPI | {"OMPI_MCA_ess_base_jobid": "12345"})
    assert (launch.by, launch.rank, launch.count, launch.local_rank, launch.address) == ("Open MPI", 1, 2, 1, "127.0.0.1")
    launch = found({"PMI_RANK": "0", "PMI_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "9"})
    assert (launch.rank, launch.count, launch.address, launch.port) == (0, 2, "h", 9)


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (without(TORCHRUN, "MASTER_ADDR", "MASTER_PORT"), "without MASTER_ADDR and MASTER_PORT"),
        (without(TORCHRUN, "RANK"), "without RANK in"),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        (TORCHRUN | {"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1"),
        (TORCHRUN | {"RANK": "2"}, "RANK=2"),
        (TORCHRUN | {"RANK": "1.0"}, r"RANK=1\.0"),
        (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT=0"),
        (TORCHRUN | {"MASTER_PORT": "99999"}, "MASTER_PORT=99999"),
        (TORCHRUN | {"LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "2 processes, as SLURM says, without MASTER_ADDR and MASTER_PORT"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "without MASTER_ADDR and MASTER_PORT"),
        (ONE_NODE | {"SLURM_PROCID": "4"}, "SLURM_PROCID=4"),
        (OPEN_MPI, "as Open MPI says, without MASTER_PORT"),
    ],
)
def test_what_is_missing_or_no_number_is_named(environment: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_launch(environment)
