"""The card of the embedded models, with figures measured anew: ``README.md``, ``record.json`` and ``drawings.png`` beside them."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dev.embedded_models.measures import Artist, Clip, caption_choice, clip_scores, demo_glosses, drawn_names, probes, retrieval
from dev.embedded_models.recipe import Recipe
from featurize.inspect.decoded_images import to_bytes
from featurize.inspect.drawings_png import DRAWINGS_PNG, write_drawings_png
from lugpi_core.files import read_json, write_json, write_text

RECORD, CARD = "record.json", "README.md"
_ABOUT = {
    "bag": ("where the text tower begins", "glosses against words and hypernyms, a mean of embeddings for each"),
    "words": ("clip-demo (text tower)", "glosses against words and hypernyms, contrastive"),
    "autoencoder": ("generator/vae", "pictures, absolute error"),
    "tiny": ("tiny", "the autoencoder's latents, absolute error"),
    "sight": ("generator/text_encoder", "`words`, then: latents of pictures from captions, share of variance"),
    "unet": ("generator/unet", "velocity of noised latents, from captions"),
    "clip": ("clip-demo (vision tower)", "placed pictures against captions, contrastive; the text tower is kept"),
    "vit": ("vit-demo", "the group of placed pictures"),
    "clip-drawn": ("clip-demo (vision tower)", "`clip`, then: drawings against the caption of each beside what it learnt"),
    "vit-drawn": ("vit-demo", "`vit`, then: the group that the caption of a drawing is nearest to beside what it learnt"),
    "text": ("text", "masked words of glosses"),
}
_BARS = "▁▂▃▄▅▆▇█"


def measured(recipe: Recipe, folder: Path, *, most: int | None = None) -> dict[str, Any]:
    """Return how good the assembled models are, from ``most`` texts of each kind, and write the sheet of drawings."""
    world, clip, artist = recipe.world, Clip(folder), Artist(folder)
    learnt, dev = demo_glosses("train")[:most], list(world.held.dev.values())[:most]
    captions = caption_choice(world, 64, seed=1)
    write_drawings_png(captions, to_bytes(artist.pictures(captions)), folder / DRAWINGS_PNG)
    return {
        "retrieval": retrieval(world, clip),
        "drawn_names": drawn_names(world, clip, artist, count=min(256, most or 256)),
        "clip_score": clip_scores(world, clip, artist, count=min(256, most or 256)),
        "probe_dev": probes(learnt, dev, clip, artist, folder),
        "probe_test": probes(learnt, demo_glosses("test")[:most], clip, artist, folder),
    }


def write_card(recipe: Recipe, folder: Path, *, most: int | None = None) -> None:
    """Measure the models in ``folder``, from ``most`` texts of each kind, and write their card.

    Raises:
        InputError: a part has not been trained, or is not there.
    """
    record = {
        "trained": {name: read_json(recipe.folder / f"{name}.json") for name in _ABOUT},
        "measured": measured(recipe, folder, most=most),
        "bytes": {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*.safetensors"))},
        "sources": {"pictures": len(recipe.world.emoji), "synsets": len(recipe.world.synsets), "held_out": len(recipe.world.held.ids)},
        "machine": {"threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__},
    }
    write_json(folder / RECORD, record)
    write_text(folder / CARD, card(record))


def sparkline(curve: Sequence[float], *, width: int = 24) -> str:
    """Return a curve as a line of bars."""
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
    sources, machine, megabytes = record["sources"], record["machine"], sum(record["bytes"].values()) / 1e6
    return f"""---
license: apache-2.0
language: en
tags: [text-to-image, clip, vit, distilbert, emoji]
---

# The embedded models

Small models of the real ones' classes: a Stable Diffusion pipeline that draws emoji-like pictures of 64 px for English words
(`generator/`), a tiny decoder for its latents (`tiny/`), a CLIP (`clip-demo/`, open_clip) and a ViT (`vit-demo/`) that read pictures, and
a DistilBERT (`text/`). They are what `--generator demo`, `--encoders demo` and `--text-model demo` mean. {megabytes:.1f} MB in half
precision.

They are for demonstrations and tests: the vocabulary of pictures is {sources["pictures"]:,} emoji, and a drawing of anything else mixes
those of like meaning. Drawings are soft, as pictures of 64 px made in four steps are; how often one finds its emoji stands below.

Made by `python -m dev.embedded_models --wordnet PATH/wordnet-synsets.jsonl.gz` (see `dev/embedded_models/README.md`). This file and
`record.json`, which has the curves and every figure, are written by its part `card`.

## Data and licences

* {sources["pictures"]:,} pictures of the Debian font `fonts-noto-color-emoji` (Noto Emoji, SIL Open Font License 1.1).
* Their English names, keywords and groups from `unicode-cldr-core` (CLDR, Unicode licence).
* {sources["synsets"]:,} synsets of Open English WordNet (CC BY 4.0), derived from Princeton WordNet 3.0. {sources["held_out"]:,} synsets
  were held out of every training, captions and hypernyms included: the validation and test examples of the demo corpus, and 1,200 more
  (*dev*) by which the recipe was chosen.

A caption of a picture is its name, its keywords, the gloss and hypernyms of its synset; and the gloss or the words of any noun whose
nearest synset with a picture it is (Wu & Palmer's similarity in WordNet's tree).

## Training

On {machine["threads"]} CPU thread(s), torch {machine["torch"]}; minutes of wall time, in which other trainings ran beside.

| part | learns | parameters | steps | minutes | loss |
|---|---|---|---|---|---|
{chr(10).join(rows)}

## How good they are

| question | figure |
|---|---|
{chr(10).join(f"| {question} | {figure} |" for question, figure in answers(record["measured"], sources["pictures"]))}

Drawings for 64 captions, the upper half names of emoji, the lower half glosses that nobody has learnt from: `drawings.png`.
"""


def answers(found: dict[str, Any], total: int) -> list[tuple[str, str]]:
    """Return the card's questions with their figures."""
    retrieved, scores, unseen = found["retrieval"], found["clip_score"], found["probe_test"]
    return [
        ("picture found by its name: first / among five", f"{retrieved['name_first']:.1%} / {retrieved['name_among_five']:.1%}"),
        ("a picture with the keyword among the first five", f"{retrieved['keyword_among_five']:.1%}"),
        (
            "a picture of the right topic found first by an unseen gloss (by chance)",
            f"{retrieved['unseen_gloss_topic']:.1%} ({retrieved['unseen_gloss_topic_by_chance']:.1%})",
        ),
        (
            f"an emoji found by the drawing of its name, among {total:,}: first / among five",
            f"{found['drawn_names']['first']:.1%} / {found['drawn_names']['among_five']:.1%}",
        ),
        ("CLIP score of drawings of names / shuffled", f"{scores['names']:.1f} / {scores['names_shuffled']:.1f}"),
        (
            "CLIP score of drawings of unseen glosses / shuffled",
            f"{scores['unseen_glosses']:.1f} / {scores['unseen_glosses_shuffled']:.1f}",
        ),
        ("linear probe, topics of unseen glosses (test; chance 8.3 %): text tower", f"{unseen['text']:.1%}"),
        ("the same from drawings: CLIP tokens / ViT tokens", f"{unseen['clip-demo']:.1%} / {unseen['vit-demo']:.1%}"),
    ]
