"""What the size of an architecture hangs on besides the usual fields, and what its own defaults lack."""

from typing import Any

_ROPE = {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
_DELTA_NET: dict[str, Any] = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
_DELTA_NET |= {"layer_types": ["linear_attention", "full_attention"]}
_PATCHES = {"image_size": 16, "patch_size": 8}
# By model type, that of a nested configuration included.
OVERRIDES: dict[str, dict[str, Any]] = {
    "axk2": {"index_topk": 8, "index_head_dim": 16, "index_n_heads": 2, "gated_norm_rank": 4},
    "big_bird": {"block_size": 8, "num_random_blocks": 1},
    "bigbird_pegasus": {"block_size": 8, "num_random_blocks": 1},
    # Its tokenizer reads characters, 2,048 at most; positions have as many rows as the hash.
    "canine": {"max_position_embeddings": 2048, "num_hash_buckets": 2048, "num_hash_functions": 4},
    "cohere_compass_text": {"rope_parameters": _ROPE},
    "doge": {"num_experts": 16},
    # AutoModel.from_config of transformers 5.23 needs to be told which of its two encoders is meant.
    "funnel": {"architectures": ["FunnelModel"], "block_sizes": [1, 1], "block_repeats": [1, 1], "num_decoder_layers": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "layoutlm": {"max_2d_position_embeddings": 32},
    "layoutlmv2": {"max_2d_position_embeddings": 32, "coordinate_size": 6, "shape_size": 4},
    "layoutlmv3": {"max_2d_position_embeddings": 32, "coordinate_size": 6, "shape_size": 4, "input_size": 16, "patch_size": 8},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 2, "max_2d_position_embeddings": 32},
    "longformer": {"attention_window": 8},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 8},
    "markuplm": {"max_xpath_tag_unit_embeddings": 8, "max_xpath_subs_unit_embeddings": 16, "xpath_unit_hidden_size": 4, "max_depth": 4}
    | {"tag_pad_id": 7, "subs_pad_id": 15},
    "mistral4": {"head_dim": 16},
    "mobilebert": {"intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    "mvp": {"prompt_length": 4},
    "nystromformer": {"segment_means_seq_len": 8, "num_landmarks": 8, "conv_kernel_size": 5},
    "perceiver": {"max_position_embeddings": 2048, "d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 2}
    | {"num_self_attention_heads": 4, "num_cross_attention_heads": 4},
    "qwen3_5_text": _DELTA_NET,
    "qwen3_next": _DELTA_NET,
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "lsh"], "is_decoder": False}
    | {"local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "num_buckets": 4},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roc_bert": {"pronunciation_embed_dim": 16, "pronunciation_vocab_size": 600, "shape_embed_dim": 16, "shape_vocab_size": 600},
    "siglip_vision_model": _PATCHES,
    # Their checkpoints name it; the class has no such field.
    **{name: {"decoder_start_token_id": 0} for name in ("mt5", "t5", "umt5")},
    # Published without one, and then refused by the library.
    "xmod": {"default_language": "en_XX"},
    # Its loop over tokens is written out in an ONNX graph, which takes minutes for 64.
    "zamba": {
        "max_position_embeddings": 16,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "n_mamba_heads": 4,
        "mamba_d_state": 8,
        "adapter_rank": 4,
        "chunk_size": 16,
    },
}
