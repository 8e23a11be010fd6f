"""``--prompts``: what the generator reads of each text, the whole of it, its passages, its keywords, or what
is left without the names of classes; and the plan of their images."""

from collections.abc import Callable
from functools import partial

from featurize.options import Generation
from featurize.plan.images import ImagePlan, plan_images, plan_passages, plan_prompts, require_prompts
from featurize.plan.keywords import keyword_prompts
from featurize.plan.prompt_reader import PromptReader
from featurize.plan.subset import with_subset
from featurize.plan.wordnet_prompts import wordnet_prompts
from featurize.plan.words import passage_spans
from lugpi_core.corpora.corpus import Corpus


def plan_of(corpus: Corpus, settings: Generation, reader: Callable[[], PromptReader]) -> ImagePlan:
    """Return the images that a corpus needs; with a subset, those of its texts.

    Args:
        corpus: whose prompts are read.
        settings: seed, images per text, strategy and subset.
        reader: returns what reads the prompts; called for keywords only.

    Raises:
        InputError: an example has an empty prompt, or as ``reader``, ``wordnet_prompts`` and ``with_subset`` do.
    """
    return with_subset(corpus, _plan_of_all(corpus, settings, reader), settings)


def _plan_of_all(corpus: Corpus, settings: Generation, reader: Callable[[], PromptReader]) -> ImagePlan:
    seed, images_per_text, candidates = settings.seed, settings.images_per_text, settings.best_of
    match settings.prompts:
        case "whole":
            return plan_images(corpus, seed=seed, images_per_text=images_per_text, candidates=candidates)
        case "chunks":
            require_prompts(corpus)
            passages, counts_N = corpus.columns.prompts.parts(partial(passage_spans, count=images_per_text))
            return plan_passages(passages, counts_N, seed=seed, prompts_per_text=images_per_text, candidates=candidates)
        case "keywords":
            require_prompts(corpus)
            prompts = keyword_prompts(corpus.columns.prompts, corpus.train_prompts(), reader())
            return plan_prompts(prompts, seed=seed, images_per_prompt=images_per_text, candidates=candidates)
        case "wordnet":
            require_prompts(corpus)
            return plan_prompts(wordnet_prompts(corpus), seed=seed, images_per_prompt=images_per_text, candidates=candidates)
