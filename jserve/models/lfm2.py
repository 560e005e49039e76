"""LFM2: gated short convolutions, and attention in some layers; one of its sizes has experts."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jax

from jserve.batch import CacheArray, LayerKV, SlotArray, StepContext
from jserve.config import ModelConfig
from jserve.config.deepseek import GroupRouting
from jserve.config.fields import Fields
from jserve.config.hybrid import ShortConvConfig
from jserve.layers.attention import Attention, Projections, kv_arrays
from jserve.layers.build import Build
from jserve.layers.grouped_router import GroupedMixture
from jserve.layers.mlp import GatedMLP
from jserve.layers.moe import ExpertNames
from jserve.layers.norm import RMSNorm
from jserve.layers.short_conv import ShortConv, short_conv_arrays
from jserve.models.causal_lm import CausalLM, DecoderLayer
from jserve.models.hybrid import read_layers

LFM2: dict[str, Any] = {
    "vocab_size": 65536,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128_000,
    "norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
}
LFM2_MOE = LFM2 | {
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "use_expert_bias": True,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
}

NAMES = ("w1", "w3", "w2")
"""Gate, up and down."""
PROJECTIONS = Projections(output="out_proj", q_norm="q_layernorm", k_norm="k_layernorm")


class Lfm2DecoderLayer(DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        self.operator_norm = RMSNorm(build, config.hidden_size, config.norm_eps)
        self.has_state = layer in config.state_layers
        if self.has_state:
            self.conv = ShortConv(build, config)
        else:
            self.self_attn = Attention(build, config, layer, head_norm=RMSNorm, projections=PROJECTIONS)
        self.ffn_norm = RMSNorm(build, config.hidden_size, config.norm_eps)
        self.feed_forward = self.make_feed_forward(build, config, layer)

    def make_feed_forward(self, build: Build, config: ModelConfig, layer: int) -> GatedMLP | GroupedMixture:
        """The mixtures of the family differ here."""
        del layer
        return GatedMLP(build, config, names=NAMES)

    @classmethod
    def cache(cls, build: Build, config: ModelConfig, layer: int) -> tuple[CacheArray | SlotArray, ...]:
        return short_conv_arrays(build, config) if layer in config.state_layers else kv_arrays(build, config)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        mixer = self.conv if self.has_state else self.self_attn
        mixed, kv = mixer(self.operator_norm(x), kv, context)
        x = x + mixed
        return x + self.feed_forward(self.ffn_norm(x), context), kv


class EmbeddingNorm(RMSNorm):
    """Named so though it is the last norm."""

    def __init__(self, build: Build, size: int, eps: float) -> None:
        super().__init__(build, size, eps, "../embedding_norm.weight")


class Lfm2ForCausalLM(CausalLM):
    layer_type = Lfm2DecoderLayer
    norm_type = EmbeddingNorm
    config_defaults = LFM2
    config_names: ClassVar = {
        "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_embedding",
        "intermediate_size": "block_ff_dim",
    }

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        raw, states = read_layers(raw, "conv", cls._attention_layers(fields), source=source)
        config = super().read_config(raw, source=source)
        conv = ShortConvConfig(fields.integer("conv_L_cache"), fields.boolean("conv_bias", default=False))
        config = replace(config, mixer=conv, state_layers=states)
        return cls.with_feed_forward(config, fields)

    @classmethod
    def with_feed_forward(cls, config: ModelConfig, fields: Fields) -> ModelConfig:
        """What the family's file says of the blocks behind each mixer."""
        return replace(config, intermediate_size=_inner_size(fields, config.intermediate_size))

    @classmethod
    def _attention_layers(cls, fields: Fields) -> set[int]:
        """Where `layer_types` does not say it; all of them where `full_attn_idxs` does not either."""
        if fields.get("full_attn_idxs") is None:
            return set(range(fields.integer("num_hidden_layers")))
        return fields.integers("full_attn_idxs")


class Lfm2Mixture(GroupedMixture):
    names = ExpertNames(*NAMES, folder="feed_forward")
    correction = "../expert_bias"


class Lfm2MoeDecoderLayer(Lfm2DecoderLayer):
    def make_feed_forward(self, build: Build, config: ModelConfig, layer: int) -> GatedMLP | GroupedMixture:
        assert config.mixture is not None
        if layer in config.mixture.dense_layers:
            return super().make_feed_forward(build, config, layer)
        return Lfm2Mixture(build, config)


class Lfm2MoeForCausalLM(Lfm2ForCausalLM):
    layer_type = Lfm2MoeDecoderLayer
    config_defaults = LFM2_MOE

    @classmethod
    def with_feed_forward(cls, config: ModelConfig, fields: Fields) -> ModelConfig:
        assert config.mixture is not None
        scale = fields.number("routed_scaling_factor", default=1.0)
        routing = GroupRouting("sigmoid", corrected=fields.boolean("use_expert_bias", default=True), scale=scale)
        dense = frozenset(range(fields.optional_integer("num_dense_layers") or 0))
        return replace(config, mixture=replace(config.mixture, routing=routing, dense_layers=dense))


def _inner_size(fields: Fields, size: int) -> int:
    """F, two thirds of what the file says where it leaves that to the model."""
    if not fields.boolean("block_auto_adjust_ff_dim", default=True):
        return size
    size = int(fields.number("block_ffn_dim_multiplier", default=1.0) * int(2 * size / 3))
    unit = fields.integer("block_multiple_of", default=256)
    return -(-size // unit) * unit
