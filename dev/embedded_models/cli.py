"""``python -m dev.embedded_models``: the parts of the recipe, one after the other. Heavy imports are inside the functions."""

import time
from collections.abc import Sequence
from typing import Any

from dev.embedded_models.options import EmojiOptions
from lugpi_core.command_line import run, say


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m dev.embedded_models`` on the arguments; return the exit status."""
    return run(train_models, EmojiOptions, arguments, prog="python -m dev.embedded_models")


def train_models(options: EmojiOptions) -> dict[str, Any]:
    """Train, assemble and measure the parts of ``--only``; return the figures.

    Raises:
        InputError: a source is missing, or a part that another one needs.
    """
    import torch

    from dev.embedded_models.assembly import assemble
    from dev.embedded_models.recipe import DRAWINGS, STEPS, Recipe
    from dev.embedded_models.world import load_world
    from lugpi_core.runtime.libraries import prepare_libraries

    prepare_libraries()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    world = load_world(options.wordnet, font=options.font, cldr=options.cldr)
    say(
        f"{len(world.emoji):,} images, {len(world.synsets):,} synsets ({len(world.held.ids):,} held out), "
        f"{sum(map(len, world.own)):,} captions of images and {len(world.near):,} from WordNet"
    )
    steps = {name: step.shortened(options.shorten) for name, step in STEPS.items()}
    drawings = max(1, DRAWINGS // options.shorten)
    recipe = Recipe(world, options.work_dir, seed=options.seed, steps=steps, drawings=drawings)
    seconds: dict[str, float] = {}
    for part in options.only:
        started = time.perf_counter()
        if part == "assemble":
            assemble(recipe, options.out)
        elif part == "card":
            from dev.embedded_models.card import write_card

            write_card(recipe, options.out, most=None if options.shorten == 1 else 64)
        elif part == "restore":
            from dev.embedded_models.restore import restore

            restore(options.out, options.work_dir)
        elif part == "add-flow":
            from dev.embedded_models.card import add_flow

            add_flow(recipe, options.out, most=None if options.shorten == 1 else 64)
        else:
            getattr(recipe, part.replace("-", "_"))()
        seconds[part] = round(time.perf_counter() - started, 1)
        say(f"{part}: {seconds[part]:,.0f} s")
    size_bytes = sum(path.stat().st_size for path in options.out.rglob("*.safetensors"))
    return {"command": "emoji", "out": str(options.out), "bytes": size_bytes, "seconds": seconds, "trained": recipe.records}
