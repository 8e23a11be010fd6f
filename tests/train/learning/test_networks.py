"""The networks: where the embedding is taken, what the fusion head computes, and that padding changes nothing."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from lugpi_core.errors import InputError
from tests.support.small_training import tiny_classifier
from train.learning.networks import FusionHead, ImageClassifier, Student, Teacher, TextClassifier, text_dropout, text_width

CLASSES = 5


def text_batch() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.randint(5, 100, (3, 7), generator=torch.Generator().manual_seed(1)),
        "attention_mask": torch.ones(3, 7).long(),
    }


def last_linear(model: nn.Module) -> nn.Linear:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


@pytest.mark.parametrize("family", ["distilbert", "bert", "roberta", "electra", "deberta-v2"])
def test_the_embedding_is_what_the_last_linear_reads(family: str) -> None:
    model = TextClassifier(tiny_classifier(family)).eval()
    output = model(text_batch())
    head = last_linear(model)
    assert output.embeddings.shape == (3, model.embedding_width)
    torch.testing.assert_close(head(output.embeddings), output.logits)


@pytest.mark.parametrize("family", ["distilbert", "bert", "roberta", "electra", "deberta-v2"])
def test_the_embedding_is_taken_before_dropout(family: str) -> None:
    model = TextClassifier(tiny_classifier(family)).train()
    output = model(text_batch())
    assert not torch.allclose(last_linear(model)(output.embeddings), output.logits)
    # Half the numbers would be zero behind the dropout; DistilBERT's ReLU makes about half of them zero by itself.
    assert (output.embeddings == 0).float().mean() < (0.65 if family == "distilbert" else 0.05)


def test_distilberts_embedding_is_its_pre_classifier_after_relu() -> None:
    classifier: Any = tiny_classifier("distilbert")
    model = TextClassifier(classifier).eval()
    batch = text_batch()
    hidden = classifier.distilbert(**batch).last_hidden_state[:, 0]
    torch.testing.assert_close(model(batch).embeddings, torch.relu(classifier.pre_classifier(hidden)))


def test_the_classifier_is_the_plain_hugging_face_model() -> None:
    classifier: Any = tiny_classifier("bert").eval()
    batch = text_batch()
    expected = classifier(**batch).logits
    torch.testing.assert_close(TextClassifier(classifier).eval()(batch).logits, expected, rtol=0, atol=0)


def written_out_block(block: nn.TransformerEncoderLayer, x: torch.Tensor, padding: torch.Tensor, heads: int) -> torch.Tensor:
    """A post-norm transformer block, from its weights, in float64: LN(x + MHA(x)), then LN(x + W₂ relu(W₁ x))."""
    weights = {name: value.double() for name, value in block.state_dict().items()}
    batch, length, width = x.shape
    qkv = x @ weights["self_attn.in_proj_weight"].T + weights["self_attn.in_proj_bias"]
    q, k, v = (part.view(batch, length, heads, width // heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    scores = q @ k.transpose(-1, -2) / math.sqrt(width // heads)
    scores = scores.masked_fill(padding[:, None, None, :], -math.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
    x = x + mixed @ weights["self_attn.out_proj.weight"].T + weights["self_attn.out_proj.bias"]
    x = nn.functional.layer_norm(x, (width,), weights["norm1.weight"], weights["norm1.bias"])
    hidden = torch.relu(x @ weights["linear1.weight"].T + weights["linear1.bias"])
    x = x + hidden @ weights["linear2.weight"].T + weights["linear2.bias"]
    return nn.functional.layer_norm(x, (width,), weights["norm2.weight"], weights["norm2.bias"])


def test_the_fusion_head_computes_what_the_design_says() -> None:
    torch.manual_seed(3)
    head = FusionHead(text_width=32, image_width=24, classes=CLASSES).eval()
    image, text = torch.randn(2, 6, 24), torch.randn(2, 4, 32)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    output = head(image, text, mask == 0)
    project: Any = head.project
    joined = torch.cat([text.double(), image.double() @ project.weight.double().T + project.bias.double()], dim=1)
    padding = torch.cat([mask == 0, torch.zeros(2, 6, dtype=torch.bool)], dim=1)
    fused = written_out_block(head.block, joined, padding, heads=8)
    classes = torch.cat([fused[:, 0], fused[:, 4]], dim=1)  # U_CLS first, V_CLS where the image tokens begin
    embeddings = torch.relu(classes @ head.embed.weight.double().T + head.embed.bias.double())
    logits = embeddings @ head.classify.weight.double().T + head.classify.bias.double()
    torch.testing.assert_close(output.embeddings.double(), embeddings, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.logits.double(), logits, atol=1e-5, rtol=1e-5)


def test_without_text_the_head_reads_the_image_class_token() -> None:
    torch.manual_seed(3)
    head = FusionHead(text_width=32, image_width=32, classes=CLASSES, reads_text=False).eval()
    image = torch.randn(2, 6, 32)
    fused = written_out_block(head.block, image.double(), torch.zeros(2, 6, dtype=torch.bool), heads=8)
    embeddings = torch.relu(fused[:, 0] @ head.embed.weight.double().T + head.embed.bias.double())
    torch.testing.assert_close(ImageClassifier(head)({"image_tokens": image.half()}).embeddings.double(), embeddings, atol=5e-3, rtol=5e-3)


def test_without_images_the_head_reads_the_text_class_token() -> None:
    torch.manual_seed(3)
    head = FusionHead(text_width=32, image_width=None, classes=CLASSES).eval()
    text, padding = torch.randn(2, 4, 32), torch.tensor([[False] * 4, [False, False, True, True]])
    fused = written_out_block(head.block, text.double(), padding, heads=8)
    embeddings = torch.relu(fused[:, 0] @ head.embed.weight.double().T + head.embed.bias.double())
    output = head(None, text, padding)
    torch.testing.assert_close(output.embeddings.double(), embeddings, atol=1e-5, rtol=1e-5)
    assert head.embed.in_features == 32
    assert isinstance(head.project, nn.Identity)


def test_image_tokens_are_projected_only_if_widths_differ() -> None:
    same = FusionHead(text_width=32, image_width=32, classes=2)
    other = FusionHead(text_width=32, image_width=24, classes=2)
    assert isinstance(same.project, nn.Identity)
    assert isinstance(other.project, nn.Linear)


def test_with_distilberts_width_the_head_is_the_papers() -> None:
    head = FusionHead(text_width=768, image_width=768, classes=20)
    assert (head.embed.in_features, head.embed.out_features) == (1536, 768)
    assert (head.classify.in_features, head.classify.out_features) == (768, 20)
    assert head.block.self_attn.num_heads == 8
    assert head.block.linear1.out_features == 4 * 768


def test_more_padding_does_not_change_the_teacher() -> None:
    classifier: Any = tiny_classifier("bert")
    teacher = Teacher(classifier.bert, FusionHead(text_width=32, image_width=24, classes=CLASSES)).eval()
    batch = {**text_batch(), "image_tokens": torch.randn(3, 6, 24).half()}
    longer = dict(batch)
    longer["input_ids"] = torch.cat([batch["input_ids"], torch.full((3, 9), 0)], dim=1)
    longer["attention_mask"] = torch.cat([batch["attention_mask"], torch.zeros(3, 9).long()], dim=1)
    torch.testing.assert_close(teacher(batch).logits, teacher(longer).logits, atol=1e-5, rtol=1e-5)


def test_a_teacher_ignores_padding() -> None:
    torch.manual_seed(4)
    classifier: Any = tiny_classifier("distilbert")
    teacher = Teacher(classifier.distilbert, FusionHead(text_width=32, image_width=24, classes=CLASSES)).eval()
    ids, images = text_batch()["input_ids"], torch.randn(3, 6, 24).half()
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    together = teacher({"input_ids": ids * mask, "attention_mask": mask, "image_tokens": images})
    for row, length in enumerate((7, 4, 2)):
        alone = teacher({"input_ids": ids[row : row + 1, :length], "image_tokens": images[row : row + 1]})
        torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.embeddings[row], alone.embeddings[0], atol=1e-5, rtol=1e-5)


def test_a_student_projects_only_to_other_widths() -> None:
    classifier = TextClassifier(tiny_classifier("distilbert"))
    student = Student(classifier, [32, 24, 48]).eval()
    output, plain = student(text_batch()), classifier(text_batch())
    assert torch.equal(output.logits, plain.logits)
    assert torch.equal(output.embeddings, plain.embeddings)
    assert torch.equal(output.projected[0], plain.embeddings)
    assert [tuple(one.shape) for one in output.projected] == [(3, 32), (3, 24), (3, 48)]
    assert [type(part) for part in student.project] == [nn.Identity, nn.Linear, nn.Linear]
    assert Student(classifier, []).eval()(text_batch()).projected == ()


def test_the_teacher_depends_on_the_images() -> None:
    classifier: Any = tiny_classifier("bert")
    teacher = Teacher(classifier.bert, FusionHead(text_width=32, image_width=24, classes=CLASSES)).eval()
    batch = {**text_batch(), "image_tokens": torch.randn(3, 6, 24).half()}
    other = {**batch, "image_tokens": torch.randn(3, 6, 24).half()}
    assert not torch.allclose(teacher(batch).logits, teacher(other).logits)


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    import transformers

    with pytest.raises(InputError, match="multiple of 8"):
        text_width(transformers.BertConfig(hidden_size=36, num_attention_heads=4), "--text-model x")
    assert text_width(transformers.DistilBertConfig(dim=64, n_heads=4), "--text-model x") == 64


def test_the_fusion_block_uses_the_text_models_dropout() -> None:
    import transformers

    assert text_dropout(transformers.DistilBertConfig(dropout=0.3)) == 0.3
    assert text_dropout(transformers.BertConfig(hidden_dropout_prob=0.0)) == 0.0
    assert text_dropout(transformers.T5Config()) == 0.1


@pytest.mark.parametrize("wrong", [{"text_width": 36}, {"text_width": 0}, {"image_width": 0}, {"classes": 0}, {"image_width": None}])
def test_a_head_of_impossible_sizes_is_refused(wrong: dict[str, Any]) -> None:
    sizes: dict[str, Any] = {"text_width": 32, "image_width": 24, "classes": 2, "reads_text": False}
    with pytest.raises(InputError, match="positive numbers, text_width a multiple of 8"):
        FusionHead(**sizes | wrong)
