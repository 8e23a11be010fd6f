"""The generator's parts: an autoencoder of the pictures, its tiny decoder, and the UNet that draws latents from words.

Shapes: B pictures, C latent channels, h × w latent cells, L tokens, D their width.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from dev.embedded_models.placing import SIDE_PX, STILL, Placing, placed
from dev.embedded_models.sight import DrawPair
from dev.embedded_models.words import HEADS, WIDTH

CHANNELS, SIDE = 8, SIDE_PX // 8
_VAE_BLOCKS = (16, 32, 64, 64)
_UNET_BLOCKS = (64, 128)
_KL = 2e-3
# Near the middle, on white, as drawings are.
_NEAR_STILL = Placing(scale=(0.9, 1.0), shift=0.03, flip=True)


def autoencoder() -> Any:
    """Return a new AutoencoderKL for pictures of 64 px."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=SIDE_PX,
        block_out_channels=_VAE_BLOCKS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=CHANNELS,
    )


def tiny_decoder() -> Any:
    """Return a new AutoencoderTiny for the same latents."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(32,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
        latent_channels=CHANNELS,
    )


def unet() -> Any:
    """Return a new UNet2DConditionModel. Beside the cross attention of its middle, what the words say together scales and shifts every
    block with the time, as in Saharia et al. 2022 (arXiv 2205.11487, §2.3)."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=_UNET_BLOCKS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=HEADS,
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> Any:
    """Return DDIM over velocities, with noise alone at the last step, and steps counted from there (Lin et al. 2023, arXiv 2305.08891,
    §3): a few steps then begin where the training ended."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def pipeline(*, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any) -> Any:
    """Return a StableDiffusionPipeline of the parts."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


class AutoencoderLoss:
    """Error of pixels and of their differences, in any colours, and a little of the Kullback-Leibler term (Rombach et al. 2022,
    arXiv 2112.10752, §3.1 and appendix G, without its perceptual and adversarial parts)."""

    def __init__(self, vae: Any, pictures: torch.Tensor, batch: int) -> None:
        self._vae, self._pictures, self._batch = vae, pictures, batch

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch."""
        numbers = torch.randint(len(self._pictures), (self._batch,), generator=chance)
        images_B3HW = 2 * recoloured(placed(self._pictures[numbers], _NEAR_STILL, chance), chance) - 1
        found = self._vae.encode(images_B3HW).latent_dist
        latents = found.mean + found.std * torch.randn(found.mean.shape, generator=chance)
        loss: torch.Tensor = differences(self._vae.decode(latents).sample, images_B3HW) + _KL * found.kl().mean() / (CHANNELS * SIDE * SIDE)
        return loss


def recoloured(images_B3HW: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """Return the images, half of them with red, green and blue in another order: emoji are mostly yellow, and what is green is few."""
    orders_B3 = torch.rand(len(images_B3HW), 3, generator=chance).argsort(dim=1)
    orders_B3[torch.rand(len(images_B3HW), generator=chance) < 0.5] = torch.arange(3)
    return images_B3HW[torch.arange(len(images_B3HW))[:, None], orders_B3]


def differences(drawn_B3HW: torch.Tensor, wanted_B3HW: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute and twice the mean squared error of pixels, and the absolute error of neighbours' differences and of
    quarter-size pictures."""
    loss = nn.functional.l1_loss(drawn_B3HW, wanted_B3HW) + 2 * nn.functional.mse_loss(drawn_B3HW, wanted_B3HW)
    for axis in (2, 3):
        loss = loss + nn.functional.l1_loss(drawn_B3HW.diff(dim=axis), wanted_B3HW.diff(dim=axis))
    return loss + nn.functional.l1_loss(nn.functional.avg_pool2d(drawn_B3HW, 4), nn.functional.avg_pool2d(wanted_B3HW, 4))


class TinyLoss:
    """The tiny decoder's pictures of the autoencoder's latents, against the pictures themselves."""

    def __init__(self, tiny: Any, latents: torch.Tensor, images: torch.Tensor, batch: int) -> None:
        self._tiny, self._latents, self._images, self._batch = tiny, latents, images, batch

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch."""
        numbers = torch.randint(len(self._latents), (self._batch,), generator=chance)
        latents = self._latents[numbers]
        return differences(self._tiny.decode(latents + 0.05 * torch.randn(latents.shape, generator=chance)).sample, self._images[numbers])


@torch.no_grad()
def latents_of(vae: Any, pictures: torch.Tensor, *, views: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents [views, N, C, h, w] of the pictures placed anew each time, with the deviation of all of them made 1 by the
    autoencoder's ``scaling_factor``, which is set; and the images in [-1, 1] that they are of."""
    vae.eval()
    latents, images = [], []
    chance = torch.Generator().manual_seed(seed)
    for _ in range(views):
        view = 2 * placed(pictures, _NEAR_STILL, chance) - 1
        images.append(view)
        latents.append(torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(view, 64)]))
    found = torch.stack(latents)
    vae.register_to_config(scaling_factor=float(1 / found.std()))
    return found * vae.config.scaling_factor, torch.stack(images)


@torch.no_grad()
def still_latents(vae: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Return the scaled latents [N, C, h, w] of the pictures in the middle: what the UNet learns to draw. Were they turned over too, a
    drawing of few steps would begin with the mean of both, which is blurred."""
    images = 2 * placed(pictures, STILL, torch.Generator()) - 1
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(images, 64)])
    scaled: torch.Tensor = latents * vae.config.scaling_factor
    return scaled


class UNetLoss:
    """The velocity of noised latents, from words (Salimans & Ho 2022, arXiv 2202.00512, appendix D); a tenth of the rows read no words,
    so that drawings can be guided (Ho & Salimans 2022, arXiv 2207.12598)."""

    def __init__(self, model: Any, latents_NChw: torch.Tensor, draw_rows: "Rows", batch: int) -> None:
        self._unet, self._latents, self._rows, self._batch = model, latents_NChw, draw_rows, batch
        self._scheduler = scheduler()

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch."""
        pictures, tokens_BLD = self._rows(self._batch, chance)
        clean = self._latents[pictures]
        noise = torch.randn(clean.shape, generator=chance)
        # One of each even part of the time: the loss varies less (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
        even = (torch.arange(self._batch) + torch.rand(1, generator=chance)) / self._batch
        steps = (even * self._scheduler.config.num_train_timesteps).long()
        noised = self._scheduler.add_noise(clean, noise, steps)
        velocity = self._scheduler.get_velocity(clean, noise, steps)
        found = self._unet(noised, steps, encoder_hidden_states=tokens_BLD).sample
        return nn.functional.mse_loss(found, velocity)


# Numbers of pictures [B] and the tokens [B, L, D] of a caption of each.
Rows = Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]


def several_captions(own: Sequence[Sequence[int]], near: Sequence[Sequence[int]], joint_TE: torch.Tensor, *, several: int = 4) -> Rows:
    """Return a source of pictures with the mean of several of their captions, half of them their own: what is alike in all that is said of
    a picture is what the picture shows, and single captions from WordNet are far from it.

    Args:
        own: for each picture, the numbers of its own captions.
        near: for each caption from WordNet, its number and those of its pictures.
        joint_TE: of every caption.
        several: how many are averaged.
    """
    of_picture: list[list[int]] = [[] for _ in own]
    for caption, *pictures in near:
        for picture in pictures:
            of_picture[picture].append(caption)

    def rows(count: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        draws = torch.rand(count, several + 1, generator=chance, dtype=torch.float64).tolist()
        pictures = [int(first * len(own)) for first, *_ in draws]
        captions = []
        for picture, (_, *others) in zip(pictures, draws, strict=True):
            kinds = (own[picture], of_picture[picture] or own[picture])
            captions.append([kinds[n % 2][int(other * len(kinds[n % 2]))] for n, other in enumerate(others)])
        mean_BE = joint_TE[torch.tensor(captions)].mean(dim=1)
        return torch.tensor(pictures), nn.functional.normalize(mean_BE, dim=-1)[:, None]

    return rows


def caption_rows(pair: DrawPair, captions: Sequence[str], read: Callable[[list[str]], torch.Tensor], *, without_share: float) -> Rows:
    """Return a source of pictures with one of their captions each.

    Args:
        pair: draws the numbers of a caption and of its picture.
        captions: all of them.
        read: gives the tokens [B, L, D] of texts.
        without_share: of the rows, how many read the empty text.
    """

    def rows(count: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        draws = random.Random(chance.initial_seed())
        chosen = [(*pair(draws), draws.random()) for _ in range(count)]
        texts = ["" if share < without_share else captions[caption] for caption, _, share in chosen]
        return torch.tensor([picture for _, picture, _ in chosen]), read(texts).float()

    return rows
