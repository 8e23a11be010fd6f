"""The plan of the images: one for each distinct prompt, with a seed that only the prompt and the run's seed decide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize.plan.images import ImagePlan, image_seed, plan_images, plan_passages
from lugpi_core.corpora.columns import TextColumn
from lugpi_core.corpora.corpus import Corpus, Example
from lugpi_core.errors import InputError

# xxh3-64 of "<seed>\0<prompt>", shifted right by one; a store made by an older release stays valid only while these hold.
SEEDS = [3747004692172524481, 1002843070331025939, 4260915947167165924]
PROMPTS = st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=8)


def _corpus(prompts: list[str], name: str = "own") -> Corpus:
    examples = tuple(Example(id=f"row-{n}", text=prompt, prompt=prompt, label=n % 2, split="train") for n, prompt in enumerate(prompts))
    return Corpus(name=name, label_names=("a", "b"), examples=examples, license="none")


def _plan(prompts: list[str], seed: int = 0) -> ImagePlan:
    return plan_images(_corpus(prompts), seed=seed)


def test_examples_with_the_same_prompt_share_an_image() -> None:
    plan = _plan(["sea", "dune", "sea", "sea ", "dune"])
    assert plan.prompts == ("sea", "dune", "sea ")
    assert plan.prompts_of_example.tolist() == [[0], [1], [0], [2], [1]]
    assert plan.prompts_of_example.dtype == plan.seeds.dtype == np.int64
    assert len(plan) == len(plan.seeds) == 3
    assert plan.saved == 2


@given(PROMPTS)
def test_every_example_finds_its_own_prompt(prompts: list[str]) -> None:
    plan = _plan(prompts)
    assert [plan.prompts[prompt] for prompt in plan.prompts_of_example[:, 0]] == prompts
    assert len(set(plan.prompts)) == len(plan.prompts)


@given(PROMPTS, st.integers())
def test_a_seed_depends_only_on_the_prompt_and_the_runs_seed(prompts: list[str], seed: int) -> None:
    forward, backward = _plan(prompts, seed), plan_images(_corpus(prompts[::-1], "another"), seed=seed)
    seeds = dict(zip(forward.prompts, forward.seeds.tolist(), strict=True))
    assert seeds == dict(zip(backward.prompts, backward.seeds.tolist(), strict=True))
    assert seeds == {prompt: image_seed(prompt, seed) for prompt in prompts}
    assert all(0 <= value < 2**63 for value in seeds.values())


def test_seeds_are_the_same_in_every_process_and_every_release() -> None:
    assert [image_seed("sea", 0), image_seed("sea", 1), image_seed("see", 0)] == SEEDS


def test_prompts_and_seeds_that_join_to_one_text_have_different_seeds() -> None:
    assert image_seed("2", 1) != image_seed("", 12)
    assert image_seed("sea\ud800", 0) != image_seed("sea", 0)  # half a surrogate pair has no UTF-8 form


def test_the_fingerprint_changes_with_prompts_their_order_and_the_seed() -> None:
    base = _plan(["sea", "dune", "sea"])
    assert base.fingerprint() == plan_images(_corpus(["sea", "sea", "dune"], "another"), seed=0).fingerprint()
    others = [_plan(["sea", "Dune"]), _plan(["dune", "sea"]), _plan(["sea"]), _plan(["sea", "dune"], 1)]
    assert len({base.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_the_fingerprint_changes_with_a_single_seed() -> None:
    base = _plan(["sea", "dune"])
    other = ImagePlan(prompts=base.prompts, seeds=base.seeds + np.array([0, 1]), prompts_of_example=base.prompts_of_example)
    assert other.fingerprint() != base.fingerprint()


@pytest.mark.parametrize("prompt", ["", " \t\n", "\u2003"])
def test_an_empty_prompt_is_refused_with_its_example(prompt: str) -> None:
    with pytest.raises(
        InputError, match=r"got an empty prompt in example row-1; expected some words for the generator; remove or fill that row"
    ):
        _plan(["sea", prompt])


def test_images_of_a_text_are_neighbours_and_the_first_is_the_single_one() -> None:
    single, three = _plan(["sea", "dune", "sea"]), plan_images(_corpus(["sea", "dune", "sea"]), seed=0, images_per_text=3)
    assert three.images_of_example.tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert (len(three), three.saved) == (6, 3)
    assert three.seeds[::3].tolist() == single.seeds.tolist()
    assert len(set(three.seeds.tolist())) == 6
    assert [three.prompt_of(image) for image in range(6)] == [0, 0, 0, 1, 1, 1]
    assert three.fingerprint() != single.fingerprint()


def test_passages_of_a_text_have_an_image_each_and_those_of_a_short_text_recur() -> None:
    plan = plan_passages(TextColumn.of("abcdbe"), np.array([3, 1, 2]), seed=0, prompts_per_text=3)
    assert list(plan.prompts) == ["a", "b", "c", "d", "e"]
    assert plan.images_of_example.tolist() == [[0, 1, 2], [3, 3, 3], [1, 4, 1]]
    assert plan.seeds.tolist() == [image_seed(prompt, 0) for prompt in plan.prompts]
    assert (len(plan), plan.images_per_text, plan.saved) == (5, 3, 4)
