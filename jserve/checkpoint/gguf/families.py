"""Which tensors files of each `general.architecture` have, under llama.cpp's names and Hugging Face's.

What a family's configuration has beyond the common keys stands in `gguf_family_config`. Sources: `MODEL_TENSORS` of the
`gguf` package, and the classes of llama.cpp's converter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from jserve.checkpoint.gguf.joined import Join, join_experts, join_latent
from jserve.checkpoint.gguf.views import (
    AsStored,
    HeadsTogether,
    OneExpert,
    OneLess,
    OneRow,
    RotatedInPairs,
    SomeHeads,
    Transposed,
    View,
)

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"} | {"attn_output": "self_attn.o_proj"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GATED = {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
LLAMA_LAYER = {**_ATTENTION, **_GATED, **_NORMS}
_NORMS_AROUND = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GEMMA3_LAYER = {**_ATTENTION, **_GATED, **_HEAD_NORMS, **_NORMS_AROUND}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    **{f"ffn_{part}_exps": f"mlp.experts.*.{part}_proj" for part in ("gate", "up", "down")},
}
ViewOfHeads = Callable[[int, int], View]
"""Made for a model with so many heads of queries, and of keys."""
_ROTATED: Mapping[str, ViewOfHeads] = {
    "attn_q": lambda heads, kv_heads: RotatedInPairs(heads),
    "attn_k": lambda heads, kv_heads: RotatedInPairs(kv_heads),
}
_SHARED_EXPERTS = {f"ffn_{part}_shexp": f"mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")}
_LATENT = {
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{part}_b": f"self_attn.{part}_b_proj" for part in ("k", "v", "kv")},
}
_GPT_OSS = {
    **_ATTENTION,
    **_NORMS,
    "attn_out": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
    **{f"ffn_{part}_exps": f"mlp.experts.{part}_proj" for part in ("gate", "up", "gate_up", "down")},
}
"""Both of llama.cpp's names and Ollama's, which has `ffn_norm`, `attn_out` and in its first files `attn_qkv`."""
_MIXTRAL_EXPERTS = {"gate": "w1", "down": "w2", "up": "w3"}


@dataclass(frozen=True, slots=True)
class Family:
    """Tensors of a layer and of the top, by the names of files. "*" stands for each expert in a tensor of all."""

    architecture: str
    layer: Mapping[str, str]
    top: Mapping[str, str] = field(default_factory=lambda: _TOP)
    layers: str = "model.layers"
    views: Mapping[str, ViewOfHeads] = field(default_factory=dict)
    """How tensors are read that have another form than Hugging Face's, by their name in a file."""
    offset_norms: bool = False
    """Whether Hugging Face adds 1 to the weight of each norm."""
    whole: Mapping[str, str] = field(default_factory=dict)
    """Parameters of a layer that Hugging Face names without ".weight" or ".bias"."""
    fused_heads: bool = False
    """Whether `attn_qkv` stands for projections that are three tensors."""
    latent: bool = False
    """Whether attention has latents, so that keys and values differ in size."""
    join: Join = dict
    """What makes Hugging Face's tensors of those of a file where one is kept in several."""

    def view(self, part: str, suffix: str, heads: int, kv_heads: int) -> View:
        """How the tensor `part` of a file is read."""
        if self.offset_norms and part.endswith("norm"):
            return OneLess()
        view = self.views[part](heads, kv_heads) if part in self.views else AsStored()
        # A bias has one axis, whatever the form of its weight.
        return AsStored() if suffix == "bias" and isinstance(view, Transposed) else view


FAMILIES = {
    "llama": Family("LlamaForCausalLM", LLAMA_LAYER, views=_ROTATED),
    "llama4": Family(
        "Llama4ForCausalLM",
        {
            **_ATTENTION,
            **_NORMS,
            "ffn_gate_inp": "feed_forward.router",
            **{f"ffn_{part}": f"feed_forward.{part}_proj" for part in ("gate", "up", "down")},
            **{f"ffn_{part}_exps": f"feed_forward.experts.*.{part}_proj" for part in ("gate", "up", "down")},
            **{f"ffn_{part}_shexp": f"feed_forward.shared_expert.{part}_proj" for part in ("gate", "up", "down")},
        },
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        {
            **_ATTENTION,
            **_NORMS,
            "ffn_gate_inp": "block_sparse_moe.gate",
            **{f"ffn_{part}_exps": f"block_sparse_moe.experts.*.{name}" for part, name in _MIXTRAL_EXPERTS.items()},
        },
        views=_ROTATED,
    ),
    "qwen2": Family("Qwen2ForCausalLM", LLAMA_LAYER),
    "qwen2moe": Family(
        "Qwen2MoeForCausalLM",
        {
            **LLAMA_LAYER,
            **_EXPERTS,
            "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
            **{f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")},
        },
        views={"ffn_gate_inp_shexp": lambda heads, kv_heads: OneRow()},
    ),
    "qwen3": Family("Qwen3ForCausalLM", {**LLAMA_LAYER, **_HEAD_NORMS}),
    "qwen3moe": Family("Qwen3MoeForCausalLM", {**LLAMA_LAYER, **_HEAD_NORMS, **_EXPERTS}),
    "olmoe": Family("OlmoeForCausalLM", {**LLAMA_LAYER, **_HEAD_NORMS, **_EXPERTS}),
    "olmo2": Family("Olmo2ForCausalLM", {**_ATTENTION, **_GATED, **_HEAD_NORMS, **_NORMS_AROUND}),
    "gemma2": Family("Gemma2ForCausalLM", {**_ATTENTION, **_GATED, **_NORMS_AROUND}, offset_norms=True),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        GEMMA3_LAYER,
        top={**_TOP, "dense.0": "dense.0.linear", "dense.1": "dense.1.linear"},
        offset_norms=True,
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        {
            **_NORMS,
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
    **dict.fromkeys(
        ("gpt-oss", "gptoss"),
        Family(
            "GptOssForCausalLM",
            _GPT_OSS,
            whole={"attn_sinks": "self_attn.sinks"},
            fused_heads=True,
            join=join_experts,
        ),
    ),
    "deepseek2": Family(
        "DeepseekV2ForCausalLM",
        {**_LATENT, **_GATED, **_NORMS, **_EXPERTS, **_SHARED_EXPERTS},
        whole={"exp_probs_b": "mlp.gate.e_score_correction_bias"},
        latent=True,
        join=join_latent,
    ),
    "granite": Family("GraniteForCausalLM", LLAMA_LAYER, views=_ROTATED),
    "smollm3": Family("SmolLM3ForCausalLM", LLAMA_LAYER, views=_ROTATED),
    "starcoder2": Family(
        "Starcoder2ForCausalLM", {**_ATTENTION, **_NORMS, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
    ),
    "cohere2": Family("Cohere2ForCausalLM", {**_ATTENTION, **_GATED, "attn_norm": "input_layernorm"}),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        top={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        layers="transformer.h",
        views=dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), lambda heads, kv_heads: Transposed()),
    ),
    "gptneox": Family(
        "GPTNeoXForCausalLM",
        {
            **_NORMS,
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        top={
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        layers="gpt_neox.layers",
        views={"attn_qkv": lambda heads, kv_heads: HeadsTogether(heads)},
    ),
}
"""By `general.architecture`; "mixtral" is "llama" with experts, which is how files have it, "gptoss" is Ollama's."""

_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+?)(?:\.(weight|bias))?")
_TOP_NAME = re.compile(r"([\w.]+?)\.(weight|bias)")


def huggingface_tensors(
    family: Family, name: str, shape: tuple[int, ...], *, heads: int, kv_heads: int
) -> Iterator[tuple[str, View]]:
    """The tensors of Hugging Face that one of a file stands for, and how each is read; none where it is unknown."""
    if match := _LAYER_NAME.fullmatch(name):
        layer, part, suffix = match.groups()
        prefix = f"{family.layers}.{int(layer)}."
        if part in family.whole:
            yield f"{prefix}{family.whole[part]}", AsStored()
            return
        if part == "attn_qkv" and family.fused_heads and suffix:
            yield from _projections(prefix, suffix, heads, kv_heads)
            return
        stem = family.layer.get(part) if suffix else None
    elif match := _TOP_NAME.fullmatch(name):
        (part, suffix), prefix = match.groups(), ""
        stem = family.top.get(part)
    else:
        return
    if stem is None:
        return
    if "*" in stem:
        for number in range(shape[0]):
            yield f"{prefix}{stem.replace('*', str(number))}.{suffix}", OneExpert(number)
        return
    yield f"{prefix}{stem}.{suffix}", family.view(part, suffix, heads, kv_heads)


def _projections(prefix: str, suffix: str, heads: int, kv_heads: int) -> Iterator[tuple[str, View]]:
    """All queries, then all keys, then all values."""
    first, total = 0, heads + 2 * kv_heads
    for part, count in zip("qkv", (heads, kv_heads, kv_heads), strict=True):
        yield f"{prefix}self_attn.{part}_proj.{suffix}", SomeHeads(total, first, count)
        first += count
