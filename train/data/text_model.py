"""The text model: its files and tokenizer, and its two forms: an encoder for the teacher, a classifier for baseline and student, the
latter optionally with fewer layers."""

import copy
import re
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.files import read_json
from lugpi_core.fingerprint import hash_model_folder, require_safetensors
from lugpi_core.runtime.libraries import without_garbage_collection
from lugpi_core.runtime.pretrained import EMBEDDED_LICENSE, MODEL_FILES, embedded_model, loading, local_model_folder, reason
from train.data.outline import Outline, outline_of, stated_layers
from train.data.tokenizers import EXPECTED, load_tokenizer, needing_packages

LONGEST = 512
# A tokenizer that states no length has int(1e30).
_NO_LENGTH = 1 << 40
# Besides weights and configurations: card, fairseq's merges, tiktoken's and Marian's vocabularies.
_PATTERNS = (*MODEL_FILES, "README.md", "*.codes", "*.tiktoken", "*.spm")
PROBLEM_TYPES = {
    "single-label": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}
# What a classifier's configuration says of the task it was trained for, and where its own code is.
_LEFT_BY_A_TASK = frozenset({"problem_type", "finetuning_task", "task_specific_params", "function_to_apply", "thresholds", "auto_map"})
# What else a model returns, and in which parts it computes: its answers stay the same.
_OF_OUTPUTS = {"output_attentions": False, "output_hidden_states": False, "return_dict": True, "chunk_size_feed_forward": 0}
# Lists in a configuration that say something of each layer.
_OF_EACH_LAYER = frozenset({"layer_types", "mlp_layer_types", "attention_layers", "no_rope_layers", "layers_block_type"})
_TWO_CLASSES = Corpus(name="two classes", label_names=("0", "1"), examples=(), license="")


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """The files of a text model, its configuration and its tokenizer; no weights are loaded.

    Attributes:
        name: as the user gave it.
        folder: of its files.
        config: without what an earlier task left in it.
        tokenizer: with a pad token.
        max_length: the most tokens of a text.
        inputs: what the tokenizer returns and the classifier takes besides ``input_ids``.
        reads_last_token: whether a text's class token is its last one, as a decoder's, and not its first.
    """

    name: str
    folder: Path
    config: Any
    tokenizer: Any
    max_length: int
    inputs: tuple[str, ...] = ("attention_mask",)
    reads_last_token: bool = False

    @cached_property
    def weights_hash(self) -> str:
        """The hash of what determines its output; reads its files at the first use."""
        return hash_model_folder(self.folder)

    @property
    def shown_name(self) -> str:
        """The name without the path of a local folder, for what is published."""
        return Path(self.name).name if Path(self.name).is_dir() else self.name

    @property
    def pad_id(self) -> int:
        """The id that fills up shorter texts of a batch; it is masked."""
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def license(self) -> str:
        """The licence that the model's card states."""
        if self.name == "demo":
            return EMBEDDED_LICENSE
        card = self.folder / "README.md"
        match = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8"), re.MULTILINE) if card.is_file() else None
        return match[1] if match else "see its own card"


@without_garbage_collection()
def find_text_model(name: str, *, max_length: int | None, flag: str = "--text-model", is_trained: bool = False) -> TextModel:
    """Return the text model that ``flag`` names. A text has ``max_length`` tokens at most: None is the longest up to 512, or, of a
    classifier that ``is_trained`` already, the length that its tokenizer states.

    Raises:
        InputError: not a folder, not on the hub, no safetensors weights, not a Hugging Face text model, a tokenizer that does not fit
            it, or a length it cannot read.
    """
    from transformers import AutoConfig

    what = f"{flag} {name}"
    if Path(name).is_file():
        raise InputError(got=f"{what}, a file", expected="the folder that holds a model and its tokenizer", do="give its folder")
    folder = embedded_model("text") if name == "demo" else local_model_folder(name, patterns=_PATTERNS, flag=flag)
    _require_whole(what, folder)
    with loading(what, expected=EXPECTED, do="choose for instance distilbert-base-uncased"), needing_packages(what):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if "quantization_config" in vars(config):
        raise InputError(
            got=f"{what}, whose weights are quantized", expected="weights that can be trained", do="give the unquantized model"
        )
    require_safetensors(folder)
    tokenizer = load_tokenizer(what, folder, config)
    outline = outline_of(what, config)
    _require_embedded(what, tokenizer, outline)
    inputs = _inputs(what, tokenizer, outline)
    tokenizer.model_input_names = ["input_ids", *inputs]  # so that a pipeline passes the same
    if outline.is_causal or not outline.reads_last_token:
        # Padding on the right moves no learned position, and none of a text's first token; a text alone has none at all.
        tokenizer.padding_side = "right"
    return TextModel(
        name=name,
        folder=folder,
        config=_mended(config, tokenizer, outline),
        tokenizer=tokenizer,
        max_length=_length(name, max_length, tokenizer, outline, longest=_NO_LENGTH if is_trained else LONGEST),
        inputs=inputs,
        reads_last_token=outline.reads_last_token,
    )


def _require_whole(what: str, folder: Path) -> None:
    """Raise InputError for a folder without a model's configuration, or with an adapter: transformers leaves it out without PEFT."""
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        raise InputError(
            got=f"{what} with an adapter{f' of {base}' if base else ''} (adapter_config.json)",
            expected="a model whose weights are whole",
            do="merge it with PEFT's merge_and_unload() and save model and tokenizer in a folder of their own",
        )
    if (folder / "config.json").is_file():
        return
    inside = sorted(path.parent for path in folder.glob("*/config.json") if any(path.parent.glob("*.safetensors")))
    do = f"give {inside[0]}" if inside else "choose for instance distilbert-base-uncased"
    raise InputError(got=f"{what} without config.json", expected=EXPECTED, do=do)


def _length(name: str, wanted: int | None, tokenizer: Any, outline: Outline, *, longest: int) -> int:
    """Return the most tokens of a text: ``wanted`` if the model reads as many, else ``longest`` or fewer."""
    limits = [limit for limit in (tokenizer.model_max_length, outline.positions) if limit is not None and 1 < limit < _NO_LENGTH]
    if wanted is not None and not 1 < wanted <= min(limits, default=wanted):
        expected = f"2 to {min(limits)} for {name}" if limits else "2 or more"
        raise InputError(got=f"--max-length {wanted}", expected=expected, do="leave it out for the longest up to 512")
    return wanted or min([longest, *limits] if limits else [LONGEST])


def _require_embedded(what: str, tokenizer: Any, outline: Outline) -> None:
    """Raise InputError if the tokenizer has tokens without a row in the embedding: the model would fail at the first text that has one."""
    rows = outline.embedded_ids
    if rows is not None and len(tokenizer) > rows:
        raise InputError(
            got=f"{what}, whose tokenizer has {len(tokenizer):,} tokens and whose embedding has {rows:,} rows",
            expected="a row for each token",
            do="call model.resize_token_embeddings(len(tokenizer)) and save both with save_pretrained()",
        )


def _inputs(what: str, tokenizer: Any, outline: Outline) -> tuple[str, ...]:
    """Return what the tokenizer returns besides the ids and the classifier's forward takes."""
    with loading(what, expected="a tokenizer of plain texts", do="choose a text model"), needing_packages(what):
        returned = tokenizer("a text", return_attention_mask=True)  # batches need it, whatever a tokenizer returns by itself
        if "input_ids" not in returned or not all(isinstance(number, int) for number in returned["input_ids"]):
            raise ValueError(f"its tokenizer returns {', '.join(returned)}")
    return tuple(name for name in returned if name != "input_ids" and name in outline.arguments)


def _mended(config: Any, tokenizer: Any, outline: Outline) -> Any:
    """Return a copy of a configuration without what an earlier task left in it, and with the settings that batches of any lengths need."""
    mended = copy.deepcopy(config)
    for name in _LEFT_BY_A_TASK & vars(mended).keys():
        delattr(mended, name)
    for name, value in _OF_OUTPUTS.items():
        if getattr(mended, name, value) != value:
            setattr(mended, name, value)
    text_config = mended.get_text_config()
    if getattr(text_config, "pad_token_id", None) is None or outline.is_causal:  # decoders read the last token that is not this one
        text_config.pad_token_id = tokenizer.pad_token_id
    if vars(mended).get("attention_type") == "block_sparse":
        # transformers 5.23 (BigBirdModel.forward) turns a model to full attention for ever at its first batch of short texts, so that the
        # answer would depend on the texts before.
        mended.attention_type = "original_full"
    for name in ("use_mems_eval", "use_mems_train"):
        if name in vars(mended):  # XLNet's states of earlier texts; transformers 5.23's pipeline fails at them in batches
            setattr(mended, name, False)
    return mended


def load_text_encoder(text_model: TextModel) -> nn.Module:
    """Return the pretrained encoder without a head, in float32; of an encoder-decoder its encoder. A pooler, such as BERT's, is not used
    here and is frozen.

    Raises:
        InputError: weights are missing or damaged.
    """
    from transformers import AutoModel

    encoder, missing = _load(AutoModel, text_model, copy.deepcopy(text_model.config))
    if missing or not _reads_as_classifier(text_model, encoder):
        # Funnel's classifier has no decoder, Perceiver's has the layer that embeds the bytes: the encoder is the classifier's.
        encoder = load_text_classifier(text_model, _TWO_CLASSES).base_model
    elif text_model.config.is_encoder_decoder:
        encoder = encoder.get_encoder()
    for name, part in encoder.named_children():
        if name == "pooler":
            part.requires_grad_(False)
    checked: nn.Module = encoder
    return checked


def load_text_classifier(text_model: TextModel, corpus: Corpus) -> nn.Module:
    """Return the pretrained encoder with a new classification head for the corpus's task and labels, in float32.

    The head is new, from torch's seed, also if the text model is a classifier already.

    Raises:
        InputError: weights other than the head's are missing, or damaged.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(text_model.config)
    config.id2label = dict(enumerate(corpus.label_names))
    config.label2id = {name: number for number, name in enumerate(corpus.label_names)}
    config.problem_type = PROBLEM_TYPES[corpus.task]
    model, missing = _load(AutoModelForSequenceClassification, text_model, config, new_head=True)
    if missing:
        raise InputError(
            got=f"--text-model {text_model.name} without the weights {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}",
            expected=f"all that {type(model).__name__} has besides its head",
            do="give a model that was saved whole",
        )
    checked: nn.Module = model
    return checked


def _load(auto: Any, text_model: TextModel, config: Any, *, new_head: bool = False) -> tuple[Any, list[str]]:
    """Return a pretrained model in float32, and the names of weights that it lacks besides those of its head and of a pooler."""
    from safetensors import SafetensorError

    what = f"--text-model {text_model.name}"
    with ExitStack() as files, loading(what, expected=EXPECTED, do="save model and tokenizer with save_pretrained()"):
        try:
            kept = _without_head(text_model.folder, config, files) if new_head else None
            # Weights in memory are taken by the class itself, and without a folder.
            model, info = (auto if kept is None else type(outline_of(what, config).model)).from_pretrained(
                text_model.folder if kept is None else None,
                config=config,
                state_dict=kept,
                local_files_only=True,
                use_safetensors=True,
                variant=_variant(text_model.folder) if kept is None else None,
                dtype="float32",
                output_loading_info=True,
            )
        except SafetensorError as error:
            raise InputError(
                got=f"{what}, which does not load ({reason(error)})", expected="whole weights", do="copy them again, or save them again"
            ) from None
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise InputError(
                got=f"{what}, whose weights {name} have values that are not finite", expected="numbers", do="give another checkpoint of it"
            )
        # transformers 5.23 leaves weights that it cut out of one tensor as views of it (NomicBERT), which safetensors does not write.
        if parameter.untyped_storage().nbytes() > parameter.numel() * parameter.element_size():
            parameter.data = parameter.data.clone()
    head = _head_of(config) if new_head else frozenset()
    return model, sorted(name for name in info["missing_keys"] if name not in head and "pooler" not in name)


def _without_head(folder: Path, config: Any, files: ExitStack) -> dict[str, Any] | None:
    """Return the weights of a classifier without its head, so that transformers makes a new one; None for a model that is no classifier."""
    from safetensors import safe_open

    variant = _variant(folder)
    names = ("model.safetensors" if variant is None else f"model.{variant}.safetensors",)
    if not (folder / names[0]).is_file() and (index := folder / "model.safetensors.index.json").is_file():
        names = tuple(dict.fromkeys(read_json(index)["weight_map"].values()))
    opened = [files.enter_context(safe_open(folder / name, framework="pt")) for name in names if (folder / name).is_file()]
    stored = {key: file for file in opened for key in sorted(file.keys())}
    if not _logits_weights(config) & stored.keys():
        return None
    head = _head_of(config)
    return {key: file.get_slice(key) for key, file in stored.items() if key not in head}


def _variant(folder: Path) -> str | None:
    """Return which weights a folder has: fp16 of ``model.fp16.safetensors`` alone, or None for the plain ones."""
    variants = [path.name.split(".")[1] for path in sorted(folder.glob("model.*.safetensors"))]
    return None if (folder / "model.safetensors").is_file() or len(variants) != 1 else variants[0]


def _logits_weights(config: Any) -> frozenset[str]:
    """Return the names of the weights that make a classifier's logits: those whose shape depends on the number of classes."""
    more = copy.deepcopy(config)
    more.id2label = dict(enumerate("0" * (len(config.id2label) + 1)))
    ours, theirs = ({name: weight.shape for name, weight in outline_of("", each).model.state_dict().items()} for each in (config, more))
    return frozenset(name for name, shape in ours.items() if shape != theirs[name])


def _head_of(config: Any) -> frozenset[str]:
    """Return the names of the weights of a classifier's head: all outside its encoder, and those of the encoder's part that makes logits
    (Perceiver's decoder)."""
    model = outline_of("", config).model
    base = f"{model.base_model_prefix}."
    inside = {base + name.removeprefix(base).partition(".")[0] + "." for name in _logits_weights(config) if name.startswith(base)}
    return frozenset(name for name in model.state_dict() if not name.startswith(base) or any(map(name.startswith, inside)))


def _reads_as_classifier(text_model: TextModel, encoder: Any) -> bool:
    """Whether an encoder has every weight that the encoder inside the classifier has."""
    inside = outline_of(f"--text-model {text_model.name}", text_model.config).model.base_model
    return bool(inside.state_dict().keys() <= encoder.state_dict().keys())


def keep_layers(model: Any, layers: int) -> None:
    """Keep only ``layers`` layers of an encoder, evenly spaced, including the first and the last, with their weights (shrink and fine-tune:
    Shleifer & Rush 2020, arXiv 2010.13002, §3).

    Raises:
        InputError: the encoder has fewer, none would be left, or its layers are not a plain list.
    """
    config = model.config.get_text_config()
    all_layers = stated_layers(model.config)
    if all_layers is None:
        raise layers_not_listed(f"--student-layers {layers}", type(model).__name__)
    if not 1 <= layers <= all_layers:
        raise InputError(got=f"--student-layers {layers}", expected=f"1 to {all_layers}, as the text model has", do="leave it out for all")
    modules = model.base_model.named_modules()
    lists = [(name, part) for name, part in modules if isinstance(part, nn.ModuleList) and len(part) == all_layers]
    if len(lists) != 1:
        raise layers_not_listed(f"--student-layers {layers}", type(model).__name__)
    name, part = lists[0]
    owner, _, attribute = name.rpartition(".")
    numbers = spaced(all_layers, layers)
    kept = nn.ModuleList(part[number] for number in numbers)
    setattr(model.base_model.get_submodule(owner), attribute, kept)
    config.num_hidden_layers = layers
    for name in _OF_EACH_LAYER & vars(config).keys():
        if isinstance(values := getattr(config, name), list) and len(values) == all_layers:
            setattr(config, name, [values[number] for number in numbers])
    for number, layer in enumerate(kept):
        for module in layer.modules():
            if "layer_idx" in vars(module):
                vars(module)["layer_idx"] = number


def layers_not_listed(asked: str, model: str) -> InputError:
    """Return the error for a model none of whose layers can be left out."""
    return InputError(
        got=f"{asked} for {model}",
        expected="a text model whose layers are one list, such as DistilBERT's or BERT's",
        do="leave --student-layers out",
    )


def spaced(layers: int, kept: int) -> list[int]:
    """Return the numbers of ``kept`` of ``layers`` layers, evenly spaced, including the first and the last."""
    return [round(n * (layers - 1) / max(kept - 1, 1)) for n in range(kept)]
