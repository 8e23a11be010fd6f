"""Faster training with the same results: an attention mask that needs no synchronization, and a compiled text encoder. Neither is part
of a fingerprint.

Shapes: B examples, L tokens.
"""

import gc
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from train.data.prefix import PREFIX
from train.data.privileged import HAS_IMAGE
from train.learning.classifier_head import hugging_face_model, tiny_texts
from train.options.settings import CompileChoice

# A fixed rule: compiling takes about a minute, 20,000 steps take many. The break-even was not measured.
COMPILED_FROM_STEPS = 20_000


def masked(batch: Mapping[str, torch.Tensor], *, expanded: bool) -> dict[str, torch.Tensor]:
    """Return the arguments of a Hugging Face encoder: everything in the batch but image tokens, which rows have them, and hidden states.

    With ``expanded`` the mask is bool [B, 1, 1, L]. transformers checks whether a [B, L] mask masks anything, which on CUDA synchronizes.
    """
    inputs = {name: value for name, value in batch.items() if name not in ("image_tokens", HAS_IMAGE, PREFIX)}
    if expanded and "attention_mask" in inputs:
        inputs["attention_mask"] = inputs["attention_mask"].bool()[:, None, None, :]
    return inputs


def takes_expanded_mask(model: Any) -> bool:
    """Whether a Hugging Face encoder or classifier has the same output for a mask [B, 1, 1, L] as for [B, L], tested on two short texts.

    False for encoders with windowed attention: transformers derives the window from a [B, L] mask, which short texts do not reveal.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    sees_windows = any(getattr(config, name, None) for name in ("sliding_window", "local_attention", "attention_window"))
    if config._attn_implementation != "sdpa" or sees_windows or kinds - {"full_attention"}:
        return False
    batch = tiny_texts(model)
    mask_BL = batch["attention_mask"]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            plain, ours = (model(**masked(batch, expanded=expanded))[0] for expanded in (False, True))
        if plain.shape != ours.shape:
            return False
        if plain.ndim == 3:  # ignore an encoder's outputs at padding positions
            plain, ours = plain[mask_BL == 1], ours[mask_BL == 1]
        return torch.allclose(plain, ours, rtol=1e-4, atol=1e-5)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # it unpacks or multiplies the mask, or reads its shape
        return False
    finally:
        model.train(was_training)


def encoder_of(model: nn.Module) -> Any:
    """Return the Hugging Face encoder inside a model, without its head, or None."""
    whole = hugging_face_model(model)
    return None if whole is None else whole.base_model


def compile_encoder(model: nn.Module, choice: CompileChoice, *, device: torch.device, steps: int) -> bool:
    """Compile the text encoder in place, for any batch and length, if ``choice`` says so; return whether it was compiled.

    ``auto`` compiles on CUDA for trainings of at least 20,000 steps. Head and loss, a hundredth of the computation, stay as they are.
    """
    encoder = encoder_of(model)
    is_on = choice == "on" or (choice == "auto" and device.type == "cuda" and steps >= COMPILED_FROM_STEPS)
    if encoder is None or not is_on:
        return False
    encoder.compile(dynamic=True)
    return True


def forget_last_model(choice: CompileChoice, *, device: str) -> None:
    """Free the memory of this process's previous model, and what was compiled for it: PyTorch compiles only a few variants of one function
    and runs further ones uncompiled."""
    gc.collect()
    if device == "cuda" or choice == "on":
        torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()
