"""Four texts of unequal length for models of any architecture, as training data."""

from typing import Any

import numpy as np
import torch
from torch import nn

from lugpi_core.corpora.corpus import Corpus
from tests.support.small_training import CPU
from tests.support.tiny_text_models import WORDS
from train.data.token_ids import TokenIds, tokenize
from train.data.training_data import TrainingData
from train.learning.networks import padding_is_read

TWO = Corpus(name="two", label_names=("a", "b"), examples=(), license="")
TEXTS = [" ".join(WORDS[n : n + length]) for n, length in enumerate((12, 3, 7, 2))]
ROWS = np.arange(len(TEXTS))


def data_of(text_model: Any, network: nn.Module) -> TrainingData:
    texts = TokenIds.of(text_model, tokenize(text_model, TEXTS), CPU, padding_is_read=padding_is_read(network))
    return TrainingData(device=CPU, labels=torch.zeros(len(TEXTS), dtype=torch.int64), texts=texts)
