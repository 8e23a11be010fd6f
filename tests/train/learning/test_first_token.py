"""The last layer for the first token of each text alone: the same answers and gradients, with less computed."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from lugpi_core.files import read_json, write_json
from tests.support.few_texts import ROWS, TWO, data_of
from tests.support.small_training import deep_folder
from tests.support.tiny_text_models import tiny_text_model
from train.data.prefix import PREFIX
from train.data.text_model import find_text_model, load_text_classifier
from train.learning.classifier_head import hugging_face_model
from train.learning.first_token import FirstTokenOnly
from train.learning.frozen_layers import FrozenLayers, find_layers
from train.learning.networks import TextClassifier
from train.models.prefix import read_first_token_only
from train.models.teachers import build_teacher

# Norms after a sum of states (the first three), or before; a sum inside the part or outside of it. With the share of the last layer's
# products with weights that is left: the projections to queries, keys and values, and one token of each text. DeBERTa's are few here
# beside those of 512 relative positions.
NARROWED = {"distilbert": 0.6, "bert": 0.6, "deberta-v2": 0.95, "modernbert": 0.6}
# They read the mean of all tokens, or the last one.
WHOLE = ("eurobert", "bart", "gpt2")
Narrow = tuple[nn.Module, FrozenLayers, Mapping[str, torch.Tensor], FirstTokenOnly]


def narrowed(family: str, folder: Path) -> Narrow:
    return narrowed_of(deep_folder(folder, family) if family == "distilbert" else tiny_text_model(folder, family))


def narrowed_of(folder: Path) -> Narrow:
    text_model = find_text_model(str(folder), max_length=None)
    torch.manual_seed(0)
    network = TextClassifier(load_text_classifier(text_model, TWO))
    data, layers = data_of(text_model, network), FrozenLayers(network, 1)
    inputs = data.batch(ROWS).inputs
    first = read_first_token_only(network, layers, data, ROWS.tolist())
    return network.eval(), layers, {**inputs, PREFIX: layers.states(inputs)}, first


def learnt_from(network: nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the logits, and the gradients of all weights that are trained."""
    logits = network(inputs).logits
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(logits.square().sum(), weights, allow_unused=True, materialize_grads=True)
    return logits.detach(), list(gradients)


def products(network: nn.Module, inputs: Mapping[str, torch.Tensor]) -> int:
    """Return the number of products with weights in the last layer."""
    counted: list[int] = []
    parts = [part for part in find_layers(hugging_face_model(network), last=True)[-1].modules() if isinstance(part, nn.Linear)]
    handles = [part.register_forward_hook(lambda part, _, output: counted.append(output.numel() * part.in_features)) for part in parts]
    network(inputs)
    for handle in handles:
        handle.remove()
    return sum(counted)


@pytest.mark.parametrize(("family", "most"), NARROWED.items())
def test_answers_and_gradients_are_those_of_all_tokens(family: str, most: float, tmp_path: Path) -> None:
    network, _, inputs, first = narrowed(family, tmp_path)
    assert first.parts
    (logits, gradients), fewer = learnt_from(network, inputs), products(network, inputs)
    first.release()
    (all_logits, all_gradients), count = learnt_from(network, inputs), products(network, inputs)
    torch.testing.assert_close(logits, all_logits, rtol=0, atol=1e-5)
    for ours, expected in zip(gradients, all_gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert fewer < most * count


def test_a_text_that_is_computed_whole_stays_as_it_is(tmp_path: Path) -> None:
    network, _, inputs, first = narrowed("distilbert", tmp_path)
    texts = {name: values for name, values in inputs.items() if name != PREFIX}
    with_hooks = network(texts).logits
    first.release()
    assert torch.equal(with_hooks, network(texts).logits)


@pytest.mark.parametrize("family", WHOLE)
def test_a_classifier_that_reads_other_tokens_computes_all(family: str, tmp_path: Path) -> None:
    assert narrowed(family, tmp_path)[3].parts == []


def test_a_teacher_reads_all_tokens_of_its_encoder(tmp_path: Path) -> None:
    text_model = find_text_model(str(tiny_text_model(tmp_path, "bert")), max_length=None)
    teacher = build_teacher(text_model, 2, None)
    assert FirstTokenOnly(teacher, FrozenLayers(teacher, 1)).parts == []


def test_a_last_layer_that_is_frozen_is_left_alone(tmp_path: Path) -> None:
    text_model = find_text_model(str(tiny_text_model(tmp_path, "bert")), max_length=None)
    network = TextClassifier(load_text_classifier(text_model, TWO))
    assert FirstTokenOnly(network, FrozenLayers(network, 2)).parts == []


def test_a_layer_that_the_backward_pass_computes_again_is_left_whole(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, "bert")
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "gradient_checkpointing": True})
    network, _, inputs, first = narrowed_of(folder)
    assert first.parts == []
    learnt_from(network.train(), inputs)


def test_a_head_of_zeros_tells_nothing_of_its_layer(tmp_path: Path) -> None:
    text_model = find_text_model(str(tiny_text_model(tmp_path, "bert")), max_length=None)
    network = TextClassifier(load_text_classifier(text_model, TWO))
    nn.init.zeros_(hugging_face_model(network).classifier.weight)
    assert FirstTokenOnly(network, FrozenLayers(network, 1)).parts == []


def test_what_is_the_same_for_short_texts_alone_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter((1.0, 0.0))
    monkeypatch.setattr("train.models.prefix._difference", lambda *_: next(answers))
    assert narrowed("bert", tmp_path)[3].parts == []
