"""``python -m lugpi``: what needs both the generator's and the teacher's side. Heavy imports are inside the functions."""

from collections.abc import Sequence
from typing import Any

from lugpi.options import SeeOptions
from lugpi_core.command_line import Command, run_one_of
from lugpi_core.runtime.libraries import start_up


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m lugpi`` on the arguments; return the exit status."""
    commands: dict[str, tuple[Command, type]] = {"see": (_see, SeeOptions)}
    about = "Look at what a teacher has learnt through the generator's decoder; see python -m featurize and python -m train for the rest."
    return run_one_of(commands, arguments, prog="python -m lugpi", about=about)


def _see(options: SeeOptions) -> dict[str, Any]:
    with start_up():
        from lugpi.see import see
        from lugpi_core.store.object_store import run_in_store

    with run_in_store(options.run_dir, options.scratch):
        return see(options)
