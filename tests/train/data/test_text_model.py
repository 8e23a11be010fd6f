"""The text model: its encoder and classifier, and which models are refused."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
)

from lugpi_core.errors import InputError
from lugpi_core.files import read_json, write_json
from tests.support.small_text_models import corpus_of
from tests.support.small_training import deep_folder
from tests.support.tiny_text_models import tiny_text_model
from train.data.text_model import find_text_model, keep_layers, load_text_classifier, load_text_encoder, spaced


def test_the_label_names_reach_the_classifier() -> None:
    classifier = load_text_classifier(find_text_model("demo", max_length=None), corpus_of("a", "b"))
    config = vars(classifier)["config"]
    assert config.id2label == {0: "no", 1: "yes"}
    assert config.label2id == {"no": 0, "yes": 1}


def test_encoder_and_classifier_share_the_pretrained_weights() -> None:
    model = find_text_model("demo", max_length=None)
    encoder, classifier = load_text_encoder(model), load_text_classifier(model, corpus_of("a", "b"))
    of_classifier = classifier.state_dict()
    for name, value in encoder.state_dict().items():
        assert torch.equal(of_classifier[f"distilbert.{name}"], value)
        assert value.dtype == torch.float32


@pytest.mark.parametrize(
    ("there", "wanted", "kept"),
    [(6, 6, [0, 1, 2, 3, 4, 5]), (6, 3, [0, 2, 5]), (12, 4, [0, 4, 7, 11]), (6, 2, [0, 5]), (6, 1, [0]), (1, 1, [0])],
)
def test_kept_layers_are_evenly_spaced(there: int, wanted: int, kept: list[int]) -> None:
    assert spaced(there, wanted) == kept


@given(there=st.integers(1, 48), wanted=st.integers(1, 48))
def test_no_layer_is_kept_twice(there: int, wanted: int) -> None:
    kept = spaced(there, min(there, wanted))
    assert sorted(set(kept)) == kept
    assert kept[0] == 0
    assert kept[-1] == (there - 1 if len(kept) > 1 else 0)
    steps = [after - before for before, after in pairwise(kept)]
    assert not steps or max(steps) - min(steps) <= 1


@pytest.mark.parametrize(("family", "layers"), [("distilbert", "transformer.layer"), ("bert", "encoder.layer")])
def test_kept_layers_are_the_pretrained_ones(tmp_path: Path, family: str, layers: str) -> None:
    text_model = find_text_model(str(deep_folder(tmp_path, family)), max_length=None)
    whole, kept = (load_text_classifier(text_model, corpus_of("a", "b")) for _ in range(2))
    keep_layers(kept, 3)
    before, after = whole.state_dict(), kept.state_dict()
    found = {int(re.search(r"layer\.(\d+)\.", name)[1]) for name in after if ".layer." in name}  # type: ignore[index]
    assert found == {0, 1, 2}
    for name, value in after.items():
        moved = re.sub(r"layer\.(\d+)\.", lambda number: f"layer.{[0, 2, 5][int(number[1])]}.", name)
        if name.startswith(family):  # the head is new in each
            assert torch.equal(value, before[moved]), name
    assert vars(kept)["config"].num_hidden_layers == 3
    assert len(getattr(kept, family).get_submodule(layers)) == 3


def test_a_model_with_fewer_layers_saves_and_loads(tmp_path: Path) -> None:
    text_model = find_text_model(str(deep_folder(tmp_path / "deep", "distilbert")), max_length=None)
    model: Any = load_text_classifier(text_model, corpus_of("a", "b"))
    keep_layers(model, 2)
    model.eval().save_pretrained(tmp_path / "shallow")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "shallow")
    ids = torch.tensor([[2, 200, 201, 3]])
    assert loaded.config.num_hidden_layers == 2
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Weights that lie elsewhere in memory may be summed in another order.
    assert (loaded(ids).logits - model(ids).logits).abs().max() <= 1e-6


@pytest.mark.parametrize("layers", [3, 0, -1])
def test_more_layers_than_the_model_has_or_none_are_refused(layers: int) -> None:
    model = load_text_classifier(find_text_model("demo", max_length=None), corpus_of("a", "b"))
    with pytest.raises(InputError, match=rf"--student-layers {layers}; expected 1 to 2"):
        keep_layers(model, layers)


def test_a_model_that_shares_its_layers_is_refused(tmp_path: Path) -> None:
    text_model = find_text_model(str(deep_folder(tmp_path, "albert")), max_length=None)
    with pytest.raises(InputError, match=r"--student-layers 2 for AlbertForSequenceClassification"):
        keep_layers(load_text_classifier(text_model, corpus_of("a", "b")), 2)


def test_a_model_that_states_no_number_of_layers_is_refused(tmp_path: Path) -> None:
    text_model = find_text_model(str(tiny_text_model(tmp_path, "perceiver")), max_length=None)
    with pytest.raises(InputError, match=r"--student-layers 1 for PerceiverForSequenceClassification"):
        keep_layers(load_text_classifier(text_model, corpus_of("a", "b")), 1)


@pytest.mark.parametrize("length", [0, 1, 129, 100_000])
def test_a_length_the_model_cannot_read_is_refused(length: int) -> None:
    with pytest.raises(InputError, match="2 to 128"):
        find_text_model("demo", max_length=length)


def test_an_unreachable_model_is_reported_in_one_line() -> None:
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


def test_damaged_weights_are_reported_in_one_line(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("family", "longest"),
    [
        ("bert", 512),
        ("roberta", 64),  # of 66 positions two are not used
        ("camembert", 64),
        ("longformer", 64),
        ("modernbert", 1024),
        ("big_bird", 1024),
        ("nomic_bert", 1024),
        ("bart", 64),
        ("opt", 64),
        ("gpt2", 64),
        ("qwen3", 256),
    ],
)
def test_the_longest_text_is_what_the_model_reads(tmp_path: Path, family: str, longest: int) -> None:
    folder = str(tiny_text_model(tmp_path, family))
    assert find_text_model(folder, max_length=longest).max_length == longest
    assert find_text_model(folder, max_length=None).max_length == min(512, longest)
    with pytest.raises(InputError, match=f"expected 2 to {longest} "):
        find_text_model(folder, max_length=longest + 1)


@pytest.mark.parametrize("family", ["xlnet", "t5", "funnel", "bloom"])
def test_a_model_without_a_limit_reads_any_length(tmp_path: Path, family: str) -> None:
    folder = str(tiny_text_model(tmp_path, family))
    assert find_text_model(folder, max_length=100_000).max_length == 100_000
    assert find_text_model(folder, max_length=None).max_length == 512


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_of_a_classifier_is_new_and_follows_the_seed(tmp_path: Path, classes: int) -> None:
    base = find_text_model(str(tiny_text_model(tmp_path / "base", "roberta")), max_length=None)
    corpus = corpus_of("a", "b")
    other = type(corpus)(name="c", label_names=tuple(map(str, range(classes))), examples=(), license="")
    load_text_classifier(base, other).save_pretrained(tmp_path / "classifier")  # type: ignore[operator]
    base.tokenizer.save_pretrained(tmp_path / "classifier")
    found = find_text_model(str(tmp_path / "classifier"), max_length=None)
    heads = []
    for model, seed in ((found, 0), (found, 1), (base, 0)):
        torch.manual_seed(seed)
        classifier = load_text_classifier(model, corpus)
        heads.append({name: value for name, value in classifier.state_dict().items() if name.startswith("classifier.")})
        encoder = load_text_encoder(base).state_dict()
        inside = {name.removeprefix("roberta."): value for name, value in classifier.state_dict().items() if name.startswith("roberta.")}
        assert all(torch.equal(value, encoder[name]) for name, value in inside.items())
    first, second, headless = heads
    assert not any(torch.equal(first[name], second[name]) for name in first if name.endswith("weight"))
    assert all(torch.equal(first[name], headless[name]) for name in first), "as for a model without a head"


def test_a_model_without_its_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5EncoderModel

    folder = tiny_text_model(tmp_path, "t5")
    T5EncoderModel.from_pretrained(folder, dtype="float32").save_pretrained(folder)
    with pytest.raises(InputError, match=r"without the weights transformer\.decoder"):
        load_text_classifier(find_text_model(str(folder), max_length=None), corpus_of("a", "b"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints_are_read_in_float32(tmp_path: Path, dtype: str) -> None:
    folder = tiny_text_model(tmp_path, "bert")
    tokenizer = find_text_model(str(folder), max_length=None).tokenizer
    AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    found = find_text_model(str(tmp_path / "half"), max_length=None)
    for model in (load_text_encoder(found), load_text_classifier(found, corpus_of("a", "b"))):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma3_text", "modernbert", "bloom"])
def test_fewer_layers_are_the_same_model_when_read_back(tmp_path: Path, family: str) -> None:
    sizes = {"n_layer": 4} if family in ("gpt2", "bloom") else {"num_hidden_layers": 4}
    found = find_text_model(str(tiny_text_model(tmp_path / "model", family, **sizes)), max_length=None)
    model: Any = load_text_classifier(found, corpus_of("a", "b")).eval()
    keep_layers(model, 2)
    model.save_pretrained(tmp_path / "kept")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept", dtype="float32").eval()
    ids = torch.arange(6, 22)[None] % 29
    torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-6, rtol=1e-6)


def rewritten(folder: Path, name: str, **values: Any) -> str:
    """A folder after a change of one of its JSON files."""
    write_json(folder / name, read_json(folder / name) | values)
    return str(folder)


def test_a_trained_classifier_reads_as_long_a_text_as_its_tokenizer_states(tmp_path: Path) -> None:
    folder = rewritten(tiny_text_model(tmp_path, "modernbert"), "tokenizer_config.json", model_max_length=700)
    lengths = [find_text_model(folder, max_length=None, is_trained=is_trained).max_length for is_trained in (False, True)]
    assert lengths == [512, 700]


def test_a_trained_classifier_that_states_no_length_reads_512_tokens(tmp_path: Path) -> None:
    assert find_text_model(str(tiny_text_model(tmp_path, "t5")), max_length=None, is_trained=True).max_length == 512


@pytest.mark.parametrize("stated", [64.0, "64"])
def test_a_length_that_is_written_as_no_whole_number_is_one(tmp_path: Path, stated: object) -> None:
    found = find_text_model(rewritten(tiny_text_model(tmp_path, "bert"), "tokenizer_config.json", model_max_length=stated), max_length=None)
    assert (found.max_length, found.tokenizer.model_max_length) == (64, 64)


def test_a_length_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model_max_length 'long'"):
        find_text_model(rewritten(tiny_text_model(tmp_path, "bert"), "tokenizer_config.json", model_max_length="long"), max_length=None)


@pytest.mark.parametrize(
    "setting",
    [{"output_attentions": True}, {"output_hidden_states": True}, {"return_dict": False}, {"chunk_size_feed_forward": 5}],
)
def test_what_else_a_model_returns_is_left_out(tmp_path: Path, setting: dict[str, Any]) -> None:
    folder = rewritten(tiny_text_model(tmp_path / "model", "bert"), "config.json", **setting)
    classifier: Any = load_text_classifier(find_text_model(folder, max_length=None), corpus_of("a", "b"))
    assert classifier(input_ids=torch.ones(1, 7, dtype=torch.long)).keys() == {"logits"}
    classifier.save_pretrained(tmp_path / "saved")


def test_an_adapter_next_to_a_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, "bert")
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "bert-base-uncased"})
    with pytest.raises(InputError, match=r"an adapter of bert-base-uncased .* merge_and_unload"):
        find_text_model(str(folder), max_length=None)


def test_the_folder_of_a_model_inside_is_named(tmp_path: Path) -> None:
    tiny_text_model(tmp_path / "0_Transformer", "bert")
    with pytest.raises(InputError, match=r"without config\.json; .*; give .*0_Transformer"):
        find_text_model(str(tmp_path), max_length=None)


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, "bert")
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][3, 3] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"word_embeddings\.weight have values that are not finite"):
        load_text_classifier(find_text_model(str(folder), max_length=None), corpus_of("a", "b"))


@pytest.mark.parametrize("setting", [{"padding_side": "left"}, {"model_input_names": ["input_ids"]}])
def test_batches_are_padded_as_a_text_alone_is_read(tmp_path: Path, setting: dict[str, Any]) -> None:
    found = find_text_model(rewritten(tiny_text_model(tmp_path, "bert"), "tokenizer_config.json", **setting), max_length=None)
    assert found.tokenizer.padding_side == "right"
    assert "attention_mask" in found.inputs
    assert "attention_mask" in found.tokenizer("a dog")


@pytest.mark.parametrize("is_classifier", [False, True])
def test_weights_of_one_variant_are_read(tmp_path: Path, is_classifier: bool) -> None:
    folder = tiny_text_model(tmp_path, "bert")
    if is_classifier:
        AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder)
    plain: Any = load_text_encoder(find_text_model(str(folder), max_length=None))
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    found = find_text_model(str(folder), max_length=None)
    for model in (load_text_encoder(found), load_text_classifier(found, corpus_of("a", "b")).base_model):
        assert torch.equal(model.embeddings.word_embeddings.weight, plain.embeddings.word_embeddings.weight)
