"""The four corpora of the paper, from small archives of the same layout, and from the real ones if available."""

import gzip
import io
import re
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.corpora.paper import Genre, load_20ng, load_cwi, load_imdb, marked, without_subject_and_addresses, without_tags
from lugpi_core.errors import InputError
from tests.support.checkout import DATA


def _real(dataset: str, file_name: str, **flags: Any) -> Corpus:
    if not (DATA / file_name).is_file():
        pytest.skip(f"{file_name} is not in {DATA}")
    return load_corpus(dataset, CorpusSettings(data_dir=DATA, **flags))


def _tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


# IMDB


def _imdb_members() -> dict[str, bytes]:
    numbers = (10, 9, 100, 2, 33)
    members = {
        f"aclImdb/{part}/{side}/{number}_{rating}.txt": f"{part} {side}<br /><br />{number} é".encode()
        for part in ("test", "train")
        for side, rating in (("pos", 8), ("neg", 3))
        for number in numbers
    }
    return members | {"aclImdb/train/unsup/0_0.txt": b"unlabelled", "aclImdb/train/urls_pos.txt": b"http", "aclImdb/README": b"r"}


def _imdb(tmp_path: Path, members: dict[str, bytes] | None = None, **flags: Any) -> Corpus:
    _tar(tmp_path / "aclImdb_v1.tar.gz", members or _imdb_members())
    return load_imdb(CorpusSettings(data_dir=tmp_path, **flags), in_each_folder=5)


def test_imdb_is_in_order_with_a_tenth_of_train_as_validation(tmp_path: Path) -> None:
    corpus = _imdb(tmp_path)
    numbers = ("2", "9", "10", "33", "100")
    assert [example.id for example in corpus.examples] == [
        f"{part}/{side}/{number}_{rating}" for part in ("train", "test") for side, rating in (("neg", 3), ("pos", 8)) for number in numbers
    ]
    assert corpus.counts() == {"train": 9, "validation": 1, "test": 10}
    assert corpus.label_names == ("negative", "positive")
    assert all(example.label == ("/pos/" in example.id) for example in corpus.examples)
    assert all((example.split == "test") == example.id.startswith("test/") for example in corpus.examples)
    assert corpus.examples[0].text == corpus.examples[0].prompt == "train neg  2 é"


def test_the_split_seed_changes_only_validation_in_imdb(tmp_path: Path) -> None:
    splits = {tuple(example.split for example in _imdb(tmp_path, split_seed=seed).examples) for seed in range(8)}
    assert len(splits) > 1
    assert {split[10:] for split in splits} == {("test",) * 10}


@pytest.mark.parametrize(
    ("review", "text"),
    [
        ("one<br /><br />two", "one  two"),
        ('<a href="x.html">see</a> <BR>it<P class=big>', " see   it "),
        ("an <i>odd</i> <!-- <b> --> one", "an  odd    one"),
        ("a < b and c > d", "a < b and c > d"),
        ("i <3 this <grin> <SPOILER> 1<2>0", "i <3 this <grin> <SPOILER> 1<2>0"),
        ("a <b and c> d, x<y", "a <b and c> d, x<y"),
        ("<http://example.org> <<<br />", "<http://example.org> << "),
        ("<br", "<br"),
    ],
)
def test_only_html_tags_leave_a_review(review: str, text: str) -> None:
    assert without_tags(review) == text


@given(st.text(alphabet="ab<3 ", max_size=40))
def test_prose_without_a_closing_bracket_is_never_changed(review: str) -> None:
    assert without_tags(review) == review


def test_a_missing_review_is_counted(tmp_path: Path) -> None:
    members = _imdb_members()
    del members["aclImdb/test/pos/9_8.txt"]
    with pytest.raises(InputError, match=r"got 4 reviews in aclImdb/test/pos .*expected 5;"):
        _imdb(tmp_path, members)


def test_a_review_that_is_not_utf8_or_is_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0xe9.*aclImdb/test/pos/9_8\.txt"):
        _imdb(tmp_path, _imdb_members() | {"aclImdb/test/pos/9_8.txt": b"caf\xe9"})
    with pytest.raises(InputError, match="1 empty text in text of imdb: examples test/pos/9_8"):
        _imdb(tmp_path, _imdb_members() | {"aclImdb/test/pos/9_8.txt": b"<br />"})


# 20 Newsgroups

POST = b"From: ann@x.edu (Ann)\nSubject: Re: caf\xe9\n\nbob@y.com writes:\n> Subject: old\nSubject: quoted\ntext %d\n"


def _news_members() -> dict[str, bytes]:
    return {f"20news-18828/{group}/{number}": POST % number for group in ("sci.med", "alt.atheism") for number in (10, 9, 100, 1, 20)}


def _news(tmp_path: Path, members: dict[str, bytes] | None = None, **flags: Any) -> Corpus:
    _tar(tmp_path / "20news-18828.tar.gz", members or _news_members())
    return load_20ng(CorpusSettings(data_dir=tmp_path, **flags), documents=10, groups=2)


def test_20ng_is_sorted_by_group_and_number_and_cut_by_thirds(tmp_path: Path) -> None:
    corpus = _news(tmp_path)
    assert [example.id for example in corpus.examples] == [
        f"{group}/{n}" for group in ("alt.atheism", "sci.med") for n in (1, 9, 10, 20, 100)
    ]
    assert corpus.counts() == {"train": 6, "validation": 0, "test": 4}  # ceil(3.3), floor(0.6)
    assert corpus.label_names == ("alt.atheism", "sci.med")
    assert [example.label for example in corpus.examples] == [0] * 5 + [1] * 5
    assert (
        corpus.examples[0].text
        == "From: ann@x.edu (Ann)\nSubject: Re: café\n\nbob@y.com writes:\n> Subject: old\nSubject: quoted\ntext 1\n"
    )
    assert corpus.examples[0].prompt == "From:  (Ann)\n\n writes:\n> Subject: old\nSubject: quoted\ntext 1"


@pytest.mark.parametrize(
    ("document", "prompt"),
    [
        ("From: a <a@b.c>\nSubject: one\n two\n\tthree\nLines: 3\n\nbody", "From: a \nLines: 3\n\nbody"),
        ("Subject: one\nFrom: uni!host!joe%x@b-c.ac.uk\n\nprice @ 5, a@b. Bye", "From: \n\nprice @ 5, . Bye"),
        ("SUBJECT: x\n\nbody", "body"),
        ("Subject: x\nno blank line\nSubject: quoted", "no blank line\nSubject: quoted"),
        ("no header at all", "no header at all"),
        ("From: a@b.c\nSubject: tools for sale\n\n", "From: \nSubject: tools for sale"),
        ("a@b.c", "a@b.c"),
    ],
)
def test_a_newsgroup_prompt_has_no_subject_or_address_and_is_never_empty(document: str, prompt: str) -> None:
    assert without_subject_and_addresses(document) == prompt


@pytest.mark.timeout(10)
def test_a_long_run_without_a_blank_takes_linear_time() -> None:
    run = "x." * 200_000
    assert without_subject_and_addresses(f"From: a\n\n{run} a@b.c") == f"From: a\n\n{run}"


def _date_file(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "20news-bydate-split.tsv.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def _by_date() -> dict[str, str]:
    names = [name.removeprefix("20news-18828/") for name in _news_members()]
    return {name: "test" if name.endswith("9") else "train" for name in names}


def test_by_date_the_shipped_map_and_the_archive_agree(tmp_path: Path) -> None:
    _tar(tmp_path / "20news-bydate.tar.gz", {f"20news-bydate-{split}/{name}": b"other text" for name, split in _by_date().items()})
    from_archive = _news(tmp_path, split_by="date")
    _date_file(tmp_path, [f"{name}\t{split}" for name, split in _by_date().items()])
    from_map = _news(tmp_path, split_by="date")
    assert from_map == from_archive
    assert [example.id for example in from_map.examples if example.split == "test"] == ["alt.atheism/9", "sci.med/9"]


def test_a_document_without_a_date_split_is_named(tmp_path: Path) -> None:
    _date_file(tmp_path, [f"{name}\t{split}" for name, split in _by_date().items() if name != "sci.med/20"])
    with pytest.raises(InputError, match=r"no split for 1 documents, sci\.med/20 the first, in .*split\.tsv\.gz"):
        _news(tmp_path, split_by="date")


def test_a_corrupt_date_map_is_an_error(tmp_path: Path) -> None:
    _date_file(tmp_path, ["sci.med/1\ttrain", "sci.med/9\tyesterday"])
    with pytest.raises(InputError, match=r"'yesterday' in .*line 2"):
        _news(tmp_path, split_by="date")
    (tmp_path / "20news-bydate-split.tsv.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError, match="damaged file"):
        _news(tmp_path, split_by="date")


def test_unexpected_counts_of_groups_or_documents_are_errors(tmp_path: Path) -> None:
    members = _news_members()
    with pytest.raises(InputError, match="got 3 newsgroups"):
        _news(tmp_path, members | {"20news-18828/sci.space/1": POST % 1})
    with pytest.raises(InputError, match="got 11 documents"):
        _news(tmp_path, members | {"20news-18828/sci.med/11": POST % 1})


# Complex word identification


def _row(sentence: str, start: object, end: object, *, target: str = "t", binary: str = "1") -> str:
    return "\t".join(("HIT", sentence, str(start), str(end), target, "10", "10", "1", "0", binary, "0.05"))


def _cwi(tmp_path: Path, *, train: list[str] | None = None, genre: Genre = "News", dev: bytes | None = None) -> Corpus:
    good = [_row("The barren “islands” lie", 4, 10, binary="1"), _row('A "quoted\x85 one', 2, 9, binary="0")]
    members = {
        f"traindevset/english/{genre}_Train.tsv": "".join(f"{row}\n" for row in train or good).encode(),
        f"traindevset/english/{genre}_Dev.tsv": "".join(f"{row}\n" for row in good).encode() if dev is None else dev,
        f"testset/english/{genre}_Test.tsv": "\n".join(good[:1]).encode(),
        f"__MACOSX/testset/english/._{genre}_Test.tsv": b"\0",
    }
    with zipfile.ZipFile(tmp_path / "cwishareddataset.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return load_cwi(genre, CorpusSettings(data_dir=tmp_path), rows=(2, 2, 1))


def test_cwi_marks_the_target_and_prompts_with_it_alone(tmp_path: Path) -> None:
    corpus = _cwi(tmp_path)
    assert corpus.counts() == {"train": 2, "validation": 2, "test": 1}
    assert [example.id for example in corpus.examples] == ["train/0", "train/1", "validation/0", "validation/1", "test/0"]
    assert corpus.label_names == ("simple", "complex")
    assert [example.label for example in corpus.examples] == [1, 0, 1, 0, 1]
    assert (corpus.separator, corpus.name) == ("[SEP]", "cwi-news")
    assert corpus.examples[0].text == "The [SEP] barren [SEP] “islands” lie"
    assert corpus.examples[1].text == 'A [SEP] "quoted [SEP]\x85 one'
    assert [example.prompt for example in corpus.examples[:2]] == ["barren", '"quoted']


def test_wikinews_offsets_include_the_prefix(tmp_path: Path) -> None:
    rows = [_row("#37-1 Guatemalan Court", 6, 16), _row("#4-12 It said so", 9, 13, binary="0")]
    corpus = _cwi(tmp_path, train=rows, genre="WikiNews")
    assert [example.text for example in corpus.examples[:2]] == ["[SEP] Guatemalan [SEP] Court", "It [SEP] said [SEP] so"]
    assert corpus.name == "cwi-wikinews"


def test_the_offsets_win_over_the_target_column() -> None:
    assert marked("the bank\u2019s loss", 4, 10) == ("the [SEP] bank\u2019s [SEP] loss", "bank\u2019s")


@given(st.text(alphabet="ab c", max_size=8), st.text(alphabet="xy", min_size=1, max_size=5), st.text(alphabet="ab c", max_size=8))
def test_removing_the_marks_restores_the_sentence(before: str, target: str, after: str) -> None:
    text, found = marked(f"#1-2 {before}{target}{after}", 5 + len(before), 5 + len(before) + len(target))
    assert found == target
    assert text.replace(f"[SEP] {target} [SEP]", target) == before + target + after


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a\tb\tc", "3 columns in line 2"),
        (_row("word", 0, 4) + "\t1", "12 columns in line 2"),
        (_row("word", "x", 4), "offsets 'x' to '4' in line 2"),
        (_row("word", 0, "4.0"), r"offsets '0' to '4\.0' in line 2"),
        (_row("word", 0, 5), "offsets '0' to '5' in line 2"),
        (_row("word", 2, 2), "offsets '2' to '2' in line 2"),
        (_row("word", -3, 2), "offsets '-3' to '2' in line 2"),
        (_row("a b", 1, 2), "offsets '1' to '2' in line 2"),
        (_row("#37-1 word", 0, 8), "offsets '0' to '8' in line 2"),
        (_row("word", 0, 4, binary="2"), "label '2' in line 2"),
    ],
)
def test_a_corrupt_cwi_row_names_file_and_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"{message} of traindevset/english/News_Train\.tsv in .*cwishareddataset\.zip"):
        _cwi(tmp_path, train=[_row("word", 0, 4), row])


def test_cwi_rows_are_counted_and_must_be_utf8(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got 1 rows in traindevset/english/News_Train\.tsv .*expected 2"):
        _cwi(tmp_path, train=[_row("word", 0, 4)])
    with pytest.raises(InputError, match=r"0xff.* line 2 of traindevset/english/News_Dev\.tsv"):
        _cwi(tmp_path, dev=b"a\n\xff\n")


# Dispatch


@pytest.mark.parametrize(("name", "hint"), [("20mg", "did you mean '20ng'"), ("cwi-wiki-news", "cwi-wikinews"), ("zzz", "choose one of")])
def test_an_unknown_dataset_gets_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=rf"--dataset {name};.*{hint}"):
        load_corpus(name)


@pytest.mark.parametrize("dataset", ["20ng", "imdb", "cwi-news", "cwi-wikinews"])
def test_a_small_archive_is_not_mistaken_for_the_real_one(tmp_path: Path, dataset: str) -> None:
    _imdb(tmp_path)
    _news(tmp_path)
    for genre in get_args(Genre):
        if dataset == f"cwi-{genre.lower()}":
            _cwi(tmp_path, genre=genre)
    with pytest.raises(InputError, match=r"expected (12,500|20|14,002|7,746); replace that file"):
        load_corpus(dataset, CorpusSettings(data_dir=tmp_path))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"split_by": "date"}, "--split-by date"),
        ({"text_column": "body"}, "--text-column body"),
        ({"prompt_column": "body"}, "--prompt-column body"),
        ({"test_file": Path("t.csv")}, "--test-file t.csv"),
        ({"split_seed": 1}, "--split-seed 1"),
        ({"limit": 10**6}, "--limit 1000000"),
        ({"data_dir": Path("d")}, "--data-dir d"),
    ],
)
def test_a_setting_without_effect_warns(flags: dict[str, object], named: str) -> None:
    with pytest.warns(UserWarning, match=f"^{named} has no effect on demo") as caught:
        load_corpus("demo", CorpusSettings(**flags))
    assert len(caught) == 1


def test_a_setting_with_effect_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus = load_corpus("demo", CorpusSettings(split_seed=1, limit=1560))
    assert corpus.counts() == {"train": 240, "validation": 120, "test": 1200}


# The real corpora


@pytest.fixture(scope="module")
def news() -> Corpus:
    return _real("20ng", "20news-18828.tar.gz")


@pytest.fixture(scope="module")
def imdb() -> Corpus:
    return _real("imdb", "aclImdb_v1.tar.gz")


def test_the_real_20ng_has_the_papers_splits(news: Corpus) -> None:
    assert news.counts() == {"train": 11_353, "validation": 1_261, "test": 6_214}
    assert len(news.label_names) == 20
    assert len({example.id for example in news.examples}) == 18_828
    assert all(re.search(r"\w", example.prompt.removeprefix("From:")) for example in news.examples)


def test_the_real_20ng_by_date_has_the_bydate_splits(news: Corpus) -> None:
    by_date = _real("20ng", "20news-bydate-split.tsv.gz", split_by="date")
    assert by_date.counts() == {"train": 10_172, "validation": 1_130, "test": 7_526}
    assert [example.text for example in by_date.examples] == [example.text for example in news.examples]


def test_the_real_imdb_has_the_papers_splits(imdb: Corpus) -> None:
    assert imdb.counts() == {"train": 22_500, "validation": 2_500, "test": 25_000}
    assert sum(example.label for example in imdb.examples) == 25_000
    assert not any("<br" in example.text for example in imdb.examples)
    assert sum("<3" in example.text for example in imdb.examples) == 4
    assert imdb.examples[0].id == "train/neg/0_3"


@pytest.mark.parametrize(("dataset", "counts"), [("cwi-news", (14_002, 1_764, 2_095)), ("cwi-wikinews", (7_746, 870, 1_287))])
def test_the_real_cwi_has_the_tasks_splits(dataset: str, counts: tuple[int, int, int]) -> None:
    corpus = _real(dataset, "cwishareddataset.zip")
    assert tuple(corpus.counts().values()) == counts
    assert all(example.text.count("[SEP]") == 2 and not example.text.startswith("#") for example in corpus.examples)
    assert len({example.id for example in corpus.examples}) == sum(counts)
