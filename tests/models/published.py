"""The `config.json` of published checkpoints, the fields that matter, in the spelling that they have."""

from tests.models import published_newer
from tests.models.published_shape import Published

LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-6}
DEEPSEEK = {
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_layer_freq": 1,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
}
DEEPSEEK_YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096} | {
    "beta_fast": 32,
    "beta_slow": 1,
}
LFM2 = {
    "architectures": ["Lfm2ForCausalLM"],
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "vocab_size": 65536,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "conv_L_cache": 3,
    "conv_bias": False,
    "block_auto_adjust_ff_dim": True,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "tie_embedding": True,
}
GRANITE_4 = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "num_hidden_layers": 40,
    "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
    "vocab_size": 100352,
    "position_embedding_type": "nope",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000,
    "embedding_multiplier": 12,
    "logits_scaling": 8,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
    "mamba_d_state": 128,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "tie_word_embeddings": True,
}
NEMOTRON_H = {
    "architectures": ["NemotronHForCausalLM"],
    "vocab_size": 131072,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "mamba_num_heads": 128,
    "n_groups": 8,
    "ssm_state_size": 128,
    "tie_word_embeddings": False,
}
QWEN_DELTA = {
    "head_dim": 256,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
}
QWEN3_5_ROPE = {"mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default"} | {
    "rope_theta": 10000000,
    "partial_rotary_factor": 0.25,
}
PUBLISHED = {
    "falcon3-7b": Published(
        {**LLAMA, "hidden_size": 3072, "intermediate_size": 23040, "num_hidden_layers": 28, "num_attention_heads": 12}
        | {"num_key_value_heads": 4, "head_dim": 256, "vocab_size": 131072, "max_position_embeddings": 32768}
        | {"rope_theta": 1000042, "rope_scaling": None, "tie_word_embeddings": False},
        7_455_550_464,
    ),
    "deepseek-llm-7b": Published(
        {**LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 30, "num_attention_heads": 32}
        | {"num_key_value_heads": 32, "vocab_size": 102400, "max_position_embeddings": 4096, "rope_theta": 10000.0},
        6_910_365_696,
    ),
    "deepseek-v2-lite": Published(
        {**DEEPSEEK, "architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 2048, "intermediate_size": 10944}
        | {"num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102400}
        | {"first_k_dense_replace": 1, "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2}
        | {"num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "q_lora_rank": None}
        | {"norm_topk_prob": False, "routed_scaling_factor": 1.0, "scoring_func": "softmax"}
        | {"rope_scaling": {**DEEPSEEK_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}},
        15_706_484_224,
    ),
    "deepseek-v3": Published(
        {**DEEPSEEK, "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 7168, "intermediate_size": 18432}
        | {"num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280}
        | {"first_k_dense_replace": 3, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1}
        | {"num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "q_lora_rank": 1536}
        | {"norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid"}
        | {"num_nextn_predict_layers": 1, "rope_scaling": {**DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
        671_026_419_200,  # without the layer that predicts a second token
    ),
    "llama-4-scout": Published(
        {
            "architectures": ["Llama4ForConditionalGeneration"],
            "text_config": {"hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384}
            | {"num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128}
            | {"vocab_size": 202048, "max_position_embeddings": 10485760, "rope_theta": 500000.0}
            | {"num_local_experts": 16, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "use_qk_norm": True}
            | {"attention_chunk_size": 8192, "attn_temperature_tuning": True, "floor_scale": 8192, "attn_scale": 0.1}
            | {"no_rope_layers": [], "hidden_act": "silu", "rms_norm_eps": 1e-05, "tie_word_embeddings": False}
            | {
                "rope_scaling": {"rope_type": "llama3", "factor": 16.0, "original_max_position_embeddings": 8192}
                | {"high_freq_factor": 1.0, "low_freq_factor": 1.0}
            },
        },
        107_769_861_120,  # without the vision part
    ),
    "gemma-2b": Published(
        {"architectures": ["GemmaForCausalLM"], "hidden_size": 2048, "intermediate_size": 16384, "head_dim": 256}
        | {"num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "vocab_size": 256000}
        | {"hidden_act": "gelu", "max_position_embeddings": 8192, "rope_theta": 10000.0},
        2_506_172_416,
    ),
    "gemma-7b": Published(
        {"architectures": ["GemmaForCausalLM"], "hidden_size": 3072, "intermediate_size": 24576, "head_dim": 256}
        | {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 256000}
        | {"hidden_act": "gelu", "max_position_embeddings": 8192, "rope_theta": 10000.0},
        8_537_680_896,
    ),
    "phi-2": Published(
        {"architectures": ["PhiForCausalLM"], "hidden_size": 2560, "intermediate_size": 10240, "vocab_size": 51200}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "partial_rotary_factor": 0.4, "layer_norm_eps": 1e-5}
        | {"hidden_act": "gelu_new", "max_position_embeddings": 2048, "tie_word_embeddings": False},
        2_779_683_840,
    ),
    "phi-1.5": Published(
        {"architectures": ["PhiForCausalLM"], "hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 51200}
        | {"num_hidden_layers": 24, "num_attention_heads": 32, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5}
        | {"hidden_act": "gelu_new", "max_position_embeddings": 2048, "tie_word_embeddings": False},
        1_418_270_720,
    ),
    "gemma-2-2b": Published(
        {"architectures": ["Gemma2ForCausalLM"], "hidden_size": 2304, "intermediate_size": 9216, "head_dim": 256}
        | {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 256000}
        | {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096}
        | {"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
        | {"max_position_embeddings": 8192, "rope_theta": 10000.0, "cache_implementation": "hybrid"},
        2_614_341_888,
    ),
    "gemma-3-1b": Published(
        {"architectures": ["Gemma3ForCausalLM"], "hidden_size": 1152, "intermediate_size": 6912, "head_dim": 256}
        | {"num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 262144}
        | {"hidden_activation": "gelu_pytorch_tanh", "sliding_window": 512, "sliding_window_pattern": 6}
        | {"query_pre_attn_scalar": 256, "attn_logit_softcapping": None, "final_logit_softcapping": None}
        | {"max_position_embeddings": 32768, "rope_theta": 1000000, "rope_local_base_freq": 10000},
        999_885_952,
    ),
    "gemma-3-4b": Published(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "eos_token_id": [1, 106],
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
        },
        3_880_263_168,  # of 4,300,079,472 with the vision tower
    ),
    "phi-3-mini-128k": Published(
        {"architectures": ["Phi3ForCausalLM"], "hidden_size": 3072, "intermediate_size": 8192, "hidden_act": "silu"}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064}
        | {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_theta": 10000.0}
        | {"rope_scaling": {"type": "su", "long_factor": [1.0] * 48, "short_factor": [1.0] * 48}}
        | {"sliding_window": 262144, "tie_word_embeddings": False},
        3_821_079_552,
    ),
    "phi-4-mini": Published(
        {"architectures": ["Phi3ForCausalLM"], "hidden_size": 3072, "intermediate_size": 8192, "hidden_act": "silu"}
        | {"num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 200064}
        | {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_theta": 10000.0}
        | {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 48, "short_factor": [1.0] * 48}}
        | {"partial_rotary_factor": 0.75, "sliding_window": 262144, "tie_word_embeddings": True},
        3_836_021_760,
    ),
    "phi-4": Published(
        {"architectures": ["Phi3ForCausalLM"], "hidden_size": 5120, "intermediate_size": 17920, "hidden_act": "silu"}
        | {"num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 10, "vocab_size": 100352}
        | {"max_position_embeddings": 16384, "original_max_position_embeddings": 16384, "rope_theta": 250000}
        | {"rope_scaling": None, "sliding_window": None, "tie_word_embeddings": False},
        14_659_507_200,
    ),
    "lfm2-350m": Published(
        {**LFM2, "hidden_size": 1024, "block_ff_dim": 6656, "num_attention_heads": 16},
        354_483_968,
    ),
    "lfm2-1.2b": Published(
        {**LFM2, "hidden_size": 2048, "block_ff_dim": 12288, "num_attention_heads": 32},
        1_170_340_608,
    ),
    "lfm2-8b-a1b": Published(
        {**LFM2, "architectures": ["Lfm2MoeForCausalLM"], "hidden_size": 2048, "intermediate_size": 7168}
        | {"num_hidden_layers": 24, "full_attn_idxs": [2, 6, 10, 14, 18, 21], "num_attention_heads": 32}
        | {"moe_intermediate_size": 1792, "num_dense_layers": 2, "num_experts": 32, "num_experts_per_tok": 4},
        8_339_930_560,
    ),
    "granite-4.0-h-micro": Published(
        {**GRANITE_4, "hidden_size": 2048, "intermediate_size": 8192, "shared_intermediate_size": 8192}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "mamba_n_heads": 64, "mamba_d_head": 64}
        | {"num_local_experts": 0, "num_experts_per_tok": 0},
        3_191_396_096,
    ),
    "granite-4.0-h-tiny": Published(
        {**GRANITE_4, "hidden_size": 1536, "intermediate_size": 512, "shared_intermediate_size": 1024}
        | {"num_attention_heads": 12, "num_key_value_heads": 4, "mamba_n_heads": 48, "mamba_d_head": 64}
        | {"num_local_experts": 64, "num_experts_per_tok": 6},
        6_939_037_248,
    ),
    "granite-4.0-h-small": Published(
        {**GRANITE_4, "hidden_size": 4096, "intermediate_size": 768, "shared_intermediate_size": 1536}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "mamba_n_heads": 128, "mamba_d_head": 64}
        | {"num_local_experts": 72, "num_experts_per_tok": 10},
        32_207_337_984,
    ),
    "bamba-9b": Published(
        {"architectures": ["BambaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
        | {"attn_layer_indices": [9, 18, 27], "mamba_n_heads": 128, "mamba_d_head": 64, "mamba_d_state": 128}
        | {"mamba_n_groups": 1, "mamba_expand": 2, "mamba_d_conv": 4, "mamba_conv_bias": True}
        | {"tie_word_embeddings": False, "max_position_embeddings": 262144, "rms_norm_eps": 1e-05},
        9_780_235_392,
    ),
    "falcon-h1-0.5b": Published(
        {"architectures": ["FalconH1ForCausalLM"], "hidden_size": 1024, "intermediate_size": 2048}
        | {"num_hidden_layers": 36, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
        | {"mamba_d_ssm": 1536, "mamba_n_heads": 24, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1}
        | {"vocab_size": 32784, "tie_word_embeddings": False, "max_position_embeddings": 16384},
        521_411_104,
    ),
    "nemotron-nano-9b-v2": Published(
        {**NEMOTRON_H, "hidden_size": 4480, "num_attention_heads": 40, "intermediate_size": 15680}
        | {"mamba_head_dim": 80, "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"},
        8_888_227_328,
    ),
    "nemotron-nano-12b-v2": Published(
        {**NEMOTRON_H, "hidden_size": 5120, "num_attention_heads": 40, "intermediate_size": 20480}
        | {"mamba_head_dim": 80, "hybrid_override_pattern": 6 * "M-M-M-M*-" + "M-M-M-M-"},
        12_310_001_152,
    ),
    "nemotron-h-8b": Published(
        {**NEMOTRON_H, "hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 21504}
        | {"mamba_head_dim": 64, "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"},
        8_100_852_736,
    ),
    "qwen3-next-80b": Published(
        {**QWEN_DELTA, "architectures": ["Qwen3NextForCausalLM"], "hidden_size": 2048, "num_hidden_layers": 48}
        | {"num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936, "intermediate_size": 5120}
        | {"num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512, "norm_topk_prob": True}
        | {"shared_expert_intermediate_size": 512, "decoder_sparse_step": 1, "mlp_only_layers": []}
        | {"linear_num_value_heads": 32, "partial_rotary_factor": 0.25, "rope_theta": 10000000, "rope_scaling": None},
        79_674_391_296,  # without the layer that predicts a second token
    ),
    "qwen3.5-9b": Published(
        {
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "text_config": {**QWEN_DELTA, "model_type": "qwen3_5_text", "hidden_size": 4096, "num_hidden_layers": 32}
            | {"num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 248320, "intermediate_size": 12288}
            | {"linear_num_value_heads": 32, "rope_parameters": QWEN3_5_ROPE},
        },
        8_953_803_264,  # of the text part
    ),
    "qwen3.5-27b": Published(
        {
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "text_config": {**QWEN_DELTA, "model_type": "qwen3_5_text", "hidden_size": 5120, "num_hidden_layers": 64}
            | {"num_attention_heads": 24, "num_key_value_heads": 4, "vocab_size": 248320, "intermediate_size": 17408}
            | {"linear_num_value_heads": 48, "rope_parameters": QWEN3_5_ROPE},
        },
        26_895_998_464,  # of the text part
    ),
    "qwen3.5-35b-a3b": Published(
        {
            "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "text_config": {**QWEN_DELTA, "model_type": "qwen3_5_moe_text", "hidden_size": 2048}
            | {"num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 248320}
            | {"num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 512}
            | {"shared_expert_intermediate_size": 512, "linear_num_value_heads": 32, "rope_parameters": QWEN3_5_ROPE},
        },
        34_660_610_688,  # of the text part
    ),
    "smollm3-3b": Published(
        {"architectures": ["SmolLM3ForCausalLM"], "hidden_size": 2048, "intermediate_size": 11008}
        | {"num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 128256}
        | {"max_position_embeddings": 65536, "no_rope_layers": [1, 1, 1, 0] * 9, "no_rope_layer_interval": 4}
        | {"rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False},
        3_075_098_624,
    ),
    "starcoder2-3b": Published(
        {"architectures": ["Starcoder2ForCausalLM"], "hidden_size": 3072, "intermediate_size": 12288}
        | {"num_hidden_layers": 30, "num_attention_heads": 24, "num_key_value_heads": 2, "vocab_size": 49152}
        | {"hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "norm_type": "layer_norm", "use_bias": True}
        | {"max_position_embeddings": 16384, "rope_theta": 999999.4420358813, "sliding_window": 4096},
        3_030_371_328,
    ),
    "gpt2": Published(
        {"architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
        | {"n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257},
        124_439_808,
    ),
    "pythia-160m": Published(
        {"architectures": ["GPTNeoXForCausalLM"], "hidden_size": 768, "intermediate_size": 3072, "hidden_act": "gelu"}
        | {"num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 50304, "layer_norm_eps": 1e-5}
        | {"max_position_embeddings": 2048, "rotary_emb_base": 10000, "rotary_pct": 0.25}
        | {"tie_word_embeddings": False, "use_parallel_residual": True},
        162_322_944,
    ),
    "olmo-2-7b": Published(
        {"architectures": ["Olmo2ForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008, "hidden_act": "silu"}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100352}
        | {"max_position_embeddings": 4096, "rope_theta": 500000, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
        7_298_617_344,
    ),
    "command-r7b": Published(
        {"architectures": ["Cohere2ForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336, "head_dim": 128}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 256000}
        | {"layer_norm_eps": 1e-05, "logit_scale": 0.25, "max_position_embeddings": 132096, "rope_theta": 50000}
        | {"rotary_pct": 1.0, "sliding_window": 4096, "sliding_window_pattern": 4, "use_parallel_block": True},
        8_028_033_024,
    ),
    "granite-3.1-8b": Published(
        {"architectures": ["GraniteForCausalLM"], "hidden_size": 4096, "intermediate_size": 12800}
        | {"num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 49155}
        | {"attention_multiplier": 0.0078125, "embedding_multiplier": 12.0, "logits_scaling": 16.0}
        | {"residual_multiplier": 0.22, "rope_theta": 10000000.0, "tie_word_embeddings": True}
        | {"max_position_embeddings": 131072, "rms_norm_eps": 1e-05},
        8_170_848_256,
    ),
}

PUBLISHED |= published_newer.PUBLISHED
