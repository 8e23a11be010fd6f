"""Fingerprints: the order of keys does not matter, every value does, and differences are named."""

import json
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.errors import InputError
from lugpi_core.fingerprint import differences, digest, hash_file, hash_model_folder

LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.lists(st.integers(0, 3), max_size=2)
NESTED = st.dictionaries(
    st.text("abc", min_size=1, max_size=2), LEAVES | st.dictionaries(st.text("xy", min_size=1, max_size=1), LEAVES, min_size=1)
)


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
        "model.safetensors.index.json",
    ],
)
def test_a_models_hash_changes_with_every_file_that_matters(model: Path, name: str) -> None:
    before = hash_model_folder(model)
    (model / name).write_bytes(b"other")
    assert hash_model_folder(model) != before


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
    assert hash_model_folder(moved) != before


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
