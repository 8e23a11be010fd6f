"""A corpus in memory and a RoBERTa small enough for the tests of text models."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from lugpi_core.corpora.corpus import Corpus, Example


def corpus_of(*texts: str, separator: str | None = None) -> Corpus:
    """Return a corpus of training texts with two classes in turn."""
    examples = tuple(Example(id=str(n), text=text, prompt=text, label=n % 2, split="train") for n, text in enumerate(texts))
    return Corpus(name="texts", label_names=("no", "yes"), examples=examples, license="none", separator=separator)


def roberta_folder(folder: Path) -> Path:
    """Write a small RoBERTa, whose separator is ``</s>``, with a word-level vocabulary."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "the", "cat", "sat", "[", "]", "SEP"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    fast.save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=10, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40
    )
    RobertaModel(config).save_pretrained(folder)
    return folder
