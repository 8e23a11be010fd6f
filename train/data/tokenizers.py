"""The tokenizer of a text model: loaded from its folder, with a pad token, or refused in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import loading, reason, require_vocabulary

EXPECTED = "a Hugging Face text model with its tokenizer"
# How transformers 5.23 says that a package is missing: `requires_backends`, and its tokenizers in their own words.
_PACKAGE = re.compile(r"(?:need to install|requires the|pip install|please install|requires) `?(?:the )?([A-Za-z][\w.-]*)`?", re.IGNORECASE)


@contextmanager
def needing_packages(what: str) -> Iterator[None]:
    """Turn an ImportError of a library inside the block into one InputError that names the package.

    Raises:
        InputError: the model or its tokenizer needs a package that is not installed.
    """
    try:
        yield
    except ImportError as error:
        text = " ".join(str(error).split())
        match = _PACKAGE.search(text)
        package = error.name or (match[1].lower() if match else None)
        raise InputError(
            got=f"{what}, which needs {f'the package {package}' if package else 'a package'} ({reason(ValueError(text))})",
            expected="what its tokenizer or model needs, installed",
            do=f"pip install {package}" if package else "install it",
        ) from None


def load_tokenizer(what: str, folder: Path, config: Any) -> Any:
    """Return the tokenizer in ``folder``, with a pad token: its own, that of the configuration, or the token that ends a text, as is usual
    for decoders.

    Args:
        what: flag and name, for errors.
        folder: of the model.
        config: of the model.

    Raises:
        InputError: the folder holds no vocabulary, the tokenizer needs a package, does not load, or has no token to pad with.
    """
    from transformers import AutoTokenizer

    with loading(what, expected=EXPECTED, do=_remedy(folder)), needing_packages(what):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    require_vocabulary(what, folder, tokenizer, expected=EXPECTED)
    tokenizer.model_max_length = _whole_number(what, tokenizer.model_max_length)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _pad_token(what, tokenizer, config)
    return tokenizer


def _remedy(folder: Path) -> str:
    # transformers reads a tokenizer.model that is no sentence pieces as one of tiktoken, and asks for that package.
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        return "check its tokenizer.model, or save tokenizer.json next to it with save_pretrained()"
    return "save model and tokenizer into one folder with save_pretrained()"


def _whole_number(what: str, length: object) -> int:
    """Return the length that a tokenizer states; transformers 5.23 takes 64.0 or "64" as it is, and fails at the first text."""
    try:
        return int(float(str(length)))
    except (ValueError, OverflowError):
        raise InputError(
            got=f"{what}, whose tokenizer_config.json has model_max_length {length!r:.40}", expected="a whole number", do="correct it"
        ) from None


def _pad_token(what: str, tokenizer: Any, config: Any) -> str:
    number = getattr(config.get_text_config(), "pad_token_id", None)
    if isinstance(number, int) and 0 <= number < len(tokenizer):
        return str(tokenizer.convert_ids_to_tokens(number))
    for token in (tokenizer.eos_token, tokenizer.unk_token):
        if token is not None:
            return str(token)
    raise InputError(
        got=f"{what}, whose tokenizer has neither a pad token nor one that ends a text",
        expected="a token that fills up the shorter texts of a batch",
        do="set tokenizer.pad_token and save the tokenizer with save_pretrained()",
    )
