"""Parts of a run: i of n by hand, by the variables of SLURM, torchrun and mpirun."""

import pytest

from featurize.plan.parts import WHOLE, Part, part_of_environment, part_of_text
from lugpi_core.errors import InputError


@pytest.mark.parametrize("count", [1, 3, 4, 40])
def test_every_shard_belongs_to_one_part(count: int) -> None:
    parts = [Part(index, count) for index in range(count)]
    assert all(sum(shard in part for part in parts) == 1 for shard in range(100))


def test_a_part_is_named_by_its_number_from_nought() -> None:
    assert (part_of_text("0/4"), part_of_text("3/4"), str(Part(3, 4))) == (Part(0, 4), Part(3, 4), "3/4")


@pytest.mark.parametrize("text", ["4/4", "0/0", "-1/4", "1", "a/b", "1/4/2", "", "1.5/4"])
def test_no_such_part_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="expected i/n, a part from 0 to n - 1 and how many there are; give --part"):
        part_of_text(text)


def _slurm(number: int, count: int, first: int, **others: int) -> dict[str, str]:
    names = {"TASK_ID": number, "TASK_COUNT": count, "TASK_MIN": first, **others}
    return {f"SLURM_ARRAY_{name}": str(value) for name, value in names.items()}


def _srun(rank: int, count: int) -> dict[str, str]:
    return {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(count)}


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, WHOLE),
        (_slurm(0, 20, 0), Part(0, 20)),
        (_slurm(20, 20, 1, TASK_MAX=20), Part(19, 20)),
        (_slurm(8, 5, 0, TASK_MAX=16, TASK_STEP=4), Part(2, 5)),
        (_slurm(7, 1, 7, TASK_MAX=7), WHOLE),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Part(1, 2)),
        ({**_slurm(2, 3, 1), "RANK": "1", "WORLD_SIZE": "2"}, Part(3, 6)),
        (_slurm(5, 5, 1, TASK_MAX=9, TASK_STEP=2), Part(2, 5)),
        (_srun(3, 4), Part(3, 4)),
        ({**_slurm(2, 3, 1), **_srun(1, 2)}, Part(3, 6)),
        ({**_srun(3, 4), "RANK": "1", "WORLD_SIZE": "2"}, Part(1, 2)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3"}, Part(1, 3)),
    ],
)
def test_schedulers_say_which_part_it_is(environment: dict[str, str], part: Part) -> None:
    found, source = part_of_environment(environment)
    assert found == part
    assert bool(source) is bool(environment)


@pytest.mark.parametrize(
    ("environment", "got"),
    [
        (_slurm(12, 6, 3, TASK_MAX=15), "6 tasks of a SLURM array from 3 to 15"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "no SLURM_ARRAY_TASK_COUNT"),
        ({**_slurm(3, 4, 0), "SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID=x"),
        (_slurm(9, 4, 0), "task 9 of a SLURM array from 0 to 3, step 1"),
        (_slurm(4, 5, 1, TASK_MAX=9, TASK_STEP=2), "task 4 of a SLURM array from 1 to 9, step 2"),
    ],
)
def test_variables_that_name_no_part_are_one_line(environment: dict[str, str], got: str) -> None:
    with pytest.raises(InputError, match=rf"^got {got}; expected .*give --part "):
        part_of_environment(environment)


@pytest.mark.parametrize(
    ("environment", "got"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 in the environment"),
        ({"WORLD_SIZE": "2"}, "one of 2 processes, as the variable WORLD_SIZE says, without RANK in the environment"),
    ],
)
def test_processes_that_do_not_say_which_they_are_are_one_line(environment: dict[str, str], got: str) -> None:
    with pytest.raises(InputError, match=rf"^got {got}; expected .*unset "):
        part_of_environment(environment)


@pytest.mark.parametrize("alone", [_srun(0, 1), {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}])
def test_a_batch_script_is_not_one_of_the_tasks_that_srun_will_start(alone: dict[str, str]) -> None:
    assert part_of_environment(alone) == (WHOLE, "")
