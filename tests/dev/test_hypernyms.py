"""The builder of the shipped table of hypernyms: what it takes of WordNet's files, in their own format."""

import gzip
import json
from pathlib import Path

import pytest

from dev.hypernyms import main, table_of
from lugpi_core.corpora.hypernyms import TABLE, Hypernyms

LICENCE = "  1 This software and database is being provided to you\n"
DATA = (
    "00001740 03 n 01 entity 0 002 ~ 00001930 n 0000 ~ 00009999 n 0000 | that which is\n"
    "00001930 03 n 01 physical_entity 0 001 @ 00001740 n 0000 | an entity  \n"
    '00002000 06 n 02 car 0 auto 0 003 #p 00001740 n 0000 @ 00001930 n 0000 @ 00009999 n 0000 | a vehicle; "he needs | a car"\n'
    "00003000 06 n 02 gondola 0 car 1 001 @ 00001740 n 0000 | part of an airship\n"
    "00004000 15 n 01 Mideast 0 001 @i 00001930 n 0000 | an area\n"
    "00009999 03 n 0a never 0 x_ray 0 a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 000 | ten words\n"
)
INDEX = (
    "at n 1 1 @ 1 0 00002000\n"
    "auto n 1 1 @ 1 0 00002000\n"
    "car n 2 2 @ #p 2 1 00002000 00003000\n"
    "gondola n 1 1 @ 1 0 00003000\n"
    "mideast n 1 1 @i 1 0 00004000\n"
    "physical_entity n 1 1 @ 1 0 00001930\n"
    "x n 1 0 1 0 00002000\n"
    "x-ray n 1 0 1 0 00009999\n"
)


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    (tmp_path / "data.noun").write_text(LICENCE + DATA)
    (tmp_path / "index.noun").write_text(LICENCE + INDEX)
    (tmp_path / "noun.exc").write_text("caren car\nzebren zebra\nauto car\n")
    return tmp_path


def test_the_table_has_first_senses_and_what_is_above_them(wordnet: Path) -> None:
    """Not the ten words, which no word of one part has first; no function word, no word of several parts or of one letter."""
    assert table_of(wordnet) == ("entity\t\t-1\nphysical entity\t\t0\ncar\tauto car caren\t1\ngondola\tgondola\t0\nMideast\tmideast\t1\n")


def test_the_command_writes_the_table_and_its_sum(wordnet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--wordnet", str(wordnet), "--out", str(wordnet / "out.gz")]) == 0
    content = (wordnet / "out.gz").read_bytes()
    assert gzip.decompress(content).decode() == table_of(wordnet)
    record = json.loads(capsys.readouterr().out)
    assert (record["synsets"], record["bytes"]) == (5, len(content))
    assert list(Hypernyms(table_of(wordnet)).above("autos")) == ["physical entity", "entity"]


@pytest.mark.parametrize(("name", "content"), [("data.noun", "no synset\n"), ("index.noun", "car n\n"), ("noun.exc", None)])
def test_files_that_are_not_of_wordnet_are_one_line_and_status_2(
    wordnet: Path, name: str, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (wordnet / name).unlink()
    if content is not None:
        (wordnet / name).write_text(content)
    assert main(["--wordnet", str(wordnet), "--out", str(wordnet / "out.gz")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: got {wordnet}")
    assert shown.count("\n") == 1
    assert not (wordnet / "out.gz").exists()


def test_the_shipped_table_is_in_the_form_that_the_builder_writes() -> None:
    lines = gzip.decompress(TABLE.read_bytes()).decode().splitlines()
    above = [int(line.split("\t")[2]) for line in lines]
    assert above.count(-1) == 1
    assert all(-1 <= its < len(lines) for its in above)
