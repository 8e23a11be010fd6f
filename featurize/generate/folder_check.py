"""Whether the models of a generator's folder are all there and fit one another, before a weight is loaded."""

from featurize.generate.families.family import Family
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import read_config, require_whole_weights


def check_folder(family: Family) -> None:
    """Check the models of a generator's folder against one another.

    Raises:
        InputError: a model is missing or of another class, has an adapter beside it, is quantized, or does not fit the others.
    """
    _check_classes(family)
    folder, texts = family.folder, family.text_parts
    models = [part for part in family.part_classes if (family.index.get(part) or [None])[0]]
    if missing := [name for name in (*models, "scheduler", *(tokenizer for tokenizer, _ in texts)) if not (folder / name).is_dir()]:
        raise InputError(
            got=f"{folder} without {' and '.join(f'{name}/' for name in missing)}",
            expected="a whole diffusers folder",
            do="get what is missing from where it comes from",
        )
    for name in models:
        if (folder / name / "adapter_config.json").is_file() and not (folder / name / "config.json").is_file():
            raise InputError(
                got=f"{folder / name}, of which only a LoRA was saved",
                expected="a whole model",
                do="save the pipeline in Python after fuse_lora() and unload_lora_weights(), or give the LoRA apart with --lora",
            )
        require_whole_weights(str(folder / name), folder / name, read_config(folder / name / "config.json"))
    family.check()


def _check_classes(family: Family) -> None:
    encoders = [encoder for _, encoder in family.text_pairs]
    for part, classes in family.part_classes.items():
        found = (family.index.get(part) or [None, None])[1]
        if found is None and part in encoders and None not in classes:
            raise InputError(
                got=f"{family.folder}, whose model_index.json names no {part}",
                expected="a pipeline that reads prompts",
                do="give the whole base model",
            )
        if found not in classes:
            expected = " or ".join(name for name in classes if name is not None)
            raise InputError(got=f"{family.folder} with the {part} {found}", expected=expected, do="choose another generator")
