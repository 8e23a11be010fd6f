"""The joint space of texts and images of an open_clip model: its text tower, and what it makes of image tokens that are computed already.

Shapes: B texts or images, L text tokens, T image tokens of width D, E width of the joint space.
"""

from collections.abc import Sequence

import torch
from torch import nn

from featurize.encode.encoder_files import EncoderFiles
from featurize.encode.image_encoder import encoder_load_errors
from featurize.encode.open_clip_models import open_clip_model, open_clip_tokenizer, projection_of, vocabulary_of
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute


class JointSpace:
    """The joint space to which the text tower and the image tower of an open_clip model project. Holds the whole model.

    Args:
        files: of an open_clip model.
        compute: the device; it computes in float32.

    Raises:
        InputError: another family, no tokenizer within reach, or a model that does not project its class token.
    """

    def __init__(self, files: EncoderFiles, compute: Compute) -> None:
        if files.family != "open_clip":
            raise InputError(got=f"{files.name} ({files.family})", expected="an open_clip model", do="choose one such as clip-vit-b32")
        with encoder_load_errors(files):
            model, self._tokenizer = open_clip_model(files), open_clip_tokenizer(files)
            projection = projection_of(files, model.eval())
        if projection is None:
            without = f"--encoder-layer {files.layer}" if files.layer is not None else f"--pool {files.pool}" if files.pool else ""
            raise InputError(
                got=f"{files.name}, whose image embedding is not made of the tokens that are stored",
                expected="a CLIP that projects its class token, or a SigLIP",
                do="choose one such as clip-vit-b32 or siglip2-b16" + (f", or encode without {without}" if without else ""),
            )
        self._projection = projection
        self._name, self._device = files.name, torch.device(compute.device)
        self._model = model.eval().requires_grad_(False).float().to(self._device)

    @property
    def logit_scale(self) -> float:
        """By which the model multiplies cosines before its softmax, or its sigmoid."""
        return float(self._model.logit_scale.exp())

    @property
    def reads_all_tokens(self) -> bool:
        """Whether an image's embedding is made of all its tokens (PE-Core, ResNets) and not of the first."""
        return self._projection.reads_all

    @torch.inference_mode()
    def images(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return images as unit vectors, float32 [B, E], from their cached tokens: the first [B, D], or all [B, T, D] if it reads them."""
        projected_BE = self._projection.project(tokens.to(self._device, torch.float32))
        return nn.functional.normalize(projected_BE, dim=-1)

    @torch.inference_mode()
    def embed_texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return texts as unit vectors, float32 [B, E]; each is cut to the text tower's context.

        Raises:
            InputError: the tokenizer is another model's.
        """
        ids_BL = self._tokenizer(list(prompts))
        known = vocabulary_of(self._model)
        if int(ids_BL.max()) >= known:
            raise InputError(
                got=f"{self._name} with a vocabulary of {known} and no tokenizer of its own",
                expected="the tokenizer that its text tower was trained with",
                do="put its tokenizer next to the weights",
            )
        texts_BE: torch.Tensor = self._model.encode_text(ids_BL.to(self._device), normalize=True)
        return texts_BE
