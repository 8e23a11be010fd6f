"""LongCat-Image: what stands in quotation marks is read letter by letter; the template's end is never cut.

Source: diffusers 0.42.1, ``pipelines/longcat_image/pipeline_longcat_image.py``, with ``enable_prompt_rewrite=False``: its text encoder
could rewrite every prompt, and the image would no longer be of the user's text. Prompts are padded to 512 tokens between the template's
beginning and end, and the padding takes part. The guided prediction is at most as long as the conditional one.

Shapes: P prompts, L text tokens, D their width, B images.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import Parts, PromptEmbeddings, Sampling, Usual
from featurize.generate.families.packed import HALVES, TOKENS, PackedTransformer, grid_positions

_TOKENIZER, _ENCODER = "tokenizer", "text_encoder"
# As the model was trained.
_BEGINNING = (
    "<|im_start|>system\nAs an image captioning expert, generate a descriptive text prompt based on an image content, suitable for input "
    "to a text-to-image model.<|im_end|>\n<|im_start|>user\n"
)
_END = "<|im_end|>\n<|im_start|>assistant\n"


class LongCatImage(PackedTransformer):
    """LongCatImagePipeline."""

    part_classes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "transformer": ("LongCatImageTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        _ENCODER: ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel"),
    }
    loaded_as: ClassVar[Mapping[str, str]] = {_ENCODER: "Qwen2_5_VLModel"}
    text_pairs = ((_TOKENIZER, _ENCODER),)
    asks_sampler = False

    @property
    def tokens_read(self) -> int:
        """Of the prompt alone: the template around it is always read whole."""
        return 512

    @property
    def notes(self) -> Mapping[str, str]:
        """The template."""
        return {"template": f"{_BEGINNING}{{}}{_END}"}

    @property
    def usual(self) -> Usual:
        """Those of LongCatImagePipeline."""
        return Usual(steps=50, guidance=4.5)

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        """Return the tokens of each prompt, its template's apart."""
        return [len(_prompt_ids(tokenizers[_TOKENIZER], prompt)) for prompt in prompts]

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        """Return tokens [P, L, D], padding included."""
        tokenizer = parts.tokenizers[_TOKENIZER]
        ids = [_prompt_ids(tokenizer, prompt)[: self.tokens_read] for prompt in prompts]
        inner = tokenizer.pad({"input_ids": ids}, max_length=self.tokens_read, padding="max_length", return_attention_mask=True)
        beginning, end = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (_BEGINNING, _END))
        ids_PL = torch.tensor([[*beginning, *row, *end] for row in inner["input_ids"]])
        mask_PL = torch.tensor([[1] * len(beginning) + list(row) + [1] * len(end) for row in inner["attention_mask"]])
        output = parts.text_encoders[_ENCODER](input_ids=ids_PL.to(parts.device), attention_mask=mask_PL.to(parts.device), use_cache=False)
        return PromptEmbeddings({TOKENS: output.last_hidden_state[:, len(beginning) : -len(end)]})

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        """Return text and positions: of text tokens 0 and twice their place, of image tokens 1, and row and column behind the text."""
        places = torch.arange(self.tokens_read)
        text_L3 = torch.stack([torch.zeros_like(places), places, places], dim=1).float().to(parts.device)
        behind = torch.tensor([1.0, self.tokens_read, self.tokens_read], device=parts.device)
        common = {"txt_ids": text_L3, "img_ids": grid_positions(sampling.size_px // self.multiple_px, parts.device) + behind}
        return {HALVES: [{**common, "encoder_hidden_states": rows[TOKENS]} for rows in (negative, embeddings) if rows is not None]}

    def guide(self, predicted: torch.Tensor, scale: float) -> torch.Tensor:
        """Return the guided prediction, in every token at most as long as the conditional one."""
        guided, conditional = super().guide(predicted, scale), predicted.chunk(2)[1]
        longest, length = (torch.norm(each, dim=-1, keepdim=True) for each in (conditional, guided))
        shortened: torch.Tensor = guided * (longest / (length + 1e-8)).clamp(min=0.0, max=1.0)
        return shortened


def _prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return the tokens of a prompt; quoted text is split into letters first, as the library splits it."""
    from diffusers.pipelines.longcat_image.pipeline_longcat_image import split_quotation

    pieces = [piece for text, is_quoted in split_quotation(prompt) for piece in (text if is_quoted else [text])]
    return [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]]
