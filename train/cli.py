"""``python -m train``: its commands and their flags. Heavy imports are inside the functions, so that --help is quick."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lugpi_core.command_line import Command, run_one_of
from lugpi_core.remote.address import address_of
from lugpi_core.runtime.libraries import start_up
from train.options.distillation import StudentOptions
from train.options.sweep import SweepOptions
from train.options.tables import TablesOptions
from train.options.tools import AuditOptions, EvaluateOptions, OnnxOptions, ReportOptions
from train.options.training import BaselineOptions, ImagesOptions, TeacherOptions


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m train`` on the arguments; return the exit status."""
    commands: dict[str, tuple[Command, type]] = {
        "baseline": (_in_run(_baseline), BaselineOptions),
        "images": (_in_run(_images), ImagesOptions),
        "teacher": (_in_run(_teacher), TeacherOptions),
        "student": (_in_run(_student), StudentOptions),
        "sweep": (_in_run(_sweep), SweepOptions),
        "evaluate": (_evaluate, EvaluateOptions),
        "onnx": (_onnx, OnnxOptions),
        "tables": (_in_run(_tables), TablesOptions),
        "audit": (_in_run(_audit), AuditOptions),
        "report": (_in_run(_report), ReportOptions),
    }
    about = "Train on a corpus and its token store, and use the models; they are written to runs/<dataset>/<name>/."
    return run_one_of(commands, arguments, prog="python -m train", about=about)


def _in_run(command: Command) -> Command:
    """Return a command that has at hand what its run has in an object store, and sends there what it writes."""

    def act(options: Any) -> dict[str, Any] | str:
        with start_up():
            from lugpi_core.store.object_store import run_in_store

        with run_in_store(options.run_dir, options.scratch):
            return command(options)

    return act


def _baseline(options: BaselineOptions) -> dict[str, Any]:
    with start_up():
        from train.models.commands import baseline

    return baseline(options)


def _images(options: ImagesOptions) -> dict[str, Any]:
    with start_up():
        from train.models.commands import images

    return images(options)


def _teacher(options: TeacherOptions) -> dict[str, Any]:
    with start_up():
        from train.models.commands import teacher

    return teacher(options)


def _student(options: StudentOptions) -> dict[str, Any]:
    with start_up():
        from train.models.commands import student

    return student(options)


def _sweep(options: SweepOptions) -> dict[str, Any]:
    with start_up():
        from train.tools.sweep import sweep

    return sweep(options)


def _evaluate(options: EvaluateOptions) -> dict[str, Any]:
    with start_up():
        from train.tools.evaluate import evaluate

    if address_of(options.model) or options.scratch:
        from train.models.model_folder import model_at

        options = replace(options, model=model_at(options.model, options.scratch), scratch=None)
    return evaluate(options)


def _onnx(options: OnnxOptions) -> dict[str, Any]:
    with start_up():
        from train.tools.onnx_export import onnx

    return onnx(options)


def _tables(options: TablesOptions) -> dict[str, Any]:
    with start_up():
        from train.evidence.tables import tables

    return tables(options)


def _audit(options: AuditOptions) -> dict[str, Any]:
    with start_up():
        from train.evidence.audit import audit

    return audit(options)


def _report(options: ReportOptions) -> dict[str, Any]:
    with start_up():
        from train.report.command import report

    return report(options)
