"""The generator's parts: an autoencoder of images, its tiny decoder, and the UNet that generates latents from words.

Shapes: B images, C latent channels, h × w latent cells, L tokens, D their width.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from dev.embedded_models.augmentation import CENTRED, SIDE_PX, Augmentation, augment
from dev.embedded_models.sight import SamplePair
from dev.embedded_models.words import HEADS, WIDTH

CHANNELS, SIDE = 8, SIDE_PX // 8
_VAE_BLOCKS = (16, 32, 64, 64)
_UNET_BLOCKS = (64, 128)
_KL = 2e-3
# Near the centre, on white, as generated images are.
_WEAK = Augmentation(scale=(0.9, 1.0), shift=0.03, flip=True)


def autoencoder() -> Any:
    """Return a new AutoencoderKL for images of 64 px."""
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
    """Return a new UNet2DConditionModel. It has cross attention in its middle block, and a pooled text embedding is added to the time
    embedding that scales and shifts every block, as in Saharia et al. 2022 (arXiv 2205.11487, §2.3)."""
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
    """Return DDIM with v-prediction, zero terminal signal-to-noise ratio and trailing timesteps (Lin et al. 2023, arXiv 2305.08891, §3), so
    that sampling with few steps begins where the training ended."""
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
    """Error of pixels and of their differences, with permuted colours, and a small Kullback-Leibler term (Rombach et al. 2022,
    arXiv 2112.10752, §3.1 and appendix G, without its perceptual and adversarial terms)."""

    def __init__(self, vae: Any, pictures: torch.Tensor, batch: int) -> None:
        self._vae, self._pictures, self._batch = vae, pictures, batch

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch."""
        numbers = torch.randint(len(self._pictures), (self._batch,), generator=chance)
        images_B3HW = 2 * permute_colours(augment(self._pictures[numbers], _WEAK, chance), chance) - 1
        posterior = self._vae.encode(images_B3HW).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=chance)
        loss: torch.Tensor = image_loss(self._vae.decode(latents).sample, images_B3HW) + _KL * posterior.kl().mean() / (
            CHANNELS * SIDE * SIDE
        )
        return loss


def permute_colours(images_B3HW: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """Return the images, half of them with red, green and blue in another order, because most emoji are yellow and few are green."""
    orders_B3 = torch.rand(len(images_B3HW), 3, generator=chance).argsort(dim=1)
    orders_B3[torch.rand(len(images_B3HW), generator=chance) < 0.5] = torch.arange(3)
    return images_B3HW[torch.arange(len(images_B3HW))[:, None], orders_B3]


def image_loss(decoded_B3HW: torch.Tensor, target_B3HW: torch.Tensor) -> torch.Tensor:
    """Return the sum of the mean absolute error, twice the mean squared error, and the absolute errors of the differences of neighbouring
    pixels and of quarter-size images."""
    loss = nn.functional.l1_loss(decoded_B3HW, target_B3HW) + 2 * nn.functional.mse_loss(decoded_B3HW, target_B3HW)
    for axis in (2, 3):
        loss = loss + nn.functional.l1_loss(decoded_B3HW.diff(dim=axis), target_B3HW.diff(dim=axis))
    return loss + nn.functional.l1_loss(nn.functional.avg_pool2d(decoded_B3HW, 4), nn.functional.avg_pool2d(target_B3HW, 4))


class TinyLoss:
    """Error of the tiny decoder's images, from the autoencoder's latents."""

    def __init__(self, tiny: Any, latents: torch.Tensor, images: torch.Tensor, batch: int) -> None:
        self._tiny, self._latents, self._images, self._batch = tiny, latents, images, batch

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch."""
        numbers = torch.randint(len(self._latents), (self._batch,), generator=chance)
        latents = self._latents[numbers]
        return image_loss(self._tiny.decode(latents + 0.05 * torch.randn(latents.shape, generator=chance)).sample, self._images[numbers])


@torch.no_grad()
def latents_of(vae: Any, pictures: torch.Tensor, *, views: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scaled latents [views, N, C, h, w] of several augmentations of each image, and the augmented images in [-1, 1]. Sets the
    autoencoder's ``scaling_factor`` so that the latents have a standard deviation of 1."""
    vae.eval()
    latents, images = [], []
    chance = torch.Generator().manual_seed(seed)
    for _ in range(views):
        view = 2 * augment(pictures, _WEAK, chance) - 1
        images.append(view)
        latents.append(torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(view, 64)]))
    stacked = torch.stack(latents)
    vae.register_to_config(scaling_factor=float(1 / stacked.std()))
    return stacked * vae.config.scaling_factor, torch.stack(images)


@torch.no_grad()
def still_latents(vae: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Return the scaled latents [N, C, h, w] of the centred images: the UNet's targets. With mirrored images among them, generation with
    few steps would begin with the mean of both, which is blurred."""
    images = 2 * augment(pictures, CENTRED, torch.Generator()) - 1
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(images, 64)])
    scaled: torch.Tensor = latents * vae.config.scaling_factor
    return scaled


class UNetLoss:
    """Error of the predicted velocity of noised latents (Salimans & Ho 2022, arXiv 2202.00512, appendix D). Some rows have an empty
    caption, for classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""

    def __init__(self, model: Any, latents_NChw: torch.Tensor, rows: "Rows", batch: int) -> None:
        self._unet, self._latents, self._rows, self._batch = model, latents_NChw, rows, batch
        self._scheduler = scheduler()

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch."""
        pictures, tokens_BLD = self._rows(self._batch, chance)
        clean = self._latents[pictures]
        noise = torch.randn(clean.shape, generator=chance)
        # Stratified timesteps: the loss has less variance (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
        even = (torch.arange(self._batch) + torch.rand(1, generator=chance)) / self._batch
        steps = (even * self._scheduler.config.num_train_timesteps).long()
        noised = self._scheduler.add_noise(clean, noise, steps)
        velocity = self._scheduler.get_velocity(clean, noise, steps)
        predicted = self._unet(noised, steps, encoder_hidden_states=tokens_BLD).sample
        return nn.functional.mse_loss(predicted, velocity)


# Samples the numbers of images [B] and the tokens [B, L, D] of a caption of each.
Rows = Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]


def mean_caption_rows(own: Sequence[Sequence[int]], near: Sequence[Sequence[int]], joint_TE: torch.Tensor, *, several: int = 4) -> Rows:
    """Return a sampler of images with the mean of several of their captions, half of them their own. What all captions of an image share is
    what it shows; single captions from WordNet are far from it.

    Args:
        own: for each image, the numbers of its own captions.
        near: for each caption from WordNet, its number and those of its images.
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


def caption_rows(pair: SamplePair, captions: Sequence[str], embed: Callable[[list[str]], torch.Tensor], *, without_share: float) -> Rows:
    """Return a sampler of images with one of their captions each.

    Args:
        pair: samples the numbers of a caption and of its image.
        captions: all of them.
        embed: returns the tokens [B, L, D] of texts.
        without_share: share of the rows with an empty caption.
    """

    def rows(count: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        draws = random.Random(chance.initial_seed())
        chosen = [(*pair(draws), draws.random()) for _ in range(count)]
        texts = ["" if share < without_share else captions[caption] for caption, _, share in chosen]
        return torch.tensor([picture for _, picture, _ in chosen]), embed(texts).float()

    return rows
