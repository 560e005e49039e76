"""GPT-NeoX and Pythia: attention and feed-forward side by side, each head's query, key and value in one tensor."""

from typing import ClassVar

import jax
from flax import nnx

from jserve.batch import LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.layers.attention import Attention, Projections
from jserve.layers.build import Build
from jserve.layers.linear import Embedding
from jserve.layers.mlp import MLP
from jserve.layers.norm import LayerNorm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM, DecoderLayer, token_table

PROJECTIONS = Projections(fused="query_key_value", by_head=True, output="dense")


class GPTNeoXLayer(DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        size, eps, bias = config.hidden_size, config.norm_eps, config.attention_bias
        self.input_layernorm = LayerNorm(build, size, eps)
        self.attention = Attention(build, config, layer, qkv_bias=bias, output_bias=bias, projections=PROJECTIONS)
        self.post_attention_layernorm = LayerNorm(build, size, eps)
        self.mlp = MLP(build, config, names=("dense_h_to_4h", "dense_4h_to_h"), bias=True)
        self.is_parallel = config.parallel_residual

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        attended, kv = self.attention(self.input_layernorm(x), kv, context)
        between = x if self.is_parallel else x + attended
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(between), context), kv


class GPTNeoXModel(nnx.Module):
    """Named `gpt_neox` in checkpoints."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.embed_in = token_table(build, config)
        self.layers = nnx.List([GPTNeoXLayer(build, config, layer) for layer in range(config.num_layers)])
        self.final_layer_norm = LayerNorm(build, config.hidden_size, config.norm_eps)


class GPTNeoXForCausalLM(CausalLM):
    layer_type = GPTNeoXLayer
    config_defaults = defaults.GPT_NEOX
    config_names: ClassVar = {
        "partial_rotary_factor": "rotary_pct",
        "rms_norm_eps": "layer_norm_eps",
        "rope_theta": "rotary_emb_base",
    }

    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.gpt_neox = GPTNeoXModel(build, config)
        self.embed_out = None if config.tie_word_embeddings else token_table(build, config)
        self.config = config

    @property
    def layers(self) -> list[DecoderLayer]:
        return list(self.gpt_neox.layers)

    def embed(self, token_ids: jax.Array, positions: jax.Array) -> jax.Array:
        return self.gpt_neox.embed_in(token_ids)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return self.gpt_neox.final_layer_norm(x)

    @property
    def head(self) -> Embedding:
        return self.gpt_neox.embed_in if self.embed_out is None else self.embed_out
