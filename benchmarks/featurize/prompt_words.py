"""How many words of a corpus's texts a generator does not read: whole prompts, passages and keywords, at 77, 256 and 512 tokens.

Tokens are counted with CLIP's vocabulary (OpenAI's, from the package open_clip) at every length, so that the lengths can be compared. The
generators that read 256 and 512 tokens have T5's, Gemma's or Qwen's, with about as many tokens a word of English.
"""

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import finish
from featurize.options import Generation, PromptStrategy
from featurize.plan.prompt_figures import prompt_figures
from featurize.plan.prompt_reader import PromptReader
from featurize.plan.prompts import plan_of
from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.runtime.libraries import prepare_libraries

CORPORA = ("20ng", "imdb", "cwi-news")
LENGTHS = (77, 256, 512)
PASSAGES = 4
STRATEGIES: tuple[PromptStrategy, ...] = ("whole", "chunks", "keywords")


def measure(*, smoke: bool, record: bool, data_dir: Path, limit: int) -> dict[str, Any]:
    """Return the figures of every corpus, length and strategy; with ``smoke``, of twenty texts of the demo corpus."""
    prepare_libraries()
    names, limit = (("demo",), 20) if smoke else (CORPORA, limit)
    figures = {name: _of_corpus(load_corpus(name, CorpusSettings(data_dir=data_dir, limit=limit))) for name in names}
    say(_table(figures))
    return finish("prompts", {"texts": limit, "passages": PASSAGES, "corpora": figures}, record=record)


def _of_corpus(corpus: Corpus) -> dict[str, Any]:
    tokens_of = _clip_tokens()
    figures: dict[str, Any] = {}
    for strategy in STRATEGIES:
        settings = Generation(prompts=strategy, images_per_text=PASSAGES if strategy == "chunks" else 1)
        for length in LENGTHS:
            reader = PromptReader(tokens_read=length, tokens_of=tokens_of)
            counted, _ = prompt_figures(corpus, plan_of(corpus, settings, partial(_same, reader)), strategy, reader)
            figures[f"{strategy} {length}"] = counted.to_json()
    return figures


def _same(reader: PromptReader) -> PromptReader:
    return reader


def _clip_tokens() -> Any:
    """Return a function that counts the tokens of prompts, start and end included."""
    import open_clip.tokenizer
    import transformers

    vocabulary = open_clip.tokenizer.SimpleTokenizer()
    tokenizer = transformers.CLIPTokenizer(vocab=dict(vocabulary.encoder), merges=list(vocabulary.bpe_ranks))
    return lambda prompts: [len(ids) for ids in tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]]


def _table(figures: dict[str, Any]) -> str:
    """Return the shares of words lost, and of prompts cut, as a Markdown table."""
    lines = [f"| corpus | strategy | {' | '.join(f'{length} tokens' for length in LENGTHS)} |", "|---|---|" + "---|" * len(LENGTHS)]
    for name, of_corpus in figures.items():
        for strategy in STRATEGIES:
            cells = [of_corpus[f"{strategy} {length}"] for length in LENGTHS]
            shares = [
                f"{100 * cell['words_lost'] / cell['words']:.1f} % ({100 * cell['prompts_cut'] / cell['prompts']:.0f} %)" for cell in cells
            ]
            lines.append(f"| {name} | {strategy} | {' | '.join(shares)} |")
    return "\n".join(lines)
