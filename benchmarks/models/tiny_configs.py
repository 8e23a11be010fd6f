"""A configuration of any architecture that can be trained in seconds, from the names of its own fields."""

from collections.abc import Mapping
from typing import Any

from benchmarks.models.overrides import OVERRIDES

WIDTH, HEADS, HEAD, FEED_FORWARD, LAYERS, LONGEST = 32, 4, 8, 48, 2, 64
# Field → its small value, in whatever configuration has it.
_SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "pooler_hidden_size"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), HEADS),
    **dict.fromkeys(("head_dim", "d_head", "d_kv", "attention_head_size", "kv_channels", "rotary_dim"), HEAD),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_decoder_layers", "depth"), LAYERS),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_ff", "d_inner", "dff"), FEED_FORWARD),
    **dict.fromkeys(("hidden_dim", "ffn_hidden_size", "feed_forward_size", "moe_intermediate_size"), FEED_FORWARD),
    **dict.fromkeys(("shared_expert_intermediate_size", "prompt_mid_dim", "prediction_head_size"), FEED_FORWARD),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), LONGEST),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), HEAD),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    # Of the new head too: with the library's 0.02 all answers are nearly equal, and a difference would not show.
    **dict.fromkeys(("initializer_range", "init_std"), 0.25),
    "query_pre_attn_scalar": HEAD,
}
# Fields that are None by default and then follow from others that are not small here.
_EVEN_IF_NONE = ("head_dim", "num_experts_per_tok", "num_key_value_heads")


def small_values(config: Any, token_ids: Mapping[str, int | None], words: int) -> dict[str, Any]:
    """Return the arguments of a small configuration: those of the fields that decide its size, nested configurations included.

    Args:
        config: the default one of its class.
        token_ids: ``pad_token_id``, … → id, or None if the tokenizer has no such token.
        words: ids of the tokenizer.
    """
    from transformers import PreTrainedConfig

    values: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            part = small_values(value, token_ids, words) | OVERRIDES.get(value.model_type, {})
            values[name] = type(value)(**part).to_dict()
        elif name == "vocab_size":
            values[name] = words
        elif name == "pad_token_id" or token_ids.get(name) is not None:
            values[name] = token_ids[name]
        elif name in _SMALL and (isinstance(value, int | float) or name in _EVEN_IF_NONE):
            values[name] = _SMALL[name]
    return values
