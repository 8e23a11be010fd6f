"""ERNIE-Image: latents are an image of FLUX.2's patches; prompts of their own lengths, both halves of a guided step in one call.

Source: diffusers 0.42.1, ``pipelines/ernie_image/pipeline_ernie_image.py``, with ``use_pe=False``: the folder's prompt enhancer is a
language model that would rewrite every prompt, and the image would no longer be of the user's text. It is not loaded.

Shapes: P prompts, L text tokens, D their width, B images, C channels of a patch, h × w patches.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import LENGTHS, Family, Parts, PromptEmbeddings, Sampling, Step, Usual
from featurize.generate.families.flux2 import unpatched
from featurize.generate.families.text import token_counts
from lugpi_core.errors import InputError

_TOKENIZER, _ENCODER = "tokenizer", "text_encoder"
TOKENS = "tokens"
# Its tokenizer may set no limit: the work of a prompt is counted for the first number of tokens, and the memory for its embeddings for the
# second, which documents seldom exceed.
_COUNTED_TOKENS, _LONG_TOKENS = 512, 2048


class ErnieImage(Family):
    """ErnieImagePipeline."""

    part_classes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "transformer": ("ErnieImageTransformer2DModel",),
        "vae": ("AutoencoderKLFlux2",),
        _ENCODER: ("Mistral3Model", "Ministral3Model"),
    }
    text_pairs = ((_TOKENIZER, _ENCODER),)
    sorts_prompts = True

    def __init__(self, folder: Path, index: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(folder, index, configs)
        self.transformer, self.vae = configs["transformer"], configs["vae"]
        self.text = configs[_ENCODER].get("text_config", configs[_ENCODER])

    def check(self) -> None:
        """Check that transformer, decoder and text encoder fit one another.

        Raises:
            InputError: they do not.
        """
        read = self.transformer["in_channels"], self.transformer["text_in_dim"]
        given = 4 * self.vae.get("latent_channels", 32), self.text["hidden_size"]
        if read != given:
            raise InputError(
                got=f"{self.folder}, whose transformer reads patches and text of widths {read}, and whose vae and encoder give {given}",
                expected="the same widths",
                do="restore transformer/, vae/ and text_encoder/ from one model",
            )

    @property
    def native_px(self) -> int:
        """What the library's pipeline takes where no size is given."""
        return 1024

    @property
    def multiple_px(self) -> int:
        """Pixels of a patch's side."""
        return int(2 ** len(self.vae["block_out_channels"])) * int(self.transformer.get("patch_size", 1))

    def latent_shape(self, size_px: int) -> tuple[int, int, int]:
        """Return (C, h, w) of patches."""
        side = size_px // int(2 ** len(self.vae["block_out_channels"]))
        return int(self.transformer["in_channels"]), side, side

    @property
    def tokens_read(self) -> int:
        """As many as the tokenizer says, and no more than the text encoder has positions for."""
        says = self.configs.get(_TOKENIZER, {}).get("model_max_length") or self.text["max_position_embeddings"]
        return int(min(float(str(says)), self.text["max_position_embeddings"]))

    @property
    def usual(self) -> Usual:
        """Those of ErnieImagePipeline."""
        return Usual(steps=50, guidance=4.0)

    def layers_read(self, encoder: str) -> int:
        """Return all but the last."""
        return int(self.text["num_hidden_layers"]) - 1

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return tokens [L, D] and their number, for prompts of at most 512 tokens."""
        tokens = min(self.tokens_read, _COUNTED_TOKENS), int(self.transformer["text_in_dim"])
        return {TOKENS: (tokens, torch.float32), LENGTHS: ((), torch.int64)}

    @property
    def embedding_bytes(self) -> int:
        """Size of a long prompt's embeddings in float32."""
        return min(self.tokens_read, _LONG_TOKENS) * int(self.transformer["text_in_dim"]) * 4

    def text_length(self, encoder: str) -> int:
        """Return as many tokens as are counted."""
        return min(self.tokens_read, _COUNTED_TOKENS)

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        """Return the tokens of each prompt."""
        return token_counts(tokenizers[_TOKENIZER], prompts)

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        """Return tokens [P, L, D] and their numbers [P]. Each prompt is encoded by itself, as the library does."""
        tokenizer = parts.tokenizers[_TOKENIZER]
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else 0
        rows = []
        for prompt in prompts:
            ids = tokenizer(prompt, truncation=True, max_length=self.tokens_read, verbose=False)["input_ids"] or [first]
            rows.append(parts.text_encoders[_ENCODER](input_ids=torch.tensor([ids], device=parts.device))[0][0])
        lengths_P = torch.tensor([len(row) for row in rows])
        return PromptEmbeddings({TOKENS: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), LENGTHS: lengths_P})

    def set_timesteps(self, scheduler: Any, sampling: Sampling) -> None:
        """Give equal steps from 1 to 1/steps."""
        scheduler.set_timesteps(sigmas=torch.linspace(1.0, 0.0, sampling.steps + 1)[:-1].numpy(), device="cpu")

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        """Return text, no longer than the longest, and its lengths."""
        rows = embeddings if negative is None else PromptEmbeddings.joined([negative, embeddings])
        lengths = rows[LENGTHS]
        return {"text_bth": rows[TOKENS][:, : int(lengths.max())], "text_lens": lengths.to(parts.device)}

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        """Return the prediction of every row."""
        rows = torch.cat([latents] * copies)
        time_B = step.on_device.to(latents.dtype).expand(len(rows))
        predicted: torch.Tensor = parts.denoiser(hidden_states=rows, timestep=time_B, **conditions, return_dict=False)[0]
        return predicted

    def decoder_input(self, vae: Any, stored_BChw: torch.Tensor) -> torch.Tensor:
        """Return latents [B, C/4, 2h, 2w], the batch norm of the decoder undone with the pipeline's own epsilon, not the decoder's."""
        std_1C11 = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + 1e-5).to(stored_BChw)
        return unpatched(stored_BChw * std_1C11 + vae.bn.running_mean.view(1, -1, 1, 1).to(stored_BChw))
