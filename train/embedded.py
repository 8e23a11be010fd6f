"""The embedded text model: a small DistilBERT with random weights, made at first use in the cache folder, with words of the demo's
training texts."""

import re
from collections import Counter
from pathlib import Path

from lugpi_core.corpora import load_corpus
from lugpi_core.corpus_options import CorpusOptions
from lugpi_core.files import cache_folder, whole_folder

# Part of the folder's name: another recipe is another folder.
_VERSION = 1
_SEED = 0
_WORDS = 4000
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def embedded_text_model() -> Path:
    """Return the folder of the model, making it at first use: DistilBERT, 2 layers, width 128, 128 tokens."""
    folder = cache_folder() / f"embedded-text-{_VERSION}"
    if not folder.is_dir():
        import torch
        from transformers import DistilBertConfig, DistilBertModel, DistilBertTokenizer

        words = _vocabulary()
        config = DistilBertConfig(vocab_size=len(words), dim=128, hidden_dim=512, n_layers=2, n_heads=8, max_position_embeddings=128)
        with whole_folder(folder) as partial, torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            DistilBertModel(config).save_pretrained(partial)
            tokenizer = DistilBertTokenizer(
                vocab={word: number for number, word in enumerate(words)}, do_lower_case=True, model_max_length=128
            )
            tokenizer.save_pretrained(partial)
    return folder


def _vocabulary() -> list[str]:
    """Return a WordPiece vocabulary: special tokens, every printable ASCII character inside and at the start of a word, the frequent
    words."""
    corpus = load_corpus(CorpusOptions(dataset="demo"))
    counted = Counter(word for row in corpus.rows("train") for word in re.findall(r"[a-z]+", corpus.examples[row].text.lower()))
    frequent = sorted((word for word in counted if len(word) > 1), key=lambda word: (-counted[word], word))
    letters = [chr(code) for code in range(33, 127)]
    return [*_SPECIAL, *letters, *(f"##{letter}" for letter in letters), *frequent[:_WORDS]]
