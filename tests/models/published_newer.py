"""The `config.json` of published checkpoints of the newer families; see `published.py`."""

from typing import Any

from tests.models.published_shape import Published

GLM = {"hidden_act": "silu", "partial_rotary_factor": 0.5, "attention_dropout": 0.0}
QWEN = {"hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0}
MROPE = {"type": "mrope", "mrope_section": [16, 24, 24]}
MROPE3 = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
GRANITE = {"attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}
COHERE = {"architectures": ["CohereForCausalLM"], "layer_norm_eps": 1e-05, "vocab_size": 256000, "hidden_size": 8192}
STABLELM = {"architectures": ["StableLmForCausalLM"], "layer_norm_eps": 1e-05, "partial_rotary_factor": 0.25}
KIMI: dict[str, Any] = {
    "model_type": "kimi_k2",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "vocab_size": 163840,
    "n_routed_experts": 384,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 262144,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "rope_scaling": {"type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096}
    | {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
}

PUBLISHED = {
    "olmo-3-7b": Published(
        {"architectures": ["Olmo3ForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008, "hidden_act": "silu"}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100278}
        | {"max_position_embeddings": 65536, "rope_theta": 500000, "rms_norm_eps": 1e-6, "sliding_window": 4096}
        | {"layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8}
        | {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}},
        7_298_011_136,
    ),
    "glm-4-9b-0414": Published(
        {**GLM, "architectures": ["Glm4ForCausalLM"], "hidden_size": 4096, "intermediate_size": 13696}
        | {"num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128}
        | {"attention_bias": True, "vocab_size": 151552, "max_position_embeddings": 32768, "rms_norm_eps": 1e-05},
        9_400_279_040,
    ),
    "glm-4.5-air": Published(
        {**GLM, "architectures": ["Glm4MoeForCausalLM"], "hidden_size": 4096, "intermediate_size": 10944}
        | {"num_hidden_layers": 46, "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128}
        | {"attention_bias": True, "vocab_size": 151552, "max_position_embeddings": 131072, "rope_theta": 1000000}
        | {"moe_intermediate_size": 1408, "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8}
        | {"first_k_dense_replace": 1, "norm_topk_prob": True, "num_nextn_predict_layers": 1, "use_qk_norm": False},
        106_852_251_264,  # of 110,468,824,832 with the layer that predicts a second token
    ),
    "seed-oss-36b": Published(
        {"architectures": ["SeedOssForCausalLM"], "hidden_size": 5120, "intermediate_size": 27648, "head_dim": 128}
        | {"num_hidden_layers": 64, "num_attention_heads": 80, "num_key_value_heads": 8, "vocab_size": 155136}
        | {"attention_bias": True, "attention_out_bias": False, "mlp_bias": False, "rope_theta": 10000000.0}
        | {"rope_scaling": {"rope_type": "default"}, "max_position_embeddings": 524288},
        36_151_104_512,
    ),
    "ernie-4.5-0.3b": Published(
        {"architectures": ["Ernie4_5ForCausalLM"], "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128}
        | {"num_hidden_layers": 18, "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 103424}
        | {"tie_word_embeddings": True, "use_bias": False, "rope_theta": 500000.0},
        360_748_032,
    ),
    "ernie-4.5-21b-a3b": Published(
        {"architectures": ["Ernie4_5_MoeForCausalLM"], "hidden_size": 2560, "intermediate_size": 12288}
        | {"num_hidden_layers": 28, "num_attention_heads": 20, "num_key_value_heads": 4, "vocab_size": 103424}
        | {"moe_intermediate_size": 1536, "moe_k": 6, "moe_num_experts": 64, "moe_num_shared_experts": 2}
        | {"moe_layer_start_index": 1, "moe_layer_end_index": 27, "tie_word_embeddings": True, "use_bias": False},
        21_825_437_888,
    ),
    "minimax-m2": Published(
        {"architectures": ["MiniMaxM2ForCausalLM"], "hidden_size": 3072, "intermediate_size": 1536, "head_dim": 128}
        | {"num_hidden_layers": 62, "num_attention_heads": 48, "num_key_value_heads": 8, "vocab_size": 200064}
        | {"num_local_experts": 256, "num_experts_per_tok": 8, "rotary_dim": 64, "rope_theta": 5000000}
        | {"scoring_func": "sigmoid", "use_routing_bias": True, "use_qk_norm": True, "qk_norm_type": "per_layer"},
        228_689_764_864,  # of 228,703,644,928 with the scales of its float8 blocks
    ),
    "hunyuan-a13b": Published(
        {"architectures": ["HunYuanMoEV1ForCausalLM"], "hidden_size": 4096, "intermediate_size": 3072}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128167}
        | {"num_experts": 64, "moe_topk": [8] * 32, "moe_intermediate_size": [3072] * 32, "head_dim": 128}
        | {"num_shared_expert": [1] * 32, "tie_word_embeddings": True, "rope_theta": 10000.0}
        | {"rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"}, "max_position_embeddings": 32768},
        80_393_183_232,
    ),
    "phi-3.5-moe": Published(
        {"architectures": ["PhimoeForCausalLM"], "hidden_size": 4096, "intermediate_size": 6400, "vocab_size": 32064}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 16}
        | {"num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True, "sliding_window": 131072}
        | {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_theta": 10000.0}
        | {
            "rope_scaling": {"type": "longrope", "long_factor": [1.0] * 64, "short_factor": [1.0] * 64}
            | {"long_mscale": 1.243163121016122, "short_mscale": 1.243163121016122}
        },
        41_873_153_344,
    ),
    "granite-3.1-1b-a400m": Published(
        {**GRANITE, "architectures": ["GraniteMoeForCausalLM"], "hidden_size": 1024, "intermediate_size": 512}
        | {"num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 49155}
        | {"num_local_experts": 32, "num_experts_per_tok": 8, "logits_scaling": 6.0, "tie_word_embeddings": True},
        1_334_628_352,
    ),
    "granite-3.1-3b-a800m": Published(
        {**GRANITE, "architectures": ["GraniteMoeForCausalLM"], "hidden_size": 1536, "intermediate_size": 512}
        | {"num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 49155}
        | {"num_local_experts": 40, "num_experts_per_tok": 8, "logits_scaling": 6.0, "tie_word_embeddings": True},
        3_298_793_472,
    ),
    "command-r": Published(
        {**COHERE, "intermediate_size": 22528, "num_hidden_layers": 40, "num_attention_heads": 64}
        | {"num_key_value_heads": 64, "logit_scale": 0.0625, "rope_theta": 8000000.0},
        34_980_831_232,
    ),
    "command-r-plus": Published(
        {**COHERE, "hidden_size": 12288, "intermediate_size": 33792, "num_hidden_layers": 64}
        | {"num_attention_heads": 96, "num_key_value_heads": 8, "use_qk_norm": True, "rope_theta": 75000000.0},
        103_810_674_688,
    ),
    "stablelm-2-1.6b": Published(
        {**STABLELM, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "vocab_size": 100352}
        | {"num_attention_heads": 32, "num_key_value_heads": 32, "use_qkv_bias": True, "tie_word_embeddings": False},
        1_644_515_328,
    ),
    "stablelm-3b-4e1t": Published(
        {**STABLELM, "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 32, "vocab_size": 50304}
        | {"num_attention_heads": 32, "num_key_value_heads": 32, "use_qkv_bias": False, "tie_word_embeddings": False},
        2_795_443_200,
    ),
    "apertus-8b": Published(
        {"architectures": ["ApertusForCausalLM"], "hidden_size": 4096, "intermediate_size": 21504}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 131072}
        | {"hidden_act": "xielu", "qk_norm": True, "post_norm": False, "tie_word_embeddings": False},
        8_053_338_176,
    ),
    "dots.llm1": Published(
        {"architectures": ["Dots1ForCausalLM"], "hidden_size": 4096, "intermediate_size": 10944, "head_dim": 128}
        | {"num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 152064}
        | {"moe_intermediate_size": 1408, "n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6}
        | {"first_k_dense_replace": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "sliding_window": None}
        | {"scoring_func": "noaux_tc", "rope_theta": 10000000, "max_position_embeddings": 32768},
        142_774_381_696,
    ),
    "qwen2.5-vl-3b": Published(
        {**QWEN, "architectures": ["Qwen2_5_VLForConditionalGeneration"], "hidden_size": 2048, "vocab_size": 151936}
        | {"intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2}
        | {"tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 32768, "rope_scaling": MROPE}
        | {"max_position_embeddings": 128000, "vision_config": {"depth": 32, "hidden_size": 1280}},
        3_085_938_688,  # the text part
    ),
    "qwen2.5-vl-7b": Published(
        {**QWEN, "architectures": ["Qwen2_5_VLForConditionalGeneration"], "hidden_size": 3584, "vocab_size": 152064}
        | {"intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
        | {"tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": 32768, "rope_scaling": MROPE}
        | {"max_position_embeddings": 128000, "vision_config": {"depth": 32, "hidden_size": 1280}},
        7_615_616_512,
    ),
    "qwen3-vl-4b": Published(
        {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "tie_word_embeddings": True,
            "text_config": {**QWEN, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
            | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
            | {"rope_theta": 5000000, "rope_scaling": MROPE3, "model_type": "qwen3_vl_text"}
            | {"max_position_embeddings": 262144},
        },
        4_022_468_096,
    ),
    "qwen3-vl-30b-a3b": Published(
        {
            "architectures": ["Qwen3VLMoeForConditionalGeneration"],
            "tie_word_embeddings": False,
            "text_config": {**QWEN, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48}
            | {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936}
            | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True}
            | {"rope_theta": 5000000, "rope_scaling": MROPE3, "model_type": "qwen3_vl_moe_text"}
            | {"max_position_embeddings": 262144},
        },
        30_532_122_624,
    ),
    "kimi-k2.5": Published(
        {"architectures": ["KimiK25ForConditionalGeneration"], "text_config": KIMI, "vision_config": {}},
        1_026_408_232_448,
    ),
}
"""Without what these architectures do not read: layers that predict further tokens, and what sees."""
