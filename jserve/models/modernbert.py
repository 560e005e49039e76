"""ModernBERT: an encoder with norms before the blocks, a rotary embedding, and a window on two of three layers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from jserve.batch import TextContext
from jserve.config import LAYER_TYPES, DenseConfig, ModelConfig, read_model_config
from jserve.config.fields import Fields
from jserve.errors import CheckpointError
from jserve.layers.attention import Attention, Projections
from jserve.layers.build import Build
from jserve.layers.linear import Embedding
from jserve.layers.mlp import GatedMLP, checked_activation
from jserve.layers.norm import LayerNormWithoutBias
from jserve.layers.source import Tensor
from jserve.models import encoder_defaults
from jserve.models.defaults import filled
from jserve.models.encoder import Encoder, EncoderLayer

_PROJECTIONS = Projections(fused="Wqkv", output="Wo")
_TYPES = LAYER_TYPES[:2]
_THETAS = (("global_rope_theta", 160_000.0), ("local_rope_theta", 10_000.0))
"""For each type of layer, the older name of its rotary base and the default."""


class ModernBertLayer(EncoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        bias = config.attention_bias
        # What the first layer reads has just been through the norm of the embeddings.
        self.attn_norm = LayerNormWithoutBias(build, config.hidden_size, config.norm_eps) if layer else None
        self.attn = Attention(build, config, layer, qkv_bias=bias, output_bias=bias, projections=_PROJECTIONS)
        self.mlp_norm = LayerNormWithoutBias(build, config.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(build, config, names=("gate_proj", "up_proj", "Wo"), fused="Wi")

    def encode(self, x: jax.Array, context: TextContext) -> jax.Array:
        x = x + self.attn(x if self.attn_norm is None else self.attn_norm(x), (), context)[0]
        return x + self.mlp(self.mlp_norm(x), context)


class _Embeddings(nnx.Module):
    def __init__(self, build: Build, config: ModelConfig) -> None:
        shape = (config.vocab_size, config.hidden_size)
        self.tok_embeddings = Embedding(build, Tensor("weight", shape), shape)
        self.norm = LayerNormWithoutBias(build, config.hidden_size, config.norm_eps)


class ModernBertModel(Encoder):
    config_defaults = encoder_defaults.MODERN_BERT

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = filled(raw, cls.config_defaults)
        fields = Fields(raw, source)
        layers, every = fields.integer("num_hidden_layers"), fields.integer("global_attn_every_n_layers")
        if fields.boolean("norm_bias", default=False):
            raise CheckpointError(f"{source}: norm_bias is set; norms with a bias are not supported of ModernBERT")
        config = read_model_config(
            {
                **raw,
                "hidden_act": raw["hidden_activation"],
                "head_dim": None,
                "num_key_value_heads": raw["num_attention_heads"],
                "rms_norm_eps": raw["norm_eps"],
                "layer_types": raw.get("layer_types") or [_TYPES[layer % every > 0] for layer in range(layers)],
                "sliding_window": fields.integer("local_attention") // 2,
                "rope_parameters": _ropes(raw, source),
                "rope_scaling": None,
            },
            source=source,
        )
        if config.hidden_size % config.num_heads:
            raise CheckpointError(
                f"{source}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
                f"{config.num_heads}"
            )
        return replace(config, is_causal=False)

    @classmethod
    def classifier_head(cls, raw: dict[str, Any], config: ModelConfig, labels: int) -> tuple[DenseConfig, ...]:
        hidden, fields = config.hidden_size, Fields(raw, "config.json")
        activation = checked_activation(fields.text("classifier_activation", default="gelu"))
        bias = fields.boolean("classifier_bias", default=False)
        head = DenseConfig("head.dense", hidden, hidden, activation, bias, norm="head.norm", norm_eps=config.norm_eps)
        return head, DenseConfig("classifier", hidden, labels)

    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.embeddings = _Embeddings(build, config)
        self.layers = nnx.List([ModernBertLayer(build, config, layer) for layer in range(config.num_layers)])
        # An attribute of the name of the method would hide it.
        self.norm = LayerNormWithoutBias(build, config.hidden_size, config.norm_eps, name="../final_norm")
        self.config = config

    def embed_texts(self, token_ids: jax.Array, context: TextContext) -> jax.Array:
        del context  # which the layers rotate by
        return self.embeddings.norm(self.embeddings.tok_embeddings(token_ids))

    def final_norm(self, x: jax.Array) -> jax.Array:
        return self.norm(x)


def _ropes(raw: dict[str, Any], source: Path | str) -> dict[str, Any]:
    """Parameters for each type of layer, in the old spelling (global_rope_theta, local_rope_theta) or the new."""
    stated = Fields(raw, source).dictionary("rope_parameters")
    scaling = Fields(raw, source).dictionary("rope_scaling")
    return {
        kind: {"rope_theta": raw.get(old) or theta, **scaling, **Fields(stated, source).dictionary(kind)}
        for kind, (old, theta) in zip(_TYPES, _THETAS, strict=True)
    }
