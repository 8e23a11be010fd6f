"""Settings sliced out of the flags that inherit them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from lugpi_core.corpora.options import CorpusOptions, CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.fields import part_of


def test_a_part_has_the_values_of_the_whole_and_its_own_type() -> None:
    part = part_of(CorpusOptions(dataset="x", limit=7, test_file=Path("t.csv")), CorpusSettings)
    assert type(part) is CorpusSettings
    assert part == CorpusSettings(limit=7, test_file=Path("t.csv"))


def test_the_checks_of_a_part_run() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Unchecked(CorpusSettings):
        def __post_init__(self) -> None:
            """Check nothing."""

    with pytest.raises(InputError, match="got --limit 1"):
        part_of(Unchecked(limit=1), CorpusSettings)
