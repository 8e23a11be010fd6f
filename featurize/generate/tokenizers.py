"""The tokenizers of a generator, as its text encoders read them."""

from typing import Any

from featurize.generate.generators import Generator
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import loading, read_config, require_vocabulary


def load_tokenizer(generator: Generator, name: str, encoder: str) -> Any:
    """Return a tokenizer whose ``model_max_length`` is the most tokens that its text encoder reads.

    Args:
        generator: whose folder is read.
        name: of the tokenizer's folder.
        encoder: name of its text encoder's folder.

    Raises:
        InputError: it does not load, has no vocabulary, or has tokens that the text encoder does not embed.
    """
    import transformers

    folder, config = generator.folder / name, read_config(generator.folder / encoder / "config.json")
    with loading(folder, expected="a whole tokenizer", do="restore its files from where it comes from"):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        most = float(str(tokenizer.model_max_length))  # transformers 5.23 takes "64" as it is
    require_vocabulary(str(folder), folder, tokenizer, expected="the generator's tokenizer")
    embedded = config.get("vocab_size", len(tokenizer))
    if (largest := max(tokenizer.get_vocab().values())) >= embedded:
        raise InputError(
            got=f"{folder} with the token {tokenizer.convert_ids_to_tokens(largest)!r} of number {largest:,}, of which {encoder} embeds "
            f"{embedded:,}",
            expected="an embedding for every token",
            do=f"save the tokenizer and the {encoder} of one pipeline, resized with resize_token_embeddings(len(tokenizer))",
        )
    # Unlimited in some folders; the text encoder has a position for so many and fails at more.
    tokenizer.model_max_length = int(min(most, config.get("max_position_embeddings", 77)))
    return tokenizer
