"""Which shards a process fills first, where several processes fill one store."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lugpi_core.errors import InputError
from lugpi_core.runtime.ranks import find_rank

_PART = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")
_DO = "give --part i/n with i from 0 to n - 1, such as --part 0/4"


@dataclass(frozen=True)
class Part:
    """Part ``index`` of ``count``, counted from 0: the shards whose number is ``index`` modulo ``count``."""

    index: int
    count: int

    def __contains__(self, shard: object) -> bool:
        return isinstance(shard, int) and shard % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Part(0, 1)


def part_of_text(text: str) -> Part:
    """Return the part that ``i/n`` names.

    Raises:
        InputError: it is of another form, or there is no such part.
    """
    match = _PART.fullmatch(text)
    part = None if match is None else Part(int(match[1]), int(match[2]))
    if part is None or part.index >= part.count:
        raise InputError(got=f"--part {text}", expected="i/n, a part from 0 to n - 1 and how many there are", do=_DO)
    return part


def part_of_environment(environment: Mapping[str, str]) -> tuple[Part, str]:
    """Return the part that a scheduler gave this process, and where that is stated; ``WHOLE`` and nothing if there is no scheduler.

    The tasks of a SLURM array are parts, and so are the processes that torchrun, srun or mpirun starts; where each task of an array starts
    several processes, each of them is a part.

    Raises:
        InputError: variables that do not fit one another, or tasks of an array that are not consecutive numbers.
    """
    part, sources = WHOLE, []
    if _SLURM[0] in environment:
        number, count, first = (_number(environment, name) for name in _SLURM)
        step = _number(environment, "SLURM_ARRAY_TASK_STEP", default=1)
        last = _number(environment, "SLURM_ARRAY_TASK_MAX", default=first + (count - 1) * step)
        if step < 1 or (last - first) // step + 1 != count:
            raise InputError(
                got=f"{count} tasks of a SLURM array from {first} to {last}",
                expected="consecutive numbers, of which part i of n follows",
                do="give --part $SLURM_ARRAY_TASK_ID/n with the number of parts",
            )
        if not first <= number <= last or (number - first) % step:
            raise InputError(got=f"task {number} of a SLURM array from {first} to {last}, step {step}", expected="one of its tasks", do=_DO)
        part = Part((number - first) // step, count)
        sources.append(f"task {number} of the SLURM array")
    if rank := find_rank(environment):
        part = Part(part.index * rank.count + rank.rank, part.count * rank.count)
        sources.append(f"process {rank.rank} of {rank.count}, as {rank.by} says")
    return part, ", ".join(sources)


def _number(environment: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        got = f"no {name}" if text is None else f"{name}={text}"
        raise InputError(got=got, expected="a whole number, as the scheduler sets it", do=_DO)
    return int(text)
