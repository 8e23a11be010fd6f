"""What the tests of featurize share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 13 texts, each with an image of its own, and two classes. Tests must not change the file."""
    path = tmp_path_factory.mktemp("data") / "own.csv"
    path.write_text("text,label\n" + "".join(f"text number {n},{'ab'[n % 2]}\n" for n in range(13)))
    return path
