"""Writes tiny transformers models of every family as GGUF files, as llama.cpp's converter would.

Names of tensors come from the `gguf` package, keys from its writer; the changes to tensors are those of the converter's
`modify_tensors`.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.checkpoint.gguf.maker import permute

ROTATED = {"arcee", "llama", "granite", "granitemoe", "mistral3", "smollm3"}
GROUPED = {"dots1", "exaone-moe", "glm4moe"}
"""What has DeepSeek-V3's mixture beside attention of its own."""
BLOCK = "model.layers.{}.mlp.experts.{}_proj.weight"
MIXTRAL = {"w1": "gate", "w2": "down", "w3": "up"}


def write_family(
    path: Path,
    folder: Path,
    architecture: str,
    *,
    old: bool = False,
    packed: dict[str, np.ndarray] | None = None,
    further: dict[str, np.ndarray] | None = None,
) -> Path:
    """The model in `folder` as one file, in float32; `packed` are tensors in MXFP4 in place of its own.

    `further` are tensors of one more layer, which predicts a second token. `old`: as files were before DeepSeek's keys
    and values of latents lay apart.
    """
    packed = packed or {}
    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    writer = gguf.GGUFWriter(str(path), architecture)
    _write_keys(writer, architecture, config, 0 if further is None else 1)
    if architecture == "deepseek2":
        _write_latent_keys(writer, config, old=old)
    if architecture in GROUPED:
        _write_group_keys(writer, config)
    if architecture == "gemma4":
        _write_gemma4_keys(writer, config)
    if architecture == "mistral3":
        writer.add_attn_temperature_scale(config["rope_parameters"]["llama_4_scaling_beta"])
        writer.add_rope_scaling_yarn_log_mul(config["rope_parameters"]["mscale_all_dim"])
    if architecture == "ernie4_5-moe":
        writer.add_leading_dense_block_count(config["moe_layer_start_index"])
        writer.add_interleave_moe_layer_step(config["moe_layer_interval"])
        writer.add_expert_shared_count(config["moe_num_shared_experts"])
    if architecture in ("hunyuan-moe", "minimax-m2"):
        writer.add_expert_feed_forward_length(config["intermediate_size"])
    if architecture == "llama4":
        writer.add_expert_feed_forward_length(config["intermediate_size"])
        writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])
    names = gguf.get_tensor_name_map(_architecture(architecture), _get(config, "num_hidden_layers", "n_layer"))
    for name, values in _tensors(architecture, config, state, old=old).items():
        known = _scale(name) or names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, f"{name} has no name in GGUF files"
        if known not in packed:
            writer.add_tensor(known, np.ascontiguousarray(values.squeeze(), np.float32))
    for name, values in (further or {}).items():
        writer.add_tensor(name, values.astype(np.float32))
    for name, blocks in packed.items():
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
    _write_factors(writer, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _scale(name: str) -> str | None:
    """Where Gemma 4's router has its scales, of its input and of each expert."""
    for part, place in (("router.scale", "ffn_gate_inp"), ("router.per_expert_scale", "ffn_down_exps")):
        if name.endswith(part):
            return f"blk.{name.split('.')[2]}.{place}.scale"
    return None


def _architecture(name: str) -> gguf.MODEL_ARCH:
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


def _get(config: dict[str, Any], *names: str, default: Any = None) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), default)


def _write_keys(writer: gguf.GGUFWriter, architecture: str, config: dict[str, Any], further: int) -> None:
    hidden, heads = _get(config, "hidden_size", "n_embd"), _get(config, "num_attention_heads", "n_head")
    head_dim = config.get("head_dim") or hidden // heads
    writer.add_context_length(_get(config, "max_position_embeddings", "n_positions"))
    writer.add_embedding_length(hidden)
    writer.add_block_count(_get(config, "num_hidden_layers", "n_layer") + further)
    if further:
        writer.add_nextn_predict_layers(further)
    by_layer = architecture == "gemma4"
    inner = {"gpt2": "n_inner", "llama4": "intermediate_size_mlp"}.get(architecture, "intermediate_size")
    if not by_layer:
        writer.add_feed_forward_length(_get(config, inner, default=4 * hidden))
    writer.add_head_count(heads)
    if config.get("num_key_value_heads") and architecture not in ("gpt2", "gptneox", "gemma4"):
        writer.add_head_count_kv(config["num_key_value_heads"])
    if head_dim != hidden // heads and architecture not in ("deepseek2", "gemma4"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    eps = _get(config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
    if eps is not None:
        writer.add_layer_norm_eps(eps)
    else:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _write_rope(writer, architecture, config, head_dim)
    for name, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
        ("sliding_window", writer.add_sliding_window),
        ("attention_multiplier", writer.add_attention_scale),
        ("embedding_multiplier", writer.add_embedding_scale),
        ("residual_multiplier", writer.add_residual_scale),
        ("logits_scaling", writer.add_logit_scale),
        ("logit_scale", writer.add_logit_scale),
        ("num_experts_per_tok", writer.add_expert_used_count),
        ("moe_topk", writer.add_expert_used_count),
        ("moe_k", writer.add_expert_used_count),
        ("moe_intermediate_size", writer.add_expert_feed_forward_length),
        ("shared_expert_intermediate_size", writer.add_expert_shared_feed_forward_length),
        ("use_parallel_residual", writer.add_parallel_residual),
    ):
        if config.get(name) is not None and not (
            name == "sliding_window" and config.get("use_sliding_window") is False
        ):
            add(config[name])
    if experts := _get(config, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"):
        writer.add_expert_count(experts)


def _write_latent_keys(writer: gguf.GGUFWriter, config: dict[str, Any], *, old: bool) -> None:
    """`DeepseekV2Model.set_gguf_parameters`, and what all models of groups have."""
    rank, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
    key, value = config["qk_nope_head_dim"] + rotated, config["v_head_dim"]
    writer.add_kv_lora_rank(rank)
    if config.get("q_lora_rank"):
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_key_length(key if old else rank + rotated)
    writer.add_value_length(value if old else rank)
    if not old:
        writer.add_key_length_mla(key)
        writer.add_value_length_mla(value)
    _write_group_keys(writer, config)


def _write_gemma4_keys(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """`Gemma4Model.set_gguf_parameters` and `generate_extra_tensors`, beyond what all have."""
    windowed = [kind == "sliding_attention" for kind in config["layer_types"]]
    full = config["per_layer_config"][str(windowed.index(False))]
    shared, inner, layers = config["num_kv_shared_layers"], config["intermediate_size"], config["num_hidden_layers"]
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    writer.add_sliding_window_pattern(windowed)
    writer.add_key_length(full["head_dim"])
    writer.add_value_length(full["head_dim"])
    writer.add_key_length_swa(config["head_dim"])
    writer.add_value_length_swa(config["head_dim"])
    wide = 2 if config["use_double_wide_mlp"] else 1
    writer.add_feed_forward_length([inner if layer < layers - shared else wide * inner for layer in range(layers)])
    if "num_key_value_heads" in full:
        of_windows, of_full = config["num_key_value_heads"], full["num_key_value_heads"]
        writer.add_head_count_kv([of_windows if has else of_full for has in windowed])
    else:
        writer.add_head_count_kv(config["num_key_value_heads"])
    if config["enable_moe_block"]:
        writer.add_expert_used_count(config["top_k_experts"])
    writer.add_rope_freq_base_swa(config["rope_parameters"]["sliding_attention"]["rope_theta"])
    whole = config["rope_parameters"]["full_attention"]
    turning = int(full["head_dim"] * whole["partial_rotary_factor"] / 2)
    factors = [1.0] * turning + [1e30] * (full["head_dim"] // 2 - turning)
    writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))


def _write_group_keys(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_leading_dense_block_count(config.get("first_k_dense_replace", 0))
    writer.add_expert_shared_count(_get(config, "n_shared_experts", "num_shared_experts", default=0))
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    if config.get("norm_topk_prob"):
        writer.add_expert_weights_norm(True)
    if config.get("n_group"):
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    if config["architectures"] != ["DeepseekV2ForCausalLM"]:
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if scale := (config.get("rope_parameters") or {}).get("mscale_all_dim"):
        writer.add_rope_scaling_yarn_log_mul(0.1 * scale)


def _write_rope(writer: gguf.GGUFWriter, architecture: str, config: dict[str, Any], head_dim: int) -> None:
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    if "rope_theta" in rope:
        dim = config.get("head_dim") or 1
        stretch = rope["alpha"] ** (dim / (dim - 2)) if "alpha" in rope else 1.0  # `HunYuanModel.set_gguf_parameters`
        writer.add_rope_freq_base(rope["rope_theta"] * stretch)
    if architecture == "deepseek2":
        head_dim = config["qk_rope_head_dim"]
    if architecture == "gemma4":
        writer.add_rope_dimension_count(config["per_layer_config"][str(config["num_hidden_layers"] - 1)]["head_dim"])
        return
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if config.get("rotary_dim"):
        partial = config["rotary_dim"] / head_dim
    writer.add_rope_dimension_count(int(head_dim * partial))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "beta_fast" in rope:
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    if rope.get("rope_type") == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _write_factors(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        for kind in ("long", "short"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))


def _tensors(
    architecture: str, config: dict[str, Any], state: dict[str, np.ndarray], *, old: bool
) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    heads: dict[str, dict[int, np.ndarray]] = {}
    for name, values in state.items():
        if architecture == "gpt-oss":
            tensors |= _of_gpt_oss(name, values)
            continue
        if architecture == "llama4":
            tensors |= _of_llama4(name, values)
            continue
        if architecture == "gemma4" and name.endswith((".gate_up_proj", ".down_proj", "layer_scalar")):
            tensors[f"{name}.weight"] = values
            continue
        if name.endswith(".kv_b_proj.weight") and not old:
            tensors |= _of_latents(config, name, values)
            continue
        if ".experts." in name:
            head, _, tail = name.partition(".experts.")
            number, part, _ = tail.split(".")
            part = MIXTRAL.get(part, part.removesuffix("_proj"))
            experts.setdefault(BLOCK.format(head.split(".")[2], part), {})[int(number)] = values
            continue
        if architecture == "granitemoe" and "block_sparse_moe.input_linear" in name:
            gate, up = np.split(values, 2, axis=1)
            layer = name.split(".")[2]
            tensors |= {BLOCK.format(layer, part): half for part, half in (("gate", gate), ("up", up))}
            continue
        if architecture == "granitemoe" and "block_sparse_moe.output_linear" in name:
            tensors[BLOCK.format(name.split(".")[2], "down")] = values
            continue
        if "_layernorm.norms." in name:
            stem, _, head = name.removesuffix(".weight").partition(".norms.")
            heads.setdefault(f"{stem}.weight", {})[int(head)] = values
            continue
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        tensors[name] = _changed(architecture, config, name, values)
    stacked = {name: np.stack([of[number] for number in sorted(of)]) for name, of in (experts | heads).items()}
    return tensors | stacked


def _of_gpt_oss(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """`GptOssModel.modify_tensors`."""
    if name.endswith(".sinks"):
        return {f"{name}.weight": values}
    if ".mlp.experts." not in name:
        return {name: values}
    stem, suffix = (name.removesuffix("_bias"), "bias") if name.endswith("_bias") else (name, "weight")
    rows = values if suffix == "bias" else values.swapaxes(1, 2)
    if "gate_up_proj" not in name:
        return {f"{stem}.{suffix}": rows}
    halves = {"gate_proj": rows[:, ::2], "up_proj": rows[:, 1::2]}
    return {f"{stem.replace('gate_up_proj', half)}.{suffix}": part for half, part in halves.items()}


def _of_llama4(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """`Llama4Model.modify_tensors`."""
    if name.endswith(".gate_up_proj"):
        gate, up = np.split(values.swapaxes(1, 2), 2, axis=1)
        return {
            name.replace("gate_up_proj", f"{part}_proj.weight"): half for part, half in (("gate", gate), ("up", up))
        }
    return {f"{name}.weight": values.swapaxes(1, 2)} if name.endswith(".experts.down_proj") else {name: values}


def _of_latents(config: dict[str, Any], name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """`DeepseekV2Model.modify_tensors`."""
    heads, keys = config["num_attention_heads"], config["qk_nope_head_dim"]
    of_heads = values.reshape(heads, keys + config["v_head_dim"], -1)
    return {
        name.replace("kv_b_proj", "k_b_proj"): of_heads[:, :keys].swapaxes(1, 2),
        name.replace("kv_b_proj", "v_b_proj"): of_heads[:, keys:],
    }


def _changed(architecture: str, config: dict[str, Any], name: str, values: np.ndarray) -> np.ndarray:
    if architecture in ROTATED and (".q_proj." in name or ".k_proj." in name):
        heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
        return permute(values, heads)
    if architecture in ("gemma", "gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return values + 1
    if architecture == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return values.T
    if architecture == "gptneox" and ".query_key_value." in name:
        heads, width = config["num_attention_heads"], config["hidden_size"]
        parts = values.reshape(heads, 3, width // heads, *values.shape[1:])
        return np.concatenate([parts[:, part].reshape(width, *values.shape[1:]) for part in range(3)])
    return values
