"""GPT-2: learned positions, LayerNorm, and products whose weights lie inputs first in the checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jserve.batch import LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.config.fields import Fields
from jserve.errors import CheckpointError
from jserve.layers.attention import Attention, Projections
from jserve.layers.build import Build
from jserve.layers.linear import Embedding
from jserve.layers.mlp import MLP
from jserve.layers.norm import LayerNorm
from jserve.layers.source import Tensor
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM, DecoderLayer, token_table

PROJECTIONS = Projections(fused="c_attn", output="c_proj", inputs_first=True)


class GPT2Block(DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        self.ln_1 = LayerNorm(build, config.hidden_size, config.norm_eps)
        self.attn = Attention(build, config, layer, qkv_bias=True, output_bias=True, projections=PROJECTIONS)
        self.ln_2 = LayerNorm(build, config.hidden_size, config.norm_eps)
        self.mlp = MLP(build, config, names=("c_fc", "c_proj"), bias=True, inputs_first=True)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        attended, kv = self.attn(self.ln_1(x), kv, context)
        x = x + attended
        return x + self.mlp(self.ln_2(x), context), kv


class Positions(nnx.Module):
    """A learned vector for each position."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        shape = (config.max_position_embeddings, config.hidden_size)
        self.weight = build.param(Tensor("weight", shape), shape)

    def __call__(self, positions: jax.Array) -> jax.Array:
        """i32[T] to [T, E]."""
        return jnp.take(self.weight[...], positions, axis=0, mode="clip")


class GPT2Model(nnx.Module):
    """Named `transformer` in checkpoints, or not named."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.wte = token_table(build, config)
        self.wpe = Positions(build, config)
        self.h = nnx.List([GPT2Block(build, config, layer) for layer in range(config.num_layers)])
        self.ln_f = LayerNorm(build, config.hidden_size, config.norm_eps)


class GPT2LMHeadModel(CausalLM):
    layer_type = GPT2Block
    config_defaults = defaults.GPT2
    config_names: ClassVar = {
        "hidden_act": "activation_function",
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "rms_norm_eps": "layer_norm_epsilon",
    }

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        by_layer = fields.boolean("scale_attn_by_inverse_layer_idx", default=False)
        if by_layer or not fields.boolean("scale_attn_weights", default=True):
            raise CheckpointError(f"{source}: attention scores of GPT-2 must be scaled by the head's size alone")
        inner = fields.optional_integer("n_inner") or 4 * fields.integer("n_embd")
        config = super().read_config({**raw, "intermediate_size": inner}, source=source)
        return replace(config, layer_ropes=(None,) * config.num_layers)

    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.transformer = GPT2Model(build, config)
        self.lm_head = None if config.tie_word_embeddings else token_table(build, config)
        self.config = config

    @property
    def layers(self) -> list[DecoderLayer]:
        return list(self.transformer.h)

    def embed(self, token_ids: jax.Array, positions: jax.Array) -> jax.Array:
        x = self.transformer.wte(token_ids)
        return x + self.transformer.wpe(positions).astype(x.dtype)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return self.transformer.ln_f(x)

    @property
    def head(self) -> Embedding:
        return self.transformer.wte if self.lm_head is None else self.lm_head
