"""Embeddings of prompts: joined, gathered and repeated; how much of them is on the device while a batch is denoised."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from featurize.generate.families.family import LENGTHS, PromptEmbeddings
from featurize.generate.generators import find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from lugpi_core.runtime.device import Compute
from tests.support.family_runs import PROMPTS, SIZE_PX

CPU = Compute(device="cpu", device_name="CPU", dtype="float32", threads=1)


def _embeddings(prompts: int, length: int) -> PromptEmbeddings:
    tensors = {"tokens": torch.rand(prompts, length, 2), "pooled": torch.rand(prompts, 5), LENGTHS: torch.full((prompts,), length)}
    return PromptEmbeddings(tensors)


def test_parts_of_other_lengths_are_padded_with_zeros_and_keep_their_rows() -> None:
    parts = [_embeddings(2, 3), _embeddings(1, 4)]
    for together in (PromptEmbeddings.joined(parts), PromptEmbeddings.gathered(parts, [(0, 0), (0, 1), (1, 0)])):
        assert torch.equal(together["tokens"][:2, :3], parts[0]["tokens"])
        assert not together["tokens"][:2, 3:].any()
        assert torch.equal(together["tokens"][2], parts[1]["tokens"][0])
        assert torch.equal(together["pooled"], torch.cat([part["pooled"] for part in parts]))
        assert together[LENGTHS].tolist() == [3, 3, 4]


def test_prompts_are_gathered_in_any_order_and_several_times() -> None:
    parts = [_embeddings(2, 3), _embeddings(2, 3)]
    chosen = PromptEmbeddings.gathered(parts, [(1, 1), (0, 0), (1, 1)])
    assert torch.equal(chosen["tokens"], torch.stack([parts[1]["tokens"][1], parts[0]["tokens"][0], parts[1]["tokens"][1]]))


def test_repeated_rows_share_the_memory_of_one() -> None:
    one = _embeddings(1, 3)
    repeated = one.repeated(4)
    assert torch.equal(repeated["tokens"], one.rows([0] * 4)["tokens"])
    assert repeated["tokens"].data_ptr() == one["tokens"].data_ptr()


def test_lengths_stay_on_the_host_and_numbers_keep_their_kind() -> None:
    moved = PromptEmbeddings({**_embeddings(2, 3).tensors, "mask": torch.ones(2, 3, dtype=torch.bool)}).to(
        torch.device("meta"), torch.float16
    )
    assert {name: (tensor.device.type, tensor.dtype) for name, tensor in moved.tensors.items()} == {
        "tokens": ("meta", torch.float16),
        "pooled": ("meta", torch.float16),
        "mask": ("meta", torch.bool),
        LENGTHS: ("cpu", torch.int64),
    }


def _live_bytes() -> int:
    """Size of all tensors that exist, each storage once."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize(("name", "guidance"), [("stable-diffusion", 4.0), ("z-image", 4.0), ("flux-schnell", 1.0)])
def test_the_device_has_the_embeddings_of_one_batch(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str, guidance: float
) -> None:
    settings = generator_settings(str(tiny(name)), {"size_px": SIZE_PX, "steps": 2, "guidance": guidance})
    model = TextToImage(find_generator(str(tiny(name)), settings, half=False), CPU)
    with model.text_encoder_on_device():
        host = PromptEmbeddings.joined([model.encode_prompts([prompt]) for prompt in PROMPTS * 8])
    batch = host.rows(range(16))
    plain = PromptEmbeddings.to

    def copied(self: PromptEmbeddings, device: torch.device, dtype: torch.dtype | None = None) -> PromptEmbeddings:
        moved = plain(self, device, dtype)
        return PromptEmbeddings({key: tensor.clone() for key, tensor in moved.tensors.items()})

    monkeypatch.setattr(PromptEmbeddings, "to", copied)
    peaks: list[int] = []
    whole = model.family.predict

    def watched(*given: Any) -> torch.Tensor:
        peaks.append(_live_bytes())
        return whole(*given)

    monkeypatch.setattr(model.family, "predict", watched)
    before = _live_bytes()
    model.denoise(batch, list(range(16)))
    latents_bytes = 16 * 4 * 4 * SIZE_PX**2  # more than noise, latents and positions take
    assert len(peaks) >= 2
    assert max(peaks) - before <= 2 * batch.bytes + latents_bytes
    assert max(peaks) - before >= batch.bytes
