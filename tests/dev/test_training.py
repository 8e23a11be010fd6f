"""The training loop of the embedded models, and the whole recipe with small models."""

import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from dev.embedded_models import card, flow, training, vision
from dev.embedded_models.assembly import assemble
from dev.embedded_models.augmentation import CENTRED, STRONG, augment
from dev.embedded_models.card import sparkline, write_card
from dev.embedded_models.drawing import caption_rows, mean_caption_rows, permute_colours
from dev.embedded_models.measures import Clip
from dev.embedded_models.recipe import STEPS, Recipe, Step
from dev.embedded_models.restore import restore
from dev.embedded_models.sight import SightLoss, SightTower, nearest_images, pairs
from dev.embedded_models.training import Loss, Schedule, fit
from dev.embedded_models.words import CONTEXT, Tower, clip_tokenizer, contrastive, embed_texts, pad, token_ids, word_piece_tokenizer
from lugpi_core.errors import InputError
from tests.support.small_world import small_world

pytestmark = pytest.mark.filterwarnings("ignore:.LoraLoaderMixin. is deprecated")  # of every PRXPipeline
SCHEDULE = Schedule(steps=40, learning_rate=0.1, averaged=0.9, seed=5)


def line() -> tuple[nn.Module, Callable[[], Loss]]:
    """Return a model with dropout and its loss, whose data depend on the step's source of random numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))

    def loss(chance: torch.Generator) -> torch.Tensor:
        x = torch.randn(16, 4, generator=chance)
        return nn.functional.mse_loss(model(x)[:, 0], x.sum(dim=1))

    return model, lambda: loss


def weights(model: nn.Module) -> bytes:
    return b"".join(value.detach().numpy().tobytes() for value in model.state_dict().values())


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss = line()
    record = fit("line", model, loss, SCHEDULE, tmp_path / "straight")
    assert record["loss"][-1] < record["loss"][0]
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    other, loss = line()
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            fit("line", other, _stopping(loss, after=11), SCHEDULE, tmp_path / "killed")
        other, loss = line()
    again = fit("line", other, loss, SCHEDULE, tmp_path / "killed")
    assert weights(other) == weights(model)
    assert again["loss"] == record["loss"]


def _stopping(make: Callable[[], Loss], *, after: int) -> Callable[[], Loss]:
    def stopping() -> Loss:
        loss, left = make(), iter(range(after))

        def step(chance: torch.Generator) -> torch.Tensor:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return loss(chance)

        return step

    return stopping


def test_a_trained_model_is_loaded_and_not_trained_again(tmp_path: Path) -> None:
    model, loss = line()
    record = fit("line", model, loss, SCHEDULE, tmp_path)
    other, _ = line()

    def never() -> Loss:
        raise AssertionError("trained again")

    assert fit("line", other, never, SCHEDULE, tmp_path) == record
    assert weights(other) == weights(model)


def test_a_model_of_another_schedule_is_refused(tmp_path: Path) -> None:
    model, loss = line()
    training._Run(model, SCHEDULE).save(tmp_path / "begun.pt")
    fit("done", model, loss, SCHEDULE, tmp_path)
    for name in ("begun", "done"):
        with pytest.raises(InputError, match="written with other settings: seed: found 5, wanted 6"):
            fit(name, model, loss, replace(SCHEDULE, seed=6), tmp_path)


def test_a_training_may_end_before_its_rate_is_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss = line()
    record = fit("line", model, loss, replace(SCHEDULE, until=11), tmp_path)
    assert (record["steps"], record["schedule"]["until"]) == (11, 11)
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)
    other, loss = line()
    with pytest.raises(KeyboardInterrupt):
        fit("whole", other, _stopping(loss, after=11), SCHEDULE, tmp_path)
    average = torch.load(tmp_path / "whole.pt", weights_only=True)["average"]
    assert all(torch.equal(mean, value) for mean, value in zip(average, model.parameters(), strict=True))
    assert Step(steps=100, until=60, batch=1, learning_rate=1.0).shortened(50) == Step(steps=2, until=1, batch=1, learning_rate=1.0)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    model, _ = line()
    with pytest.raises(FloatingPointError, match="the loss of step 0 is nan"):
        fit("line", model, lambda: lambda _: next(model.parameters()).sum() * math.nan, SCHEDULE, tmp_path)
    assert not (tmp_path / "line.json").exists()


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [SCHEDULE.rate(step) for step in range(SCHEDULE.steps)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] < 0.001


def test_the_contrastive_loss_follows_its_formula() -> None:
    torch.manual_seed(0)
    left, right = (nn.functional.normalize(torch.randn(5, 8, dtype=torch.float64), dim=1) for _ in range(2))
    scale = torch.tensor(1.5, dtype=torch.float64)
    logits = math.exp(1.5) * (left @ right.T).numpy()
    by_hand = [
        -(np.diag(table) - np.log(np.exp(table).sum(axis=1))).mean() for table in (logits, logits.T)
    ]  # each pair's own right is the only one
    assert float(contrastive(left, right, torch.eye(5, dtype=torch.float64), scale)) == pytest.approx(sum(by_hand) / 2)
    same = torch.eye(5, dtype=torch.float64)
    same[0, 1] = same[1, 0] = 1
    right[1] = right[0]
    assert float(contrastive(left, right, same, scale)) < float(contrastive(left, right, torch.eye(5, dtype=torch.float64), scale))


def test_images_are_augmented_on_white_and_centred_ones_unchanged() -> None:
    world = small_world()
    pictures = torch.from_numpy(world.pictures).permute(0, 3, 1, 2)
    still = augment(pictures, CENTRED, torch.Generator().manual_seed(0))
    assert still.shape == (8, 3, 64, 64)
    assert torch.equal(still[:, :, 0, 0], torch.ones(8, 3))
    red, green, blue = still[0, :, 32, 32].tolist()
    assert (red, green, blue) == pytest.approx((1, 0, 0), abs=0.01)
    free = augment(pictures, STRONG, torch.Generator().manual_seed(0))
    assert float(free.min()) >= 0
    assert float(free.max()) <= 1
    assert torch.equal(free, augment(pictures, STRONG, torch.Generator().manual_seed(0)))
    assert not torch.equal(free, augment(pictures, STRONG, torch.Generator().manual_seed(1)))


def test_half_of_the_images_change_their_colours_only() -> None:
    images = torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = permute_colours(images, torch.Generator().manual_seed(1))
    assert torch.equal(seen.sort(dim=1).values, images.sort(dim=1).values)
    changed = (seen != images).flatten(1).any(dim=1)
    assert 60 < int(changed.sum()) < 110  # half, of which a sixth draws its own order


def test_an_image_gets_the_mean_of_its_own_and_nearby_captions() -> None:
    joint = nn.functional.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    rows = mean_caption_rows([[0, 1], [2]], [[3, 0], [4, 0, 1]], joint, several=2)
    pictures, captions_B1E = rows(200, torch.Generator().manual_seed(1))
    possible = {0: [(own, near) for own in (0, 1) for near in (3, 4)], 1: [(2, 4)]}
    for picture, caption_E in zip(pictures.tolist(), captions_B1E[:, 0], strict=True):
        means = [nn.functional.normalize(joint[list(pair)].mean(dim=0), dim=0) for pair in possible[picture]]
        assert any(torch.allclose(caption_E, mean, atol=1e-6) for mean in means)
    assert 60 < int(pictures.sum()) < 140


def test_a_wordnet_caption_gets_the_nearest_of_its_images() -> None:
    joint = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.9, 0.1]])
    assert nearest_images([[0], [1]], [[2, 0, 1], [3, 0, 1], [2, 0]], joint) == [(2, 1), (3, 0), (2, 0)]


def test_pairs_are_own_or_from_wordnet_by_their_share() -> None:
    draw, chance = pairs([[0, 1], [2]], [(3, 0), (4, 1)], own_share=0.25), random.Random(0)
    drawn = [draw(chance) for _ in range(800)]
    assert set(drawn) == {(0, 0), (1, 0), (2, 1), (3, 0), (4, 1)}
    assert 150 < sum(caption < 3 for caption, _ in drawn) < 250
    alone = pairs([[0]], [], own_share=0.0)
    assert alone(chance) == (0, 0), "where WordNet gives nothing"


def test_a_share_of_the_rows_has_an_empty_caption() -> None:
    asked: list[str] = []

    def read(texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return torch.zeros(len(texts), 2, 4).half()

    rows = caption_rows(pairs([[0], [1]], [], own_share=1.0), ["a", "b"], read, without_share=0.3)
    pictures, tokens = rows(400, torch.Generator().manual_seed(1))
    assert tokens.dtype == torch.float32
    assert 80 < asked.count("") < 160
    assert all(text in ("", "ab"[picture]) for text, picture in zip(asked, pictures.tolist(), strict=True))


def test_a_tower_learns_what_words_look_like() -> None:
    world = small_world()
    tokenizer = clip_tokenizer(world.texts(), size=700)
    torch.manual_seed(0)
    tower = SightTower(Tower(tokenizer), 6)
    captions = token_ids(tokenizer, [one.name if n % 2 else f"a kind of {one.name}" for n, one in enumerate(world.emoji)])
    latents = torch.randn(len(captions), 6)
    loss = SightLoss(tower, captions, tokenizer.pad_token_id, latents, pairs([[n] for n in range(len(captions))], [], own_share=1.0)).of(8)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=3e-4)
    values = []
    for step in range(200):
        value = loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[0] > 0.8
    assert values[-1] < 0.2
    tower.eval()
    at_end, at_padding = tower(pad(captions, tokenizer.pad_token_id))
    assert torch.equal(torch.cdist(at_end, latents - latents.mean(dim=0)).argmin(dim=1), torch.arange(len(captions)))
    alone = tower(captions[0][None])
    assert torch.equal(*alone)
    assert not torch.equal(at_end, at_padding)


def test_the_tokenizers_encode_any_text_and_the_end_has_the_highest_id() -> None:
    texts = small_world().texts()
    clip = clip_tokenizer(texts, size=700)
    ids = clip("Ünïcode 漢字 🦔 fruita")["input_ids"]
    assert ids[-1] == max(ids) == len(clip) - 1
    assert clip.decode(ids, skip_special_tokens=True).strip() == "ünïcode 漢字 🦔 fruita"
    assert len(clip("fruita")["input_ids"]) < 2 + len("fruita")
    pieces = word_piece_tokenizer(texts, size=400)
    assert pieces.decode(pieces("the Fruit zqx~")["input_ids"], skip_special_tokens=True) == "the fruit zqx ~"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    steps = {name: Step(steps=2, batch=4, learning_rate=1e-3, averaged=step.averaged) for name, step in STEPS.items()}
    return Recipe(small_world(), tmp_path_factory.mktemp("recipe"), steps=steps, drawings=6)


@pytest.fixture(scope="module")
def models(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(recipe, tmp_path_factory.mktemp("assembled") / "models")


def test_the_assembled_models_load_with_their_libraries(models: Path) -> None:
    import diffusers
    import transformers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(models / "generator", safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a hedgehog", num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 64, 64, 3)
    tiny = diffusers.AutoencoderTiny.from_pretrained(models / "tiny")
    assert tiny.config.latent_channels == pipeline.vae.config.latent_channels
    assert transformers.ViTModel.from_pretrained(models / "vit-demo").config.image_size == 64
    assert transformers.AutoModel.from_pretrained(models / "text", dtype=torch.float32).config.model_type == "distilbert"
    assert transformers.AutoTokenizer.from_pretrained(models / "text")("a fruit")["input_ids"]


def test_clips_text_tower_is_the_one_trained_on_words(recipe: Recipe, models: Path) -> None:
    texts = ["a fruit", "the animal number 2 of them"]
    clip = recipe.clip_drawn()
    tower, tokenizer = recipe.words(), recipe.tokenizer()
    ids = torch.tensor(tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True)["input_ids"])
    with torch.no_grad():
        found = nn.functional.normalize(clip.encode_text(ids), dim=-1)
    assert torch.allclose(found, embed_texts(tower, tokenizer, texts), atol=1e-5)
    assert torch.allclose(Clip(models).texts(texts), found, atol=2e-3)  # half precision, and open_clip's own way to the tokens


def test_the_generator_has_the_sight_tower(recipe: Recipe, models: Path) -> None:
    from safetensors.torch import load_file

    saved, tower = load_file(models / "generator" / "text_encoder" / "model.safetensors"), recipe.sight().model.state_dict()
    name = next(name for name in saved if name.endswith("token_embedding.weight"))
    mine = next(value for key, value in tower.items() if key.endswith("token_embedding.weight"))
    assert torch.equal(saved[name], mine.half())
    assert not torch.equal(mine, recipe.words().model.get_input_embeddings().weight)


def test_training_leaves_clips_text_tower_frozen(recipe: Recipe) -> None:
    untouched = vision.clip(len(recipe.tokenizer()))
    vision.copy_text_tower(untouched, recipe.words())
    trained = recipe.clip_drawn().state_dict()
    names = [name for name in untouched.state_dict() if not name.startswith("visual") and name != "logit_scale"]
    assert len(names) > 20
    assert all(torch.equal(untouched.state_dict()[name], trained[name]) for name in names)


def test_the_card_reports_what_was_measured(recipe: Recipe, models: Path) -> None:
    write_card(recipe, models, most=24)
    record = json.loads((models / "record.json").read_text())
    assert set(record["trained"]) == set(STEPS)
    assert record["measured"]["probe_test"]["text"] > 0
    page = (models / "README.md").read_text()
    assert f"| {record['measured']['retrieval']['name_first']:.1%} / " in page.replace("first / among five ", "")
    assert (models / "drawings.png").read_bytes().startswith(b"\x89PNG")
    assert sparkline([3, 2, 1, 1], width=4) == "█▅▁▁"


def test_the_second_generator_loads_with_its_library_and_has_the_same_autoencoder(models: Path) -> None:
    import diffusers

    pipeline = diffusers.PRXPipeline.from_pretrained(models / "generator-flow", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a hedgehog", num_inference_steps=4, guidance_scale=2.0, use_resolution_binning=False, output_type="np").images
    assert images.shape == (1, 64, 64, 3)
    assert pipeline.scheduler.sigmas.tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=1e-6), "even steps, none at nothing"
    vae = [(models / name / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() for name in ("generator", "generator-flow")]
    assert vae[0] == vae[1]
    assert pipeline.tokenizer.model_max_length == flow.LONGEST > CONTEXT


def test_states_of_captions_are_those_of_the_encoder_alone(recipe: Recipe) -> None:
    tower, tokenizer = recipe.flow_sight(), recipe.tokenizer()
    texts = ["a fruit", "", "the animal number 2 of them"]
    states_BLD, is_token_BL = flow.CaptionStates(tower, tokenizer, texts).of(torch.tensor([2, 0, 1]))
    for row, text in enumerate((texts[2], texts[0], texts[1])):
        ids_L = token_ids(tokenizer, [text])[0]
        with torch.no_grad():
            alone_1LD = tower.states(ids_L[None], torch.ones(1, len(ids_L), dtype=torch.bool))
        assert int(is_token_BL[row].sum()) == len(ids_L)
        assert torch.allclose(states_BLD[row, : len(ids_L)], alone_1LD[0], atol=2e-3)  # half precision


def test_the_transformer_learns_the_velocity_between_image_and_noise() -> None:
    """A model that knows its only image has no loss: noise less image is what is left of the noised latent, over its noise level."""
    clean = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))

    class Knows(nn.Module):
        def forward(self, hidden_states: Any, timestep: Any, encoder_hidden_states: Any, attention_mask: Any) -> Any:
            seen.append((timestep, attention_mask.sum(dim=1)))
            return SimpleNamespace(sample=(hidden_states - clean) / timestep[:, None, None, None])

    class States:
        lengths = torch.tensor([5, 2])

        def of(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(numbers), 5, 4), torch.arange(5)[None] < self.lengths[numbers][:, None]

    seen: list[Any] = []
    loss = flow.FlowLoss(Knows(), clean, cast(Any, States()), 1, lambda _: (0, 0), 64)
    values = [float(loss(torch.Generator().manual_seed(step))) for step in range(20)]
    assert max(values) < 1e-6
    levels, tokens = (torch.cat([step[place] for step in seen]) for place in (0, 1))
    assert 0.45 < float(levels.mean()) < 0.55
    assert 0.05 < float((tokens == 2).float().mean()) < 0.15, "a tenth has the empty caption"


def test_parts_that_were_shipped_are_restored_so_that_the_second_generator_can_be_trained_alone(
    recipe: Recipe, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {
        "drawn_names": {"first": 0.5, "among_five": 0.7},
        "clip_score": dict.fromkeys(("names", "names_shuffled", "unseen_glosses", "unseen_glosses_shuffled"), 9.0),
        "probe_test": {"text": 0.6, "clip-demo": 0.3, "vit-demo": 0.2},
    }
    monkeypatch.setattr(card, "measure_generator", lambda *_, **__: dict(measured))
    shipped = Path(shutil.copytree(models, tmp_path / "shipped"))
    write_card(recipe, shipped, most=24)
    restore(shipped, tmp_path / "work")
    again = Recipe(recipe.world, tmp_path / "work", steps=recipe._steps, drawings=6)
    texts = ["a fruit", "the animal number 2 of them"]
    found, wanted = (embed_texts(each.words(), each.tokenizer(), texts) for each in (again, recipe))
    assert torch.allclose(found, wanted, atol=2e-3)  # half precision
    embeddings = [each.sight().model.get_input_embeddings().weight for each in (again, recipe)]
    assert torch.equal(embeddings[0], embeddings[1].half().float())
    others = [path for path in shipped.rglob("*.safetensors") if "generator-flow" not in path.parts]
    before = [path.read_bytes() for path in others]
    measured["drawn_names"] = {"first": 0.123, "among_five": 0.7}
    card.add_flow(again, shipped, most=24)
    assert [path.read_bytes() for path in others] == before
    assert not (tmp_path / "work" / "bag.pt").exists(), "nothing else was trained"
    record = json.loads((shipped / "record.json").read_text())
    assert record["trained"]["flow"]["steps"] == 2
    assert "| 50.0% / 70.0% | 12.3% / 70.0% |" in (shipped / "README.md").read_text()
