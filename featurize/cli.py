"""``python -m featurize``: which command the arguments name. Heavy imports live inside the functions, so that --help is quick."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from featurize.options import (
    FeaturizeOptions,
    InfoOptions,
    InspectOptions,
    MergeOptions,
    MissingOptions,
    PlanOptions,
    ReduceOptions,
    ScoreOptions,
    VerifyOptions,
)
from lugpi_core.command_line import Command, run, run_one_of
from lugpi_core.runtime.libraries import start_up


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m featurize`` on the arguments; return the exit status."""
    commands: dict[str, tuple[Command, type]] = {
        "verify": (_of_run(_verify), VerifyOptions),
        "info": (_of_run(_info), InfoOptions),
        "inspect": (_inspect, InspectOptions),
        "score": (_score, ScoreOptions),
        "reduce": (_reduce, ReduceOptions),
        "plan": (_plan, PlanOptions),
        "missing": (_of_run(_missing), MissingOptions),
        "merge": (_of_run(_merge), MergeOptions),
    }
    if arguments and not arguments[0].startswith("-"):
        return run_one_of(commands, arguments, prog="python -m featurize", about="")
    return run(_featurize, FeaturizeOptions, arguments, prog="python -m featurize")


def _featurize(options: FeaturizeOptions) -> dict[str, Any]:
    with start_up():
        from featurize.run import featurize_command

    if options.ray is not None and not options.dry_run:
        from featurize.on_ray import featurize_on_ray

        return featurize_on_ray(options)
    return featurize_command(options)


def _of_run(command: Command) -> Command:
    """Return a command that has at hand what its run has in an object store."""

    def act(options: Any) -> dict[str, Any] | str:
        from lugpi_core.store.object_store import run_in_store

        with run_in_store(options.run_dir, options.scratch, writes=False):
            return command(options)

    return act


def _verify(options: VerifyOptions) -> dict[str, Any]:
    from featurize.maintain import verify

    return verify(options)


def _info(options: InfoOptions) -> dict[str, Any]:
    from featurize.inspect.info import info

    return info(options)


def _plan(options: PlanOptions) -> dict[str, Any]:
    from featurize.maintain import plan

    return plan(options)


def _missing(options: MissingOptions) -> str:
    from featurize.maintain import missing

    return missing(options)


def _merge(options: MergeOptions) -> dict[str, Any]:
    from featurize.maintain import merge

    return merge(options)


def _inspect(options: InspectOptions) -> dict[str, Any]:
    with start_up():
        from featurize.inspect.command import inspect_store
        from featurize.run import memory_in_one_line
        from lugpi_core.runtime.device import resolve_compute
        from lugpi_core.runtime.libraries import prepare_libraries
        from lugpi_core.store.object_store import run_in_store

    prepare_libraries()
    on_cuda = resolve_compute(options.device, "auto", half="float16").device == "cuda"
    room = memory_in_one_line("free memory, or use --device cpu" if on_cuda else "free memory")
    with room, ExitStack() as runs:
        for other in options.stores:
            runs.enter_context(run_in_store(other, options.scratch, writes=False))
        runs.enter_context(run_in_store(options.run_dir, options.scratch))
        return inspect_store(options)


def _score(options: ScoreOptions) -> dict[str, Any]:
    with start_up():
        from featurize.inspect.command import score_store
        from featurize.run import memory_in_one_line
        from lugpi_core.runtime.libraries import prepare_libraries
        from lugpi_core.store.object_store import run_in_store

    prepare_libraries()
    with memory_in_one_line("free memory, or score by a smaller encoder"), run_in_store(options.run_dir, options.scratch, writes=False):
        return score_store(options)


def _reduce(options: ReduceOptions) -> dict[str, Any]:
    with start_up():
        from featurize.inspect.command import reduce_store
        from featurize.run import memory_in_one_line
        from lugpi_core.runtime.libraries import prepare_libraries

    prepare_libraries()
    with memory_in_one_line("free memory"):
        return reduce_store(options)
