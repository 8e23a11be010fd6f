"""The tokenizers of a generator, as its text encoders read them."""

from typing import Any

from featurize.generate.generators import Generator
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import loading, require_vocabulary


def load_tokenizers(generator: Generator) -> dict[str, Any]:
    """Return all tokenizers of a generator by their folders; errors are those of ``load_tokenizer``."""
    return {name: load_tokenizer(generator, name, encoder) for name, encoder in generator.family.text_parts}


def load_tokenizer(generator: Generator, name: str, encoder: str) -> Any:
    """Return a tokenizer whose ``model_max_length`` is the most tokens that its text encoder is given.

    Args:
        generator: whose folder is read.
        name: of the tokenizer's folder.
        encoder: name of its text encoder's folder.

    Raises:
        InputError: it does not load, has no vocabulary, or has tokens that the text encoder does not embed.
    """
    import transformers

    family, folder = generator.family, generator.folder / name
    config = family.configs[encoder]
    with loading(folder, expected="a whole tokenizer", do="restore its files from where it comes from"):
        # Of a processor of text and images, which needs more libraries, the tokenizer alone.
        named = str((family.index.get(name) or [None, None])[1])
        tokenizer_class = getattr(transformers, named if "Tokenizer" in named else "", transformers.AutoTokenizer)
        tokenizer = tokenizer_class.from_pretrained(folder, local_files_only=True)
    require_vocabulary(str(folder), folder, tokenizer, expected="the generator's tokenizer")
    embedded = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size") or len(tokenizer)
    if (largest := max(tokenizer.get_vocab().values())) >= embedded:
        raise InputError(
            got=f"{folder} with the token {tokenizer.convert_ids_to_tokens(largest)!r} of number {largest:,}, of which {encoder} embeds "
            f"{embedded:,}",
            expected="an embedding for every token",
            do=f"save the tokenizer and the {encoder} of one pipeline, resized with resize_token_embeddings(len(tokenizer))",
        )
    tokenizer.model_max_length = family.text_length(encoder)  # unlimited in some folders
    return tokenizer
