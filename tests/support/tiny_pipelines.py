"""The tiny generators of the benchmarks, for tests: each is written once by a process, and copied."""

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.generators import tiny_pipelines
from benchmarks.generators.tiny_pipelines import PIPELINES, library_pipeline

__all__ = ["PIPELINES", "library_pipeline", "tiny_pipeline"]

_WRITTEN = TemporaryDirectory(prefix="tiny-pipelines-")


def tiny_pipeline(family: str, folder: Path, **changes: Any) -> Path:
    """Write a pipeline whose denoiser's configuration has ``changes``; return its folder."""
    if changes:
        return tiny_pipelines.tiny_pipeline(family, folder, **changes)
    return Path(shutil.copytree(_written(family), folder, dirs_exist_ok=True))


@cache
def _written(family: str) -> Path:
    return tiny_pipelines.tiny_pipeline(family, Path(_WRITTEN.name, family))
