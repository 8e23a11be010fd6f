"""Flags that a command prints for the next one."""

from pathlib import Path

import pytest

from train.options.distillation import StudentOptions
from train.options.tools import flags_of


@pytest.mark.parametrize("place", ["s3://runs/20ng", "runs/20ng"])
def test_an_address_is_printed_as_it_was_given(place: str) -> None:
    flags = flags_of(StudentOptions(dataset="demo", run_dir=Path(place)))
    assert flags[flags.index("--run-dir") + 1] == place
