"""Granite 3: Llama with multipliers on embedding, scores, residual stream and logits."""

import jax

from jserve.batch import LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.layers.build import Build
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer


class GraniteDecoderLayer(LlamaDecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        super().__init__(build, config, layer)
        self.multiplier = config.residual_multiplier

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        attended, kv = self.self_attn(self.input_layernorm(x), kv, context)
        x = x + attended * self.multiplier
        return x + self.mlp(self.post_attention_layernorm(x), context) * self.multiplier, kv


class GraniteForCausalLM(CausalLM):
    layer_type = GraniteDecoderLayer
    config_defaults = defaults.GRANITE
