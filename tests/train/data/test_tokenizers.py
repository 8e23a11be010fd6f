"""The tokenizer of a text model: which are read, which pad token they get, and which are refused, each in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from lugpi_core.errors import InputError
from tests.support.tiny_text_models import tiny_text_model
from train.data.text_model import find_text_model
from train.data.tokenizers import needing_packages


def find(folder: Path) -> Any:
    return find_text_model(str(folder), max_length=None)


def settings(folder: Path, **changed: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize("family", ["canine", "perceiver"])
def test_characters_and_bytes_need_no_vocabulary(tmp_path: Path, family: str) -> None:
    assert find(tiny_text_model(tmp_path, family)).tokenizer("abc")["input_ids"]


def test_a_decoder_without_a_pad_token_pads_with_the_end_of_a_text(tmp_path: Path) -> None:
    model = find(tiny_text_model(tmp_path, "gpt2"))
    assert model.pad_id == model.tokenizer.eos_token_id == model.config.pad_token_id
    assert model.tokenizer.padding_side == "right"


def test_a_tokenizer_without_any_token_to_pad_with_is_refused(tmp_path: Path) -> None:
    def without_end(tokenizer: Any) -> None:
        tokenizer.eos_token = None

    with pytest.raises(InputError, match=r"neither a pad token .*set tokenizer\.pad_token"):
        find(tiny_text_model(tmp_path, "gpt2", change=without_end))


def test_tokens_without_a_row_in_the_embedding_are_refused(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, "bert")
    model = find(folder)
    model.tokenizer.add_tokens(["[TARGET]", "[OTHER]"])
    model.tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"has 31 tokens and whose embedding has 29 rows.*resize_token_embeddings"):
        find(folder)


@pytest.mark.parametrize(
    ("tokenizer", "package"), [("BertJapaneseTokenizer", "fugashi"), ("XLMTokenizer", "sacremoses"), ("CpmTokenizer", "sentencepiece")]
)
def test_a_missing_package_is_named(tmp_path: Path, tokenizer: str, package: str) -> None:
    folder = tiny_text_model(tmp_path, "bert")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (folder / "vocab.json").write_text('{"<unk>": 0, "a": 1}')
    (folder / "merges.txt").write_text("#version\n")
    (folder / "spiece.model").write_bytes(b"")
    settings(folder, tokenizer_class=tokenizer, word_tokenizer_type="mecab", subword_tokenizer_type="character")
    with pytest.raises(InputError, match=rf"needs the package {package} .*pip install {package}") as caught:
        find(folder)
    assert "\n" not in str(caught.value)


def test_an_import_that_names_its_module_is_told_by_it() -> None:
    with pytest.raises(InputError, match="pip install rjieba"), needing_packages("--text-model x"):
        raise ModuleNotFoundError("No module named 'rjieba'", name="rjieba")


def test_what_is_no_text_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, "bert")
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(InputError, match="a vit, for which transformers has no sequence classifier"):
        find(folder)


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, "bert")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(InputError, match="quantized"):
        find(folder)


def test_a_file_in_place_of_a_folder_is_told(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, "bert")
    with pytest.raises(InputError, match=r"model\.safetensors, a file.*folder"):
        find(folder / "model.safetensors")
