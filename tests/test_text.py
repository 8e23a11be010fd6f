"""The text model: what is read of a text, and which models are refused."""

from pathlib import Path

import pytest
from transformers import BertConfig, RobertaConfig, RobertaModel

from lugpi_core.errors import InputError
from lugpi_core.examples import Corpus, Example
from train.text import find_text_model, load_text_classifier, load_text_encoder, token_ids


def corpus_of(*texts: str, separator: str | None = None) -> Corpus:
    examples = tuple(Example(id=str(n), text=text, prompt=text, label=n % 2, split="train") for n, text in enumerate(texts))
    return Corpus(name="texts", label_names=("no", "yes"), examples=examples, license="none", separator=separator)


def roberta_folder(folder: Path) -> Path:
    """A small RoBERTa, whose separator is ``</s>``, with a word-level vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", "the", "cat", "sat", "[", "]", "SEP"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    fast.save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=10, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40
    )
    RobertaModel(config).save_pretrained(folder)
    return folder


def test_texts_are_cut_to_the_models_length_and_to_the_flags() -> None:
    long = corpus_of("word " * 1000, "short")
    assert next(len(ids) for ids in token_ids(find_text_model("demo", max_length=None), long)) == 128
    assert max(len(ids) for ids in token_ids(find_text_model("demo", max_length=10), long)) == 10


def test_a_text_of_a_megabyte_is_read() -> None:
    ids = token_ids(find_text_model("demo", max_length=None), corpus_of("a gloss " * 131_072))
    assert len(ids[0]) == 128


def test_strange_texts_are_read() -> None:
    ids = token_ids(find_text_model("demo", max_length=None), corpus_of("שלום עולם", "<b>bold</b> & <br/>", "\x00\x07 bell", "🦔"))
    assert all(len(one) >= 2 for one in ids)


def test_the_marker_of_a_target_is_the_separator_token() -> None:
    model = find_text_model("demo", max_length=None)
    ids = token_ids(model, corpus_of("the [SEP] cat [SEP] sat", separator="[SEP]"))[0]
    assert ids.count(model.tokenizer.sep_token_id) == 3


def test_another_model_gets_its_own_separator(tmp_path: Path) -> None:
    model = find_text_model(str(roberta_folder(tmp_path)), max_length=None)
    marked = token_ids(model, corpus_of("the [SEP] cat [SEP] sat", separator="[SEP]"))[0]
    assert marked == [0, 4, 2, 5, 2, 6, 2]
    unmarked = token_ids(model, corpus_of("the [SEP] cat [SEP] sat"))[0]
    assert unmarked != marked, "a text that happens to say [SEP] is left as it is"


def test_the_label_names_reach_the_classifier() -> None:
    classifier = load_text_classifier(find_text_model("demo", max_length=None), corpus_of("a", "b"))
    config = vars(classifier)["config"]
    assert config.id2label == {0: "no", 1: "yes"}
    assert config.label2id == {"no": 0, "yes": 1}


def test_encoder_and_classifier_share_the_pretrained_weights() -> None:
    import torch

    model = find_text_model("demo", max_length=None)
    encoder, classifier = load_text_encoder(model), load_text_classifier(model, corpus_of("a", "b"))
    of_classifier = classifier.state_dict()
    for name, value in encoder.state_dict().items():
        assert torch.equal(of_classifier[f"distilbert.{name}"], value)
        assert value.dtype == torch.float32


@pytest.mark.parametrize("length", [0, 1, 129, 100_000])
def test_a_length_the_model_cannot_read_is_refused(length: int) -> None:
    with pytest.raises(InputError, match="2 to 128"):
        find_text_model("demo", max_length=length)


def test_a_model_out_of_reach_is_told_in_one_line() -> None:
    with pytest.raises(InputError, match="--text-model distilbert-base-uncased") as caught:
        find_text_model("distilbert-base-uncased", max_length=None)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="with its tokenizer"):
        find_text_model(str(tmp_path), max_length=None)


def test_a_model_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    model = find_text_model("demo", max_length=None)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model.folder / name).read_bytes())
    with pytest.raises(InputError, match=r"without tokenizer\.json"):
        find_text_model(str(tmp_path), max_length=None)


def test_damaged_weights_are_told_in_one_line(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(find_text_model("demo", max_length=None).folder, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="does not load"):
        load_text_encoder(find_text_model(str(tmp_path), max_length=None))


def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    model = find_text_model("demo", max_length=None)
    model.tokenizer.save_pretrained(tmp_path)
    BertConfig(vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(InputError, match="safetensors"):
        find_text_model(str(tmp_path), max_length=None)
