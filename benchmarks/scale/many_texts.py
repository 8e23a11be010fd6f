"""Synthetic corpora of any size: texts of about 250 bytes in four classes, of the words of the embedded corpus by Zipf's law."""

import csv
from pathlib import Path

import numpy as np

from lugpi_core.corpora.load import load_corpus

CLASSES = ("animal", "artifact", "food", "person")
_ROWS_AT_ONCE = 4096
# Words of a text, the smallest and the largest number.
_WORDS = (20, 44)


def write_texts(path: Path, rows: int, *, seed: int = 0) -> int:
    """Write a CSV file with the columns text and label; return its size in bytes. No two texts are equal.

    Every fourth text has a word in quotation marks after a comma, so that its cell is quoted; every tenth a letter beyond ASCII.
    """
    words = sorted({word for example in load_corpus("demo").examples for word in example.text.split() if word.isalpha() and word.isascii()})
    chances = 1 / np.arange(1, len(words) + 1)
    ends = np.cumsum(chances / chances.sum())
    generator = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for start in range(0, rows, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, rows - start)
            lengths = generator.integers(*_WORDS, size=count)
            numbers = np.minimum(np.searchsorted(ends, generator.random(int(lengths.sum()))), len(words) - 1).tolist()
            place = 0
            for row, length in enumerate(lengths.tolist(), start=start):
                text = " ".join([words[number] for number in numbers[place : place + length]])
                place += length
                text += f', "{words[row % len(words)]}" {row}' if row % 4 == 0 else f" {row}"
                writer.writerow([text + " café" if row % 10 == 0 else text, CLASSES[row % len(CLASSES)]])
    return path.stat().st_size
