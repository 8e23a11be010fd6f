"""Token ids: the tokenizer's, kept on disk, padded on the device."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.small_text_models import corpus_of, roberta_folder
from train.data.text_model import TextModel, find_text_model
from train.data.token_ids import FOLDER, NumberColumn, TokenIds, Tokens, hash_of_tokens, token_ids

CPU = torch.device("cpu")
TEXTS = ("a dog and a cat", "rain", "the sun, the moon & the stars", "soup " * 200)


class Counting:
    """A tokenizer that counts how many texts it has been given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.seen = tokenizer, 0

    def __call__(self, texts: list[str], **settings: Any) -> Any:
        self.seen += len(texts)
        return self.tokenizer(texts, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def counting(max_length: int | None = None) -> tuple[TextModel, Counting]:
    text_model = find_text_model("demo", max_length=max_length)
    tokenizer = Counting(text_model.tokenizer)
    return replace(text_model, tokenizer=tokenizer), tokenizer


def each(ids: torch.Tensor, lengths: NDArray[np.int64], _: Any = None) -> list[list[int]]:
    return [part.tolist() for part in torch.split(ids, lengths.tolist())]


def kept(run: Path) -> list[Path]:
    return sorted((run / FOLDER).iterdir())


def test_token_ids_are_the_tokenizers(tmp_path: Path) -> None:
    text_model = find_text_model("demo", max_length=None)
    ids, lengths, _ = token_ids(text_model, corpus_of(*TEXTS), tmp_path)
    assert (ids.dtype, lengths.dtype) == (torch.uint16, np.int64)
    assert each(ids, lengths) == [text_model.tokenizer(text, truncation=True, max_length=128)["input_ids"] for text in TEXTS]


NUMBERS = st.integers(0, 8) | st.integers(0, 70_000) | st.integers(-3, 3)


@given(st.lists(st.lists(NUMBERS, max_size=5), min_size=1, max_size=5))
@example([[0], [255]])
@example([[255], [256]])
@example([[0], [], [65_535]])
@example([[256], [65_535], [65_536]])
def test_numbers_are_kept_as_narrow_as_the_largest_allows(parts: list[list[int]]) -> None:
    column, numbers = NumberColumn(), [number for part in parts for number in part]
    for part in parts:
        column.extend(np.array(part, np.int32))
    kept = column.numbers()
    assert kept.tolist() == numbers
    low, high = min(numbers, default=0), max(numbers, default=0)
    assert kept.dtype == (torch.int32 if low < 0 or high > 65535 else torch.uint16 if high > 255 else torch.uint8)


@given(st.lists(st.integers(0, 65_535), min_size=2, max_size=9))
def test_the_hash_of_tokens_is_that_of_32_bits_whatever_they_are_kept_in(numbers: list[int]) -> None:
    lengths = np.array([1, len(numbers) - 1])
    wide = np.array(numbers, np.int32)
    expected = xxhash.xxh3_128_hexdigest(wide.tobytes() + lengths.tobytes() + (wide % 2).tobytes())
    for width in (np.int32, np.uint16):
        flat, types = torch.from_numpy(wide.astype(width)), torch.from_numpy((wide % 2).astype(np.uint8))
        assert hash_of_tokens(Tokens(flat, lengths, {"token_type_ids": types})) == expected


def test_texts_of_both_widths_can_follow_each_other() -> None:
    few, many = (
        Tokens(torch.from_numpy(np.array(ids, width)), np.array([2])) for ids, width in (([7, 40_000], np.uint16), ([1, 70_000], np.int32))
    )
    for first, second in ((few, many), (many, few), (few, few)):
        assert first.followed_by(second).flat_S.tolist() == [*first.flat_S.tolist(), *second.flat_S.tolist()]


def test_many_texts_have_the_ids_of_single_ones(tmp_path: Path) -> None:
    text_model = find_text_model("demo", max_length=None)
    texts = [f"text number {n}" for n in range(4100)]
    ids, lengths, _ = token_ids(text_model, corpus_of(*texts), tmp_path)
    rows = [0, 4095, 4096, 4099]
    assert [each(ids, lengths)[row] for row in rows] == [text_model.tokenizer(texts[row])["input_ids"] for row in rows]


def test_nothing_is_tokenized_twice(tmp_path: Path) -> None:
    text_model, tokenizer = counting()
    first = token_ids(text_model, corpus_of(*TEXTS), tmp_path)
    assert tokenizer.seen == len(TEXTS)
    second = token_ids(text_model, corpus_of(*TEXTS), tmp_path)
    assert tokenizer.seen == len(TEXTS)
    assert each(*first) == each(*second)
    assert len(kept(tmp_path)) == 1


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "cut":
        data = data[: len(data) // 2]
    elif kind == "empty":
        data = bytearray()
    else:
        data[{"header": 3, "first byte": 8, "middle": len(data) // 2, "last byte": -1}[kind]] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["cut", "empty", "header", "first byte", "middle", "last byte"])
def test_a_damaged_file_is_replaced(tmp_path: Path, kind: str) -> None:
    text_model, tokenizer = counting()
    first = token_ids(text_model, corpus_of(*TEXTS), tmp_path)
    (path,) = kept(tmp_path)
    whole = path.read_bytes()
    damage(path, kind)
    assert each(*token_ids(text_model, corpus_of(*TEXTS), tmp_path)) == each(*first)
    assert tokenizer.seen == 2 * len(TEXTS)
    assert path.read_bytes() == whole
    assert kept(tmp_path) == [path]


def test_a_file_of_another_kind_is_replaced(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    text_model, _ = counting()
    first = token_ids(text_model, corpus_of(*TEXTS), tmp_path)
    (path,) = kept(tmp_path)
    for tensors, metadata in (({"ids": torch.ones(3)}, None), ({"ids": torch.ones(3), "lengths": torch.ones(1)}, {"about": "{}"})):
        save_file(tensors, path, metadata=metadata)
        assert each(*token_ids(text_model, corpus_of(*TEXTS), tmp_path)) == each(*first)


def test_other_texts_lengths_and_models_have_their_own_files(tmp_path: Path) -> None:
    text_model, _ = counting()
    of_other_weights = replace(text_model)
    vars(of_other_weights)["weights_hash"] = "another"
    wanted = [
        (text_model, corpus_of(*TEXTS)),
        (counting(max_length=16)[0], corpus_of(*TEXTS)),
        (text_model, corpus_of(*TEXTS[:3], "another text")),
        (text_model, corpus_of(*TEXTS, separator="[SEP]")),
        (of_other_weights, corpus_of(*TEXTS)),
    ]
    for number, (model, corpus) in enumerate(wanted, start=1):
        token_ids(model, corpus, tmp_path)
        assert len(kept(tmp_path)) == number


def test_texts_are_cut_to_the_models_length_or_the_flags(tmp_path: Path) -> None:
    long = corpus_of("word " * 1000, "short")
    assert token_ids(find_text_model("demo", max_length=None), long, tmp_path)[1].max() == 128
    assert token_ids(find_text_model("demo", max_length=10), long, tmp_path)[1].max() == 10


def test_a_text_of_a_megabyte_is_read(tmp_path: Path) -> None:
    _, lengths, _ = token_ids(find_text_model("demo", max_length=None), corpus_of("a gloss " * 131_072), tmp_path)
    assert lengths.tolist() == [128]


def test_strange_texts_are_read(tmp_path: Path) -> None:
    strange = corpus_of("שלום עולם", "<b>bold</b> & <br/>", "\x00\x07 bell", "🦔")
    _, lengths, _ = token_ids(find_text_model("demo", max_length=None), strange, tmp_path)
    assert lengths.min() >= 2


def test_the_target_marker_becomes_the_separator_token(tmp_path: Path) -> None:
    model = find_text_model("demo", max_length=None)
    ids, *_ = token_ids(model, corpus_of("the [SEP] cat [SEP] sat", separator="[SEP]"), tmp_path)
    assert ids.tolist().count(model.tokenizer.sep_token_id) == 3


def test_another_model_gets_its_own_separator(tmp_path: Path) -> None:
    model = find_text_model(str(roberta_folder(tmp_path / "roberta")), max_length=None)
    marked, *_ = token_ids(model, corpus_of("the [SEP] cat [SEP] sat", separator="[SEP]"), tmp_path)
    assert marked.tolist() == [0, 4, 2, 5, 2, 6, 2]
    unmarked, *_ = token_ids(model, corpus_of("the [SEP] cat [SEP] sat"), tmp_path)
    assert unmarked.tolist() != marked.tolist(), "a text that happens to say [SEP] is left as it is"


@given(
    width=st.sampled_from([np.int32, np.uint16]),
    texts=st.lists(st.lists(st.integers(1, 65_535), min_size=1, max_size=12), min_size=1, max_size=8),
    chosen=st.lists(st.integers(0, 7), min_size=1, max_size=6),
)
def test_padding_keeps_every_token_and_masks_the_rest(width: type[np.integer[Any]], texts: list[list[int]], chosen: list[int]) -> None:
    rows = np.array([number % len(texts) for number in chosen])
    flat = torch.from_numpy(np.array([token for text in texts for token in text], width))
    ids = TokenIds(flat, np.array([len(text) for text in texts]), pad=0, device=CPU)
    batch = ids.padded(rows, torch.from_numpy(rows))
    own = [texts[row] for row in rows]
    longest = max(map(len, own))
    assert batch["input_ids"].tolist() == [text + [0] * (longest - len(text)) for text in own]
    assert batch["input_ids"].dtype == torch.int64
    if all(len(text) == longest for text in own):
        assert "attention_mask" not in batch
    else:
        assert batch["attention_mask"].tolist() == [[1] * len(text) + [0] * (longest - len(text)) for text in own]
        assert batch["attention_mask"].dtype == torch.int64
    last = ids.only("last").padded(rows, torch.from_numpy(rows))["input_ids"]
    assert last.tolist() == [text[-1:] for text in own]
