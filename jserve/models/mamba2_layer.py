"""The mixer of a layer in families of Mamba-2: attention in some layers, the recurrence in the others."""

import jax

from jserve.batch import CacheArray, LayerKV, SlotArray, StepContext
from jserve.config import ModelConfig
from jserve.layers.attention import Attention, kv_arrays
from jserve.layers.build import Build
from jserve.layers.mamba2 import Mamba2, mamba2_arrays
from jserve.layers.norm import RMSNorm
from jserve.models.causal_lm import DecoderLayer


class Mamba2DecoderLayer(DecoderLayer):
    """Norm and mixer; what follows them is the family's."""

    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        bias = config.attention_bias
        self.input_layernorm = RMSNorm(build, config.hidden_size, config.norm_eps)
        self.has_state = layer in config.state_layers
        if self.has_state:
            self.mamba = Mamba2(build, config)
        else:
            self.self_attn = Attention(build, config, layer, qkv_bias=bias, output_bias=bias)

    @classmethod
    def cache(cls, build: Build, config: ModelConfig, layer: int) -> tuple[CacheArray | SlotArray, ...]:
        return mamba2_arrays(build, config) if layer in config.state_layers else kv_arrays(build, config)

    def mix(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        """x: [T, E] to what is added to it, [T, E], and the layer's cache after the step's tokens."""
        mixer = self.mamba if self.has_state else self.self_attn
        return mixer(self.input_layernorm(x), kv, context)
