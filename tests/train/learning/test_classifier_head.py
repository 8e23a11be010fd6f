"""The layer that makes a classifier's logits, and whether padding changes its answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lugpi_core.errors import InputError
from tests.support.small_text_models import corpus_of
from tests.support.tiny_text_models import FAMILIES, tiny_text_model
from train.data.text_model import find_text_model, load_text_classifier, load_text_encoder
from train.data.token_ids import TokenIds, tokenize
from train.learning.classifier_head import find_logits_layer, reads_padding, require_readable, states_of, tiny_texts
from train.learning.networks import TextClassifier

TEXTS = ("the dog runs in the sun", "a cat", "the moon and the rain and the red ship of the sea")


def classifier_of(folder: Path, family: str, *, classes: int = 2, **sizes: Any) -> tuple[TextClassifier, dict[str, torch.Tensor]]:
    """A classifier with a new head, and a padded batch of texts."""
    text_model = find_text_model(str(tiny_text_model(folder, family, **sizes)), max_length=None)
    corpus = corpus_of(*TEXTS)
    names = tuple(map(str, range(classes)))
    model = load_text_classifier(text_model, type(corpus)(name="c", label_names=names, examples=(), license=""))
    ids = TokenIds.of(text_model, tokenize(text_model, TEXTS), torch.device("cpu"))
    rows = torch.arange(len(TEXTS))
    return TextClassifier(model).eval(), ids.padded(rows.numpy(), rows)


def classifier_without_tokenizer(family: str, **more: Any) -> Any:
    import transformers

    one = FAMILIES[family]
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | (
        {} if one.tokenizer in ("bytes", "characters") else {"vocab_size": 64}
    )
    config = getattr(transformers, one.config)(**ids | one.sizes | more)
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("xlm-roberta", "classifier.out_proj"),  # registered before the encoder in transformers 5.23
        ("camembert", "classifier.out_proj"),
        ("jina_embeddings_v3", "classifier.out_proj"),
        ("bert", "classifier"),
        ("eurobert", "classifier"),
        ("bart", "classification_head.out_proj"),
        ("t5", "classification_head.out_proj"),
        ("gpt2", "score"),
        ("qwen3", "score"),
        ("xlnet", "logits_proj"),
        ("perceiver", "perceiver.decoder.decoder.final_layer"),
    ],
)
def test_the_embedding_makes_the_logits(tmp_path: Path, family: str, name: str) -> None:
    classifier, batch = classifier_of(tmp_path, family)
    assert classifier.last_linear is classifier.model.get_submodule(name)
    output = classifier(batch)
    assert output.embeddings.shape == (len(TEXTS), classifier.embedding_width)
    torch.testing.assert_close(classifier.last_linear(output.embeddings), output.logits)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "gpt2"])
def test_an_encoder_as_wide_as_there_are_classes_is_no_head(tmp_path: Path, family: str) -> None:
    classifier, batch = classifier_of(tmp_path, family, classes=32)
    name = {"bert": "classifier", "xlm-roberta": "classifier.out_proj", "gpt2": "score"}[family]
    assert classifier.last_linear is classifier.model.get_submodule(name)
    output = classifier(batch)
    torch.testing.assert_close(classifier.last_linear(output.embeddings), output.logits)


def test_a_model_without_such_a_layer_is_refused() -> None:
    class Squared(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
            output.logits = output.logits**2
            return output

    from tests.support.small_training import tiny_classifier

    with pytest.raises(InputError, match="none of whose layers makes the logits"):
        find_logits_layer(Squared(tiny_classifier("bert")))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_causal_model_that_is_read_at_its_first_token_is_refused(family: str) -> None:
    with pytest.raises(InputError, match=r"which sees no other; .* set is_decoder to false"):
        find_logits_layer(classifier_without_tokenizer(family, is_decoder=True))


def test_several_tokens_may_end_a_text() -> None:
    model = classifier_without_tokenizer("llama", eos_token_id=[2, 3])
    assert tiny_texts(model)["input_ids"][:, -1].tolist() == [2, 0]
    assert find_logits_layer(model).token == "last"


@pytest.mark.parametrize(("family", "reads"), [("bert", False), ("gpt2", False), ("bart", False), ("t5", False), ("canine", True)])
def test_it_is_known_which_models_read_their_padding(family: str, reads: bool) -> None:
    assert reads_padding(classifier_without_tokenizer(family)) is reads


def test_a_model_that_chooses_tokens_reads_its_padding() -> None:
    from transformers import AXK2Config, AXK2ForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 48}
    more = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "gated_norm_rank": 4}
    index = {"index_topk": 4, "index_head_dim": 16, "index_n_heads": 1, "first_k_dense_replace": 2, "vocab_size": 90, "pad_token_id": 0}
    torch.manual_seed(1)
    special = {"bos_token_id": 1, "eos_token_id": 2, "num_labels": 2, "initializer_range": 0.25}
    model = AXK2ForSequenceClassification(AXK2Config(**sizes, **more, **index, **special)).eval()
    batch = tiny_texts(model)
    with torch.no_grad():
        padded, alone = model(**batch).logits[1], model(batch["input_ids"][1:, :7]).logits[0]
    assert not torch.allclose(padded, alone, atol=1e-3)  # in transformers 5.23
    assert reads_padding(model)


@pytest.mark.parametrize(("family", "fewest"), [("canine", 4), ("funnel", 3)])
def test_a_text_shorter_than_a_model_reads_is_named(family: str, fewest: int) -> None:
    classifier = classifier_without_tokenizer(family)
    texts = [
        TokenIds(torch.arange(sum(lengths)), np.array(lengths), pad=0, device=torch.device("cpu")) for lengths in ((9, fewest), (9, 2))
    ]
    require_readable(classifier, texts[0])
    with pytest.raises(InputError, match=rf"1 text of fewer than {fewest} tokens, .*0, 1; expected at least {fewest}, as \w+ForSeq"):
        require_readable(classifier, texts[1])


@pytest.mark.parametrize("family", ["bert", "bart", "t5", "gpt2", "xlnet", "perceiver", "longformer"])
def test_most_models_read_a_single_token(family: str) -> None:
    require_readable(classifier_without_tokenizer(family), TokenIds(torch.arange(4), np.array([3, 1]), pad=0, device=torch.device("cpu")))


@pytest.mark.parametrize(
    ("family", "states"), [("bert", "tokens"), ("funnel", "tokens"), ("longformer", "tokens"), ("perceiver", "latents")]
)
def test_what_an_encoders_states_stand_for(tmp_path: Path, family: str, states: str) -> None:
    assert states_of(load_text_encoder(find_text_model(str(tiny_text_model(tmp_path, family)), max_length=None))) == states


def test_examining_leaves_seed_and_mode_as_they_were(tmp_path: Path) -> None:
    classifier, _ = classifier_of(tmp_path, "bert")
    classifier.model.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    find_logits_layer(classifier.model)
    assert torch.equal(torch.get_rng_state(), before)
    assert classifier.model.training
    assert set(tiny_texts(classifier.model)) == {"input_ids", "attention_mask"}
