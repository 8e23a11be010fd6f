"""The generated images that the image encoders are trained on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dev.embedded_models import generated
from dev.embedded_models.generated import GeneratedClipLoss, GeneratedGroupLoss, choose_captions, generate_images
from dev.embedded_models.training import Loss
from dev.embedded_models.vision import GroupClassifier, ImageTower, clip
from dev.embedded_models.words import JOINT
from lugpi_core.errors import InputError

CAPTIONS = [f"caption {number}" for number in range(7)]


class FakePipeline:
    """Its images are a grey that depends on caption and seed; it fails at one caption if asked to."""

    def __init__(self, fails_at: str | None = None) -> None:
        self.fails_at, self.read = fails_at, list[str]()

    def set_progress_bar_config(self, *, disable: bool) -> None:
        assert disable

    def __call__(self, prompt: list[str], *, generator: list[torch.Generator], output_type: str, **settings: Any) -> SimpleNamespace:
        assert output_type == "pt"
        assert settings == {"num_inference_steps": generated.STEPS, "guidance_scale": generated.GUIDANCE}
        if self.fails_at in prompt:
            raise KeyboardInterrupt
        self.read += prompt
        grey = [(int(text.split()[1]) * 16 + one.initial_seed() % 16) / 255 for text, one in zip(prompt, generator, strict=True)]
        return SimpleNamespace(images=torch.tensor(grey).view(-1, 1, 1, 1).expand(-1, 3, 64, 64))


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "_BATCH", 2)
    monkeypatch.setattr(generated, "_SAVE_EVERY_S", 0.0)


def test_every_caption_gets_one_image_with_its_own_seed(tmp_path: Path) -> None:
    found = generate_images(CAPTIONS, FakePipeline, tmp_path / "drawings.pt", seed=3)
    assert found.shape == (7, 4, 64, 64)
    assert found.dtype == torch.uint8
    assert found[:, 0, 0, 0].tolist() == [16 * row + 3 + row for row in range(7)]
    assert (found[:, 3] == 255).all()


def test_a_killed_run_resumes_and_a_finished_one_does_nothing(tmp_path: Path) -> None:
    whole = generate_images(CAPTIONS, FakePipeline, tmp_path / "whole.pt", seed=3)
    with pytest.raises(KeyboardInterrupt):
        generate_images(CAPTIONS, lambda: FakePipeline(fails_at=CAPTIONS[4]), tmp_path / "killed.pt", seed=3)
    again = FakePipeline()
    assert torch.equal(generate_images(CAPTIONS, lambda: again, tmp_path / "killed.pt", seed=3), whole)
    assert again.read == CAPTIONS[4:]
    never = FakePipeline(fails_at=CAPTIONS[0])
    assert torch.equal(generate_images(CAPTIONS, lambda: never, tmp_path / "killed.pt", seed=3), whole)


def test_images_of_another_seed_are_refused(tmp_path: Path) -> None:
    generate_images(CAPTIONS, FakePipeline, tmp_path / "drawings.pt", seed=3)
    with pytest.raises(InputError, match="seed"):
        generate_images(CAPTIONS, FakePipeline, tmp_path / "drawings.pt", seed=4)


def test_captions_are_chosen_once_each_by_seed() -> None:
    some = choose_captions(50, 20, seed=1)
    assert len(set(some)) == 20
    assert some == choose_captions(50, 20, seed=1) != choose_captions(50, 20, seed=2)
    assert sorted(choose_captions(5, 20, seed=1)) == list(range(5))


def coloured(count: int) -> torch.Tensor:
    """Return images of one colour each."""
    torch.manual_seed(0)
    colours = torch.randint(0, 2, (count, 3, 1, 1)) * 255
    return torch.cat([colours.expand(-1, 3, 64, 64), torch.full((count, 1, 64, 64), 255)], dim=1).to(torch.uint8)


def nothing(_: torch.Generator) -> torch.Tensor:
    return torch.zeros(())


def falls(model: torch.nn.Module, loss: Loss, *, steps: int) -> tuple[float, float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = []
    for step in range(steps):
        value = loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(float(value.detach()))
    return sum(found[:3]) / 3, sum(found[-3:]) / 3


def test_a_tower_learns_the_captions_of_generated_images() -> None:
    pictures = coloured(4)
    joint = torch.eye(4, JOINT)
    tower = ImageTower(clip(64).visual)
    before, after = falls(tower, GeneratedClipLoss(tower, pictures, joint, nothing, batch=8), steps=30)
    assert after < before - 0.1


def test_a_vit_learns_the_groups_of_generated_images() -> None:
    pictures, groups = coloured(4), torch.tensor([0, 1, 2, 0])
    teller = GroupClassifier(3)
    before, after = falls(teller, GeneratedGroupLoss(teller, pictures, groups, nothing, batch=8), steps=30)
    assert after < before - 0.1


def test_the_first_training_has_the_same_weight() -> None:
    tower = ImageTower(clip(64).visual)
    alone, both = (
        GeneratedClipLoss(tower, coloured(4), torch.eye(4, JOINT), before, batch=4) for before in (nothing, lambda _: torch.tensor(3.0))
    )
    chance = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert float((both(chance[0]) - alone(chance[1])).detach()) == pytest.approx(1.5, abs=1e-5)
