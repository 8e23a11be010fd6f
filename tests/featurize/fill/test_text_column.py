"""The column of the generator's own text vectors: from prompts alone, equal to what its text encoder gives, resumed and refused."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featurize.fill import text_column
from featurize.fill.text_column import text_vectors
from featurize.generate.families.family import LENGTHS, Parts, PromptEmbeddings
from featurize.generate.generators import find_generator, generator_settings
from featurize.generate.parts import load_text_parts
from featurize.generate.text_to_image import TextToImage, computing_in_float32
from featurize.maintain import verify_store
from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute
from lugpi_core.store.reader import ColumnReader, columns_of
from tests.support.broken_calls import interrupt_third_call
from tests.support.shards import shard_file
from tests.support.small_corpus import shard_bytes


def options(table: Path, run: Path, *encoders: str, **more: Any) -> FeaturizeOptions:
    return FeaturizeOptions(
        dataset=str(table), generator="demo", encoders=encoders or ("prompt-text",), run_dir=run, device="cpu", stratify=False, **more
    )


def vectors(run: Path) -> np.ndarray:
    reader = ColumnReader(run / "tokens", "prompt-text")
    return reader.gather(np.arange(len(reader)))


def test_only_the_text_encoder_is_loaded_and_no_image_is_drawn(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole generator was loaded")

    monkeypatch.setattr(TextToImage, "__init__", refuse)
    figures = featurize_command(options(table, tmp_path))
    assert columns_of(tmp_path / "tokens") == ["prompt-text"]
    assert figures["rows"] == {"prompts": 13, "drawn": 0, "decoded": 0, "encoded": 0, "redone": 0}
    assert figures["columns"] == {"prompt-text": [13, 40, 160]}
    assert not figures["already_done"]
    assert featurize_command(options(table, tmp_path))["already_done"]


def test_the_column_is_added_to_a_store_of_images_without_drawing(table: Path, tmp_path: Path) -> None:
    featurize_command(options(table, tmp_path, "vit-demo"))
    before = {path: path.read_bytes() for path in (tmp_path / "tokens").glob("[lv]*/*.h5")}
    figures = featurize_command(options(table, tmp_path, "vit-demo", "prompt-text"))
    assert (figures["rows"]["prompts"], figures["rows"]["drawn"], figures["rows"]["encoded"]) == (13, 0, 0)
    assert {path: path.read_bytes() for path in before} == before
    assert verify_store(tmp_path / "tokens", deep=True).complete


def test_a_sampler_that_does_not_run_is_told_before_the_prompts_are_encoded(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_column, "load_text_parts", lambda *_: pytest.fail("the text encoder was loaded"))
    with pytest.raises(InputError, match="got --steps 2000 for DDIMScheduler, which was trained with 1000"):
        featurize_command(options(table, tmp_path, "vit-demo", "prompt-text", steps=2000))


def test_rows_follow_the_images_of_a_text(table: Path, tmp_path: Path) -> None:
    featurize_command(options(table, tmp_path / "one"))
    figures = featurize_command(options(table, tmp_path / "three", images_per_text=3, shard_rows=7))
    assert figures["columns"] == {"prompt-text": [39, 40, 160]}
    assert figures["rows"]["prompts"] == 13
    assert np.array_equal(vectors(tmp_path / "three"), np.repeat(vectors(tmp_path / "one"), 3, axis=0))


def test_settings_of_the_denoiser_leave_the_column_as_it_is(table: Path, tmp_path: Path) -> None:
    featurize_command(options(table, tmp_path))
    assert featurize_command(options(table, tmp_path, steps=2))["already_done"]


@pytest.mark.parametrize("first", ["prompt-text", "vit-demo"])
def test_vectors_and_images_of_one_store_are_by_one_generator(table: Path, tmp_path: Path, first: str) -> None:
    second = {"prompt-text": "vit-demo", "vit-demo": "prompt-text"}[first]
    featurize_command(options(table, tmp_path, first, steps=1))
    other = replace(options(table, tmp_path, second, steps=1), generator="demo-flow")
    with pytest.raises(InputError, match=r"was made with other settings: .*weights: found"):
        featurize_command(other)
    assert featurize_command(options(table, tmp_path, second, steps=1))["columns"].keys() >= {second}


def test_other_prompts_are_refused(table: Path, tmp_path: Path) -> None:
    featurize_command(options(table, tmp_path))
    other = tmp_path / "own.csv"
    other.write_text(table.read_text().replace("text number 3", "another text"))
    for encoders in (("prompt-text",), ("vit-demo",)):
        with pytest.raises(InputError, match=r"other settings: --dataset: .*own.csv now; expected"):
            featurize_command(options(other, tmp_path, *encoders))


def test_a_stopped_run_resumes_to_the_same_bytes(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    featurize_command(options(table, tmp_path / "whole", shard_rows=4))
    monkeypatch.setattr(text_column, "TEXT_BATCH", 2)
    interrupt_third_call(monkeypatch, text_column, "text_vectors")
    with pytest.raises(KeyboardInterrupt):
        featurize_command(options(table, tmp_path / "stopped", shard_rows=4))
    figures = featurize_command(options(table, tmp_path / "stopped", shard_rows=4))
    assert figures["rows"]["prompts"] == 9, "four of 13 were written"
    assert np.array_equal(vectors(tmp_path / "stopped"), vectors(tmp_path / "whole"))


def test_vectors_that_are_no_numbers_are_flagged(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = text_column.text_vectors

    def broken(embeddings: PromptEmbeddings, tokens: str, rows: int) -> torch.Tensor:
        found = encode(embeddings, tokens, rows)
        if len(found) != 1:
            found[2] = torch.nan  # in the batch; alone, in float32, it is well
            found[5] = torch.inf
        return found

    monkeypatch.setattr(text_column, "text_vectors", broken)
    assert featurize_command(options(table, tmp_path / "well"))["rows"]["redone"] == 2
    assert not ColumnReader(tmp_path / "well" / "tokens", "prompt-text").flagged
    monkeypatch.setattr(text_column, "text_vectors", lambda *given: encode(*given) * torch.nan)
    featurize_command(options(table, tmp_path / "ill"))
    assert len(ColumnReader(tmp_path / "ill" / "tokens", "prompt-text").flagged) == 13


def test_a_prompt_is_encoded_once_for_its_images_and_its_vectors(table: Path, tmp_path: Path) -> None:
    """The vectors are those of a run for them alone, to the bit."""
    flags: dict[str, Any] = {"steps": 1, "shard_rows": 8, "images_per_text": 2}
    figures = featurize_command(options(table, tmp_path / "both", "vit-demo", "prompt-text", **flags))
    assert figures["rows"] == {"prompts": 13, "drawn": 26, "decoded": 26, "encoded": 26, "redone": 0}
    featurize_command(options(table, tmp_path / "alone", **flags))
    assert shard_bytes(tmp_path / "both", "prompt-text/*.h5") == shard_bytes(tmp_path / "alone", "prompt-text/*.h5")
    assert verify_store(tmp_path / "both" / "tokens", deep=True).complete


def test_prompts_that_lack_one_of_both_are_encoded_for_that_one(table: Path, tmp_path: Path) -> None:
    """Shards have their vectors only, their images only, or neither."""
    flags: dict[str, Any] = {"steps": 1, "shard_rows": 4}
    featurize_command(options(table, tmp_path / "whole", "vit-demo", "prompt-text", **flags))
    run = shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for column, shard in (("prompt-text", 0), ("latents", 1), ("vit-demo", 1), ("prompt-text", 2), ("latents", 2), ("vit-demo", 2)):
        shard_file(run / "tokens" / column, shard).unlink()
    figures = featurize_command(options(table, run, "vit-demo", "prompt-text", **flags))
    assert (figures["rows"]["prompts"], figures["rows"]["drawn"]) == (12, 8)
    assert shard_bytes(run) == shard_bytes(tmp_path / "whole")


def test_without_memory_for_float32_vectors_stay_flagged(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text encoder grows by its size in half precision: with a byte less it is not tried."""
    encode, grows = text_column.text_vectors, 0

    def broken(embeddings: PromptEmbeddings, tokens: str, rows: int) -> torch.Tensor:
        found = encode(embeddings, tokens, rows)
        return found * torch.nan if len(found) > 1 else found

    def load(*given: Any) -> Parts:
        nonlocal grows
        parts = load_text_parts(*given)
        grows = sum(weight.nbytes for encoder in parts.text_encoders.values() for weight in encoder.parameters())
        return parts

    monkeypatch.setattr(text_column, "text_vectors", broken)
    monkeypatch.setattr(text_column, "load_text_parts", load)
    for run, spare, redone in (("well", 0, 13), ("ill", -1, 0)):
        monkeypatch.setattr(text_column, "free_memory_bytes", lambda *_, spare=spare: grows + spare)
        figures = featurize_command(options(table, tmp_path / run, dtype="bfloat16", shard_rows=8))
        assert figures["rows"]["redone"] == redone
        assert len(ColumnReader(tmp_path / run / "tokens", "prompt-text").flagged) == 13 - redone
    assert capsys.readouterr().err.count("no memory for the text encoder in float32") == 1


def test_a_part_in_float32_stays_in_it_when_others_are_converted_back() -> None:
    """T5 keeps some layers in float32."""
    encoder = nn.Sequential(nn.Linear(2, 2).half(), nn.Linear(2, 2))
    with computing_in_float32(encoder):
        assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    assert [weight.dtype for weight in encoder.parameters()] == [torch.float16] * 2 + [torch.float32] * 2


def test_the_first_vector_is_the_mean_of_what_the_generator_reads(table: Path, tmp_path: Path) -> None:
    featurize_command(options(table, tmp_path))

    generator = find_generator("demo", generator_settings("demo", {}), half=False)
    whole = TextToImage(generator, Compute(device="cpu", device_name="CPU", dtype="float32", threads=1))
    with whole.text_encoder_on_device():
        tokens_LD = whole.encode_prompts(["text number 4"])["tokens"][0]
    normed_LD = tokens_LD / tokens_LD.square().mean(dim=1, keepdim=True).sqrt()
    assert torch.allclose(torch.from_numpy(vectors(tmp_path)[4, 0]).float(), normed_LD.mean(dim=0), atol=1e-3)


@pytest.mark.parametrize("named", ["mask", LENGTHS])
def test_padding_that_the_generator_does_not_read_is_left_out(named: str) -> None:
    tokens_PLD = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
    lengths_P = torch.tensor([10, 3])
    mask_PL = torch.arange(10) < lengths_P[:, None]
    given = PromptEmbeddings({"tokens": tokens_PLD, named: mask_PL if named == "mask" else lengths_P})
    found_PTD = text_vectors(given, "tokens", 6)
    assert found_PTD.shape == (2, 6, 4)
    alone = PromptEmbeddings({"tokens": tokens_PLD[1:, :3]})
    assert torch.equal(found_PTD[1:], text_vectors(alone, "tokens", 6))
    normed_3D = tokens_PLD[1, :3] / tokens_PLD[1, :3].square().mean(dim=1, keepdim=True).sqrt()
    assert torch.allclose(found_PTD[1, 1].float(), normed_3D[0], atol=1e-3), "of a short prompt each token is there"
    assert torch.allclose(found_PTD[1, -1].float(), normed_3D[-1], atol=1e-3)


def test_large_values_do_not_overflow_the_store() -> None:
    tokens_PLD = torch.full((1, 4, 8), 1e6)
    tokens_PLD[0, :, 0] = 3e8
    assert text_vectors(PromptEmbeddings({"tokens": tokens_PLD}), "tokens", 3).isfinite().all()
