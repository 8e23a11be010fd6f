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
        from featurize.run import memory_in_one_line
        from lugpi.see import see
        from lugpi_core.runtime.device import resolve_compute
        from lugpi_core.runtime.libraries import prepare_libraries
        from lugpi_core.store.object_store import run_in_store

    prepare_libraries()
    on_cuda = resolve_compute(options.device, "float32", half="float16").device == "cuda"
    do = "give fewer --starts" + ", or --device cpu" * on_cuda
    with memory_in_one_line(do), run_in_store(options.run_dir, options.scratch):
        return see(options)
