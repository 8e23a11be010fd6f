"""The small DistilBERT: pre-trained on glosses by masked language modelling (Devlin et al. 2019, arXiv 1810.04805, §3.1; no next sentence).

Shapes: B texts, L tokens.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_WIDTH, _LAYERS, _HEADS, _LONGEST = 128, 2, 8, 128
_MASKED = 0.15
_POOL = 8


def masked_model(tokenizer: Any) -> Any:
    """Return a new DistilBertForMaskedLM."""
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=_WIDTH,
        hidden_dim=4 * _WIDTH,
        n_layers=_LAYERS,
        n_heads=_HEADS,
        max_position_embeddings=_LONGEST,
        pad_token_id=tokenizer.pad_token_id,
    )
    return DistilBertForMaskedLM(config)


class MaskedWords:
    """Masked language modelling: 15 % of the pieces are predicted; of these 80 % are masked, 10 % are replaced, 10 % are kept."""

    def __init__(self, model: Any, tokenizer: Any, texts: Sequence[str], batch: int) -> None:
        self._model, self._tokenizer, self._batch = model, tokenizer, batch
        ids = tokenizer(list(texts), truncation=True, max_length=_LONGEST)["input_ids"]
        self._ids = [torch.tensor(row) for row in ids]

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch of texts of similar length."""
        sampler = random.Random(chance.initial_seed())
        numbers = sampler.sample(range(len(self._ids)), min(_POOL * self._batch, len(self._ids)))
        numbers.sort(key=lambda number: (len(self._ids[number]), number))
        start = sampler.randrange(0, max(1, len(numbers) - self._batch + 1))
        rows = [self._ids[number] for number in numbers[start : start + self._batch]]
        ids_BL = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._tokenizer.pad_token_id)
        is_text_BL = ids_BL >= len(self._tokenizer.all_special_ids)
        target_BL = (torch.rand(ids_BL.shape, generator=chance) < _MASKED) & is_text_BL
        action_BL = torch.rand(ids_BL.shape, generator=chance)
        random_BL = torch.randint(len(self._tokenizer.all_special_ids), len(self._tokenizer), ids_BL.shape, generator=chance)
        input_BL = torch.where(target_BL & (action_BL < 0.8), self._tokenizer.mask_token_id, ids_BL)
        input_BL = torch.where(target_BL & (action_BL >= 0.9), random_BL, input_BL)
        states = self._model.distilbert(input_ids=input_BL, attention_mask=(ids_BL != self._tokenizer.pad_token_id).long())
        hidden = states.last_hidden_state[target_BL]  # the head covers the whole vocabulary: only for the targets
        hidden = self._model.vocab_layer_norm(self._model.activation(self._model.vocab_transform(hidden)))
        return nn.functional.cross_entropy(self._model.vocab_projector(hidden), ids_BL[target_BL])
