"""PRX (Photoroom): flow matching in the latents of FLUX.1's or a deep-compression autoencoder, prompts read by T5Gemma.

Source: diffusers 0.42.1, ``pipelines/prx/pipeline_prx.py``. Images have the side that is asked for; the library by default draws the one of
its usual sizes whose proportions are nearest, and scales that, which is the same at the model's native size.

Shapes: P prompts, L text tokens, D their width, B images, C latent channels, h × w latent cells.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import Parts, PromptEmbeddings, Sampling, Step, Usual
from featurize.generate.families.image_transformer import ImageTransformer, doubled
from featurize.generate.families.text import padded_ids, token_counts
from lugpi_core.errors import InputError

_TOKENIZER, _ENCODER = "tokenizer", "text_encoder"
# As many positions as T5Gemma has.
_MOST_TOKENS = 8192


class Prx(ImageTransformer):
    """PRXPipeline, distilled (guidance scale 1) or not."""

    part_classes: ClassVar = {
        "transformer": ("PRXTransformer2DModel",),
        "vae": ("AutoencoderKL", "AutoencoderDC"),
        _ENCODER: ("T5GemmaEncoder",),
    }
    text_pairs: ClassVar = ((_TOKENIZER, _ENCODER),)

    @property
    def native_px(self) -> int:
        return int(self.index.get("default_sample_size") or 512)

    def check(self) -> None:
        """Check the channels of latents, and that the tokenizer says how many tokens are read.

        Raises:
            InputError: they do not fit, or it does not say it.
        """
        super().check()
        length = self.configs[_TOKENIZER].get("model_max_length")
        if not isinstance(length, int) or not 2 <= length <= _MOST_TOKENS:
            raise InputError(
                got=f"{self.folder / _TOKENIZER / 'tokenizer_config.json'} with the model_max_length {length}",
                expected="how many tokens of a prompt PRX reads",
                do="set it to the one that the model was trained with (256 for PRX's own)",
            )

    @property
    def tokens_read(self) -> int:
        return int(self.configs[_TOKENIZER]["model_max_length"])

    @property
    def usual(self) -> Usual:
        return Usual(steps=28, guidance=4.0)

    def library_of(self, part: str) -> str:
        """Return diffusers for the text encoder, whose class reads the encoder's part of the whole model's configuration."""
        return "diffusers.pipelines.prx" if part == _ENCODER else super().library_of(part)

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        width = int(self.transformer["context_in_dim"])
        return {"tokens": ((self.tokens_read, width), torch.float32), "mask": ((self.tokens_read,), torch.bool)}

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        return token_counts(tokenizers[_TOKENIZER], _cleaned(prompts))

    def cleaned(self, prompts: Sequence[str]) -> list[str]:
        """Return prompts in lower case without addresses, numbers of articles, Chinese characters and the like."""
        return _cleaned(prompts)

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        ids_PL, mask_PL = padded_ids(parts.tokenizers[_TOKENIZER], _cleaned(prompts), self.tokens_read)
        mask_PL = mask_PL.bool().to(parts.device)
        output = parts.text_encoders[_ENCODER](input_ids=ids_PL.to(parts.device), attention_mask=mask_PL)
        return PromptEmbeddings({"tokens": output.last_hidden_state, "mask": mask_PL})

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        rows = doubled(embeddings, negative)
        return {"encoder_hidden_states": rows["tokens"], "attention_mask": rows["mask"]}

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        rows = torch.cat([latents] * copies)
        # One time for all rows, as in the library; with guidance it gives two, for one prompt alone.
        times = 1 if copies == 1 else len(rows)
        time = (step.on_device.float() / parts.scheduler.config.num_train_timesteps).view(1).repeat(times)
        predicted: torch.Tensor = parts.denoiser(rows, time, **conditions, return_dict=False)[0]
        return predicted


def _cleaned(prompts: Sequence[str]) -> list[str]:
    """Return prompts as PRX reads them: in lower case, without addresses, numbers of articles and the like."""
    from diffusers.pipelines.prx.pipeline_prx import TextPreprocessor

    cleaner = TextPreprocessor()
    return [str(cleaner.clean_text(prompt)) for prompt in prompts]
