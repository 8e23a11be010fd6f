"""Parts of a run: i of n by hand, by SLURM's variables, by torchrun's."""

import pytest

from featurize.fill.parts import WHOLE, Part, part_of_environment, part_of_text
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
        (_slurm(9, 4, 0), "part 9 of 4 from a SLURM array"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "part 2 of 2 from RANK and WORLD_SIZE"),
    ],
)
def test_variables_that_name_no_part_are_one_line(environment: dict[str, str], got: str) -> None:
    with pytest.raises(InputError, match=rf"^got {got}; expected .*give --part "):
        part_of_environment(environment)
