"""The card of the embedded models: measures them and writes ``README.md``, ``record.json`` and ``drawings.png``."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dev.embedded_models.assembly import write_flow
from dev.embedded_models.measures import (
    Clip,
    ImageGenerator,
    clip_scores,
    demo_glosses,
    name_recognition,
    probes,
    retrieval,
    sample_captions,
)
from dev.embedded_models.recipe import Recipe
from featurize.generate.presets import EMBEDDED_GENERATORS
from featurize.inspect.decoded_images import to_bytes
from featurize.inspect.drawings_png import DRAWINGS_PNG, write_drawings_png
from lugpi_core.files import read_json, whole_folder, write_json, write_text

RECORD, CARD = "record.json", "README.md"
_ABOUT = {
    "bag": ("initial weights of the text tower", "glosses against words and hypernyms, as means of embeddings"),
    "words": ("clip-demo (text tower)", "glosses against words and hypernyms, contrastive"),
    "autoencoder": ("generator/vae", "images, absolute error"),
    "tiny": ("tiny", "the autoencoder's latents, absolute error"),
    "sight": ("generator/text_encoder", "`words`, then latents of images from captions, unexplained share of variance"),
    "unet": ("generator/unet", "velocity of noised latents, from captions"),
    "clip": ("clip-demo (vision tower)", "augmented images against captions, contrastive; the text tower is frozen"),
    "vit": ("vit-demo", "the group of augmented images"),
    "clip-drawn": ("clip-demo (vision tower)", "`clip`, then generated images against their captions, and the same as before"),
    "vit-drawn": ("vit-demo", "`vit`, then the group nearest to the caption of a generated image, and the same as before"),
    "flow-sight": ("generator-flow/text_encoder", "token embeddings of `sight`, then the same from captions, by bidirectional attention"),
    "flow": ("generator-flow/transformer", "velocity between latents and noise, from captions"),
    "text": ("text", "masked words of glosses"),
}
_SHEETS = {"demo": DRAWINGS_PNG, "demo-flow": "drawings-flow.png"}
_BARS = "▁▂▃▄▅▆▇█"


FLOW = "demo-flow"


def measure(recipe: Recipe, folder: Path, *, most: int | None = None) -> dict[str, Any]:
    """Return how good the assembled models are, on at most ``most`` texts of each kind, and write the images of both generators."""
    found = {"retrieval": retrieval(recipe.world, Clip(folder)), **measure_generator(recipe, folder, "demo", most=most)}
    return {**found, FLOW: measure_generator(recipe, folder, FLOW, most=most)}


def measure_generator(recipe: Recipe, folder: Path, preset: str, *, most: int | None = None) -> dict[str, Any]:
    """Return how good a generator is, on at most ``most`` texts of each kind, and write a PNG of its images."""
    world, clip, generator = recipe.world, Clip(folder), ImageGenerator(folder, preset)
    fitted, dev = demo_glosses("train")[:most], list(world.held.dev.values())[:most]
    captions = sample_captions(world, 64, seed=1)
    write_drawings_png(captions, to_bytes(generator.images(captions)), folder / _SHEETS[preset])
    return {
        "drawn_names": name_recognition(world, clip, generator, count=min(256, most or 256)),
        "clip_score": clip_scores(world, clip, generator, count=min(256, most or 256)),
        "probe_dev": probes(fitted, dev, clip, generator, folder),
        "probe_test": probes(fitted, demo_glosses("test")[:most], clip, generator, folder),
    }


def add_flow(recipe: Recipe, folder: Path, *, most: int | None = None) -> None:
    """Put the second generator into ``folder``, measure it on at most ``most`` texts of each kind, and write the card. What is there of the
    other models stays."""
    with whole_folder(folder / EMBEDDED_GENERATORS[FLOW]) as partial:
        write_flow(recipe, partial)
    record = read_json(folder / RECORD)
    record["trained"] |= {name: read_json(recipe.folder / f"{name}.json") for name in ("flow-sight", "flow")}
    record["trained"] = {name: record["trained"][name] for name in _ABOUT}
    record["measured"][FLOW] = measure_generator(recipe, folder, FLOW, most=most)
    record["bytes"] = _sizes(folder)
    write_json(folder / RECORD, record)
    write_text(folder / CARD, card(record))


def _sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*.safetensors"))}


def write_card(recipe: Recipe, folder: Path, *, most: int | None = None) -> None:
    """Measure the models in ``folder``, on at most ``most`` texts of each kind, and write their card.

    Raises:
        InputError: a part has not been trained.
    """
    record = {
        "trained": {name: read_json(recipe.folder / f"{name}.json") for name in _ABOUT},
        "measured": measure(recipe, folder, most=most),
        "bytes": _sizes(folder),
        "sources": {"pictures": len(recipe.world.emoji), "synsets": len(recipe.world.synsets), "held_out": len(recipe.world.held.ids)},
        "machine": {"threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__},
    }
    write_json(folder / RECORD, record)
    write_text(folder / CARD, card(record))


def sparkline(curve: Sequence[float], *, width: int = 24) -> str:
    """Return a curve as a row of bars."""
    points = [curve[round(n * (len(curve) - 1) / max(1, width - 1))] for n in range(min(width, len(curve)))]
    low, high = min(points), max(points)
    return "".join(_BARS[round((point - low) / ((high - low) or 1) * (len(_BARS) - 1))] for point in points)


def card(record: dict[str, Any]) -> str:
    """Return the card's Markdown."""
    trained = record["trained"]
    rows = [
        f"| {where} | {how} | {trained[name]['parameters']:,} | {trained[name]['steps']:,} | {trained[name]['seconds'] / 60:.0f} "
        f"| {trained[name]['loss'][0]:.3g} → {trained[name]['loss'][-1]:.3g} `{sparkline(trained[name]['loss'])}` |"
        for name, (where, how) in _ABOUT.items()
    ]
    both = [
        f"| {question} | {first} | {second} |"
        for question, first, second in both_generators(record["measured"], record["sources"]["pictures"])
    ]
    sources, machine, megabytes = record["sources"], record["machine"], sum(record["bytes"].values()) / 1e6
    return f"""---
license: apache-2.0
language: en
tags: [text-to-image, clip, vit, distilbert, emoji]
---

# The embedded models

Small models with the architectures of the real ones: a Stable Diffusion pipeline that generates emoji-like images of 64 px for English
words (`generator/`), a tiny decoder for its latents (`tiny/`), a transformer of the PRX family that does the same by flow matching
(`generator-flow/`, with the same autoencoder), a CLIP (`clip-demo/`, open_clip) and a ViT (`vit-demo/`) that encode images, and a
DistilBERT (`text/`). They are what `--generator demo`, `--generator demo-flow`, `--encoders demo` and `--text-model demo` mean.
{megabytes:.1f} MB in half precision.

They are for demonstrations and tests. They were trained on {sources["pictures"]:,} emoji; an image of anything else mixes those of similar
meaning. The images are soft, because they have 64 px and four denoising steps; how often one retrieves its emoji is reported below.

Trained by `python -m dev.embedded_models --wordnet PATH/wordnet-synsets.jsonl.gz` (see `dev/embedded_models/README.md`). Its part `card`
writes this file and `record.json`, which has the loss curves and every figure.

## Data and licences

* {sources["pictures"]:,} images of the Debian font `fonts-noto-color-emoji` (Noto Emoji, SIL Open Font License 1.1).
* Their English names, keywords and groups from `unicode-cldr-core` (CLDR, Unicode licence).
* {sources["synsets"]:,} synsets of Open English WordNet (CC BY 4.0), derived from Princeton WordNet 3.0. {sources["held_out"]:,} synsets
  are held out from all training, as captions and as hypernyms too: the validation and test examples of the demo corpus, and 1,200 more
  (*dev*) on which the recipe was chosen.

The captions of an image are its name, its keywords, and the gloss and hypernyms of its synset; and the gloss and words of every noun to
which it is the nearest synset with an image (Wu & Palmer's similarity in WordNet's tree).

## Training

On {machine["threads"]} CPU thread(s), torch {machine["torch"]}; minutes of wall time, while other training runs used the machine too.

| part | learns | parameters | steps | minutes | loss |
|---|---|---|---|---|---|
{chr(10).join(rows)}

## How good they are

| question | figure |
|---|---|
{chr(10).join(f"| {question} | {figure} |" for question, figure in card_figures(record["measured"], sources["pictures"]))}

The second generator, measured in the same way:

| question | `demo` | `demo-flow` |
|---|---|---|
{chr(10).join(both)}

`drawings.png` has images of `demo` for 64 captions: the upper half names of emoji, the lower half unseen glosses. `drawings-flow.png` has
those of `demo-flow` for the same captions.
"""


def card_figures(found: dict[str, Any], total: int) -> list[tuple[str, str]]:
    """Return the questions of the card with their figures."""
    retrieved, unseen = found["retrieval"], found["probe_test"]
    return [
        ("image retrieved by its name: first / among five", f"{retrieved['name_first']:.1%} / {retrieved['name_among_five']:.1%}"),
        ("an image with the keyword among the first five", f"{retrieved['keyword_among_five']:.1%}"),
        (
            "an image of the right topic retrieved first by an unseen gloss (by chance)",
            f"{retrieved['unseen_gloss_topic']:.1%} ({retrieved['unseen_gloss_topic_by_chance']:.1%})",
        ),
        *generator_figures(found, total)[:3],
        ("linear probe, topics of unseen glosses (test; chance 8.3 %): text tower", f"{unseen['text']:.1%}"),
        ("the same from generated images: CLIP tokens / ViT tokens", generator_figures(found, total)[3][1]),
    ]


def generator_figures(found: dict[str, Any], total: int) -> list[tuple[str, str]]:
    """Return the questions about one generator with their figures."""
    scores, unseen = found["clip_score"], found["probe_test"]
    return [
        (
            f"an emoji retrieved by the image generated for its name, among {total:,}: first / among five",
            f"{found['drawn_names']['first']:.1%} / {found['drawn_names']['among_five']:.1%}",
        ),
        ("CLIP score of images generated for names / shuffled", f"{scores['names']:.1f} / {scores['names_shuffled']:.1f}"),
        (
            "CLIP score of images generated for unseen glosses / shuffled",
            f"{scores['unseen_glosses']:.1f} / {scores['unseen_glosses_shuffled']:.1f}",
        ),
        (
            "linear probe from generated images, topics of unseen glosses (test; chance 8.3 %): CLIP tokens / ViT tokens",
            f"{unseen['clip-demo']:.1%} / {unseen['vit-demo']:.1%}",
        ),
    ]


def both_generators(found: dict[str, Any], total: int) -> list[tuple[str, str, str]]:
    """Return the questions about the generators with the figures of both."""
    figures = zip(generator_figures(found, total), generator_figures(found[FLOW], total), strict=True)
    return [(question, first, second) for (question, first), (_, second) in figures]
