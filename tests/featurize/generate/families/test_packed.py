"""The latents of families that pack them, beside those of diffusers' pipelines: Chroma, Ovis-Image and LongCat-Image."""

import pytest

from featurize.generate.families.chroma import Chroma
from featurize.generate.families.ovis import OvisImage
from featurize.generate.families.packed import set_flow_times, shift_by_tokens, unpacked
from lugpi_core.errors import InputError
from tests.support.family_runs import LONG, PROMPTS, Twins, changed_family
from tests.support.tiny_pipelines import tiny_pipeline

HOW = {"chroma": {}, "ovis": {}, "longcat": {"enable_prompt_rewrite": False}}
TOKENS_READ = {"chroma": 512, "ovis": 284, "longcat": 512}
# Building diffusers' own Chroma.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
each_family = pytest.mark.parametrize("family", HOW)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Twins]:
    return {
        family: Twins(
            tiny_pipeline(family, tmp_path_factory.mktemp("packed") / family),
            stored=lambda latents: unpacked(latents, 4),
            guidance_scale=lambda scale, prompts: scale,
            **how,
        )
        for family, how in HOW.items()
    }


@each_family
@pytest.mark.parametrize(("scale", "kind"), [(1.0, "none"), (4.0, "cfg")])
def test_latents_and_images_are_the_librarys(twins: dict[str, Twins], family: str, scale: float, kind: str) -> None:
    assert twins[family].family.guidance_kind(scale) == kind
    for prompt in PROMPTS[:2]:
        twins[family].check_single(prompt, scale)


@each_family
def test_a_batch_has_the_latents_of_each_prompt(twins: dict[str, Twins], family: str) -> None:
    twins[family].check_batch(4.0)


@pytest.mark.parametrize("family", ["chroma", "longcat"])
def test_a_long_prompt_is_cut_as_the_library_cuts_it(twins: dict[str, Twins], family: str) -> None:
    twins[family].check_single(LONG, 1.0)


@each_family
def test_a_prompt_of_one_token_too_many_is_counted_as_cut(twins: dict[str, Twins], family: str) -> None:
    one = twins[family]
    assert one.family.tokens_read == TOKENS_READ[family]
    (overhead,), (two,) = one.tokens([""]), one.tokens(["xx"])
    room = one.family.tokens_read - two + 2  # the first x is one with the start of the word in T5
    one.check_cut("x" * room, "x" * (room + 1))
    assert overhead <= one.family.tokens_read


def test_words_in_quotation_marks_are_read_letter_by_letter(twins: dict[str, Twins]) -> None:
    counts = twins["longcat"].tokens(["the then", "'the then'", "the 'the'"])
    assert counts[1] > counts[0]
    twins["longcat"].check_single("a sign that says 'the then'", 1.0)


def test_templates_are_the_librarys(twins: dict[str, Twins]) -> None:
    pipeline = twins["longcat"].pipeline
    template = f"{pipeline.prompt_template_encode_prefix}{{}}{pipeline.prompt_template_encode_suffix}"
    assert twins["longcat"].family.notes == {"template": template}
    family, pipeline = twins["ovis"].family, twins["ovis"].pipeline
    assert (family.notes["instruction"], OvisImage.unseen_tokens) == (pipeline.system_prompt, pipeline.user_prompt_begin_id)
    assert family.notes["chat_template"] == "the tokenizer's own, with add_generation_prompt=True, enable_thinking=False"


@each_family
def test_settings_are_the_librarys(twins: dict[str, Twins], family: str) -> None:
    import inspect

    defaults = {name: one.default for name, one in inspect.signature(type(twins[family].pipeline).__call__).parameters.items()}
    usual = twins[family].family.usual
    assert (usual.steps, usual.guidance) == (defaults["num_inference_steps"], defaults["guidance_scale"])


def test_a_text_encoder_of_another_width_is_refused(twins: dict[str, Twins]) -> None:
    with pytest.raises(InputError, match="reads text of width 32, and whose text encoder gives 16"):
        changed_family(Chroma, twins["chroma"].family, "transformer", {"joint_attention_dim": 32}).check()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_sampler_that_takes_no_times_of_flow_matching_is_refused() -> None:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

    with pytest.raises(InputError, match="the sampler DDIMScheduler, which takes no mu and no sigmas"):
        set_flow_times(DDIMScheduler(), 4, 0.5)
    with pytest.raises(
        InputError, match=r"EulerDiscreteScheduler, which takes no mu; .* restore scheduler/ from where the model comes from$"
    ):
        set_flow_times(EulerDiscreteScheduler(), 4, 0.5)  # its noise is that of Stable Diffusion; the library raises TypeError
    flow = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    set_flow_times(flow, 4, 0.5)
    assert len(flow.timesteps) == 4
    with pytest.raises(InputError, match="takes no sigmas"):
        set_flow_times(flow, 4, 0.5, asks_sampler=False)


def test_the_shift_is_linear_in_the_number_of_tokens() -> None:
    assert shift_by_tokens(256, {}) == 0.5
    assert shift_by_tokens(4096, {}) == pytest.approx(1.15)
    assert shift_by_tokens(8192, {"max_image_seq_len": 8192, "max_shift": 0.9}) == pytest.approx(0.9)


@each_family
def test_half_precision_gives_the_librarys_latents_too(twins: dict[str, Twins], family: str) -> None:
    twins[family].check_half("bfloat16", 4.0)
