"""The tokenizers of the tiny generators, for tests."""

from benchmarks.generators.tiny_tokenizers import gemma_tokenizer, qwen_tokenizer, t5_tokenizer

__all__ = ["gemma_tokenizer", "qwen_tokenizer", "t5_tokenizer"]
