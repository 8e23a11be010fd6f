"""The builder of the shipped corpus: which glosses it takes, and that it gives the shipped files again to the byte."""

import gzip
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dev.demo_corpus import (
    TOPICS,
    demo_csv,
    demo_more,
    eligible_glosses,
    main,
    names_itself,
    stem,
)
from lugpi_core.corpora.corpus import Split
from lugpi_core.corpora.demo import DEMO_CSV, DEMO_MORE, load_demo
from lugpi_core.errors import InputError
from tests.support.checkout import DATA

WORDNET = DATA / "wordnet-synsets.jsonl.gz"
PER_TOPIC: dict[Split, int] = {"train": 3, "validation": 2, "test": 4}
LETTERS = "abcdefghijklmnop"


def _synset(identity: str, gloss: str, *, words: tuple[str, ...] = ("zzz",), topic: str = "food") -> str:
    return json.dumps({"id": identity, "lexfile": f"noun.{topic}", "words": words, "gloss": gloss})


def _many() -> list[str]:
    return [_synset(f"{t}:{a}", f"a thing of the kind {a * 3} that is {t} to eat", topic=t) for t in ("food", "plant") for a in LETTERS]


def _wordnet(path: Path, lines: list[str]) -> Path:
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def _csv_of(path: Path, *, seed: int = 0) -> bytes:
    return demo_csv(path, topics=("food", "plant"), per_topic=PER_TOPIC, seed=seed)


def _usable() -> list[str]:
    return [line.replace("is food to", "is good to").replace("is plant to", "is fine to") for line in _many()]


def test_the_shipped_glosses_are_short_unique_and_never_name_themselves() -> None:
    examples = load_demo().examples
    assert all(20 <= len(example.text) <= 160 and example.prompt == example.text for example in examples)
    assert len({example.text.casefold() for example in examples}) == len({example.id for example in examples}) == 3_120
    assert all(not names_itself(example.text, [TOPICS[example.label], example.id.split(":")[1]]) for example in examples)


def test_the_builder_gives_the_shipped_files_again() -> None:
    if not WORDNET.is_file():
        pytest.skip(f"{WORDNET} is not there")
    assert demo_csv(WORDNET) == DEMO_CSV.read_bytes()
    assert demo_more(WORDNET) == DEMO_MORE.read_bytes()


def test_the_same_seed_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    lines = _usable()
    first = _csv_of(_wordnet(tmp_path / "a.gz", lines))
    random.Random(1).shuffle(lines)
    assert _csv_of(_wordnet(tmp_path / "b.gz", lines)) == first
    assert _csv_of(tmp_path / "b.gz", seed=1) != first
    assert first.startswith(b"id,text,label,split\n")
    rows = [row.rsplit(",", 2)[1:] for row in first.decode().splitlines()[1:]]
    assert Counter(map(tuple, rows)) == {(t, s): n for t in ("food", "plant") for s, n in PER_TOPIC.items()}


@pytest.mark.parametrize(
    "words",
    [
        "perch perches",
        "run running runs",
        "berry berries",
        "house houses housed",
        "bake baking baker bakers",
        "dog dog's DOGS",
        "glass glasses",
    ],
)
def test_inflections_of_a_word_share_a_stem(words: str) -> None:
    assert len({stem(word) for word in words.split()}) == 1


def test_different_words_keep_different_stems() -> None:
    assert len({stem(word) for word in ("cat", "car", "perch", "grass", "bed", "king", "gas", "fly")}) == 8


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("a small perch of India", ["climbing_perch"], True),
        ("two CLIMBERS meet here", ["climbing_perch"], True),
        ("a superchef of India", ["climbing_perch"], False),
        ("the top of the world", ["body_of_water"], False),
        ("the lion's den", ["lion"], True),
    ],
)
def test_a_gloss_that_names_itself_is_found_by_whole_words(text: str, names: list[str], expected: bool) -> None:
    assert names_itself(text, names) is expected


def test_only_fitting_glosses_are_eligible() -> None:
    lines = [
        _synset("good", "eaten  with a spoon\n from a bowl"),
        _synset("own", "a stew of beef and of carrots", words=("beef_stew",)),
        _synset("named", "foods of the sea and the shore"),
        _synset("short", "eaten with spoons"),
        _synset("long", "eaten " * 27),
        _synset("twin1", "Something that is twice here"),
        _synset("twin2", "something that is twice here", topic="verb.x"),
        _synset("other", "eaten with a fork from a plate", topic="time"),
    ]
    assert [(gloss.id, gloss.text) for gloss in eligible_glosses(lines, ("food",))] == [("good", "eaten with a spoon from a bowl")]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"id": "a", "lexfile": "noun.food", "words": [], "gloss": 3}'])
def test_a_line_that_is_no_synset_is_named(line: str) -> None:
    with pytest.raises(InputError, match="line 2 of the synsets"):
        eligible_glosses([_synset("a", "x"), line], ("food",))


def test_too_few_glosses_of_a_topic_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got 8 usable glosses of plant; expected 9 or more"):
        _csv_of(_wordnet(tmp_path / "a.gz", _usable()[:24]))


@pytest.mark.parametrize("content", [None, b"no gzip", gzip.compress(b"x" * 999, mtime=0)[:-9]], ids=["missing", "no gzip", "cut"])
def test_a_bad_synset_file_is_one_line_and_status_2(tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.gz"
    if content is not None:
        path.write_bytes(content)
    assert main(["--wordnet", str(path), "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: got {path}")
    assert shown.count("\n") == 1
    assert not list(tmp_path.glob("demo*"))


def _many_of_all_topics(*, of_the_last: int = 1_000) -> list[str]:
    counts = {**dict.fromkeys(TOPICS, 1_000), TOPICS[-1]: of_the_last}
    return [
        _synset(f"{t}:{n}", f"number {n} of those {'x' * k} told apart", topic=t) for k, t in enumerate(TOPICS) for n in range(counts[t])
    ]


def test_unlabelled_glosses_come_in_rounds_whose_order_does_not_tell_the_topics(tmp_path: Path) -> None:
    source = _wordnet(tmp_path / "w.gz", _many_of_all_topics(of_the_last=300))
    lines = demo_more(source).decode().splitlines()
    topics = [TOPICS[len(line.split()[4]) if line.split()[4] != "told" else 0] for line in lines]
    assert len(lines) == 8_000
    assert Counter(topics[: 40 * 12]) == dict.fromkeys(TOPICS, 40)
    assert Counter(topics[40 * 12 : 41 * 11 + 40]) == dict.fromkeys(TOPICS[:-1], 1)  # the last topic has no more
    last = Counter(topics[start + 11] for start in range(0, 40 * 12, 12))
    assert max(last.values()) < 12


def test_too_few_unlabelled_glosses_are_an_error(tmp_path: Path) -> None:
    lines = [line for line in _many_of_all_topics() if int(line.split('"id": "')[1].split('"')[0].split(":")[1]) < 900]
    with pytest.raises(InputError, match=r"got 7,680 usable glosses beside those of demo\.csv; expected 8,000 or more"):
        demo_more(_wordnet(tmp_path / "w.gz", lines))


def test_the_command_writes_both_files_and_their_sums(tmp_path: Path) -> None:
    lines = _many_of_all_topics()
    source, out = _wordnet(tmp_path / "w.gz", lines), tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-W", "error", "-m", "dev.demo_corpus", "--wordnet", str(source), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    record = json.loads(done.stdout.splitlines()[-1])
    for name, content in (("demo.csv", demo_csv(source)), ("demo-more.txt", demo_more(source))):
        assert (out / name).read_bytes() == content
        assert record[name]["bytes"] == len(content)
    assert sorted(path.name for path in out.iterdir()) == ["demo-more.txt", "demo.csv"]
