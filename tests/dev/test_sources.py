"""The sources of the embedded models: emoji, their names and groups, and synsets."""

import json
from pathlib import Path

import pytest

from dev.embedded_models.sources import CLDR, FONT, load_emoji, parse_labels, read_synsets, render
from dev.embedded_models.world import load_world
from lugpi_core.errors import InputError

XML = """<ldml><annotations>
<annotation cp="🦔">hedgehog | spiny</annotation><annotation cp="🦔" type="tts">hedgehog</annotation>
<annotation cp="❤">heart</annotation><annotation cp="❤" type="tts">red heart</annotation>
</annotations></ldml>"""


def cldr(folder: Path, *, xml: str = XML, labels: str = "[🦓-🦕] ; Animals ; mammal\n") -> Path:
    (folder / "annotations").mkdir(parents=True)
    (folder / "properties").mkdir()
    (folder / "annotations" / "en.xml").write_text(xml)
    (folder / "properties" / "labels.txt").write_text(labels)
    return folder


def test_labels_are_characters_ranges_and_sequences() -> None:
    text = "# comment\n[☺😀-😂{👨‍⚕️}] ; People ; face # more\n[😁❤️] ; Other ; heart\nno set ; a ; b\n[x] ; only\n"
    found = parse_labels(text)
    assert found == {"☺": "face", "😀": "face", "😁": "face", "😂": "face", "👨‍⚕": "face", "❤": "heart"}


def test_emoji_have_names_keywords_and_groups(tmp_path: Path) -> None:
    hedgehog, heart = load_emoji(cldr(tmp_path))
    assert (hedgehog.name, hedgehog.keywords, hedgehog.group) == ("hedgehog", ("hedgehog", "spiny"), "mammal")
    assert (heart.name, heart.group) == ("red heart", None)


def test_other_files_are_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unicode-cldr-core"):
        load_emoji(tmp_path)
    with pytest.raises(InputError, match="unicode-cldr-core"):
        load_emoji(cldr(tmp_path, xml="<ldml"))
    with pytest.raises(InputError, match="fonts-noto-color-emoji"):
        render([], font=tmp_path / "no.ttf", side_px=64)


def test_the_font_gives_each_image_once_on_transparent_ground() -> None:
    for path in (FONT, CLDR):
        if not path.exists():
            pytest.skip(f"no {path}")
    emoji, pictures = render(load_emoji(), side_px=64)
    assert pictures.shape == (len(emoji), 64, 64, 4)
    assert len(emoji) >= 1500
    assert {"red apple", "hedgehog"} <= {one.name for one in emoji}
    apple = pictures[[one.name for one in emoji].index("red apple")]
    red, green, blue, opaque = apple[32, 32]
    assert opaque == 255
    assert red > green + 50
    assert red > blue + 50
    assert apple[0, 0, 3] == 0


def wordnet(*synsets: dict[str, object]) -> list[str]:
    return [json.dumps({"hypernyms": [], "instance_of": [], "words": ["w"], "gloss": " a  gloss ", **one}) for one in synsets]


def test_synsets_have_hypernyms_but_none_that_is_held_out() -> None:
    lines = wordnet(
        {"id": "physicist", "lexfile": "noun.person", "instance_of": ["Einstein"], "hypernyms": ["scientist"]},
        {"id": "Einstein", "lexfile": "noun.person", "words": ["Albert_Einstein"]},
        {"id": "scientist", "lexfile": "noun.person"},
        {"id": "chemist", "lexfile": "noun.person", "hypernyms": ["scientist", "gone"]},
    )
    found = read_synsets(lines, held_out={"scientist"})
    assert sorted(found) == ["Einstein", "chemist", "physicist"]
    assert found["Einstein"].hypernyms == ("physicist",)
    assert found["Einstein"].words == ("Albert Einstein",)
    assert found["chemist"].hypernyms == found["physicist"].hypernyms == ()
    assert found["chemist"].gloss == "a gloss"


def test_malformed_synsets_are_refused(tmp_path: Path) -> None:
    for lines in (["no json"], ["{}"], ["7"]):
        with pytest.raises(InputError, match="lines that are not synsets"):
            read_synsets(lines, held_out=set())
    (tmp_path / "w.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="a gzipped JSON-lines file of synsets; check the path"):
        load_world(tmp_path / "w.gz")
