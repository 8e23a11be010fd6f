"""The free sources: images of a colour font, their English names, keywords and groups, and the synsets of WordNet.

* ``fonts-noto-color-emoji`` (Debian; SIL Open Font License 1.1): the images, rendered by Pillow at the font's only size.
* ``unicode-cldr-core`` (Debian; Unicode licence): ``common/annotations/en.xml`` has names and keywords, ``common/properties/labels.txt``
  the groups.
* ``wordnet-synsets.jsonl.gz`` (Open English WordNet, CC BY 4.0): one synset per line, the same file as for the demo corpus.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.errors import InputError

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
CLDR = Path("/usr/share/unicode/cldr/common")
_ANNOTATIONS, _LABELS = "annotations/en.xml", "properties/labels.txt"
_FONT_SIZE = 109  # the only size of the font's bitmaps
_GLYPH_PX = 136
_VARIATION = "\N{VARIATION SELECTOR-16}"


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One emoji: its character(s), CLDR's name and keywords, and its group in the label file, if any."""

    characters: str
    name: str
    keywords: tuple[str, ...]
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class Synset:
    """One meaning: ``words`` without underscores, and as ``hypernyms`` the ids of the synsets that it is a kind or an instance of."""

    id: str
    topic: str
    words: tuple[str, ...]
    gloss: str
    hypernyms: tuple[str, ...]


def load_emoji(cldr: Path = CLDR) -> list[Emoji]:
    """Return every character sequence that CLDR names in English, in the file's order.

    Raises:
        InputError: the files are missing or are not CLDR's.
    """
    do = "install the Debian package unicode-cldr-core, or give --cldr FOLDER (its common/)"
    try:
        annotations = ET.parse(cldr / _ANNOTATIONS)
        labels = (cldr / _LABELS).read_text(encoding="utf-8")
    except (OSError, ET.ParseError, UnicodeDecodeError) as error:
        raise InputError(got=f"{cldr} ({error})", expected=f"a folder with {_ANNOTATIONS} and {_LABELS}", do=do) from None
    names: dict[str, str] = {}
    keywords: dict[str, tuple[str, ...]] = {}
    for annotation in annotations.iter("annotation"):
        characters, text = annotation.get("cp", ""), annotation.text or ""
        if annotation.get("type") == "tts":
            names[characters] = text
        else:
            keywords[characters] = tuple(word.strip() for word in text.split("|"))
    groups = parse_labels(labels)
    return [
        Emoji(characters=characters, name=name, keywords=keywords.get(characters, ()), group=groups.get(characters.replace(_VARIATION, "")))
        for characters, name in names.items()
    ]


def parse_labels(text: str) -> dict[str, str]:
    """Return the second-level label (``animal-mammal``) of every character (sequence) in a CLDR label file; the first label counts."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("#")[0].split(";")]
        if len(fields) < 3 or not fields[0].startswith("["):
            continue
        for characters in _unicode_set(fields[0].replace(_VARIATION, "")):
            groups.setdefault(characters, fields[2])
    return groups


def _unicode_set(text: str) -> Iterable[str]:
    """Yield the members of a UnicodeSet of characters, ranges ``a-b`` and sequences ``{abc}``."""
    for sequence, first, last in re.findall(r"\{([^}]*)\}|([^\[\]{}\s-])(?:-([^\[\]{}\s-]))?", text):
        if sequence:
            yield sequence
        else:
            yield from map(chr, range(ord(first), ord(last or first) + 1))


def render(emoji: Sequence[Emoji], *, font: Path = FONT, side_px: int) -> tuple[list[Emoji], NDArray[np.uint8]]:
    """Return the emoji that the font has, each image once, and the images: uint8 RGBA [N, side, side, 4].

    Raises:
        InputError: no such font.
    """
    from PIL import Image, ImageDraw, ImageFont

    try:
        face = ImageFont.truetype(str(font), _FONT_SIZE)
    except OSError as error:
        do = "install the Debian package fonts-noto-color-emoji, or give --font FILE"
        raise InputError(got=f"{font} ({error})", expected="a colour font with emoji", do=do) from None
    kept, pictures, seen = [], [], set[bytes]()
    for candidate in emoji:
        canvas = Image.new("RGBA", (2 * _GLYPH_PX, 2 * _GLYPH_PX))
        ImageDraw.Draw(canvas).text((0, 0), candidate.characters, font=face, embedded_color=True)
        box = canvas.getbbox()
        if box is None or box[2] > _GLYPH_PX or canvas.tobytes() in seen:
            continue  # the font has no image, several side by side, or the same one under another name
        seen.add(canvas.tobytes())
        kept.append(candidate)
        pictures.append(np.asarray(_centred(canvas.crop(box)).resize((side_px, side_px), Image.Resampling.LANCZOS)))
    return kept, np.stack(pictures)


def _centred(picture: Any) -> Any:
    from PIL import Image

    square = Image.new("RGBA", (_GLYPH_PX, _GLYPH_PX))
    square.paste(picture, ((_GLYPH_PX - picture.width) // 2, (_GLYPH_PX - picture.height) // 2))
    return square


def read_synsets(lines: Iterable[str], *, held_out: AbstractSet[str]) -> dict[str, Synset]:
    """Return all synsets by id, without those held out, which are not hypernyms of others either.

    Raises:
        InputError: a line is not a synset.
    """
    expected = "one JSON object per line with id, lexfile, words, gloss, hypernyms and instance_of"
    try:
        return _synsets_with_hypernyms([json.loads(line) for line in lines], held_out)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(got=f"lines that are not synsets ({error!r})", expected=expected, do="use wordnet-synsets.jsonl.gz") from None


def _synsets_with_hypernyms(records: Sequence[Mapping[str, Any]], held_out: AbstractSet[str]) -> dict[str, Synset]:
    hypernyms = {record["id"]: list(record["hypernyms"]) for record in records}
    for record in records:
        for instance in record["instance_of"]:  # the file lists the instances of a class under this name
            if instance in hypernyms:
                hypernyms[instance].append(record["id"])
    return {
        record["id"]: Synset(
            id=record["id"],
            topic=record["lexfile"],
            words=tuple(word.replace("_", " ") for word in record["words"]),
            gloss=" ".join(record["gloss"].split()),
            hypernyms=tuple(above for above in dict.fromkeys(hypernyms[record["id"]]) if above not in held_out and above in hypernyms),
        )
        for record in records
        if record["id"] not in held_out
    }
