"""``--prompts``: what the generator reads of each text, the whole of it, its passages, or its keywords; and the plan of their images."""

from featurize.generate.generators import Generator
from featurize.options import Generation
from featurize.plan.images import ImagePlan, plan_images, plan_prompts, require_prompts
from featurize.plan.keywords import keyword_prompts
from featurize.plan.prompt_reader import prompt_reader
from featurize.plan.words import passages_of
from lugpi_core.corpora.corpus import Corpus


def plan_of(corpus: Corpus, generator: Generator, settings: Generation) -> ImagePlan:
    """Return the images that a corpus needs. For keywords, the generator's tokenizers are loaded.

    Raises:
        InputError: an example has an empty prompt, or a tokenizer does not load.
    """
    seed, images_per_text = settings.seed, settings.images_per_text
    match settings.prompts:
        case "whole":
            return plan_images(corpus, seed=seed, images_per_text=images_per_text)
        case "chunks":
            require_prompts(corpus)
            passages = [passages_of(example.prompt, images_per_text) for example in corpus.examples]
            return plan_prompts(passages, seed=seed, prompts_per_text=images_per_text)
        case "keywords":
            require_prompts(corpus)
            train = (example.prompt for example in corpus.examples if example.split == "train")
            prompts = keyword_prompts([example.prompt for example in corpus.examples], train, prompt_reader(generator))
            return plan_prompts([(prompt,) for prompt in prompts], seed=seed, images_per_prompt=images_per_text)
