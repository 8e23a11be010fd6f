"""Data sets in the forms in which people have them: GLUE, tweet_eval, go_emotions, Jigsaw, SNLI, Amazon, Kaggle, Excel."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, disable_progress_bars

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings, default_run_dir
from lugpi_core.errors import InputError

N = 60
TEXTS = [f'a "fine" film, {n}' for n in range(N)]
OTHERS = [f"the second text {n}" for n in range(N)]
HALVES = [n % 2 for n in range(N)]
SENTIMENT = ClassLabel(names=["negative", "positive"])
NLI = ClassLabel(names=["entailment", "neutral", "contradiction"])


@pytest.fixture(autouse=True)
def _quiet() -> None:
    disable_progress_bars()


def _dataset(features: dict[str, Any], **columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns, features=Features(features))


def _hub(patch: pytest.MonkeyPatch, **parts: Dataset) -> None:
    patch.setattr("datasets.load_dataset", lambda *_, **__: DatasetDict(parts))


def _sst2(labels: list[int]) -> Dataset:
    features = {"idx": Value("int32"), "sentence": Value("string"), "label": SENTIMENT}
    return _dataset(features, idx=list(range(len(labels))), sentence=[f"{len(labels)} {n}" for n in range(len(labels))], label=labels)


def test_glue_sst2_hides_its_test_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    _hub(monkeypatch, train=_sst2(HALVES), validation=_sst2([0, 1] * 5), test=_sst2([-1] * 12))
    with pytest.raises(InputError, match=r"12 missing or unusable labels in label of hf:o/sst2, split test, .*--test-split validation"):
        load_corpus("hf:o/sst2", CorpusSettings(text_column="sentence"))
    corpus = load_corpus("hf:o/sst2", CorpusSettings(text_column="sentence", test_split="validation"))
    assert (corpus.label_names, corpus.counts()) == (("negative", "positive"), {"train": 54, "validation": 6, "test": 10})


def test_glue_mrpc_and_mnli_are_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"premise": Value("string"), "hypothesis": Value("string"), "label": NLI}
    part = _dataset(features, premise=TEXTS, hypothesis=OTHERS, label=[n % 3 for n in range(N)])
    hidden = _dataset(features, premise=TEXTS[:9], hypothesis=OTHERS[:9], label=[-1] * 9)
    _hub(monkeypatch, train=part, validation_matched=part, test_matched=hidden)
    with pytest.warns(UserWarning, match="split validation_matched, test_matched is not used"):
        corpus = load_corpus("hf:o/mnli", CorpusSettings(text_column="premise", text_pair_column="hypothesis"))
    first = corpus.examples[0]
    assert (first.text, first.pair, first.prompt) == (TEXTS[0], OTHERS[0], f"{TEXTS[0]} {OTHERS[0]}")
    assert corpus.label_names == ("entailment", "neutral", "contradiction")


def test_glue_stsb_is_a_number_for_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"sentence1": Value("string"), "sentence2": Value("string"), "label": Value("float32")}
    _hub(monkeypatch, train=_dataset(features, sentence1=TEXTS, sentence2=OTHERS, label=[n % 26 / 5 for n in range(N)]))
    settings = {"text_column": "sentence1", "text_pair_column": "sentence2"}
    with pytest.raises(InputError, match=r"missing or unusable labels .*the first 0\.2.*--task regression"):
        load_corpus("hf:o/stsb", CorpusSettings(**settings))
    corpus = load_corpus("hf:o/stsb", CorpusSettings(**settings, task="regression"))
    assert (corpus.task, corpus.has_pairs, corpus.targets()[:3].round(6).tolist()) == ("regression", True, pytest.approx([0, 0.2, 0.4]))


def test_a_tsv_of_glue_has_bare_quotation_marks(tmp_path: Path) -> None:
    lines = ["sentence\tlabel", *(f"{text}\t{half}" for text, half in zip(TEXTS, HALVES, strict=True))]
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    corpus = load_corpus(tmp_path / "train.tsv", CorpusSettings(text_column="sentence"))
    assert [example.text for example in corpus.examples] == TEXTS


def test_snli_has_rows_without_a_gold_label(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"premise": Value("string"), "hypothesis": Value("string"), "label": NLI}
    labels = [-1 if n % 20 == 7 else n % 3 for n in range(N)]
    _hub(monkeypatch, train=_dataset(features, premise=TEXTS, hypothesis=OTHERS, label=labels))
    settings = {"text_column": "premise", "text_pair_column": "hypothesis"}
    with pytest.raises(InputError, match=r"3 missing .* the first -1: rows, counted from 0, 7, 27, 47; .*--drop-unlabelled"):
        load_corpus("hf:o/snli", CorpusSettings(**settings))
    with pytest.warns(UserWarning, match="leaves out 3 rows of 60"):
        corpus = load_corpus("hf:o/snli", CorpusSettings(**settings, drop_unlabelled=True))
    assert corpus.examples[7].id == "row/8"


def test_tweet_eval_is_read_by_its_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"text": Value("string"), "label": ClassLabel(names=["anger", "joy"])}
    texts = {"train": TEXTS, "validation": OTHERS, "test": [f"t{n}" for n in range(N)]}
    _hub(monkeypatch, **{split: _dataset(part, text=of_split, label=HALVES) for split, of_split in texts.items()})
    assert load_corpus("hf:o/tweet_eval/emotion").label_names == ("anger", "joy")


EMOTIONS = [[0], [1, 2], [2], [0, 1]] * 15


def test_go_emotions_has_lists_of_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    features = {"text": Value("string"), "labels": List(ClassLabel(names=["admiration", "amusement", "anger"])), "id": Value("string")}
    part = _dataset(features, text=TEXTS, labels=EMOTIONS, id=[f"e{n}" for n in range(N)])
    _hub(monkeypatch, train=part)
    with pytest.raises(InputError, match=r"the first \[0\].*--task multi-label"):
        load_corpus("hf:o/go_emotions", CorpusSettings(label_column="labels"))
    settings = CorpusSettings(label_column="labels", task="multi-label")
    corpus = load_corpus("hf:o/go_emotions", settings)
    assert corpus.label_names == ("admiration", "amusement", "anger")
    assert [example.target for example in corpus.examples] == [tuple(numbers) for numbers in EMOTIONS]
    assert corpus.examples[3].id == "e3"
    part.to_parquet(tmp_path / "train.parquet")
    assert load_corpus(tmp_path / "train.parquet", settings).examples == corpus.examples


def test_jigsaw_has_a_column_of_0_and_1_for_each_label(tmp_path: Path) -> None:
    kinds = {"toxic": [n % 3 == 0 for n in range(N)], "insult": [n % 6 == 0 for n in range(N)], "threat": [n % 12 == 0 for n in range(N)]}
    frame = pd.DataFrame({"id": [f"{n:08x}" for n in range(N)], "comment_text": TEXTS} | {kind: map(int, of) for kind, of in kinds.items()})
    frame.to_csv(tmp_path / "train.csv", index=False, quoting=csv.QUOTE_ALL)
    corpus = load_corpus(
        tmp_path / "train.csv", CorpusSettings(text_column="comment_text", label_column="toxic,insult,threat", task="multi-label")
    )
    assert corpus.label_names == ("toxic", "insult", "threat")
    assert [example.target for example in corpus.examples[:7]] == [(0, 1, 2), (), (), (0,), (), (), (0, 1)]
    assert corpus.examples[10].id == "0000000a"
    with pytest.raises(InputError, match=r"no column 'gone' in .*the column of every example's label"):
        load_corpus(tmp_path / "train.csv", CorpusSettings(text_column="comment_text", label_column="toxic,gone", task="multi-label"))


def test_ag_news_numbers_its_classes_from_one_in_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame({"Class Index": [n % 4 + 1 for n in range(N)], "Title": TEXTS, "Description": OTHERS})
    frame.to_csv(tmp_path / "train.csv", index=False)
    corpus = load_corpus(
        tmp_path / "train.csv", CorpusSettings(text_column="Description", label_column="Class Index", prompt_column="Title")
    )
    assert (corpus.label_names, corpus.examples[0].prompt) == (("1", "2", "3", "4"), TEXTS[0])


def test_amazon_reviews_are_gzipped_lines_with_nested_keys(tmp_path: Path) -> None:
    rows = [{"review": {"body": text, "stars": float(n % 2 * 4 + 1)}, "style": {"Size:": "L"}} for n, text in enumerate(TEXTS)]
    (tmp_path / "Reviews.json.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    settings = {"text_column": "review.body", "label_column": "review.stars"}
    corpus = load_corpus(tmp_path / "Reviews.json.gz", CorpusSettings(**settings))
    assert (corpus.name, corpus.label_names, corpus.examples[1].text) == ("Reviews", ("1", "5"), TEXTS[1])
    assert default_run_dir(str(tmp_path / "Reviews.json.gz")) == Path("runs/Reviews")
    with pytest.raises(
        InputError, match=r"whose columns are review, style, review\.body, review\.stars, style\.Size:; .*did you mean 'review\.stars'"
    ):
        load_corpus(tmp_path / "Reviews.json.gz", CorpusSettings(**settings | {"label_column": "review.star"}))


def test_kaggles_spam_csv_is_windows_latin_1_with_empty_columns(tmp_path: Path) -> None:
    content = "v1,v2,,,\r\n" + "".join(f'{["ham", "spam"][half]},"£{n} – now",,,\r\n' for n, half in enumerate(HALVES))
    settings = CorpusSettings(text_column="v2", label_column="v1")
    (tmp_path / "spam.csv").write_bytes(content.encode("cp1252"))
    with pytest.raises(InputError, match=r"byte \d+ \(0xa3\) in line 2 of .*spam\.csv; expected UTF-8; .*iconv -f windows-1252 -t utf-8"):
        load_corpus(tmp_path / "spam.csv", settings)
    (tmp_path / "spam.csv").write_bytes(content.encode())
    assert load_corpus(tmp_path / "spam.csv", settings).label_names == ("ham", "spam")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.filterwarnings(r"ignore:.*between its cells, and is read so")
def test_exports_of_excel_are_read(tmp_path: Path, encoding: str, delimiter: str) -> None:
    with (tmp_path / "t.csv").open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\r\n")
        writer.writerows([["", "Text", "Label"], *zip(range(N), TEXTS, HALVES, strict=True), ["", "", ""]])
    corpus = load_corpus(tmp_path / "t.csv", CorpusSettings(text_column="Text", label_column="Label"))
    assert [example.text for example in corpus.examples] == TEXTS


# What datasets writes


def _labelled_part(texts: list[str]) -> Dataset:
    return _dataset({"text": Value("string"), "label": SENTIMENT}, text=texts, label=[n % 2 for n in range(len(texts))])


def test_a_parquet_file_of_datasets_keeps_its_class_names(tmp_path: Path) -> None:
    _labelled_part(TEXTS).to_parquet(tmp_path / "train.parquet")
    pd.DataFrame({"text": OTHERS[:10], "label": HALVES[:10]}).to_csv(tmp_path / "test.csv", index=False)
    corpus = load_corpus(tmp_path / "train.parquet", CorpusSettings(test_file=tmp_path / "test.csv"))
    assert corpus.label_names == ("negative", "positive")
    assert [example.label for example in corpus.examples] == HALVES + HALVES[:10]


def test_structs_of_a_parquet_file_are_columns(tmp_path: Path) -> None:
    inner = {"body": Value("string"), "label": SENTIMENT}
    rows = [{"body": text, "label": half} for text, half in zip(TEXTS, HALVES, strict=True)]
    _dataset({"inner": inner, "inner.label2": Value("string")}, inner=rows, **{"inner.label2": ["x", "y"] * 30}).to_parquet(
        tmp_path / "t.parquet"
    )
    corpus = load_corpus(tmp_path / "t.parquet", CorpusSettings(text_column="inner.body", label_column="inner.label"))
    assert (corpus.label_names, corpus.examples[1].text) == (("negative", "positive"), TEXTS[1])
    assert load_corpus(tmp_path / "t.parquet", CorpusSettings(text_column="inner.body", label_column="inner.label2")).label_names == (
        "x",
        "y",
    )
    with pytest.raises(InputError, match=r"no column 'body' in .*, whose columns are inner, inner\.label2"):
        load_corpus(tmp_path / "t.parquet", CorpusSettings(text_column="body", label_column="inner.label"))


def test_a_saved_folder_with_splits_keeps_them(tmp_path: Path) -> None:
    DatasetDict({"train": _labelled_part(TEXTS), "test": _labelled_part(OTHERS)}).save_to_disk(tmp_path / "saved.v1")
    corpus = load_corpus(tmp_path / "saved.v1")
    assert (corpus.name, corpus.label_names) == ("saved.v1", ("negative", "positive"))
    assert corpus.counts() == {"train": 54, "validation": 6, "test": 60}
    assert default_run_dir(str(tmp_path / "saved.v1")) == Path("runs/saved.v1")
    with pytest.raises(InputError, match=r"with the splits train, test, and other splits; expected one source"):
        load_corpus(tmp_path / "saved.v1", CorpusSettings(test_file=Path("t.csv")))


def test_a_saved_folder_without_splits_is_like_a_file(tmp_path: Path) -> None:
    _labelled_part(TEXTS).save_to_disk(tmp_path / "train")
    _labelled_part(OTHERS).save_to_disk(tmp_path / "test")
    assert load_corpus(tmp_path / "train").examples[0].id == "row/0"
    corpus = load_corpus(tmp_path / "train", CorpusSettings(test_file=tmp_path / "test"))
    assert corpus.counts() == {"train": 54, "validation": 6, "test": 60}


def test_a_copy_of_a_repository_is_read_like_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "copy" / "data"
    _labelled_part(TEXTS[:30]).to_parquet(folder / "train-00000-of-00002.parquet")
    _labelled_part(TEXTS[30:]).to_parquet(folder / "train-00001-of-00002.parquet")
    _labelled_part(OTHERS).to_parquet(folder / "test-00000-of-00001.parquet")
    corpus = load_corpus(tmp_path / "copy")
    assert [example.text for example in corpus.examples] == TEXTS + OTHERS
    assert corpus.label_names == ("negative", "positive")


@pytest.mark.parametrize(
    "content", [{}, {"README.md": "hello"}, {"dataset_info.json": "{"}, {"dataset_dict.json": '{"splits": ["train"]}'}]
)
def test_another_folder_is_refused_in_one_line(tmp_path: Path, content: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "folder").mkdir()
    for name, text in content.items():
        (tmp_path / "folder" / name).write_text(text)
    with pytest.raises(InputError, match=r"no data set in the folder .*folder \(.*\); expected a folder that Dataset\.save_to_disk wrote"):
        load_corpus(tmp_path / "folder")


def test_a_hub_name_without_its_prefix_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"for the Hugging Face hub write hf:stanfordnlp/imdb"):
        load_corpus("stanfordnlp/imdb")


# In memory


def test_labels_may_be_an_array_or_a_tensor() -> None:
    import numpy as np
    import torch

    expected = Corpus.from_texts(TEXTS, HALVES, label_names=["no", "yes"])
    for labels in (np.array(HALVES), torch.tensor(HALVES), torch.tensor(HALVES).bool(), pd.Series(HALVES), np.array(HALVES, np.float32)):
        assert Corpus.from_texts(TEXTS, labels, label_names=["no", "yes"]) == expected
    numbers = torch.arange(N, dtype=torch.bfloat16, requires_grad=True)
    assert Corpus.from_texts(TEXTS, numbers, task="regression").targets().tolist() == list(range(N))
    encoded = np.eye(3, dtype=np.int64)[[n % 3 for n in range(N)]]
    for several in (encoded, torch.tensor(encoded), list(encoded), encoded.tolist(), encoded.astype(bool)):
        corpus = Corpus.from_texts(TEXTS, several, task="multi-label", label_names=["a", "b", "c"])
        assert [example.target for example in corpus.examples] == [(n % 3,) for n in range(N)]
    with pytest.raises(InputError, match="labels of type ndarray; expected a list of labels"):
        Corpus.from_texts(TEXTS, encoded)


def test_missing_second_texts_are_refused_with_their_rows(tmp_path: Path) -> None:
    rows = [
        {"text": text, "pair": None if n == 3 else other, "label": n % 2} for n, (text, other) in enumerate(zip(TEXTS, OTHERS, strict=True))
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"1 value missing or not text in pair of .*: rows, counted from 0, 3;"):
        load_corpus(tmp_path / "t.jsonl", CorpusSettings(text_pair_column="pair"))
    with pytest.raises(
        InputError, match=r"no column 'second' .*the column of every example's second text; set text_pair_column \(--text-pair-column\)"
    ):
        load_corpus(tmp_path / "t.jsonl", CorpusSettings(text_pair_column="second"))
