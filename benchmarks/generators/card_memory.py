"""What each preset takes on a card with 24 GB, at the batch sizes that ``--batch-size auto`` chooses there; and its work. All is counted on
the meta device from the models' real configurations: no GPU is needed, and nothing is measured."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.generators.full_prompts import FullPrompts
from benchmarks.generators.real_configs import MODELS, real_generator
from benchmarks.harness import finish
from featurize.cost.batch_size import ALLOCATED, MOST_AT_ONCE, SPARE, most_rows
from featurize.cost.stage_cost import image_flops, stage_flops
from featurize.cost.stage_memory import Part, decoder_part, denoiser_part, text_parts
from featurize.encode.encoders import EncoderFiles
from featurize.encode.image_encoder import skeleton
from featurize.encode.preprocessing import Preprocessing
from featurize.generate.generators import Generator
from featurize.plan.job import TEXT_BATCH
from lugpi_core.command_line import say
from lugpi_core.runtime.libraries import prepare_libraries

CARD_BYTES = 24 * 2**30
# Of CUDA and its libraries, about.
CONTEXT_BYTES = 2**30
_GB = 1e9


def measure(*, smoke: bool, record: bool, presets: Sequence[str] = ()) -> dict[str, Any]:
    """Return weights, batch sizes, peaks and work of the presets."""
    prepare_libraries()
    chosen = tuple(presets) or (("prx",) if smoke else tuple(MODELS))
    figures: dict[str, Any] = {}
    for preset in chosen:
        with tempfile.TemporaryDirectory() as folder:
            figures[preset] = on_card(real_generator(Path(folder), preset))
        say(f"card, {preset}: {figures[preset]}")
    basis = {"card_bytes": CARD_BYTES, "context_bytes": CONTEXT_BYTES, "spare": SPARE, "allocated": ALLOCATED, "encoder": "ViT-L-14"}
    return finish("card", {"basis": basis, "presets": figures}, record=record)


def on_card(generator: Generator) -> dict[str, Any]:
    """Return a preset's figures: parameters in 10⁹, memory in GB of 10⁹ bytes, work in TFLOP.

    ``peak`` is of each stage, with all weights that are on the card then, and activations with a fifth more for the allocator. In every
    stage, denoiser, decoder and image encoder are there; the text encoders only while prompts are encoded. Prompts are as long as is read.
    """
    family = generator.family
    dtype = getattr(torch, family.half)
    denoiser, decoder = denoiser_part(generator, dtype, "cuda"), decoder_part(generator, dtype, "cuda")
    texts = text_parts(generator, dtype, {name: FullPrompts(family.text_length(encoder)) for name, encoder in family.text_parts})
    text_bytes = sum(text.weight_bytes for text in texts)
    encoder_bytes = 2 * sum(weight.numel() for weight in _image_encoder().parameters())
    stay_bytes = denoiser.weight_bytes + decoder.weight_bytes + encoder_bytes
    free_bytes = int((1 - SPARE) * CARD_BYTES) - CONTEXT_BYTES - stay_bytes
    rows = most_rows(denoiser, free_bytes, MOST_AT_ONCE["cuda"])
    sizes = {
        "prompt": most_rows(texts[0], free_bytes - text_bytes, TEXT_BATCH),
        "denoise": rows,
        "decode": most_rows(decoder, free_bytes, max(1, rows // 8)),
    }
    # Beside those of the batch that is computed, which the denoiser's count has, the next one's.
    next_bytes = rows * family.embedding_bytes // 4 * dtype.itemsize
    peaks = {
        "prompt": stay_bytes + text_bytes + ALLOCATED * texts[0].peak_bytes(sizes["prompt"]),
        "denoise": stay_bytes + ALLOCATED * denoiser.peak_bytes(rows) + next_bytes,
        "decode": stay_bytes + ALLOCATED * decoder.peak_bytes(sizes["decode"]),
    }
    work = image_flops(generator, stage_flops(generator, ()))
    return {
        "dtype": family.half,
        "px": generator.size_px,
        "parameters": {"denoiser": _parameters((denoiser,)), "decoder": _parameters((decoder,)), "text": _parameters(texts)},
        "weights_gb": {
            "denoiser": _gb(denoiser.weight_bytes),
            "decoder": _gb(decoder.weight_bytes),
            "text": _gb(text_bytes),
            "image_encoder": _gb(encoder_bytes),
        },
        "batch": sizes,
        "peak_gb": {stage: _gb(peak) for stage, peak in peaks.items()},
        "healing_gb": _gb(stay_bytes + _float32_more(denoiser, decoder, texts)),
        "tflop": round(work / 1e12, 1),
    }


def _float32_more(denoiser: Part, decoder: Part, texts: Sequence[Part]) -> float:
    """Return what is added while failed rows are computed in float32: the part that runs grows, and one row takes twice as much."""
    grown = [2 * ALLOCATED * part.peak_bytes(1) + _float32_bytes((part,)) - part.weight_bytes for part in (denoiser, decoder)]
    return max(*grown, 2 * ALLOCATED * texts[0].peak_bytes(1) + _float32_bytes(texts))


def _image_encoder() -> torch.nn.Module:
    how = Preprocessing(size_px=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic")
    common: dict[str, Any] = {"family": "open_clip", "folder": Path("none"), "weights_hash": "", "tokens": 257, "width": 1024}
    with torch.device("meta"):
        module: torch.nn.Module = skeleton(EncoderFiles(name="ViT-L-14", architecture="ViT-L-14", preprocessing=how, **common))
    return module


def _float32_bytes(parts: Sequence[Part]) -> int:
    return sum(4 * weight.numel() for part in parts for weight in part.model.parameters())


def _parameters(parts: Sequence[Part]) -> float:
    return round(_float32_bytes(parts) / 4e9, 3)


def _gb(size_bytes: float) -> float:
    return round(size_bytes / _GB, 2)
