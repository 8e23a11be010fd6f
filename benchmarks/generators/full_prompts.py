"""A stand-in for tokenizers, which gives every prompt as many tokens as are read: for what is counted without a vocabulary."""

from collections.abc import Sequence
from typing import Any

# Tokens of a word of English, about.
_TOKENS_OF_A_WORD = 1.35


class FullPrompts:
    """Every text that is padded has as many tokens as it may have; others have one.

    Args:
        length: most tokens of a prompt.
    """

    bos_token_id = 0
    padding_side = "right"

    def __init__(self, length: int) -> None:
        self.model_max_length = length
        self.added_tokens_encoder: dict[str, int] = {}

    def __call__(self, texts: str | Sequence[str], *, max_length: int = 1, **_: Any) -> dict[str, Any]:
        """Return ids and mask."""
        if isinstance(texts, str):
            return {"input_ids": [1]}
        return {name: [[1] * max_length for _ in texts] for name in ("input_ids", "attention_mask")}

    def encode(self, text: str) -> list[int]:
        """Return about as many ids as a text of English has."""
        return [1] * round(_TOKENS_OF_A_WORD * len(text.split()))

    def apply_chat_template(self, turns: Sequence[Any], **_: Any) -> str:
        """Return a text that is not cut before it is padded."""
        return "x"
