"""Files of unlabelled texts: the same forms as those of a corpus."""

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, disable_progress_bars

from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.errors import InputError

TEXTS = ["first text", "zweiter Text: Käse"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("more.txt", "\r\n\n".join(TEXTS).encode("utf-16")),
        ("more.txt.gz", gzip.compress("\n".join(TEXTS).encode(), mtime=0)),
        ("more.tsv", "\n".join(["text", *TEXTS]).encode()),
        ("more.csv.gz", gzip.compress("\n".join(["text,x", *(f"{text},1" for text in TEXTS)]).encode(), mtime=0)),
        ("more.json", json.dumps([{"text": text} for text in TEXTS]).encode()),
        ("more.ndjson", "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()),
    ],
)
def test_unlabelled_texts_are_read_in_every_form(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    corpus = load_unlabelled(tmp_path / name, CorpusSettings())
    assert (corpus.name, [example.text for example in corpus.examples]) == ("more", TEXTS)


def test_nested_keys_name_unlabelled_texts_too(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps({"a": {"b": text, "c": "p"}}) for text in TEXTS))
    corpus = load_unlabelled(tmp_path / "more.jsonl", CorpusSettings(text_column="a.b", text_pair_column="a.c"))
    assert [(example.text, example.pair, example.prompt) for example in corpus.examples] == [(text, "p", f"{text} p") for text in TEXTS]


def test_a_saved_folder_has_unlabelled_texts(tmp_path: Path) -> None:
    disable_progress_bars()
    part = Dataset.from_dict({"text": TEXTS})
    part.save_to_disk(tmp_path / "more")
    assert [example.text for example in load_unlabelled(tmp_path / "more", CorpusSettings()).examples] == TEXTS
    DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match=r"both with the splits train, test; expected a folder without splits"):
        load_unlabelled(tmp_path / "both", CorpusSettings())


def test_a_text_a_line_is_no_pair(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("\n".join(TEXTS))
    with pytest.raises(InputError, match=r"more\.txt with one text per line, for a corpus of pairs"):
        load_unlabelled(tmp_path / "more.txt", CorpusSettings(text_pair_column="b"))
