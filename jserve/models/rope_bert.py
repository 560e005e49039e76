"""Encoders of BERT's shape with a rotary embedding: Nomic's, GTE's and Jina's third. Norms stand behind the blocks.

Attribute names equal those of the published files, which differ from transformers' own.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jax
from flax import nnx

from jserve.batch import TextContext
from jserve.config import DenseConfig, ModelConfig, read_model_config
from jserve.config.fields import Fields
from jserve.errors import CheckpointError
from jserve.layers.attention import Attention, Projections
from jserve.layers.build import Build
from jserve.layers.linear import Embedding
from jserve.layers.mlp import MLP, GatedMLP, checked_activation
from jserve.layers.norm import LayerNorm
from jserve.layers.source import Tensor
from jserve.models import encoder_defaults
from jserve.models.bert import roberta_head
from jserve.models.defaults import Defaults, filled
from jserve.models.encoder import Encoder, EncoderLayer


class NomicBertLayer(EncoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        self.attn = Attention(build, config, layer, projections=Projections(fused="Wqkv", output="out_proj"))
        self.norm1 = LayerNorm(build, config.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(build, config, names=("fc12", "fc11", "fc2"))
        self.norm2 = LayerNorm(build, config.hidden_size, config.norm_eps)

    def encode(self, x: jax.Array, context: TextContext) -> jax.Array:
        x = self.norm1(x + self.attn(x, (), context)[0])
        return self.norm2(x + self.mlp(x, context))


class GteLayer(EncoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        self.attention = _attention(build, config, layer, Projections(fused="qkv_proj"))
        self.attn_ln = LayerNorm(build, config.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(build, config, fused="up_gate_proj", gate_last=True, down_bias=True)
        self.mlp_ln = LayerNorm(build, config.hidden_size, config.norm_eps)

    def encode(self, x: jax.Array, context: TextContext) -> jax.Array:
        x = self.attn_ln(x + self.attention(x, (), context)[0])
        return self.mlp_ln(x + self.mlp(x, context))


class JinaEmbeddingsV3Layer(EncoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        self.mixer = _attention(build, config, layer, Projections(fused="Wqkv", output="out_proj"))
        self.norm1 = LayerNorm(build, config.hidden_size, config.norm_eps)
        self.mlp = MLP(build, config, names=("fc1", "fc2"), bias=True)
        self.norm2 = LayerNorm(build, config.hidden_size, config.norm_eps)

    def encode(self, x: jax.Array, context: TextContext) -> jax.Array:
        x = self.norm1(x + self.mixer(x, (), context)[0])
        return self.norm2(x + self.mlp(x, context))


class _Embeddings(nnx.Module):
    def __init__(self, build: Build, config: ModelConfig, norm: str) -> None:
        hidden, types = config.hidden_size, config.token_types
        self.word_embeddings = _table(build, config.vocab_size, hidden)
        self.token_type_embeddings = _table(build, types, hidden) if types else None
        self.LayerNorm = LayerNorm(build, hidden, config.norm_eps, name=norm)

    def __call__(self, token_ids: jax.Array, context: TextContext) -> jax.Array:
        """i32[T] to [T, E]."""
        x = self.word_embeddings(token_ids)
        if self.token_type_embeddings is not None:
            x = x + self.token_type_embeddings(context.token_types)
        return self.LayerNorm(x)


class _Layers(nnx.Module):
    def __init__(
        self, build: Build, config: ModelConfig, layer_type: type[NomicBertLayer | JinaEmbeddingsV3Layer]
    ) -> None:
        self.layers = nnx.List([layer_type(build, config, layer) for layer in range(config.num_layers)])


class _LayerList(nnx.Module):
    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.layer = nnx.List([GteLayer(build, config, layer) for layer in range(config.num_layers)])


class _RopeBert(Encoder):
    rope_theta: ClassVar[float]
    """The base of the rotary embedding where the file is silent."""

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = filled(raw, cls.config_defaults)
        heads = Fields(raw, source).integer("num_attention_heads")
        own = {"rms_norm_eps": raw["layer_norm_eps"], "num_key_value_heads": heads, "head_dim": None}
        own |= {"attention_bias": False, "mlp_bias": False, "sliding_window": None}
        theta = {} if raw.get("rope_theta") is not None else {"rope_theta": cls.rope_theta}
        config = read_model_config({**raw, **own, **theta}, source=source)
        checked_activation(config.hidden_act)
        if config.hidden_size % heads:
            raise CheckpointError(
                f"{source}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads {heads}"
            )
        types = 0 if raw["type_vocab_size"] == 0 else Fields(raw, source).integer("type_vocab_size")
        return replace(config, token_types=types, is_causal=False)

    def embed_texts(self, token_ids: jax.Array, context: TextContext) -> jax.Array:
        embeddings: _Embeddings = self.embeddings
        return embeddings(token_ids, context)

    embeddings: _Embeddings


class NomicBertModel(_RopeBert):
    config_defaults = encoder_defaults.NOMIC_BERT
    rope_theta = 1000.0

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        return super().read_config(_with_new_names(raw, source), source=source)

    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.embeddings = _Embeddings(build, config, "../../emb_ln")
        self.encoder = _Layers(build, config, NomicBertLayer)
        self.config = config

    @property
    def layers(self) -> list[Any]:
        return list(self.encoder.layers)


class GteModel(_RopeBert):
    config_defaults = encoder_defaults.GTE
    rope_theta = 160_000.0

    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.embeddings = _Embeddings(build, config, "")
        self.encoder = _LayerList(build, config)
        self.config = config

    @property
    def layers(self) -> list[Any]:
        return list(self.encoder.layer)


class JinaEmbeddingsV3Model(_RopeBert):
    config_defaults = encoder_defaults.JINA_EMBEDDINGS_V3
    rope_theta = 20_000.0

    @classmethod
    def classifier_head(cls, raw: dict[str, Any], config: ModelConfig, labels: int) -> tuple[DenseConfig, ...]:
        return roberta_head(config, labels)

    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.embeddings = _Embeddings(build, config, "../../emb_ln")
        self.encoder = _Layers(build, config, JinaEmbeddingsV3Layer)
        self.config = config

    @property
    def layers(self) -> list[Any]:
        return list(self.encoder.layers)


_NOMIC_NAMES = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "rope_theta": "rotary_emb_base",
    "partial_rotary_factor": "rotary_emb_fraction",
}
"""Fields of the first files, which came with code of their own, by the names of today."""
_NOMIC_NEEDS: dict[str, tuple[Any, ...]] = {
    "activation_function": ("swiglu",),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "num_experts": (0,),
    "prenorm": (False,),
    "qkv_proj_bias": (False,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (),
    "rotary_scaling_factor": (),
    "use_rms_norm": (False,),
}
"""What of their fields is supported beside null."""


def _with_new_names(raw: Defaults, source: Path | str) -> Defaults:
    for name, supported in _NOMIC_NEEDS.items():
        if raw.get(name) is not None and raw[name] not in supported:
            shown = " or ".join(map(repr, (*supported, None)))
            raise CheckpointError(f"{source}: {name} is {raw[name]!r}; supported of NomicBertModel is {shown}")
    return {**{new: raw[old] for new, old in _NOMIC_NAMES.items() if raw.get(old) is not None}, **raw}


def _attention(build: Build, config: ModelConfig, layer: int, projections: Projections) -> Attention:
    return Attention(build, config, layer, qkv_bias=True, output_bias=True, projections=projections)


def _table(build: Build, rows: int, hidden: int) -> Embedding:
    return Embedding(build, Tensor("weight", (rows, hidden)), (rows, hidden))
