"""Tokenizers of a generator: as many tokens as the text encoder reads, words of several vectors, and those that are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from featurize.generate.tokenizers import load_tokenizer
from featurize.plan.prompt_reader import prompt_reader
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.pretrained import embedded_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Stable Diffusion folder to change at will."""
    return Path(shutil.copytree(embedded_model("generator"), tmp_path / "sd"))


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _generator(folder: Path) -> Generator:
    return find_generator(str(folder), generator_settings(str(folder), {"steps": 1}), half=False)


def _tokenizer(folder: Path) -> Any:
    return load_tokenizer(_generator(folder), "tokenizer", "text_encoder")


@pytest.mark.parametrize(("says", "reads"), [(10**30, 40), (128, 40), (20, 20), ("64", 40)])
def test_the_text_encoders_positions_bound_a_prompt(folder: Path, says: object, reads: int) -> None:
    _edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=says)
    assert _tokenizer(folder).model_max_length == reads


def test_a_tokenizer_without_a_vocabulary_is_refused(folder: Path) -> None:
    for path in (folder / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()
    with pytest.raises(InputError, match=r"sd/tokenizer without tokenizer\.json or vocab\.json or merges\.txt"):
        prompt_reader(_generator(folder))


def test_tokens_that_the_text_encoder_does_not_embed_are_refused(folder: Path) -> None:
    _edit(folder / "text_encoder" / "config.json", vocab_size=20)
    with pytest.raises(InputError, match=r"got .*sd/tokenizer with the token .* of which text_encoder embeds 20"):
        _tokenizer(folder)


def test_a_learned_word_of_several_vectors_is_read_as_diffusers_reads_it(folder: Path) -> None:
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<cat>", "<cat>_1", "<cat>_2"])
    encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.nn.init.normal_(encoder.get_input_embeddings().weight[-3:].detach(), std=2)
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder.save_pretrained(folder / "text_encoder")
    generator = _generator(folder)
    ours = TextToImage(generator, resolve_compute("cpu", "float32", half="float16"))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    prompts = ["a <cat> here", "snow", "<cat>"]
    with ours.text_encoder_on_device(), torch.inference_mode():
        expected, _ = theirs.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)
        assert torch.allclose(ours.encode_prompts(prompts)["tokens"], expected, atol=1e-5)
    # 38 words and two marks fill the 40 positions, if no word stands for several vectors.
    reads = prompt_reader(generator)
    assert [tokens > reads.tokens_read for tokens in reads.tokens_of(["a " * 38, "a " * 37 + "<cat>"])] == [False, True]
