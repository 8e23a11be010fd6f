"""Fingerprints: the order of keys does not matter, every value does, and differences are named."""

import json
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lugpi_core import fingerprint
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import (
    agree,
    differences,
    digest,
    digest_of_lists,
    earlier_form,
    hash_file,
    hash_model_files,
    hash_model_folder,
    hash_weights_file,
)

LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.lists(st.integers(0, 3), max_size=2)
NESTED = st.dictionaries(
    st.text("abc", min_size=1, max_size=2), LEAVES | st.dictionaries(st.text("xy", min_size=1, max_size=1), LEAVES, min_size=1)
)


@given(
    st.lists(st.text(st.characters(exclude_categories=()))), st.lists(st.integers(-(2**63), 2**63 - 1)), st.integers(), st.integers(1, 4)
)
def test_the_digest_of_long_lists_is_that_of_their_json(texts: list[str], numbers: list[int], number: int, at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "_ITEMS_AT_ONCE", at_once)
        assert digest_of_lists(texts, np.array(numbers, np.int64)) == digest([texts, numbers])
        assert digest_of_lists(tuple(texts), number) == digest([texts, number])


@given(NESTED)
def test_the_order_of_keys_does_not_matter(value: dict[str, object]) -> None:
    turned = dict(reversed(value.items()))
    assert digest(turned) == digest(value)
    assert differences(turned, value) == []


@given(NESTED, NESTED)
def test_two_values_differ_in_digest_exactly_when_a_field_differs(one: dict[str, object], other: dict[str, object]) -> None:
    assert (digest(one) == digest(other)) == (not differences(one, other))


@given(NESTED)
def test_a_fingerprint_survives_json(value: dict[str, object]) -> None:
    assert differences(json.loads(json.dumps(value)), value) == []


def test_tuples_count_as_lists() -> None:
    assert differences({"size": (512, 512)}, {"size": [512, 512]}) == []


def test_a_flag_that_differs_is_written_as_it_is_typed() -> None:
    then = {"flags": {"patience": None, "class_weights": "none", "learning_rate": 1e-3, "epochs": 2}}
    now = {"flags": {"patience": 3, "class_weights": "balanced", "learning_rate": None, "epochs": 2, "seed": 1}}
    assert differences(then, now) == [
        "--class-weights: none then, balanced now",
        "--learning-rate: 0.001 then, none now",
        "--patience: none then, 3 now",
        "--seed: nothing then, 1 now",
    ]


def test_differences_name_added_removed_and_changed_nested_fields_in_order() -> None:
    found = {"steps": 50, "generator": {"id": "sd2", "revision": "abc"}, "gone": True}
    wanted = {"steps": 20, "generator": {"id": "sd2", "revision": "abd", "hash": None}}
    assert differences(found, wanted) == [
        "generator.hash: found nothing, wanted null",
        'generator.revision: found "abc", wanted "abd"',
        "gone: found true, wanted nothing",
        "steps: found 50, wanted 20",
    ]


def test_the_text_nothing_is_not_a_missing_field() -> None:
    assert differences({"a": "nothing"}, {}) == ['a: found "nothing", wanted nothing']


def test_a_field_that_became_a_group_is_named() -> None:
    assert differences({"a": 1}, {"a": {"b": 1}}) == ["a: found 1, wanted nothing", "a.b: found nothing, wanted 1"]


def test_the_hash_of_a_file_is_the_xxh3_of_its_bytes_beyond_one_chunk(tmp_path: Path) -> None:
    content = bytes(range(256)) * (5 << 12)  # 5 MiB, more than one chunk
    (tmp_path / "f").write_bytes(content)
    assert hash_file(tmp_path / "f") == xxhash.xxh3_128_hexdigest(content)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / "spiece.model").write_bytes(b"pieces")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.json",
        "spiece.model",
        "model.safetensors",
        "open_clip_config.json",
        "preprocessor_config.json",
        "new.safetensors",
        "processor_config.json",
        "qwen.tiktoken",
    ],
)
def test_a_models_hash_changes_with_every_file_that_matters(model: Path, name: str) -> None:
    before = hash_model_folder(model)
    (model / name).write_bytes(b"other")
    assert not agree(before, hash_model_folder(model))


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        ".gitattributes",
        ".cache/huggingface/x.json",
        "metrics.json",
        "requirements.txt",
        "sample.png",
        "1_Pooling/config.json",
        "modules.json",
        "coreml/Manifest.json",
        "onnx/model.safetensors",
    ],
)
def test_a_models_hash_ignores_files_without_effect(model: Path, name: str) -> None:
    before = hash_model_folder(model)
    (model / name).parent.mkdir(parents=True, exist_ok=True)
    (model / name).write_bytes(b"other")
    assert hash_model_folder(model) == before


def test_a_models_hash_depends_on_file_names_but_not_on_the_folder(model: Path, tmp_path: Path) -> None:
    before = hash_model_folder(model)
    moved = model.rename(tmp_path / ".hidden")
    assert hash_model_folder(moved) == before
    (moved / "model.safetensors").rename(moved / "other.safetensors")
    assert not agree(before, hash_model_folder(moved))


def test_a_model_folder_of_links_hashes_like_its_files(model: Path, tmp_path: Path) -> None:
    linked = tmp_path / "snapshot"
    for path in model.rglob("*"):
        if path.is_file():
            place = linked / path.relative_to(model)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    assert hash_model_folder(linked) == hash_model_folder(model)


def test_a_folder_without_safetensors_is_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"without a \.safetensors file; expected weights as safetensors"):
        hash_model_folder(model)


TENSORS: dict[str, NDArray[Any]] = {
    "encoder.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "encoder.bias": np.arange(3, dtype=np.float32),
    "ids": np.arange(5, dtype=np.int64),
    "empty": np.zeros((0, 4), np.float16),
    "scalar": np.array(2.5, np.float32),
    "large": np.arange(700_000, dtype=np.float32),  # more than two chunks
}


@pytest.fixture
def weights(model: Path) -> Path:
    save_file(TENSORS, model / "model.safetensors", metadata={"format": "pt"})
    return model


def laid_out(tensors: dict[str, NDArray[Any]], order: list[str], about: dict[str, str]) -> bytes:
    """Return a safetensors file with its tensors in the given order."""
    header: dict[str, Any] = {"__metadata__": about}
    data = b""
    for name in order:
        kind = {"float32": "F32", "float16": "F16", "int64": "I64"}[tensors[name].dtype.name]
        part = tensors[name].tobytes()
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt", "written by": "another program"}], ids=["none", "empty", "another entry"])
def test_equal_weights_with_other_metadata_are_the_same_model(weights: Path, metadata: dict[str, str] | None) -> None:
    before = hash_model_folder(weights)
    save_file(TENSORS, weights / "model.safetensors", metadata=metadata)
    after = hash_model_folder(weights)
    assert agree(before, after)
    assert before != after


def test_the_order_of_tensors_in_a_file_does_not_count(weights: Path) -> None:
    before = hash_model_folder(weights)
    (weights / "model.safetensors").write_bytes(laid_out(TENSORS, sorted(TENSORS, reverse=True), {"a": "1", "b": "2"}))
    assert {name: values.tolist() for name, values in load_file(weights / "model.safetensors").items()} == {
        name: values.tolist() for name, values in TENSORS.items()
    }
    assert agree(before, hash_model_folder(weights))


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_sharding_does_not_count(weights: Path, shards: int) -> None:
    before = hash_model_folder(weights)
    (weights / "model.safetensors").unlink()
    place = {name: f"model-{n % shards + 1:05d}-of-{shards:05d}.safetensors" for n, name in enumerate(TENSORS)}
    for file in set(place.values()):
        save_file({name: TENSORS[name] for name in TENSORS if place[name] == file}, weights / file)
    (weights / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": shards}, "weight_map": place}))
    assert agree(before, hash_model_folder(weights))


@pytest.mark.parametrize(
    "change",
    [
        {"encoder.bias": np.array([0, 1, 3], np.float32)},
        {"encoder.bias": np.arange(3, dtype=np.int32)},
        {"encoder.bias": np.arange(3, dtype=np.float32).reshape(1, 3)},
        {"empty": np.zeros((0, 5), np.float16)},
        {"empty": np.zeros((0, 4), np.float32)},
        {"new": np.zeros(1, np.float32)},
        {"encoder.bias": TENSORS["encoder.bias"][:2]},
        {"encoder.bias": TENSORS["encoder.bias"][::-1].copy()},
    ],
)
def test_other_values_dtypes_shapes_and_names_are_another_model(weights: Path, change: dict[str, NDArray[Any]]) -> None:
    before = hash_model_folder(weights)
    save_file(TENSORS | change, weights / "model.safetensors", metadata={"format": "pt"})
    assert not agree(before, hash_model_folder(weights))


def test_exchanged_names_are_another_model(weights: Path) -> None:
    tensors = {"a": np.zeros(3, np.float32), "b": np.ones(3, np.float32)}
    save_file(tensors, weights / "model.safetensors")
    before = hash_model_folder(weights)
    save_file({"a": tensors["b"], "b": tensors["a"]}, weights / "model.safetensors")
    assert not agree(before, hash_model_folder(weights))


def test_shards_that_disagree_on_a_tensor_are_compared_as_files(weights: Path) -> None:
    (weights / "model.safetensors").unlink()
    first, second = (weights / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    save_file({"w": np.zeros(3, np.float32)}, first)
    save_file({"w": np.ones(3, np.float32)}, second)
    before = hash_model_folder(weights)
    save_file({"w": np.full(3, 2, np.float32)}, second)
    assert not agree(before, hash_model_folder(weights))


def test_a_configuration_counts_by_its_values_without_its_writer(weights: Path) -> None:
    config = {"hidden_size": 4, "text": {"layers": 2, "transformers_version": "4.1"}, "_name_or_path": "a/b", "transformers_version": "4.1"}
    (weights / "config.json").write_text(json.dumps(config))
    before = hash_model_folder(weights)
    again = {"transformers_version": "5.23", "text": {"transformers_version": "5.23", "layers": 2}, "hidden_size": 4}
    (weights / "config.json").write_text(json.dumps(again, indent=2))
    assert agree(before, hash_model_folder(weights))
    (weights / "config.json").write_text(json.dumps(again | {"text": {"layers": 3}}))
    assert not agree(before, hash_model_folder(weights))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05",
        b"\xff" * 40,
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}" + b"beyond the tensors",
        (2).to_bytes(8, "little") + b"[]",
        laid_out({"a": np.zeros(4, np.float32)}, ["a"], {})[:-2],
        b"".join([(57).to_bytes(8, "little"), b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0]}}'[:57], bytes(16)]),
        b"".join([(64).to_bytes(8, "little"), b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0.0, 16]}}', bytes(16)]),
    ],
)
def test_a_file_that_is_not_safetensors_is_hashed_as_it_is(weights: Path, content: bytes) -> None:
    (weights / "model.safetensors").write_bytes(content)
    before = hash_model_folder(weights)
    (weights / "model.safetensors").write_bytes(content + b".")
    assert not agree(before, hash_model_folder(weights))
    assert hash_weights_file(weights / "model.safetensors").split("+") == [hash_file(weights / "model.safetensors")] * 2


def test_the_files_part_is_the_earlier_hash(weights: Path) -> None:
    names = ("config.json", "model.safetensors", "spiece.model", "vocab.txt")
    earlier = digest([(name, hash_file(weights / name)) for name in names])
    now = hash_model_folder(weights)
    assert earlier_form({"text_model": now, "teachers": [now, "x"], "steps": 3}) == {
        "text_model": earlier,
        "teachers": [earlier, "x"],
        "steps": 3,
    }
    assert earlier_form(hash_weights_file(weights / "model.safetensors")) == hash_file(weights / "model.safetensors")


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ("a" * 32, "a" * 32 + "+" + "b" * 32, True),
        ("a" * 32 + "+" + "b" * 32, "a" * 32, True),
        ("a" * 32, "b" * 32 + "+" + "a" * 32, False),
        ("c" * 32 + "+" + "b" * 32, "a" * 32 + "+" + "b" * 32, True),
        ("a" * 32 + "+" + "c" * 32, "a" * 32 + "+" + "b" * 32, False),
        (["a" * 32], ["a" * 32 + "+" + "b" * 32], True),
        (["a" * 32], [], False),
        ("a" * 32, None, False),
    ],
)
def test_hashes_of_both_forms_are_compared_by_what_both_have(found: object, wanted: object, same: bool) -> None:
    assert agree(found, wanted) is same
    assert (differences({"weights": found}, {"weights": wanted}) == []) is same


def test_weights_are_read_once(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (weights / "model.safetensors").stat().st_size
    passed: list[int] = []
    read = fingerprint._read

    def counted(file: FileIO, count: int | None, *update: Callable[[Any], object]) -> None:
        at = file.tell()
        read(file, count, *update)
        passed.append(file.tell() - at)

    monkeypatch.setattr(fingerprint, "_read", counted)
    hash_weights_file(weights / "model.safetensors")
    assert sum(passed) == size


def test_the_parts_of_a_pipeline_count_by_their_folders(weights: Path) -> None:
    one = hash_model_files({"unet/model.safetensors": weights / "model.safetensors"})
    other = hash_model_files({"vae/model.safetensors": weights / "model.safetensors"})
    assert not agree(one, other)
