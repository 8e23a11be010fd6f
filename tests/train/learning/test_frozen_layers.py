"""Frozen layers whose hidden states are given: the same answers in every architecture, and nothing else is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lugpi_core.errors import InputError
from tests.support.few_texts import ROWS, TWO, data_of
from tests.support.small_training import deep_folder, training_of
from tests.support.tiny_text_models import tiny_text_model
from train.data.prefix import PREFIX
from train.data.text_model import find_text_model, load_text_classifier
from train.learning.classifier_head import hugging_face_model
from train.learning.frozen_layers import FrozenLayers, find_layers
from train.learning.loop import Learner
from train.learning.networks import TextClassifier
from train.models.prefix import only_token, require_same_answers
from train.models.teachers import build_teacher

# One of each way in which layers get what they need: masks of each kind of attention, absolute, rotary and relative positions, prepared
# before the layers or (T5) by the first of them; padding on either side. With the one token that the classifier reads; None = their mean.
CALLED = {
    "bert": "first",
    "deberta-v2": "first",
    "modernbert": "first",
    "longformer": "first",
    "eurobert": None,
    "bart": "last",
    "t5": "last",
    "gpt2": "last",
    "llama": "last",
    "gemma3_text": "last",
}
# CANINE's classifier reads what comes before its last layers: it would compute all of them in every epoch.
REFUSED = [("perceiver", 1, "states"), ("xlnet", 1, "states"), ("canine", None, "head does not read the states")]


def networks(text_model: Any) -> list[nn.Module]:
    return [TextClassifier(load_text_classifier(text_model, TWO)), build_teacher(text_model, 2, None)]


@pytest.mark.parametrize("family", CALLED)
def test_kept_states_give_the_same_answers(family: str, tmp_path: Path) -> None:
    text_model = find_text_model(str(tiny_text_model(tmp_path, family)), max_length=None)
    for network, token in zip(networks(text_model), (CALLED[family], None), strict=True):
        data, layers = data_of(text_model, network), FrozenLayers(network, None)
        require_same_answers(network, layers, data, ROWS.tolist())
        assert only_token(network, layers, data, ROWS.tolist()) == token
        layers.release()
        layers = FrozenLayers(network, 2)
        require_same_answers(network, layers, data, ROWS.tolist())
        inputs = data.batch(ROWS).inputs
        network.eval()
        with torch.no_grad():
            live, others = network(inputs), network({**inputs, PREFIX: torch.randn(*inputs["input_ids"].shape, layers.width)})
        assert not torch.allclose(live.embeddings, others.embeddings, atol=1e-4), "the states are read"


@pytest.mark.parametrize(("family", "count", "why"), REFUSED)
def test_layers_that_pass_on_no_state_of_each_token_are_refused(
    family: str, count: int | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.CanineTokenizer.get_vocab", lambda _: {})  # of all characters it takes seconds
    text_model = find_text_model(str(tiny_text_model(tmp_path, family)), max_length=None)
    network = TextClassifier(load_text_classifier(text_model, TWO))
    with pytest.raises(InputError, match=why):
        require_same_answers(network, FrozenLayers(network, count), data_of(text_model, network), ROWS.tolist())


def test_layers_that_share_weights_are_refused(tmp_path: Path) -> None:
    text_model = find_text_model(str(deep_folder(tmp_path, "albert")), max_length=None)
    with pytest.raises(InputError, match="each called once"):
        FrozenLayers(TextClassifier(load_text_classifier(text_model, TWO)), 1)


def test_more_layers_than_there_are_are_refused(tmp_path: Path) -> None:
    text_model = find_text_model(str(tiny_text_model(tmp_path, "bert")), max_length=None)
    with pytest.raises(InputError, match="--freeze-layers 3; expected 0 to 2"):
        FrozenLayers(TextClassifier(load_text_classifier(text_model, TWO)), 3)


@pytest.mark.parametrize(("family", "also"), [("bert", ()), ("deberta-v2", ("encoder.rel_embeddings.weight",)), ("t5", ())])
def test_every_weight_on_which_the_states_depend_is_frozen(family: str, also: tuple[str, ...], tmp_path: Path) -> None:
    text_model = find_text_model(str(tiny_text_model(tmp_path, family)), max_length=None)
    network = TextClassifier(load_text_classifier(text_model, TWO))
    layers = FrozenLayers(network, 1)
    assert set(also) <= set(layers.weights)
    first, second = find_layers(hugging_face_model(network))
    assert not any(weight.requires_grad for weight in first.parameters())
    assert all(weight.requires_grad for weight in second.parameters())
    assert not hugging_face_model(network).get_input_embeddings().weight.requires_grad


def test_frozen_layers_compute_nothing_where_their_states_are_given(tmp_path: Path) -> None:
    text_model = find_text_model(str(deep_folder(tmp_path, "distilbert")), max_length=None)
    network = TextClassifier(load_text_classifier(text_model, TWO))
    layers, data = FrozenLayers(network, 4), data_of(text_model, network)
    called: list[int] = []
    for number, layer in enumerate(find_layers(hugging_face_model(network))):
        next(part for part in layer.modules() if isinstance(part, nn.Linear)).register_forward_hook(lambda *_, n=number: called.append(n))
    inputs = data.batch(ROWS).inputs
    given = layers.states(inputs)
    assert called == [0, 1, 2, 3]
    network({**inputs, PREFIX: given})
    assert called == [0, 1, 2, 3, 4, 5]


def test_half_of_the_layers_frozen_leave_a_third_of_the_optimizers_memory(small_csv: Path, tmp_path: Path) -> None:
    # DistilBERT's proportions: its embedding has 40 rows for each unit of width.
    from transformers import DistilBertConfig, DistilBertModel

    demo = find_text_model("demo", max_length=None)
    torch.manual_seed(0)
    sizes = {"dim": 64, "hidden_dim": 256, "n_layers": 6, "n_heads": 4}
    DistilBertModel(DistilBertConfig(vocab_size=max(40 * 64, demo.config.vocab_size), **sizes)).save_pretrained(tmp_path / "model")
    demo.tokenizer.save_pretrained(tmp_path / "model")
    held = {}
    for count in (0, 3):
        training = training_of(small_csv, tmp_path / str(count), text_model=str(tmp_path / "model"))
        if count:
            FrozenLayers(training.model, count)
        learner = Learner(training)
        batch = training.data.batch(np.arange(14))
        torch.autograd.backward(training.loss(learner.wrapped(batch.inputs), batch))
        gradients = [weight.grad for weight in training.model.parameters() if weight.grad is not None]
        learner.optimizer.step()
        state = [value for of_weight in learner.optimizer.state.values() for value in of_weight.values() if value.ndim]
        held[count] = sum(tensor.numel() * tensor.element_size() for tensor in (*gradients, *state))
    assert held[3] <= 0.4 * held[0]
