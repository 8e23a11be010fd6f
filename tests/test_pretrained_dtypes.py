"""Every model that the product loads is loaded in a stated precision: else transformers takes that of the checkpoint's first tensor."""

import ast

import pytest

from tests.support.checkout import ROOT

# What has no weights.
_WITHOUT_WEIGHTS = ("Config", "config_class", "Tokenizer", "tokenizer_class", "Processor")
_CALLS = [
    (path.relative_to(ROOT).as_posix(), node)
    for package in ("featurize", "lugpi", "lugpi_core", "train")
    for path in sorted((ROOT / package).rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("from_pretrained", "from_single_file")
]
_LOADED = [(path, call) for path, call in _CALLS if not any(word in ast.unparse(call.func) for word in _WITHOUT_WEIGHTS)]


def test_the_calls_are_found() -> None:
    assert {path.partition("/")[0] for path, _ in _LOADED} == {"featurize", "train"}


@pytest.mark.parametrize(("path", "call"), _LOADED, ids=[f"{path}:{call.lineno}" for path, call in _LOADED])
def test_every_model_is_loaded_in_a_stated_precision(path: str, call: ast.Call) -> None:
    names = {keyword.arg for keyword in call.keywords}
    assert names & {"dtype", "torch_dtype"}, f"{path}:{call.lineno}"
