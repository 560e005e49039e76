"""Qwen3-Next and Qwen3.5: the gated delta rule in three of four layers, gated attention in the fourth."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jax

from jserve.batch import CacheArray, LayerKV, SlotArray, StepContext
from jserve.config import MOST_LAYERS, ModelConfig
from jserve.config.fields import Fields
from jserve.config.hybrid import GatedDeltaConfig
from jserve.layers.attention import Attention, kv_arrays
from jserve.layers.build import Build
from jserve.layers.gated_delta import GatedDelta, gated_delta_arrays
from jserve.layers.mlp import GatedMLP
from jserve.layers.moe import MixtureOfExperts
from jserve.layers.norm import OffsetRMSNorm
from jserve.models.causal_lm import CausalLM, DecoderLayer
from jserve.models.hybrid import read_layers

QWEN3_NEXT: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "tie_word_embeddings": False,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "norm_topk_prob": True,
}
_EXPERTS = (
    *("num_experts", "num_experts_per_tok", "moe_intermediate_size"),
    *("shared_expert_intermediate_size", "norm_topk_prob"),
)
QWEN3_5: dict[str, Any] = {key: value for key, value in QWEN3_NEXT.items() if key not in _EXPERTS} | {
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_key_value_heads": 4,
}
QWEN3_5_MOE = QWEN3_NEXT | {
    "vocab_size": 248320,
    "num_hidden_layers": 40,
    "num_experts": 256,
    "num_experts_per_tok": 8,
}

SECTIONS = ("mrope_section", "mrope_interleaved")
"""Which numbers of a head are rotated by which coordinate of an image. A token of a text has one position in all."""


class Qwen3NextDecoderLayer(DecoderLayer):
    apart: ClassVar[bool] = False
    """See `GatedDelta`."""

    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        mixture, bias = config.mixture, config.attention_bias
        self.input_layernorm = OffsetRMSNorm(build, config.hidden_size, config.norm_eps)
        self.has_state = layer in config.state_layers
        if self.has_state:
            self.linear_attn = GatedDelta(build, config, apart=self.apart)
        else:
            kinds: dict[str, Any] = {"qkv_bias": bias, "output_bias": bias, "head_norm": OffsetRMSNorm}
            self.self_attn = Attention(build, config, layer, **kinds, output_gate=True)
        self.post_attention_layernorm = OffsetRMSNorm(build, config.hidden_size, config.norm_eps)
        is_dense = mixture is None or layer in mixture.dense_layers
        self.mlp = GatedMLP(build, config) if is_dense else MixtureOfExperts(build, config, shared_gate=True)

    @classmethod
    def cache(cls, build: Build, config: ModelConfig, layer: int) -> tuple[CacheArray | SlotArray, ...]:
        return gated_delta_arrays(build, config) if layer in config.state_layers else kv_arrays(build, config)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        mixer = self.linear_attn if self.has_state else self.self_attn
        mixed, kv = mixer(self.input_layernorm(x), kv, context)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x), context), kv


class Qwen35DecoderLayer(Qwen3NextDecoderLayer):
    apart = True


class Qwen3NextForCausalLM(CausalLM):
    layer_type: ClassVar[type[DecoderLayer]] = Qwen3NextDecoderLayer
    norm_type = OffsetRMSNorm
    config_defaults = QWEN3_NEXT

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        layers = fields.integer("num_hidden_layers", most=MOST_LAYERS)
        every = fields.integer("full_attention_interval", default=4)
        attention = {layer for layer in range(layers) if not (layer + 1) % every}
        raw, states = read_layers(raw, "linear_attention", attention, source=source)
        for name in ("rope_parameters", "rope_scaling"):
            rope = fields.dictionary(name)
            if rope:
                raw[name] = {key: value for key, value in rope.items() if key not in SECTIONS}
        config = super().read_config(raw, source=source)
        return replace(config, mixer=_delta(fields), state_layers=states)


class Qwen35ForCausalLM(Qwen3NextForCausalLM):
    layer_type = Qwen35DecoderLayer
    config_defaults = QWEN3_5


class Qwen35MoeForCausalLM(Qwen3NextForCausalLM):
    layer_type = Qwen35DecoderLayer
    config_defaults = QWEN3_5_MOE


def _delta(fields: Fields) -> GatedDeltaConfig:
    delta = GatedDeltaConfig(
        key_heads=fields.integer("linear_num_key_heads"),
        value_heads=fields.integer("linear_num_value_heads"),
        key_dim=fields.integer("linear_key_head_dim"),
        value_dim=fields.integer("linear_value_head_dim"),
        conv_width=fields.integer("linear_conv_kernel_dim"),
    )
    if delta.value_heads % delta.key_heads:
        raise fields.unlike("linear_num_value_heads", f"a multiple of linear_num_key_heads, {delta.key_heads}")
    return delta
