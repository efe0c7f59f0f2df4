"""The published `config.json` of Kimi K2.5 and its relatives, as Python values, and two small models for trying things.

Only keys with an effect on the network are kept. Values marked unconfirmed in the sources say so.
"""

import copy
from typing import Any

_INT4 = {
    "config_groups": {
        "group_0": {
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": None,
                "block_structure": None,
                "dynamic": False,
                "group_size": 32,
                "num_bits": 4,
                "observer": "minmax",
                "observer_kwargs": {},
                "strategy": "group",
                "symmetric": True,
                "type": "int",
            },
        }
    },
    "format": "pack-quantized",
    "ignore": [
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
    ],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}

_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}

_TEXT = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 163584,
    "dtype": "bfloat16",
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 262144,
    "model_type": "kimi_k2",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 384,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "pad_token_id": 163839,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": _INT4,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 64.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 163840,
}

_VISION = {
    "init_pos_emb_height": 64,
    "init_pos_emb_time": 4,
    "init_pos_emb_width": 64,
    "merge_kernel_size": [2, 2],
    "merge_type": "sd2_tpool",
    "mm_hidden_size": 1152,
    "mm_projector_type": "patchmerger",
    "patch_size": 14,
    "pos_emb_type": "divided_fixed",
    "projector_hidden_act": "gelu",
    "projector_ln_eps": 1e-5,
    "text_hidden_size": 7168,
    "video_attn_type": "spatial_temporal",
    "vt_hidden_size": 1152,
    "vt_intermediate_size": 4304,
    "vt_num_attention_heads": 16,
    "vt_num_hidden_layers": 27,
}

_K25 = {
    "architectures": ["KimiK25ForConditionalGeneration"],
    "bos_token_id": 163584,
    "dtype": "bfloat16",
    "eos_token_id": 163585,
    "ignore_index": -100,
    "media_placeholder_token_id": 163605,
    "model_type": "kimi_k25",
    "pad_token_id": 163839,
    "text_config": _TEXT,
    "tie_word_embeddings": False,
    "use_unified_vision_chunk": True,
    "video_placeholder": "<|kimi_k25_video_placeholder|>",
    "vision_config": _VISION,
}

_K2_THINKING = {**_TEXT, "eos_token_id": 163586}
_K2 = {
    **_TEXT,
    "max_position_embeddings": 131072,
    "quantization_config": _FP8,  # the exact object is unconfirmed for K2
    "rms_norm_eps": 1e-6,
    "rope_scaling": {**_TEXT["rope_scaling"], "factor": 32.0, "beta_fast": 1.0},
}
_K2_0905 = {
    **_K2,
    "max_position_embeddings": 262144,
    "rope_scaling": {**_TEXT["rope_scaling"], "beta_fast": 1.0},
}
_MOONLIGHT = {
    **{key: value for key, value in _TEXT.items() if key != "quantization_config"},
    "eos_token_id": 163586,
    "hidden_size": 2048,
    "intermediate_size": 11264,
    "max_position_embeddings": 8192,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "rope_scaling": None,
    "routed_scaling_factor": 2.446,
}
_KIMI_VL = {
    **_K25,
    "architectures": ["KimiVLForConditionalGeneration"],
    "model_type": "kimi_vl",
    "text_config": {**_MOONLIGHT, "max_position_embeddings": 131072, "rope_theta": 800000.0},
    "vision_config": {
        "hidden_size": 1152,
        "init_pos_emb_height": 64,
        "init_pos_emb_width": 64,
        "intermediate_size": 4304,
        "merge_kernel_size": [2, 2],
        "model_type": "moonvit",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}

_TINY = {
    **_K25,
    "bos_token_id": 240,
    "eos_token_id": 241,
    "media_placeholder_token_id": 245,
    "pad_token_id": 255,
    "text_config": {
        **_TEXT,
        "bos_token_id": 240,
        "eos_token_id": 241,
        "hidden_size": 96,
        "intermediate_size": 128,
        "kv_lora_rank": 32,
        "max_position_embeddings": 4096,
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "num_attention_heads": 2,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pad_token_id": 255,
        "q_lora_rank": 48,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 12,
        "rope_scaling": {**_TEXT["rope_scaling"], "original_max_position_embeddings": 24},
        "v_head_dim": 20,
        "vocab_size": 256,
    },
    "vision_config": {
        **_VISION,
        "init_pos_emb_height": 8,
        "init_pos_emb_width": 8,
        "mm_hidden_size": 40,
        "text_hidden_size": 96,
        "vt_hidden_size": 40,
        "vt_intermediate_size": 56,
        "vt_num_attention_heads": 2,
        "vt_num_hidden_layers": 2,
    },
}

_NANO = {
    **_K25,
    "bos_token_id": 1024,
    "eos_token_id": 1025,
    "image_token_id": 1045,
    "media_placeholder_token_id": 1045,
    "pad_token_id": 1279,
    "projection_hidden_size": 128,
    "projection_layer_norm_eps": 1e-5,
    "text_config": {
        **_TEXT,
        "bos_token_id": 1024,
        "eos_token_id": 1025,
        "hidden_size": 192,
        "intermediate_size": 512,
        "kv_lora_rank": 64,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 128,
        "n_routed_experts": 8,
        "num_attention_heads": 6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 5,
        "num_key_value_heads": 6,
        "pad_token_id": 1279,
        "q_lora_rank": 96,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "quantization_config": {
            **_INT4,
            "ignore": [*_INT4["ignore"], "re:.*vision_tower.*", "re:.*mm_projector.*"],
        },
        "rope_scaling": {**_TEXT["rope_scaling"], "factor": 32.0, "original_max_position_embeddings": 1024},
        "v_head_dim": 32,
        "vocab_size": 1280,
    },
    "vision_config": {
        **_VISION,
        "hidden_size": 128,
        "init_pos_emb_height": 16,
        "init_pos_emb_width": 16,
        "intermediate_size": 256,
        "mm_hidden_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "pos_emb_height": 16,
        "pos_emb_time": 4,
        "pos_emb_width": 16,
        "text_hidden_size": 192,
        "vt_hidden_size": 128,
        "vt_intermediate_size": 256,
        "vt_num_attention_heads": 4,
        "vt_num_hidden_layers": 3,
    },
}

PRESETS: dict[str, dict[str, Any]] = {
    "kimi-k2.5": _K25,
    "kimi-k2.6": _K25,
    "kimi-k2-thinking": _K2_THINKING,
    "kimi-k2-instruct": _K2,
    "kimi-k2-instruct-0905": _K2_0905,
    "moonlight-16b-a3b": _MOONLIGHT,
    "kimi-vl-a3b": _KIMI_VL,
    "kimi-k25-nano": _NANO,
    "tiny": _TINY,
}


def preset_dict(name: str) -> dict[str, Any]:
    """A copy of the preset's `config.json`, for changing sizes or writing to a file. Raises KeyError."""
    return copy.deepcopy(PRESETS[name])
