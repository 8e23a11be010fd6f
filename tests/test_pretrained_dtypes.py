"""Every model that the product loads is loaded in a stated precision: else transformers takes that of the checkpoint's first tensor."""

import ast
from collections.abc import Iterator

from tests.support.checkout import ROOT

_LOADERS = ("from_pretrained", "from_single_file")
# What has no weights.
_WITHOUT_WEIGHTS = ("Config", "config_class", "Tokenizer", "tokenizer_class", "Processor")


def _loaded() -> Iterator[tuple[str, ast.Call]]:
    """Yield the file and the node of each call that loads a model."""
    for package in ("featurize", "lugpi", "lugpi_core", "train"):
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)) if any(name in text for name in _LOADERS) else ():
                is_loader = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LOADERS
                if is_loader and not any(word in ast.unparse(node.func) for word in _WITHOUT_WEIGHTS):
                    yield path.relative_to(ROOT).as_posix(), node


def test_every_model_is_loaded_in_a_stated_precision() -> None:
    loaded = list(_loaded())
    assert {path.partition("/")[0] for path, _ in loaded} == {"featurize", "train"}
    for path, call in loaded:
        names = {keyword.arg for keyword in call.keywords}
        assert names & {"dtype", "torch_dtype"}, f"{path}:{call.lineno}"
