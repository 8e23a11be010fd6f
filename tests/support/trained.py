"""Two runs in which a model was trained in the same way, up to the order of additions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.learning.loop import validation_score


def history(run: Path, name: str) -> list[dict[str, Any]]:
    """Return the records of a model's epochs."""
    records: list[dict[str, Any]] = json.loads((run / name / "metrics.json").read_text())["history"]
    return records


def assert_same_training(run: Path, other: Path, name: str) -> None:
    """Compare losses to 1e-5, scores, and the logits of all texts."""
    one, two = history(run, name), history(other, name)
    assert [record["loss"] for record in two] == pytest.approx([record["loss"] for record in one], abs=1e-5)
    assert list(map(validation_score, two)) == list(map(validation_score, one))
    logits = [np.loadtxt(folder / name / "predictions.csv", delimiter=",", skiprows=1, usecols=(3, 4, 5)) for folder in (run, other)]
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=2e-4)
