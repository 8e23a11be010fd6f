"""The four corpora of the paper, read from their original archives."""

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lugpi_core.corpora.archives import Archive, decoded, find_archive, tar_members, zip_member
from lugpi_core.corpora.corpus import Corpus, Example, Split
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.corpora.splits import VALIDATION_PERCENT, cut_from_train, seeded_splits, share_down, share_up
from lugpi_core.corpora.texts import checked_texts
from lugpi_core.errors import InputError

Genre = Literal["News", "WikiNews"]
SEPARATOR = "[SEP]"
NEWS_TEST_PERCENT = 33

IMDB = Archive(
    file_name="aclImdb_v1.tar.gz",
    urls=("https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",),
    checksums=(("md5", "7c2ac02c03563afcf9b574c7e56c153a"),),
)
NEWS = Archive(
    file_name="20news-18828.tar.gz",
    urls=(
        "http://qwone.com/~jason/20Newsgroups/20news-18828.tar.gz",
        "https://web.archive.org/web/2020id_/http://qwone.com/~jason/20Newsgroups/20news-18828.tar.gz",
    ),
)
NEWS_BY_DATE = Archive(
    file_name="20news-bydate.tar.gz",
    urls=("https://ndownloader.figshare.com/files/5975967", "http://qwone.com/~jason/20Newsgroups/20news-bydate.tar.gz"),
    checksums=(("sha256", "8f1b2514ca22a5ade8fbb9cfa5727df95fa587f4c87b786e15c759fa66d95610"),),
)
NEWS_DATE_MAP = "20news-bydate-split.tsv.gz"
CWI = Archive(
    file_name="cwishareddataset.zip",
    urls=("https://www.inf.uni-hamburg.de/en/inst/ab/lt/resources/data/complex-word-identification-dataset/cwishareddataset.zip",),
    checksums=(("sha256", "4a47b3f0b4589907e44f5cc19231dc24fee157636b65ba668ef1850224e52e3e"),),
)

_IMDB_MEMBER = re.compile(r"aclImdb/(train|test)/(neg|pos)/(\d+)_(\d+)\.txt")
_NEWS_MEMBER = re.compile(r"20news-18828/([\w.-]+)/(\d+)")
_DATE_MEMBER = re.compile(r"20news-bydate-(train|test)/([\w.-]+/\d+)")
# Only names of HTML elements, so that prose such as "a < b", "<3" and "<grin>" is kept.
_TAG = re.compile(
    r"<(?:!--.*?--|/?(?:a|abbr|b|big|blockquote|br|center|cite|code|dd|del|div|dl|dt|em|font|h[1-6]|hr|i|img|ins|li|ol|p|pre|q|s|small"
    r"|span|strike|strong|sub|sup|table|tbody|td|th|thead|tr|tt|u|ul)"
    r"(?:\s+[\w:-]+\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+))*\s*/?)>",
    re.IGNORECASE | re.DOTALL,
)
# Including angle brackets around the address. The possessive "[\w…]++" scans a long run only once.
_EMAIL = re.compile(r"<?(?<![\w.+%!=/-])[\w.+%!=/-]++@[\w.-]*\w>?")
# A header line that starts with a space or tab continues the line above it.
_SUBJECT = re.compile(r"^subject:[^\n]*(?:\n[ \t][^\n]*)*\n?", re.IGNORECASE | re.MULTILINE)
_WORD = re.compile(r"\w")
_CWI_PREFIX = re.compile(r"#\d+-\d+ ")


def load_imdb(settings: CorpusSettings, *, in_each_folder: int = 12_500) -> Corpus:
    """IMDB reviews without HTML tags: train before test, negative before positive, by number; 10 % of train is validation, seeded.

    Raises:
        InputError: archive missing or damaged, unexpected counts, a review that is not UTF-8 or is empty.
    """
    path = find_archive(IMDB, settings.data_dir)
    folders: dict[tuple[str, str], dict[tuple[int, int], str]] = {(part, side): {} for part in ("train", "test") for side in ("neg", "pos")}
    for match, content in tar_members(path, _IMDB_MEMBER):
        part, side, number, rating = match.groups()
        folders[part, side][int(number), int(rating)] = without_tags(decoded(content, where=f"{match[0]} in {path}"))
    for (part, side), reviews in folders.items():
        _check_count(len(reviews), in_each_folder, what=f"reviews in aclImdb/{part}/{side}", path=path)
    numbered = [(part, side, key, reviews[key]) for (part, side), reviews in folders.items() for key in sorted(reviews)]
    splits: list[Split] = ["test" if part == "test" else "train" for part, *_ in numbered]
    splits = cut_from_train(splits, validation=share_down(splits.count("train"), VALIDATION_PERCENT), seed=settings.split_seed)
    examples = [
        Example(id=f"{part}/{side}/{number}_{rating}", text=text, prompt=text, label=int(side == "pos"), split=split)
        for (part, side, (number, rating), text), split in zip(numbered, splits, strict=True)
    ]
    return _corpus("imdb", ("negative", "positive"), examples, license="IMDB Large Movie Review Dataset v1.0; no licence stated")


def without_tags(review: str) -> str:
    """Return a review with every HTML tag replaced by a space, so that words stay separate; nothing else is changed."""
    return _TAG.sub(" ", review)


def load_20ng(settings: CorpusSettings, *, documents: int = 18_828, groups: int = 20) -> Corpus:
    """20 Newsgroups, the 18,828 version, by group and number; 33 % test and 10 % of the rest validation, seeded, or by date.

    Raises:
        InputError: archive missing or damaged, unexpected counts, a document that is not in the bydate split.
    """
    path = find_archive(NEWS, settings.data_dir)
    texts = {(match[1], int(match[2])): content.decode("latin-1") for match, content in tar_members(path, _NEWS_MEMBER)}
    names = tuple(sorted({group for group, _ in texts}))
    _check_count(len(names), groups, what="newsgroups", path=path)
    _check_count(len(texts), documents, what="documents", path=path)
    keys = sorted(texts)
    ids = [f"{group}/{number}" for group, number in keys]
    label = {name: place for place, name in enumerate(names)}
    examples = [
        Example(id=name, text=texts[key], prompt=without_subject_and_addresses(texts[key]), label=label[key[0]], split=split)
        for key, name, split in zip(keys, ids, _news_splits(ids, settings), strict=True)
    ]
    return _corpus("20ng", names, examples, license="20 Newsgroups (18,828 version); no licence stated")


def without_subject_and_addresses(document: str) -> str:
    """Return a newsgroup document without e-mail addresses and without its header's subject line (with its continuation lines).

    Subject lines quoted in the body stay. If no word remains except the header's own ``From``, the subject is kept; if there is still
    none, the whole document is returned, so that a prompt is never empty.
    """
    header, blank_line, body = document.partition("\n\n")
    candidates = (_SUBJECT.sub("", header, count=1).rstrip("\n") + blank_line + body, document)
    prompts = (_EMAIL.sub("", text).strip() for text in candidates)
    return next((prompt for prompt in prompts if _WORD.search(prompt.removeprefix("From:"))), document)


def _news_splits(ids: Sequence[str], settings: CorpusSettings) -> list[Split]:
    if settings.split_by == "seed":
        test = share_up(len(ids), NEWS_TEST_PERCENT)
        return seeded_splits(len(ids), test=test, validation=share_down(len(ids) - test, VALIDATION_PERCENT), seed=settings.split_seed)
    by_date, path = _date_map(settings.data_dir)
    missing = [name for name in ids if name not in by_date]
    if missing:
        raise InputError(
            got=f"no split for {len(missing):,} documents, {missing[0]} the first, in {path}",
            expected="every document of 20news-18828 in the bydate split",
            do="replace that file, or use --split-by seed",
        )
    splits = [by_date[name] for name in ids]
    return cut_from_train(splits, validation=share_down(splits.count("train"), VALIDATION_PERCENT), seed=settings.split_seed)


def _date_map(data_dir: Path) -> tuple[dict[str, Split], Path]:
    """Return the split of each document in the cut by date, and the file it is read from: the small map, or else the bydate archive."""
    path = data_dir / NEWS_DATE_MAP
    if not path.is_file():
        path = find_archive(NEWS_BY_DATE, data_dir)
        return {match[2]: _train_or_test(match[1], where=match[0]) for match, _ in tar_members(path, _DATE_MEMBER)}, path
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(got=f"a damaged file {path} ({error})", expected="gzipped text", do="replace it, or remove it") from error
    rows = [line.partition("\t")[::2] for line in decoded(content, where=str(path)).splitlines()]
    return {name: _train_or_test(split, where=f"{path}, line {line}") for line, (name, split) in enumerate(rows, start=1)}, path


def _train_or_test(split: str, *, where: str) -> Split:
    match split:
        case "train" | "test":
            return split
    raise InputError(got=f"{split!r} in {where}", expected="train or test", do="replace that file, or use --split-by seed")


def load_cwi(genre: Genre, settings: CorpusSettings, *, rows: tuple[int, int, int] | None = None) -> Corpus:
    """Complex word identification, English News or WikiNews: the target marked in its sentence; the prompt is the target alone.

    ``rows`` are the expected numbers of train, validation and test rows; the real ones by default.

    Raises:
        InputError: archive or member missing or damaged, unexpected counts, a malformed row.
    """
    expected = rows or {"News": (14_002, 1_764, 2_095), "WikiNews": (7_746, 870, 1_287)}[genre]
    path = find_archive(CWI, settings.data_dir)
    parts: tuple[tuple[Split, str], ...] = (
        ("train", f"traindevset/english/{genre}_Train.tsv"),
        ("validation", f"traindevset/english/{genre}_Dev.tsv"),
        ("test", f"testset/english/{genre}_Test.tsv"),
    )
    examples: list[Example] = []
    for (split, member), count in zip(parts, expected, strict=True):
        content = decoded(zip_member(path, member), where=f"{member} in {path}")
        lines = content.removesuffix("\n").split("\n")  # on "\n" only: a sentence may contain other line separators
        _check_count(len(lines), count, what=f"rows in {member}", path=path)
        examples.extend(_cwi_example(line, split, row, where=f"{member} in {path}") for row, line in enumerate(lines))
    licence = f"CWI 2018 shared task, English {genre}; no licence stated"
    return _corpus(f"cwi-{genre.lower()}", ("simple", "complex"), examples, license=licence, separator=SEPARATOR)


def _cwi_example(line: str, split: Split, row: int, *, where: str) -> Example:
    cells = line.removesuffix("\r").split("\t")
    where = f"line {row + 1} of {where}"
    if len(cells) != 11:
        raise InputError(got=f"{len(cells)} columns in {where}", expected="11 separated by tabs", do="use the original archive")
    _, sentence, start, end, *_, binary, _ = cells
    if binary not in ("0", "1"):
        raise InputError(got=f"label {binary!r} in {where}", expected="0 or 1", do="use the original archive")
    try:
        text, target = marked(sentence, int(start), int(end))
    except ValueError as error:
        got = f"offsets {start!r} to {end!r} in {where}"
        raise InputError(got=got, expected=f"whole numbers that name a target ({error})", do="use the original archive") from error
    return Example(id=f"{split}/{row}", text=text, prompt=target, label=int(binary), split=split)


def marked(sentence: str, start: int, end: int) -> tuple[str, str]:
    """Return the sentence with ``[start:end]`` marked as ``[SEP] target [SEP]``, and the target.

    The offsets include a WikiNews prefix such as ``#37-1 ``, which is not part of the sentence and is removed afterwards.

    Raises:
        ValueError: the offsets lie outside the sentence, cover only blanks, or reach into the prefix.
    """
    prefix = _CWI_PREFIX.match(sentence)
    first = prefix.end() if prefix else 0
    if not first <= start < end <= len(sentence) or not sentence[start:end].strip():
        raise ValueError(f"the sentence goes from {first} to {len(sentence)}")
    target = sentence[start:end]
    return f"{sentence[first:start]}{SEPARATOR} {target} {SEPARATOR}{sentence[end:]}", target


def _check_count(count: int, expected: int, *, what: str, path: Path) -> None:
    if count != expected:
        raise InputError(got=f"{count:,} {what} ({path})", expected=f"{expected:,}", do="replace that file with the original archive")


def _corpus(name: str, labels: tuple[str, ...], examples: list[Example], *, license: str, separator: str | None = None) -> Corpus:
    checked_texts([example.text for example in examples], what="text", where=name, names=[example.id for example in examples])
    return Corpus(name=name, label_names=labels, examples=tuple(examples), license=license, separator=separator)
