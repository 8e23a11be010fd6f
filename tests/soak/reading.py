"""Random batches of a reader, compared with the expected rows. Imports little, because every spawned process imports this module."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.store.reader import ColumnReader

BATCH = 14


def wrong_rows(
    readers: list[ColumnReader], expected: list[Mapping[str, NDArray[Any]]], seed: int, epochs: int, results: Path | None = None
) -> int:
    """Read all rows of all columns in random batches, ``epochs`` times; return how many differ from the expected ones."""
    chance, wrong = random.Random(seed), 0
    for _ in range(epochs):
        rows = chance.sample(range(len(readers[0])), len(readers[0]))
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            for reader, right in zip(readers, expected, strict=True):
                got = reader.gather_stored(batch)
                same = [(got[name] == right[name][batch]).reshape(len(batch), -1).all(axis=1) for name in right]
                wrong += int(np.count_nonzero(~np.logical_and.reduce(same)))
    if results is not None:
        (results / f"{seed}.json").write_text(json.dumps(wrong))
    return wrong
