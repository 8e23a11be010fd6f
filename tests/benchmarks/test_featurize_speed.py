"""What featurize is compared with: real architectures, plain diffusers with PNG files, bare forward passes and the roofline."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.cli import main
from benchmarks.featurize import featurize_speed, random_models
from benchmarks.featurize.featurize_speed import (
    BATCHED,
    FORWARDS,
    GRID,
    MEMORY_GB,
    ONE_BY_ONE,
    OURS,
    Case,
    ModelFolders,
    choose_cases,
    on_card,
    own_seconds,
    promises,
    promises_on_card,
    steady_rate,
)
from benchmarks.featurize.plain_diffusers import BareForwards, ImageJob, PlainPipeline, image_job, parts_may_lack_labels, ranges
from benchmarks.featurize.random_models import (
    SD2_512,
    SD2_768,
    SMALL,
    GeneratorSizes,
    meta_clip,
    meta_text_encoder,
    meta_tiny_decoder,
    meta_unet,
    meta_vae,
    sd2_folder,
    tiny_decoder_folder,
)
from benchmarks.featurize.roofline import flops_per_image, measured_peak_flops, roof, row_flops_of
from featurize.encode.encoders import EncoderFiles
from featurize.encode.preprocessing import Preprocessing
from featurize.generate.generators import Generator, GeneratorPreset
from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from lugpi_core.store.reader import ColumnReader

DRAWN = 16
DEMO: dict[str, Any] = {"dataset": "demo", "generator": "demo", "encoders": ("demo",), "limit": DRAWN, "batch_size": 6}
PEAK_FLOPS = 0.79e15


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every part of the real generator, small."""
    return sd2_folder(tmp_path_factory.mktemp("sd2") / "small", SMALL, torch.float32)


@pytest.fixture(autouse=True)
def _no_labels_wanted() -> Iterator[None]:
    with parts_may_lack_labels():
        yield


def _parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def test_the_architectures_have_the_real_sizes() -> None:
    assert _parameters(meta_unet(SD2_512)) == _parameters(meta_unet(SD2_768)) == 865_910_724
    assert _parameters(meta_vae(SD2_512)) == 83_653_863
    assert _parameters(meta_text_encoder(SD2_512.text)) == 340_387_840
    assert _parameters(meta_tiny_decoder()) == 2_445_063
    towers = {"ViT-B-32": 87_849_216, "ViT-B-16": 86_192_640, "ViT-L-14": 303_966_208}
    visuals: dict[str, Any] = {name: meta_clip(name).visual for name in towers}
    assert {name: _parameters(visual) for name, visual in visuals.items()} == towers


def test_diffusers_loads_the_written_weights(small: Path) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(small, safety_checker=None, feature_extractor=None)
    assert pipeline.unet.config.sample_size * 8 == SMALL.px
    for part, name in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        written, loaded = load_file(small / part / f"{name}.safetensors"), getattr(pipeline, part).state_dict()
        assert written.keys() == loaded.keys()
        assert all(torch.equal(loaded[key], value) for key, value in written.items())
    longest = pipeline.tokenizer("word " * 100, truncation=True)["input_ids"]
    assert len(longest) == 77
    assert max(longest) < SMALL.text.vocabulary


@pytest.mark.parametrize("decoder", ["full", "tiny"])
def test_images_of_random_models_are_finite_and_not_constant(small: Path, tmp_path: Path, decoder: str) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(small, safety_checker=None, feature_extractor=None)
    pipeline.set_progress_bar_config(disable=True)
    if decoder == "tiny":
        pipeline.vae = diffusers.AutoencoderTiny.from_pretrained(tiny_decoder_folder(tmp_path / "taesd", torch.float32))
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    latents = pipeline(["a cat", "a dog"], num_inference_steps=20, generator=seeds, output_type="latent").images
    assert latents.isfinite().all()
    assert latents.abs().max() < 1000  # far from where float16 ends
    images = pipeline(["a cat", "a dog"], num_inference_steps=20, generator=seeds, output_type="pt").images
    assert images.isfinite().all()
    assert (images.flatten(1).amax(1) - images.flatten(1).amin(1)).min() > 0.2
    assert (images[0] - images[1]).abs().max() > 0.05


def test_weights_can_be_written_in_half_precision(tmp_path: Path) -> None:
    folder = sd2_folder(tmp_path / "half", SMALL, torch.float16)
    for path in folder.rglob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values()} == {torch.float16}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray[Any, Any]]:
    """The tokens of featurize for ``DEMO``, by encoder, in order."""
    with parts_may_lack_labels():
        run_dir = tmp_path_factory.mktemp("ours")
        featurize_command(FeaturizeOptions(**{**DEMO, "run_dir": run_dir}))
    return {name: np.array(ColumnReader(run_dir / "tokens", name).gather(np.arange(DRAWN))) for name in ("clip-demo", "vit-demo")}


@pytest.mark.parametrize("prompts_a_call", [1, 6])
def test_png_files_change_the_tokens_by_rounding_only(ours: dict[str, np.ndarray[Any, Any]], tmp_path: Path, prompts_a_call: int) -> None:
    paths = PlainPipeline(image_job(DEMO)).run(tmp_path, batch=6, prompts_a_call=prompts_a_call, count=DRAWN)
    assert len(list(tmp_path.glob("*.png"))) == DRAWN
    assert [path.stem for path in paths] == list(ours)
    for path in paths:
        theirs_NTD, ours_NTD = np.load(path).astype(np.float64), ours[path.stem].astype(np.float64)
        assert theirs_NTD.shape == ours_NTD.shape
        products = (theirs_NTD * ours_NTD).sum(-1)
        cosines_NT = products / np.linalg.norm(theirs_NTD, axis=-1) / np.linalg.norm(ours_NTD, axis=-1)
        assert cosines_NT.min() > 0.99
        # And they are those of the same image: the tokens of the next image differ more.
        assert np.abs(theirs_NTD - ours_NTD).mean() < np.abs(theirs_NTD - np.roll(ours_NTD, 1, axis=0)).mean() / 2


def _count_rows(modules: dict[str, nn.Module], run: Callable[[], object]) -> dict[str, int]:
    """Return how many rows went into each module while ``run`` ran."""
    rows = dict.fromkeys(modules, 0)

    def count(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows[name] += len(inputs[0])

        return hook

    handles = [module.register_forward_pre_hook(count(name)) for name, module in modules.items()]
    run()
    for handle in handles:
        handle.remove()
    return rows


@pytest.mark.parametrize(("guidance", "rows_a_step", "texts"), [(3.0, 2, DRAWN + 1), (0.0, 1, DRAWN)])
def test_the_bare_forward_passes_are_those_that_the_images_need(guidance: float, rows_a_step: int, texts: int) -> None:
    bare = BareForwards(image_job({**DEMO, "guidance": guidance, "steps": 3}), batch=6)
    modules = {"text": bare.text_encoder, "unet": bare.unet, "decoder": bare.vae.decoder, "clip": bare.towers[0], "vit": bare.towers[1]}
    rows = _count_rows(modules, bare.run)
    assert rows == {"text": texts, "unet": DRAWN * 3 * rows_a_step, "decoder": DRAWN, "clip": DRAWN, "vit": DRAWN}


def test_ranges_cover_everything_once() -> None:
    assert list(ranges(6, 4)) == [slice(0, 4), slice(4, 6)]
    assert list(ranges(4, 4)) == [slice(0, 4)]


def _real_drawings(folder: Path, sizes: GeneratorSizes, *, tiny: bool = False) -> ImageJob:
    """ImageJob by the real architectures, of which only the configurations are there."""
    generator = Generator(
        name="real",
        folder=sd2_folder(folder / f"sd2-{sizes.px}", sizes, torch.float16),
        revision=None,
        weights_hash="",
        variant=None,
        pipeline_class="StableDiffusionPipeline",
        size_px=sizes.px,
        latent_shape=(4, sizes.px // 8, sizes.px // 8),
        settings=GeneratorPreset(steps=50, guidance=7.5),
    )
    preprocessing = Preprocessing(size_px=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic")
    encoder = EncoderFiles(
        name="l14",
        family="open_clip",
        folder=folder,
        architecture="ViT-L-14",
        weights_hash="",
        preprocessing=preprocessing,
        tokens=257,
        width=1024,
    )
    decoder = tiny_decoder_folder(folder / "taesd", torch.float16) if tiny else None
    return ImageJob(generator=generator, encoders=(encoder,), prompts=("a",), seeds=(0,), dtype=torch.float16, tiny_decoder=decoder)


def test_the_roofs_of_the_real_models_follow_from_the_counted_flops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_models, "write_weights", lambda path, *_: path.parent.mkdir(parents=True, exist_ok=True))
    work = [
        row_flops_of(_real_drawings(tmp_path, sizes, tiny=tiny)) for sizes, tiny in ((SD2_512, False), (SD2_768, False), (SD2_512, True))
    ]
    # Which work, steps, guidance: images/s at 0.79 PFLOP/s.
    roofs = {(0, 50, True): 9.5, (0, 25, True): 18.4, (1, 25, True): 7.0, (0, 1, False): 224, (2, 1, False): 685}
    found = {(n, steps, guided): PEAK_FLOPS / flops_per_image(work[n], steps=steps, guided=guided) for n, steps, guided in roofs}
    assert found == {point: pytest.approx(value, rel=0.01) for point, value in roofs.items()}


def test_an_image_costs_prompt_steps_decoder_and_all_encoders() -> None:
    flops = {"prompt": 1.0, "denoise": 10.0, "decode": 100.0, "encode a": 1000.0, "encode b": 10000.0}
    assert flops_per_image(flops, steps=3, guided=True) == 11161
    assert flops_per_image(flops, steps=3, guided=False) == 11131


def test_a_roof_is_the_peak_over_the_flops_of_an_image() -> None:
    drawings = image_job(DEMO)
    expected = PEAK_FLOPS / flops_per_image(row_flops_of(drawings), steps=4, guided=True)
    assert roof(PEAK_FLOPS, drawings) == expected
    assert roof(PEAK_FLOPS, image_job({**DEMO, "guidance": 0.0})) > expected


def test_the_measured_peak_is_plausible() -> None:
    assert 1e8 < measured_peak_flops("cpu", torch.float32) < 1e15


def test_the_time_of_a_run_excludes_loading() -> None:
    assert own_seconds({"times": {"load_s": 100.0, "fill_wall_s": 2.0, "publish_s": 0.5, "draw_s": 50.0}}) == 2.5


def test_the_steady_rate_uses_the_full_shards_after_the_first() -> None:
    assert steady_rate({"drawings": 30, "shard_made_s": [100.0, 102.0, 106.0]}, 10) == pytest.approx(20 / 6)
    # The third shard has five rows only.
    assert steady_rate({"drawings": 25, "shard_made_s": [100.0, 102.0, 102.5]}, 10) == pytest.approx(5)


def test_the_promises_of_the_cpu_are_compared_with_the_ratios() -> None:
    ratios = {f"{OURS} over {FORWARDS}": 1.04, f"{ONE_BY_ONE} over {OURS}": 3.0, f"{BATCHED} over {OURS}": 0.9}
    found = promises({"demo models": {"over": ratios}, "SD v2 UNet, one image": {"over": ratios}})
    assert [one["met"] for one in found] == [True, False, True, False]


def test_the_promises_of_a_failed_case_are_not_met() -> None:
    cases = (Case(name="good", target=5.0, beside_plain=True), Case(name="bad", target=5.0))
    figures = {"images_per_s": 6.0, "beside": {BATCHED: 4.0}, "peak_memory": {"device_bytes": MEMORY_GB[512] * 10**9 + 1}}
    found = promises_on_card(cases, {"good": figures, "bad": {"failed": "no memory"}})
    assert [(one["measured"], one["met"]) for one in found] == [
        (6.0, True),
        (1.5, True),
        (12 * 10**9 + 1, False),
        (None, False),
        (None, False),
    ]


def test_the_cases_have_unique_names_and_cover_the_promises() -> None:
    assert len({case.name for case in GRID}) == len(GRID)
    promised = {(case.px, case.steps, case.tiny_decoder) for case in GRID if case.target is not None}
    assert promised == {(512, 50, False), (512, 25, False), (512, 20, False), (768, 25, False), (512, 1, False), (512, 1, True)}
    assert all(case.shards > 1 for case in GRID)
    assert {case.encoder for case in GRID} == {"ViT-B-32", "ViT-B-16", "ViT-L-14"}
    assert {(case.attention, case.compile) for case in GRID} >= {(how, on) for how in ("sdpa", "xformers") for on in ("on", "off")}


def test_a_case_that_fails_records_why_and_the_others_run(tmp_path: Path) -> None:
    small_case = Case(name="small", steps=2, compile="off", encoder="ViT-S-32", shard_rows=8, shards=2, tiny_decoder=True)
    bad = Case(name="bad", steps=2, compile="off", encoder="ViT-S-32", attention="xformers", shard_rows=8, shards=2)
    if torch.cuda.is_available():
        pytest.skip("xformers may run here")
    figures = on_card(tmp_path, (bad, small_case), {512: SMALL})
    assert "--attention xformers" in figures["cases"]["bad"]["failed"]
    found = figures["cases"]["small"]
    assert found["drawings"] == DRAWN
    assert found["failed_rows"] == {"latents": 0, "ViT-S-32-tiny": 0}
    assert found["images_per_s"] > 0
    assert found["share_of_roof"] == pytest.approx(found["images_per_s"] / found["roof_images_per_s"], rel=0.05)


def test_the_plain_pipeline_is_measured_with_a_case(tmp_path: Path) -> None:
    case = Case(
        name="small", steps=1, guidance=0.0, scheduler="ddim", compile="off", encoder="ViT-S-32", shard_rows=8, shards=2, beside_plain=True
    )
    flags = ModelFolders(tmp_path, {512: SMALL}, torch.float32).flags(case)
    assert set(featurize_speed._plain_on_card(flags, tmp_path)) == {ONE_BY_ONE, BATCHED}


def test_cases_are_chosen_by_words_in_their_names() -> None:
    assert choose_cases(()) == list(GRID)
    assert [case.name for case in choose_cases(("768 px", "one step"))] == [
        "768 px, 25 steps",
        "768 px, 50 steps",
        "512 px, one step",
        "512 px, one step, tiny decoder",
    ]


def test_words_that_match_no_case_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["featurize", "--cases", "1024"]) == 2
    assert "--cases 1024" in capsys.readouterr().err
