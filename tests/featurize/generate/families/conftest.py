"""What the tests of the families share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tiny_pipelines import tiny_pipeline


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``tiny(family)``: the folder of a tiny pipeline, written once. Tests must not change it."""
    written: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in written:
            written[family] = tiny_pipeline(family, tmp_path_factory.mktemp("tiny") / family)
        return written[family]

    return folder
