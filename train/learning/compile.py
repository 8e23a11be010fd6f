"""What makes the same arithmetic faster: a mask that needs no look at its values, and a compiled text encoder. None of it is in a
fingerprint.

Shapes: B examples, L tokens.
"""

import gc
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from train.options.settings import CompileChoice

# Compiling takes about a minute; it pays when training takes many. Not measured on a card yet.
STEPS_THAT_PAY = 20_000


def masked(batch: Mapping[str, torch.Tensor], *, expanded: bool) -> dict[str, torch.Tensor]:
    """Return what a Hugging Face encoder is called with: ``input_ids`` and, where any text of the batch is padded, ``attention_mask``.

    With ``expanded`` the mask is bool [B, 1, 1, L]. transformers asks of a [B, L] mask whether it masks anything, which on a card waits for
    all that was launched before.
    """
    if "attention_mask" not in batch:
        return {"input_ids": batch["input_ids"]}
    mask_BL = batch["attention_mask"]
    return {"input_ids": batch["input_ids"], "attention_mask": mask_BL.bool()[:, None, None, :] if expanded else mask_BL}


def takes_expanded_mask(model: Any) -> bool:
    """Whether a Hugging Face encoder or classifier answers the same with a mask [B, 1, 1, L] as with one [B, L]: asked of two short
    texts. Encoders whose layers see only a window do not: transformers makes the window from a mask [B, L], and short texts do not show
    it."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    sees_windows = any(getattr(config, name, None) for name in ("sliding_window", "local_attention", "attention_window"))
    if config._attn_implementation != "sdpa" or sees_windows or kinds - {"full_attention"}:
        return False
    ids_BL = torch.arange(12, device=next(model.parameters()).device).reshape(2, 6) % model.config.vocab_size
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 3:] = 0
    batch = {"input_ids": ids_BL, "attention_mask": mask_BL}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            plain, ours = (model(**masked(batch, expanded=expanded))[0] for expanded in (False, True))
        if plain.shape != ours.shape:
            return False
        if plain.ndim == 3:  # of an encoder, what it says where there is padding is nobody's business
            plain, ours = plain[mask_BL == 1], ours[mask_BL == 1]
        return torch.allclose(plain, ours, rtol=1e-4, atol=1e-5)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # it unpacks, multiplies or looks at the shape of a mask
        return False
    finally:
        model.train(was_training)


def encoder_of(model: nn.Module) -> Any:
    """Return the Hugging Face encoder inside a model, without its head; None where there is none."""
    from transformers import PreTrainedModel

    whole = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    return None if whole is None else whole.base_model


def compile_encoder(model: nn.Module, choice: CompileChoice, *, device: torch.device, steps: int) -> bool:
    """Compile the text encoder in place, for any batch and length, where that is wanted; return whether it was.

    ``auto`` compiles on CUDA when ``steps`` are many enough to pay for it. Head and loss stay as they are, a hundredth of the work.
    """
    encoder = encoder_of(model)
    wanted = choice == "on" or (choice == "auto" and device.type == "cuda" and steps >= STEPS_THAT_PAY)
    if encoder is None or not wanted:
        return False
    encoder.compile(dynamic=True)
    return True


def forget_last_model(choice: CompileChoice, *, device: str) -> None:
    """Give back what the model before this one of the same process held, on its device and of what was compiled for it: of one function
    PyTorch compiles a few variants only, and runs further ones as they are."""
    gc.collect()
    if device == "cuda" or choice == "on":
        torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()
