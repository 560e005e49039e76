"""Apertus: normed heads, and a feed-forward without a gate whose activation has two learned numbers a layer."""

import jax
import jax.numpy as jnp

from jserve.batch import LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.errors import CheckpointError
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.mlp import MLP
from jserve.layers.norm import RMSNorm
from jserve.layers.source import Tensor
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM, DecoderLayer

BETA, EPS = 0.5, -1e-6
"""Not trained; checkpoints hold them too."""


class ApertusMLP(MLP):
    """xIELU (arXiv:2411.13010): a parabola right of 0, an exponential left of it."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        super().__init__(build, config, names=("up_proj", "down_proj"), bias=False)
        self.alpha_p = build.param(Tensor("act_fn.alpha_p", (1,)), (1,))
        self.alpha_n = build.param(Tensor("act_fn.alpha_n", (1,)), (1,))

    def read_activation(self, config: ModelConfig) -> str:
        if config.hidden_act != "xielu":
            raise CheckpointError(f"hidden_act {config.hidden_act!r} is not supported in Apertus; supported is xielu")
        return config.hidden_act

    def activate(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        right = jax.nn.softplus(self.alpha_p[...].astype(jnp.float32))
        left = BETA + jax.nn.softplus(self.alpha_n[...].astype(jnp.float32))
        curved = jnp.where(wide > 0, right * wide * wide, (jnp.expm1(jnp.minimum(wide, EPS)) - wide) * left)
        return (curved + BETA * wide).astype(x.dtype)


class ApertusDecoderLayer(DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        size, eps, bias = config.hidden_size, config.norm_eps, config.attention_bias
        self.attention_layernorm = RMSNorm(build, size, eps)
        self.self_attn = Attention(build, config, layer, qkv_bias=bias, output_bias=bias, head_norm=RMSNorm)
        self.feedforward_layernorm = RMSNorm(build, size, eps)
        self.mlp = ApertusMLP(build, config)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        attended, kv = self.self_attn(self.attention_layernorm(x), kv, context)
        x = x + attended
        return x + self.mlp(self.feedforward_layernorm(x), context), kv


class ApertusForCausalLM(CausalLM):
    layer_type = ApertusDecoderLayer
    config_defaults = defaults.LLAMA | {
        "vocab_size": 131072,
        "intermediate_size": 14336,
        "hidden_act": "xielu",
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-5,
        "rope_theta": 12_000_000.0,
    }
    rope_defaults = {  # noqa: RUF012
        "rope_type": "llama3",
        "rope_theta": 12_000_000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
