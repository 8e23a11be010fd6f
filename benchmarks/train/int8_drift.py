"""How far do int8 tokens move the logits of a teacher, compared with float16 tokens?

(a) The demo: tokens of the embedded encoders and teachers trained on them. (b) The real architectures with random weights: CLIP ViT-B/32
and a DistilBERT-base teacher. (c) A stress test without a requirement: the tokens of (b) with four dimensions 30 times as large, as in
trained CLIP. Shapes: N examples, K classes, T tokens, D width.
"""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.harness import finish
from lugpi_core.command_line import say
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.store.quantize import dequantize, quantize
from train.data.image_tokens import open_image_tokens
from train.data.text_model import find_text_model
from train.data.token_ids import TokenIds, token_ids
from train.file_names import WEIGHTS
from train.learning.checkpoint import load_weights
from train.learning.networks import FusionHead, Teacher
from train.models.teachers import build_teacher
from train.options.settings import Optimization

DEMO_ENCODERS = ("clip-demo", "vit-demo")
REQUIRED_COSINE = 0.999
OUTLIER_WIDTHS, OUTLIER_FACTOR = 4, 30.0
CLASSES = 20
Logits = Callable[[torch.Tensor], torch.Tensor]


def measure(*, smoke: bool, record: bool) -> dict[str, Any]:
    """Return cosines and the share of equal predictions of each case, the bytes of int8 over float16, and whether the cosines suffice."""
    prepare_libraries()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="--limit leaves no train example")  # the accuracy of the teacher is not the question
        cases = _demo(Path(folder), smoke=smoke)
    tokens_NTD, logits_of = _real_architecture(smoke=smoke)
    cases["ViT-B/32, DistilBERT-base, random weights"] = compare(tokens_NTD, logits_of)
    figures = {
        "cases": cases,
        "required_cosine": REQUIRED_COSINE,
        "met": all(case["cosine"]["min"] >= REQUIRED_COSINE for case in cases.values()),
        "stress": {f"{OUTLIER_WIDTHS} widths {OUTLIER_FACTOR:.0f} times as large": compare(with_outliers(tokens_NTD), logits_of)},
    }
    say(f"fidelity: {figures}")
    return finish("fidelity", figures, record=record)


def compare(tokens_NTD: torch.Tensor, logits_of: Logits) -> dict[str, Any]:
    """Return the similarity of the logits from float16 tokens and from the same tokens in int8, and the ratio of their bytes.

    The cosine means little if all examples have nearly the same logits. The centred cosine subtracts the mean over the examples first. The
    strictest measure is how far the logits move compared with how far the image of another example moves them.
    """
    exact_NTD = tokens_NTD.to(torch.float16)
    values_NTD, scales_NT = quantize(exact_NTD)
    exact_NK, rounded_NK = (logits_of(tokens).double() for tokens in (exact_NTD, dequantize(values_NTD, scales_NT)))
    other_NK = logits_of(exact_NTD.roll(1, dims=0)).double()
    stored = values_NTD.nbytes + scales_NT.nbytes
    return {
        "cosine": _spread(F.cosine_similarity(exact_NK, rounded_NK, dim=1)),
        "centred_cosine": _spread(F.cosine_similarity(_centred(exact_NK, exact_NK), _centred(rounded_NK, exact_NK), dim=1)),
        "moved_beside_another_picture": round(float((rounded_NK - exact_NK).norm() / (other_NK - exact_NK).norm()), 5),
        "same_argmax": float((exact_NK.argmax(dim=1) == rounded_NK.argmax(dim=1)).double().mean()),
        "int8_over_float16_bytes": round(stored / exact_NTD.nbytes, 5),
        "examples": len(exact_NK),
    }


def with_outliers(tokens_NTD: torch.Tensor) -> torch.Tensor:
    """Return the tokens with a few dimensions many times as large as the others: the worst case for one scale per token."""
    widths = torch.randperm(tokens_NTD.shape[-1], generator=torch.Generator().manual_seed(0))[:OUTLIER_WIDTHS]
    stressed_NTD = tokens_NTD.float().clone()
    stressed_NTD[..., widths] *= OUTLIER_FACTOR
    return stressed_NTD


def _centred(logits_NK: torch.Tensor, exact_NK: torch.Tensor) -> torch.Tensor:
    return logits_NK - exact_NK.mean(dim=0)


def _spread(values_N: torch.Tensor) -> dict[str, float]:
    return {"min": round(float(values_N.min()), 7), "mean": round(float(values_N.mean()), 7)}


def _demo(folder: Path, *, smoke: bool) -> dict[str, Any]:
    from featurize.options import FeaturizeOptions
    from featurize.run import featurize_command
    from train.models.api import train_teacher

    corpus_flags: dict[str, Any] = {"dataset": "demo", "limit": 60 if smoke else 500}
    featurize_command(FeaturizeOptions(**corpus_flags, run_dir=folder, generator="demo", encoders=("demo",), latents=False))
    corpus, text_model = load_corpus("demo", CorpusSettings(limit=corpus_flags["limit"])), find_text_model("demo", max_length=32)
    cases = {}
    for encoder in DEMO_ENCODERS:
        trained = train_teacher(
            corpus,
            folder / "tokens",
            column=encoder,
            name=encoder,
            text_model=text_model,
            optimization=Optimization(epochs=1 if smoke else 20, learning_rate=5e-4),
        )
        column = open_image_tokens(folder / "tokens", encoder, corpus)
        tokens_NTD = torch.from_numpy(column.reader.gather(column.drawings[:, 0]))
        model = build_teacher(text_model, len(corpus.label_names), tokens_NTD.shape[-1])
        load_weights(trained.folder / WEIGHTS, model)
        ids = TokenIds.of(text_model, token_ids(text_model, corpus, folder), torch.device("cpu"))
        cases[f"demo, {encoder}, trained teacher"] = compare(tokens_NTD, _logits_of(model, ids)) | {"accuracy": dict(trained.accuracy)}
    return cases


def _real_architecture(*, smoke: bool) -> tuple[torch.Tensor, Logits]:
    """Return tokens of smooth random images by an untrained ViT-B/32, and an untrained DistilBERT-base teacher; small with ``smoke``."""
    from transformers import DistilBertConfig, DistilBertModel

    examples = 6 if smoke else 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokens_NTD = _vision_tokens(smooth_images(examples), smoke=smoke)
        small = {"dim": 64, "hidden_dim": 128, "n_layers": 1, "n_heads": 4} if smoke else {}
        encoder = DistilBertModel(DistilBertConfig(**small))
        head = FusionHead(text_width=encoder.config.hidden_size, image_width=tokens_NTD.shape[-1], classes=CLASSES)
        flat_S = torch.randint(5, 30000, (examples * 32,), dtype=torch.int32)
    ids = TokenIds(flat_S, np.full(examples, 32), pad=0, device=torch.device("cpu"))
    return tokens_NTD, _logits_of(Teacher(encoder, head), ids)


@torch.inference_mode()
def _vision_tokens(images_N3HW: torch.Tensor, *, smoke: bool) -> torch.Tensor:
    import open_clip
    from open_clip.transformer import VisionTransformer

    vision = dict(open_clip.get_model_config("ViT-B-32")["vision_cfg"])
    if smoke:
        vision |= {"width": 64, "layers": 1}
    tower = VisionTransformer(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        width=vision["width"],
        layers=vision["layers"],
        heads=vision["width"] // 64,
        mlp_ratio=4.0,
        output_dim=64,
    ).eval()
    return torch.cat([_tower_tokens(tower, images) for images in torch.split(images_N3HW, 16)])


def _tower_tokens(tower: Any, images_B3HW: torch.Tensor) -> torch.Tensor:
    layers = tower.forward_intermediates(
        images_B3HW, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
    )
    return torch.cat([layers["image_intermediates_prefix"][0], layers["image_intermediates"][0]], dim=1)


def smooth_images(count: int) -> torch.Tensor:
    """Return float32 [count, 3, 224, 224], normalised images of random patches, from few large to many small ones."""
    sides = [2 + n % 13 for n in range(count)]
    coarse = [torch.randn(1, 3, side, side) for side in sides]
    return torch.cat([F.interpolate(patches, size=(224, 224), mode="bicubic", align_corners=False) for patches in coarse])


def _logits_of(model: Teacher, ids: TokenIds) -> Logits:
    model.eval()

    @torch.inference_mode()
    def logits(tokens_NTD: torch.Tensor) -> torch.Tensor:
        parts = []
        for rows in np.split(np.arange(len(tokens_NTD)), range(32, len(tokens_NTD), 32)):
            parts.append(model(ids.padded(rows, torch.from_numpy(rows)) | {"image_tokens": tokens_NTD[rows]}).logits)
        return torch.cat(parts)

    return logits
