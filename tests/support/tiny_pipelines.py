"""The tiny generators of the benchmarks, for tests."""

from benchmarks.generators.tiny_pipelines import PIPELINES, library_pipeline, tiny_pipeline

__all__ = ["PIPELINES", "library_pipeline", "tiny_pipeline"]
