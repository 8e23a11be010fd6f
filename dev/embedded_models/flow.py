"""The second generator: a PRX transformer that samples by flow matching, and the T5Gemma encoder that it reads. Its autoencoder is the
first generator's.

Shapes: B images, C latent channels, h × w latent cells, L tokens, D their width, F values of one image's latents.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dev.embedded_models.drawing import CHANNELS, SIDE
from dev.embedded_models.sight import SamplePair, pairs_of_one_length
from dev.embedded_models.words import HEADS, WIDTH, pad, token_ids

STEPS = 4
LONGEST = 64
_TEXT_LAYERS, _TEXT_INNER = 1, 320
_HIDDEN, _HEADS, _DEPTH, _MLP_RATIO = 128, 4, 5, 2.0
_WITHOUT_SHARE = 0.1  # of rows with an empty caption, for classifier-free guidance


def text_encoder(tokenizer: Any) -> Any:
    """Return a new T5GemmaEncoder with the vocabulary of the text tower."""
    from transformers import T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    config = T5GemmaModuleConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=_TEXT_INNER,
        num_hidden_layers=_TEXT_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=WIDTH // HEADS,
        query_pre_attn_scalar=WIDTH // HEADS,
        max_position_embeddings=LONGEST,
        layer_types=["full_attention"] * _TEXT_LAYERS,
        attn_logit_softcapping=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dropout_rate=0.0,
    )
    return T5GemmaEncoder(config)


def transformer() -> Any:
    """Return a new PRXTransformer2DModel for the latents of the autoencoder: 16 tokens of 2 × 2 cells."""
    from diffusers import PRXTransformer2DModel

    head = _HIDDEN // _HEADS
    return PRXTransformer2DModel(
        in_channels=CHANNELS,
        patch_size=2,
        context_in_dim=WIDTH,
        hidden_size=_HIDDEN,
        mlp_ratio=_MLP_RATIO,
        num_heads=_HEADS,
        depth=_DEPTH,
        axes_dim=[head // 2, head // 2],
    )


def scheduler() -> Any:
    """Return the Euler sampler of flow matching. Its last noise level is 1 / ``STEPS``, so that so many steps are even: by default the last
    step would begin at a level of 0.001, where nothing is left to do."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=1.0, shift_terminal=1 / STEPS)


def pipeline(*, vae: Any, text_encoder: Any, tokenizer: Any, transformer: Any) -> Any:
    """Return a PRXPipeline of the parts."""
    from diffusers import PRXPipeline

    tokenizer.model_max_length = LONGEST
    vae.register_to_config(shift_factor=0.0)  # PRXPipeline adds what is there, and None is no number
    return PRXPipeline(
        transformer=transformer,
        scheduler=scheduler(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        vae=vae,
        default_sample_size=8 * SIDE,
    )


class FlowTower(nn.Module):
    """A T5Gemma encoder with a linear map from its states to latents. Its embeddings begin as those of the first
    generator's text tower, which has learnt what words look like."""

    def __init__(self, sight: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = text_encoder(tokenizer)
        self.looks = nn.Linear(WIDTH, CHANNELS * SIDE**2)
        weight = sight.get_input_embeddings().weight
        with torch.no_grad():
            self.model.embed_tokens.weight.copy_(weight / weight.std() / WIDTH**0.5)  # the encoder multiplies them by √D

    def states(self, ids_BL: torch.Tensor, is_token_BL: torch.Tensor) -> torch.Tensor:
        """Return the last states [B, L, D]."""
        states_BLD: torch.Tensor = self.model(input_ids=ids_BL, attention_mask=is_token_BL).last_hidden_state
        return states_BLD


class FlowSightLoss:
    """The share of the latents' variance that a caption's states do not predict: the first alone, and the mean of all. A transformer reads
    every state, with the weights that it likes."""

    def __init__(
        self, model: FlowTower, captions: Sequence[torch.Tensor], padding: int, latents_NF: torch.Tensor, pair: SamplePair, batch: int
    ) -> None:
        self._model, self._captions, self._padding, self._pair, self._batch = model, captions, padding, pair, batch
        self._lengths = [len(caption) for caption in captions]
        self._latents = latents_NF - latents_NF.mean(dim=0)
        self._variance = self._latents.var()

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch."""
        chosen = pairs_of_one_length(self._pair, self._lengths, self._batch, random.Random(chance.initial_seed()))
        ids_BL, is_token_BL = padded([self._captions[caption] for caption, _ in chosen], self._padding)
        targets_BF = self._latents[[picture for _, picture in chosen]]
        states_BLD = self._model.states(ids_BL, is_token_BL)
        mean_BD = (states_BLD * is_token_BL[:, :, None]).sum(dim=1) / is_token_BL.sum(dim=1, keepdim=True)
        errors = [nn.functional.mse_loss(self._model.looks(read), targets_BF) for read in (states_BLD[:, 0], mean_BD)]
        return torch.stack(errors).mean() / self._variance


def padded(rows: Sequence[torch.Tensor], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [B, L] and which of them are tokens of a text. Padding has the id of a text's end, so the lengths decide."""
    lengths = torch.tensor([len(row) for row in rows])
    ids_BL = pad(rows, padding)
    return ids_BL, torch.arange(ids_BL.shape[1])[None] < lengths[:, None]


class CaptionStates:
    """The encoder's states of all captions, computed once: half precision, without padding."""

    @torch.no_grad()
    def __init__(self, tower: FlowTower, tokenizer: Any, captions: Sequence[str]) -> None:
        tower.eval()
        rows = token_ids(tokenizer, captions, longest=LONGEST)
        self.lengths = torch.tensor([len(row) for row in rows])
        self._starts = self.lengths.cumsum(0) - self.lengths
        self._packed = torch.empty(int(self.lengths.sum()), WIDTH, dtype=torch.float16)
        for numbers in torch.split(self.lengths.argsort(), 512):
            ids_BL, is_token_BL = padded([rows[number] for number in numbers], tokenizer.pad_token_id)
            states_BLD = tower.states(ids_BL, is_token_BL).half()
            places_BL = self._starts[numbers][:, None] + torch.arange(ids_BL.shape[1])[None]
            self._packed[places_BL[is_token_BL]] = states_BLD[is_token_BL]

    def of(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return states [B, L, D] of some captions, padded to the longest, and which of them are tokens."""
        lengths = self.lengths[numbers]
        is_token_BL = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        places_BL = self._starts[numbers][:, None] + torch.arange(is_token_BL.shape[1])[None]
        return self._packed[places_BL.clamp(max=len(self._packed) - 1)].float(), is_token_BL


class FlowLoss:
    """Error of the predicted velocity, noise less image, between image and noise (Lipman et al. 2022, arXiv 2210.02747; Liu et al. 2022,
    arXiv 2209.03003, eq. 1)."""

    def __init__(self, model: Any, latents_NChw: torch.Tensor, states: CaptionStates, empty: int, pair: SamplePair, batch: int) -> None:
        self._model, self._latents, self._states, self._empty, self._pair, self._batch = model, latents_NChw, states, empty, pair, batch
        self._lengths = states.lengths.tolist()

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch."""
        draws = random.Random(chance.initial_seed())
        chosen = pairs_of_one_length(self._pair, self._lengths, self._batch, draws)
        captions = [self._empty if draws.random() < _WITHOUT_SHARE else caption for caption, _ in chosen]
        states_BLD, is_token_BL = self._states.of(torch.tensor(captions))
        clean = self._latents[torch.tensor([picture for _, picture in chosen])]
        noise = torch.randn(clean.shape, generator=chance)
        # Stratified levels: the loss has less variance (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
        levels_B = (torch.randperm(self._batch, generator=chance) + torch.rand(1, generator=chance)) / self._batch
        noised = torch.lerp(clean, noise, levels_B[:, None, None, None])
        predicted = self._model(
            hidden_states=noised, timestep=levels_B, encoder_hidden_states=states_BLD, attention_mask=is_token_BL
        ).sample
        return nn.functional.mse_loss(predicted, noise - clean)
