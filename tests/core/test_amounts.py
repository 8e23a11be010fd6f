"""Amounts in words."""

import pytest

from lugpi_core.amounts import duration, size


@pytest.mark.parametrize(("count", "words"), [(0, "0.0 MB"), (3_400_000, "3.4 MB"), (10**9, "1.00 GB"), (1_204_250_000_000, "1,204.25 GB")])
def test_sizes(count: int, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 minutes"), (7199, "120 minutes"), (7200, "2.0 hours"), (86400 * 3, "3.0 days")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
