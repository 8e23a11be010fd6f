"""A finished classifier as one ONNX file, and the check that onnxruntime computes the same from it.

Shapes: B texts in a batch, L tokens of the longest, K classes.
"""

import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lugpi_core.command_line import say
from lugpi_core.corpora.load import load_corpus
from lugpi_core.errors import InputError
from lugpi_core.files import whole_file
from lugpi_core.runtime.libraries import prepare_libraries, start_up
from lugpi_core.runtime.pretrained import reason
from train.data.text_model import TextModel
from train.data.token_ids import TokenIds, tokenize
from train.learning.task_rules import rules_of
from train.models.classifier import Classifier, load_classifier
from train.options.tools import OnnxOptions
from train.tools.onnx_figures import export_int8
from train.tools.onnx_session import OUTPUT, OnnxSession, whole_batch

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Of logits in float32: another library adds in another order.
LARGEST_DIFFERENCE = 1e-4
# An ONNX file is one protocol buffer, which is limited to 2 GiB; the graph takes some of it.
LARGEST_BYTES = (1 << 31) - (64 << 20)
# Rows of the check's texts: one text alone, equal lengths, and batches of several sizes in which most texts are padded.
_BATCHES = ((0,), (5,), (4, 4), (0, 5, 1), (2, 0, 3, 1, 4), (5, 0, 1, 2, 3, 4, 0))


def onnx(options: OnnxOptions) -> dict[str, Any]:
    """Write the classifier with every input that it reads, ``input_ids``, ``attention_mask``, … int64 [B, L], and output ``logits``,
    float32 [B, K], with dynamic B and L; probabilities are left to the reader. The file's metadata are ``id2label``, ``problem_type``,
    ``max_length`` and, of a multi-label classifier, ``thresholds``. The file is checked before it is renamed into place.

    Raises:
        InputError: a package is missing, the folder is no finished classifier, the model cannot be exported or takes 2 GB, onnxruntime's
            logits differ by more than 1e-4, or padding moves those of the int8 file too far; the file is not written then.
    """
    prepare_libraries()
    require_packages()
    with start_up():
        classifier = load_classifier(options.model)
    weights_bytes = sum(parameter.numel() * parameter.element_size() for parameter in classifier.model.parameters())
    if weights_bytes > LARGEST_BYTES:
        got = f"{options.model} of {weights_bytes / 1e9:.1f} GB"
        raise InputError(got=got, expected="below 2 GB, the limit of an ONNX file", do="give another --model")
    for written in (options.written, *([options.written_int8] if options.int8 else [])):
        if written.is_dir():
            raise InputError(got=f"--output {written}, a folder", expected="a file", do="give a name ending in .onnx")
    batches = check_batches(classifier.text_model)
    with whole_file(options.written) as partial:
        opset = write_onnx(partial, classifier, batches[-1])
        difference = largest_difference(partial, classifier, batches)
        if not difference <= LARGEST_DIFFERENCE:
            raise InputError(
                got=f"logits of onnxruntime that differ by {difference:.2g} from those of {options.model}",
                expected=f"at most {LARGEST_DIFFERENCE:g}",
                do="nothing was written; try another version of onnxruntime",
            )
    say(f"done: {options.written}; logits differ by {difference:.2g} at most over {len(batches)} batches")
    figures = {
        "command": "onnx",
        "model": str(options.model),
        "path": str(options.written),
        "bytes": options.written.stat().st_size,
        "opset": opset,
        "max_logit_difference": difference,
    }
    if options.int8:
        figures["int8"] = export_int8(options.model, classifier, options.written, options.written_int8)
    return figures


def require_packages() -> None:
    """Raise InputError unless the optional packages are installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(got=f"no package {', '.join(missing)}", expected=f"{', '.join(PACKAGES)}", do="pip install 'lugpi[onnx]'")


def check_batches(text_model: TextModel) -> list[dict[str, torch.Tensor]]:
    """Return batches of real texts of many lengths, up to the longest the model reads: every input of the model, int64 [B, L]."""
    corpus = load_corpus("demo")
    real = [example.text for example in corpus.examples]
    # CANINE, whose tokens are characters, reads no fewer than four.
    words = [word for text in real[:5] for word in text.split() if len(word) > 1]
    shortest = min(words, key=lambda word: len(text_model.tokenizer(word)["input_ids"]))
    texts = [shortest, *real[1:5], " ".join(real)[: 16 * text_model.max_length]]
    ids = TokenIds.of(text_model, tokenize(text_model, texts), torch.device("cpu"))
    return [whole_batch(text_model, ids, np.array(batch, np.int64)) for batch in _BATCHES]


class _Logits(nn.Module):
    """A classifier whose inputs and outputs are plain tensors, the inputs in the order of ``names``."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits_BK


def write_onnx(path: Path, classifier: Classifier, example: dict[str, torch.Tensor]) -> int:
    """Write the classifier to ``path``, weights inside; return the opset.

    Args:
        path: is overwritten.
        classifier: what is exported.
        example: a batch of several texts to trace it with.

    Raises:
        InputError: torch cannot export a model of this kind.
    """
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=classifier.text_model.max_length)}
    kind = type(classifier.model).__name__
    try:
        with _quiet_exporter(), _batched_experts(classifier.model):
            program = torch.onnx.export(
                _Logits(classifier.model, tuple(example)).eval(),
                args=tuple(example.values()),
                input_names=tuple(example),
                output_names=(OUTPUT,),
                dynamic_shapes={"inputs": (free,) * len(example)},
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        got = f"a {kind}, which torch {torch.__version__} cannot export ({_first_cause(error)})"
        raise InputError(got=got, expected="for instance a DistilBERT or a BERT", do="give another --model") from None
    if program is None:
        raise AssertionError("torch.onnx.export with dynamo=True returns a program")
    program.model.metadata_props.update(_metadata(classifier))
    program.save(path, external_data=False)
    return int(program.model.opset_imports[""])


def _metadata(classifier: Classifier) -> dict[str, str]:
    """Return what turns logits into answers: names, the task, the thresholds."""
    thresholds = {} if classifier.thresholds is None else {"thresholds": json.dumps(list(classifier.thresholds))}
    return {
        "id2label": json.dumps(dict(enumerate(classifier.label_names)), ensure_ascii=False),
        "problem_type": rules_of(classifier.task).problem_type,
        "max_length": str(classifier.text_model.max_length),
        **thresholds,
    }


def _first_cause(error: BaseException) -> str:
    """Return the first sentence of what torch says, without colours."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return re.sub(r"\x1b\[[0-9;]*m", "", reason(cause))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    # It tells at every export that there is no torchvision, whose layers no text model has.
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch's exporter uses a class that torch has deprecated.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def _batched_experts(model: Any) -> Iterator[None]:
    """For the time of an export, multiply by a mixture's experts in a way that has an ONNX form, and gives the same."""
    chosen = model.get_experts_implementation()
    model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_experts_implementation(chosen)


def largest_difference(path: Path, classifier: Classifier, batches: Sequence[dict[str, torch.Tensor]]) -> float:
    """Return the largest difference between a logit of onnxruntime, which reads ``path``, and of the classifier, over all batches; NaN if
    one of them is not finite.

    Raises:
        InputError: onnxruntime cannot compute the file for some batch.
    """
    session = OnnxSession(path)
    differences = []
    for batch in batches:
        with torch.inference_mode():
            ours_BK = classifier.model(**batch).logits
        differences.append((session.logits(batch) - ours_BK).abs().max())
    return float(torch.stack(differences).max())
