"""Text models of many architectures, tiny, with random weights and a tokenizer of their own kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

WORDS = (
    *("the", "a", "dog", "cat", "sun", "moon", "rain", "soup", "sea", "ship", "bird", "tree", "and", "in", "on", "of"),
    *("red", "blue", "small", "large", "runs", "sleeps", "sings", "falls"),
)
Kind = Literal["bert", "roberta", "decoder", "t5", "xlnet", "funnel", "bytes", "characters"]
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_LLAMA = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A tiny model: the class of its configuration, its tokenizer's kind, its sizes, and what is saved."""

    config: str
    tokenizer: Kind
    sizes: Mapping[str, Any]
    saved: str = "AutoModel"


FAMILIES: Mapping[str, Family] = {
    "bert": Family(config="BertConfig", tokenizer="bert", sizes=_SIZES),
    "electra": Family(config="ElectraConfig", tokenizer="bert", sizes={**_SIZES, "embedding_size": 32}),
    "deberta-v2": Family(
        config="DebertaV2Config",
        tokenizer="bert",
        sizes={**_SIZES, "relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]},
    ),
    "roberta": Family(config="RobertaConfig", tokenizer="roberta", sizes={**_SIZES, "max_position_embeddings": 66}),
    "xlm-roberta": Family(config="XLMRobertaConfig", tokenizer="roberta", sizes={**_SIZES, "max_position_embeddings": 66}),
    "camembert": Family(config="CamembertConfig", tokenizer="roberta", sizes={**_SIZES, "max_position_embeddings": 66}),
    "longformer": Family(
        config="LongformerConfig", tokenizer="roberta", sizes={**_SIZES, "max_position_embeddings": 66, "attention_window": 8}
    ),
    "big_bird": Family(
        config="BigBirdConfig", tokenizer="bert", sizes={**_SIZES, "max_position_embeddings": 1024, "block_size": 4, "num_random_blocks": 1}
    ),
    "modernbert": Family(
        config="ModernBertConfig",
        tokenizer="bert",
        sizes={**_SIZES, "num_hidden_layers": 4, "local_attention": 8, "max_position_embeddings": 1024},
    ),
    "nomic_bert": Family(config="NomicBertConfig", tokenizer="bert", sizes={**_SIZES, "max_position_embeddings": 1024}),
    "jina_embeddings_v3": Family(config="JinaEmbeddingsV3Config", tokenizer="roberta", sizes=_SIZES),
    "eurobert": Family(config="EuroBertConfig", tokenizer="roberta", sizes=_LLAMA),
    "xlnet": Family(config="XLNetConfig", tokenizer="xlnet", sizes={"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
    "funnel": Family(
        config="FunnelConfig",
        tokenizer="funnel",
        sizes={"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 1], "num_decoder_layers": 1},
        saved="FunnelModel",
    ),
    "bart": Family(config="BartConfig", tokenizer="roberta", sizes=_BART),
    "t5": Family(config="T5Config", tokenizer="t5", sizes=_T5),
    "gpt2": Family(config="GPT2Config", tokenizer="decoder", sizes=_GPT),
    "qwen2": Family(config="Qwen2Config", tokenizer="decoder", sizes=_LLAMA),
    "qwen3": Family(config="Qwen3Config", tokenizer="decoder", sizes=_LLAMA),
    "llama": Family(config="LlamaConfig", tokenizer="decoder", sizes=_LLAMA),
    "mistral": Family(config="MistralConfig", tokenizer="decoder", sizes={**_LLAMA, "sliding_window": 8}),
    "gemma3_text": Family(
        config="Gemma3TextConfig", tokenizer="decoder", sizes={**_LLAMA, "sliding_window": 8, "query_pre_attn_scalar": 8}
    ),
    "opt": Family(
        config="OPTConfig",
        tokenizer="decoder",
        sizes={**_SIZES, "ffn_dim": 64, "word_embed_proj_dim": 16, "max_position_embeddings": 64},
    ),
    "bloom": Family(config="BloomConfig", tokenizer="decoder", sizes={"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "phi": Family(config="PhiConfig", tokenizer="decoder", sizes={**_SIZES, "max_position_embeddings": 256}),
    "perceiver": Family(
        config="PerceiverConfig",
        tokenizer="bytes",
        sizes={
            "num_latents": 8,
            "d_latents": 32,
            "d_model": 32,
            "num_blocks": 1,
            "num_self_attends_per_block": 1,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
            "max_position_embeddings": 256,
        },
        saved="PerceiverForMaskedLM",
    ),
    "canine": Family(
        config="CanineConfig", tokenizer="characters", sizes={**_SIZES, "max_position_embeddings": 512, "num_hash_buckets": 512}
    ),
}


def tiny_text_model(folder: Path, family: str, *, change: Callable[[Any], None] = lambda tokenizer: None, **sizes: Any) -> Path:
    """Write a text model without a head, in float32, with its tokenizer, on which ``change`` is called before it is saved."""
    import transformers

    one = FAMILIES[family]
    tokenizer = _tokenizer(one.tokenizer)
    change(tokenizer)
    special = ("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id")
    ids = {name: getattr(tokenizer, name) for name in special}
    vocabulary = {} if one.tokenizer == "characters" else {"vocab_size": len(tokenizer)}
    config = getattr(transformers, one.config)(**{**vocabulary, **ids, **one.sizes, **sizes})
    torch.manual_seed(1)
    model = AutoModel.from_config(config) if one.saved == "AutoModel" else getattr(transformers, one.saved)(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(kind: Kind) -> Any:
    import transformers

    match kind:
        case "bytes":
            return transformers.PerceiverTokenizer()
        case "characters":
            return transformers.CanineTokenizer()
        case "bert" | "funnel":
            special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
            first = ":2" if kind == "funnel" else ""
            template = f"[CLS]{first} $A [SEP]", f"[CLS]{first} $A [SEP] $B:1 [SEP]:1"
        case "roberta":
            special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
            special |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
            template = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
        case "t5":
            special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
            template = "$A </s>", "$A </s> $B </s>"
        case "xlnet":
            special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<cls>", "sep_token": "<sep>"}
            special |= {"pad_token": "<pad>"}
            template = "$A <sep> <cls>:2", "$A <sep> $B:1 <sep>:1 <cls>:2"
        case "decoder":
            return _byte_level()
    names = list(dict.fromkeys(special.values()))
    vocabulary = {word: n for n, word in enumerate([*names, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single, pair = template
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(name, n) for n, name in enumerate(names)]
    )
    types = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if kind in ("bert", "funnel", "xlnet") else {}
    side = {"padding_side": "left"} if kind == "xlnet" else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **types, **side)


def _byte_level() -> Any:
    """A decoder's tokenizer: bytes, no token at either end, and none to pad with."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def reread(folder: Path) -> Any:
    """The tokenizer as transformers reads it back."""
    return AutoTokenizer.from_pretrained(folder)
