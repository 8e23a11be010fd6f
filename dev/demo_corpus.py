"""Build the shipped corpus ``demo`` from WordNet: ``python -m dev.demo_corpus --wordnet PATH/wordnet-synsets.jsonl.gz``."""

import argparse
import csv
import gzip
import hashlib
import io
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lugpi_core.corpora.archives import decoded
from lugpi_core.corpora.corpus import SPLITS, Split
from lugpi_core.corpora.demo import DEMO_CSV, DEMO_MORE
from lugpi_core.corpora.word_stems import WORD, stem, words_of_name
from lugpi_core.errors import EXIT_BAD_INPUT, EXIT_OK, InputError
from lugpi_core.files import write_text

# Noun lexicographer files of things and scenes that an image can show.
TOPICS = ("act", "animal", "artifact", "body", "event", "food", "group", "location", "object", "person", "plant", "substance")
# Few labelled texts and a large test part: there images help most, and the gain is measured most precisely.
PER_TOPIC: dict[Split, int] = {"train": 40, "validation": 20, "test": 200}
MORE = 8_000
SHORTEST, LONGEST = 20, 160


@dataclass(frozen=True, kw_only=True)
class Gloss:
    """The content of one row of the file."""

    id: str
    text: str
    topic: str


def names_itself(text: str, names: Iterable[str]) -> bool:
    """Whether a text contains a word of any of the names, in any common inflection; words such as "of" do not count."""
    stems = {stem(word) for name in names for word in words_of_name(name)}
    return any(stem(word) in stems for word in WORD.findall(text))


def eligible_glosses(lines: Iterable[str], topics: Sequence[str]) -> list[Gloss]:
    """Return the usable glosses of synsets, one JSON object per line: of the right topic and length, unique, not naming what they describe.

    Raises:
        InputError: a line is not a synset.
    """
    glosses: list[Gloss] = []
    seen: Counter[str] = Counter()
    for number, line in enumerate(lines, start=1):
        try:
            synset = json.loads(line)
            identity, words, text = synset["id"], synset["words"], " ".join(synset["gloss"].split())
            topic = synset["lexfile"].removeprefix("noun.")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            got = f"line {number} of the synsets ({type(error).__name__}: {error})"
            raise InputError(got=got, expected="JSON with id, lexfile, words and gloss", do="use wordnet-synsets.jsonl.gz") from error
        seen[text.casefold()] += 1
        if topic in topics and SHORTEST <= len(text) <= LONGEST and not names_itself(text, [*words, topic]):
            glosses.append(Gloss(id=identity, text=text, topic=topic))
    return [gloss for gloss in glosses if seen[gloss.text.casefold()] == 1]


def choose(glosses: Sequence[Gloss], *, topics: Sequence[str], per_topic: dict[Split, int], seed: int) -> list[tuple[Gloss, Split]]:
    """Return the chosen glosses with their splits. The choice depends on the seed and on each id, not on the order of the glosses.

    Raises:
        InputError: a topic has too few glosses.
    """

    splits = [split for split in SPLITS for _ in range(per_topic[split])]
    rows: list[tuple[Gloss, Split]] = []
    for topic in topics:
        of_topic = sorted((gloss for gloss in glosses if gloss.topic == topic), key=lambda gloss: _place(gloss, seed))
        if len(of_topic) < len(splits):
            got = f"{len(of_topic):,} usable glosses of {topic}"
            raise InputError(got=got, expected=f"{len(splits):,} or more", do="use the whole wordnet-synsets.jsonl.gz")
        rows.extend(zip(of_topic, splits, strict=False))
    order = {split: place for place, split in enumerate(SPLITS)}
    return sorted(rows, key=lambda row: (order[row[1]], _place(row[0], seed)))


def _place(gloss: Gloss, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{gloss.id}".encode()).hexdigest()


def synset_lines(wordnet: Path) -> list[str]:
    """Return the lines of a gzipped JSON-lines file of synsets.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return decoded(gzip.decompress(wordnet.read_bytes()), where=str(wordnet)).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(got=f"{wordnet} ({error})", expected="a gzipped JSON-lines file of synsets", do="check the path") from error


def demo_csv(wordnet: Path, *, topics: Sequence[str] = TOPICS, per_topic: dict[Split, int] | None = None, seed: int = 0) -> bytes:
    """Return the bytes of ``demo.csv``; the same synsets and seed give the same bytes.

    Raises:
        InputError: the file is missing or damaged, or a topic has too few glosses.
    """
    rows = choose(eligible_glosses(synset_lines(wordnet), topics), topics=topics, per_topic=per_topic or PER_TOPIC, seed=seed)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "text", "label", "split"))
    writer.writerows((gloss.id, gloss.text, gloss.topic, split) for gloss, split in rows)
    return text.getvalue().encode()


def demo_more(wordnet: Path, *, topics: Sequence[str] = TOPICS, more: int = MORE, seed: int = 0) -> bytes:
    """Return the bytes of ``demo-more.txt``: glosses that are not in ``demo.csv``, unlabelled, one per line.

    They come in rounds of one of each topic that has any left, so the first lines are a smaller set of the same kind. Within a round the
    order says nothing about the topics.

    Raises:
        InputError: the file is missing or damaged, or there are too few glosses.
    """
    glosses = eligible_glosses(synset_lines(wordnet), topics)
    taken = {gloss.id for gloss, _ in choose(glosses, topics=topics, per_topic=PER_TOPIC, seed=seed)}
    left = sorted((gloss for gloss in glosses if gloss.id not in taken), key=lambda gloss: _place(gloss, seed))
    if len(left) < more:
        got = f"{len(left):,} usable glosses beside those of {DEMO_CSV.name}"
        raise InputError(got=got, expected=f"{more:,} or more", do="use the whole wordnet-synsets.jsonl.gz")
    of_topic: Counter[str] = Counter()
    rounds: list[tuple[int, Gloss]] = []
    for gloss in left:
        rounds.append((of_topic[gloss.topic], gloss))
        of_topic[gloss.topic] += 1
    # Another order than that of the rounds, in which a topic with many glosses comes before one with few.
    rounds.sort(key=lambda row: (row[0], _place(row[1], seed + 1)))
    return "".join(f"{gloss.text}\n" for _, gloss in rounds[:more]).encode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both files, whole or not at all; the last line of stdout is JSON. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dev.demo_corpus", description=__doc__)
    parser.add_argument("--wordnet", type=Path, required=True, help="wordnet-synsets.jsonl.gz")
    parser.add_argument("--out", type=Path, default=DEMO_CSV.parent, help="the folder to write to (default: the package's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default: %(default)s)")
    flags = parser.parse_args(arguments)
    try:
        contents = {DEMO_CSV.name: demo_csv(flags.wordnet, seed=flags.seed), DEMO_MORE.name: demo_more(flags.wordnet, seed=flags.seed)}
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    for name, content in contents.items():
        write_text(flags.out / name, content.decode())
    sums = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in contents.items()}
    print(json.dumps({"made": str(flags.out), **sums}))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
