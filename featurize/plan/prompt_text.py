"""The column of the generator's own text vectors: what its text encoders give for each prompt, in place of the tokens of an image.

A control: a large text encoder inside the generator may be what helps a teacher, and not the image.

Shapes: P prompts, L text tokens, D their width, T rows of a text.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurize.generate.generators import Generator
from featurize.plan.images import ImagePlan
from lugpi_core.fingerprint import digest_of_lists, hash_model_files
from lugpi_core.store.layout import PROMPT_TEXT, Dtype
from lugpi_core.store.manifest import ColumnSpec

# The mean of a prompt's tokens, and the means of 63 groups of them.
MOST_ROWS = 64
POOLING = "tokens divided by their root mean square; the mean of all, then of equal consecutive groups"
# The field of the column's fingerprint.
TEXT_ENCODER = "text_encoder"
_TOKENS = "tokens"


def tokens_name(generator: Generator) -> str:
    """Return which of the generator's embeddings are its text vectors: of two text encoders that it reads apart, the wider one's."""
    shapes = generator.family.embedding_shapes()
    names = [name for name in shapes if name.startswith(_TOKENS)]
    return max(names, key=lambda name: shapes[name][0][-1])


def mask_name(tokens: str) -> str:
    """Return the name of the mask that belongs to some tokens."""
    return tokens.replace(_TOKENS, "mask")


def text_column(
    plan: ImagePlan, generator: Generator, encoder: Mapping[str, Any], *, dtype: str, token_dtype: Dtype, common: dict[str, Any]
) -> ColumnSpec:
    """Return the column of text vectors, [M, T, D]. Its fingerprint has the prompts and the text encoders, but nothing of how images are
    generated.

    Args:
        plan: of the images: their rows are this column's too.
        generator: whose text encoders read the prompts.
        encoder: what ``text_encoder`` returns of it.
        dtype: that they compute in.
        token_dtype: as which they are stored.
        common: what all columns of the run have in common.
    """
    (length, width), _ = generator.family.embedding_shapes()[tokens_name(generator)]
    return ColumnSpec(
        **common,
        name=PROMPT_TEXT,
        what="tokens",
        row_shape=(min(MOST_ROWS, length), width),
        fingerprint={
            "prompts": prompts_fingerprint(plan),
            TEXT_ENCODER: {
                "name": generator.name,
                **encoder,
                "pooling": POOLING,
                "dtype": dtype,
                "stored_as": token_dtype,
            },
        },
        dtype=token_dtype,
        license=f"vectors by the text encoder of {generator.origin}: {generator.license}",
    )


def text_encoder(generator: Generator) -> dict[str, Any]:
    """Return what tells one generator's text encoders from another's: of one store, images and text vectors are by the same generator.
    Reads every byte of their files."""
    return {
        "pipeline": generator.pipeline_class,
        # Of a checkpoint of one file the parts have no hash of their own; LoRAs may change text encoders too.
        "weights": _text_parts_hash(generator) if generator.single_file is None else generator.weights_hash,
        **({"loras": [lora.fingerprint() for lora in generator.loras]} if generator.loras else {}),
    }


def prompts_fingerprint(plan: ImagePlan) -> str:
    """Return the hash of the prompts in order, and of how many rows each has."""
    return digest_of_lists(plan.prompts, plan.images_per_prompt)


def _text_parts_hash(generator: Generator) -> str:
    files: dict[str, Path] = {}
    for pair in generator.family.text_parts:
        for part in pair:
            files |= {f"{part}/{path.name}": path for path in _files_of(generator.folder / part, generator.variants.get(part))}
    return hash_model_files(files)


def _files_of(folder: Path, variant: str | None) -> list[Path]:
    weights = sorted(folder.glob("*.safetensors"))
    of_variant = [path for path in weights if variant is not None and f".{variant}" in path.name]
    plain = [path for path in weights if ".fp16" not in path.name]
    others = [path for path in folder.glob("*") if path.suffix in (".json", ".txt", ".model", ".jinja") and path.is_file()]
    return sorted([*(of_variant or plain), *others])
