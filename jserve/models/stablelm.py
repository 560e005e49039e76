"""StableLM 2 and 3B: LayerNorm, a quarter of each head rotated; blocks may stand side by side, heads may be normed."""

import jax

from jserve.batch import LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.layers.attention import Attention, NormOfHeads
from jserve.layers.build import Build
from jserve.layers.mlp import GatedMLP
from jserve.layers.norm import EachHeadLayerNorm, LayerNorm
from jserve.layers.source import Stacked
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM, DecoderLayer


class StableLmDecoderLayer(DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        size, eps = config.hidden_size, config.norm_eps
        self.input_layernorm = LayerNorm(build, size, eps)
        norms = _norms(build, config) if config.head_norm else None
        self.self_attn = Attention(build, config, layer, qkv_bias=config.attention_bias, norms=norms)
        self.post_attention_layernorm = None if config.parallel_residual else LayerNorm(build, size, eps)
        self.mlp = GatedMLP(build, config)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        normal = self.input_layernorm(x)
        attended, kv = self.self_attn(normal, kv, context)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x) if self.post_attention_layernorm else normal, context), kv


class StableLmForCausalLM(CausalLM):
    layer_type = StableLmDecoderLayer
    norm_type = LayerNorm
    config_names = {  # noqa: RUF012
        "attention_bias": "use_qkv_bias",
        "head_norm": "qk_layernorm",
        "rms_norm_eps": "layer_norm_eps",
    }
    config_defaults = defaults.LLAMA | {
        "vocab_size": 50304,
        "intermediate_size": 6912,
        "hidden_size": 2560,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
    }


def _norms(build: Build, config: ModelConfig) -> NormOfHeads:
    """One tensor for each head."""

    def norm(side: str, heads: int, copies: int) -> EachHeadLayerNorm:
        tensors = tuple(f"../{side}_layernorm.norms.{head // copies}.weight" for head in range(heads * copies))
        shape = (heads * copies, config.head_dim)
        return EachHeadLayerNorm(build, Stacked(tensors, shape[1:]), shape, config.norm_eps)

    return norm
