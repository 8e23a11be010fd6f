"""Flags that a command prints for the next one."""

from pathlib import Path

import pytest

from lugpi_core.command_line import parse
from lugpi_core.corpora.options import CorpusOptions
from train.options.distillation import StudentOptions
from train.options.tools import flags_of


@pytest.mark.parametrize("place", ["s3://runs/20ng", "runs/20ng"])
def test_an_address_is_printed_as_it_was_given(place: str) -> None:
    flags = flags_of(StudentOptions(dataset="demo", run_dir=Path(place)))
    assert flags[flags.index("--run-dir") + 1] == place


@pytest.mark.parametrize(
    "options",
    [
        CorpusOptions(dataset="demo", dedupe=True, stratify=False, limit=30, validation_file=Path("more.csv")),
        CorpusOptions(dataset="demo"),
        StudentOptions(dataset="demo", drop_unlabelled=True, stratify=False, teachers=("a", "b"), teacher_weights=(0.3, 0.7)),
        StudentOptions(dataset="demo", teachers=("a", "b"), teacher_weights="learnt", alpha=0.0, track=("tensorboard",)),
    ],
)
def test_the_flags_that_are_printed_are_read_as_the_same_options(options: CorpusOptions) -> None:
    """Switches are written without a value, which no command takes."""
    assert parse(type(options), flags_of(options), prog="test") == options
