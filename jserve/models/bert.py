"""BERT, RoBERTa and XLM-RoBERTa: encoders, with norms after the blocks, learned positions and token types.

Attribute names equal those of the checkpoints, which may begin with `bert.` or `roberta.`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from jserve.batch import TextContext
from jserve.config import DenseConfig, ModelConfig, read_model_config
from jserve.config.fields import Fields
from jserve.errors import CheckpointError
from jserve.layers.bidirectional import BidirectionalAttention
from jserve.layers.build import Build
from jserve.layers.linear import Embedding, Linear
from jserve.layers.mlp import ACTIVATIONS, checked_activation
from jserve.layers.norm import LayerNorm
from jserve.layers.source import Tensor
from jserve.models import encoder_defaults
from jserve.models.defaults import filled
from jserve.models.encoder import Encoder, EncoderLayer


class _Dense(nnx.Module):
    """A product with a bias, named `dense`."""

    def __init__(self, build: Build, inputs: int, outputs: int, shard: int) -> None:
        weight, bias = Tensor("weight", (outputs, inputs)), Tensor("bias", (outputs,))
        self.dense = Linear(build, weight, (inputs, outputs), shard=shard, bias=bias)


class _Output(_Dense):
    """A block's last product, and the norm of its sum with the block's input."""

    def __init__(self, build: Build, config: ModelConfig, inputs: int) -> None:
        super().__init__(build, inputs, config.hidden_size, shard=0)
        self.LayerNorm = LayerNorm(build, config.hidden_size, config.norm_eps)

    def __call__(self, inner: jax.Array, x: jax.Array) -> jax.Array:
        """inner: [T, inputs], x: [T, E]; [T, E]."""
        return self.LayerNorm(self.dense(inner) + x)


class _Attention(nnx.Module):
    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.self = BidirectionalAttention(build, config)
        self.output = _Output(build, config, config.hidden_size)


class BertLayer(EncoderLayer):
    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.attention = _Attention(build, config)
        self.intermediate = _Dense(build, config.hidden_size, config.intermediate_size, shard=1)
        self.output = _Output(build, config, config.intermediate_size)
        self.activation = config.hidden_act

    def encode(self, x: jax.Array, context: TextContext) -> jax.Array:
        x = self.attention.output(self.attention.self(x, context), x)
        return self.output(ACTIVATIONS[self.activation](self.intermediate.dense(x)), x)


class _Layers(nnx.Module):
    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.layer = nnx.List([BertLayer(build, config) for _ in range(config.num_layers)])


class _Embeddings(nnx.Module):
    def __init__(self, build: Build, config: ModelConfig) -> None:
        hidden, positions = config.hidden_size, config.max_position_embeddings + config.position_offset
        self.word_embeddings = _table(build, config.vocab_size, hidden)
        self.position_embeddings = _table(build, positions, hidden)
        self.token_type_embeddings = _table(build, config.token_types, hidden)
        self.LayerNorm = LayerNorm(build, hidden, config.norm_eps)


class BertModel(Encoder):
    """BERT, and with other settings its kin."""

    config_defaults = encoder_defaults.BERT

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = filled(raw, cls.config_defaults)
        fields = Fields(raw, source)
        kind = fields.text("position_embedding_type", default="absolute")
        if kind != "absolute":
            raise CheckpointError(f"{source}: position_embedding_type is {kind!r}; supported is 'absolute'")
        if fields.boolean("is_decoder", default=False):
            raise CheckpointError(f"{source}: is_decoder is set, but this architecture is supported as an encoder only")
        config = read_model_config(
            {**raw, "rms_norm_eps": raw["layer_norm_eps"], "num_key_value_heads": raw["num_attention_heads"]},
            source=source,
        )
        offset, types = cls._position_offset(raw), fields.integer("type_vocab_size")
        checked_activation(config.hidden_act)
        if config.max_position_embeddings <= offset or config.hidden_size % config.num_heads:
            raise CheckpointError(
                f"{source}: max_position_embeddings {config.max_position_embeddings}, hidden_size {config.hidden_size} "
                f"and num_attention_heads {config.num_heads} do not make an encoder"
            )
        return replace(
            config,
            max_position_embeddings=config.max_position_embeddings - offset,
            position_offset=offset,
            token_types=types,
            is_causal=False,
            layer_ropes=(None,) * config.num_layers,
        )

    @classmethod
    def _position_offset(cls, raw: dict[str, Any]) -> int:
        return 0

    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.embeddings = _Embeddings(build, config)
        self.encoder = _Layers(build, config)
        self.config = config

    @property
    def layers(self) -> list[BertLayer]:
        return list(self.encoder.layer)

    def embed_texts(self, token_ids: jax.Array, context: TextContext) -> jax.Array:
        """Tokens are of the first type, and those of a pair's second text of the second."""
        own = self.embeddings
        x = own.word_embeddings(token_ids) + own.position_embeddings(context.positions + self.config.position_offset)
        return own.LayerNorm(x + own.token_type_embeddings(context.token_types))


class RobertaModel(BertModel):
    """The first token's position is one behind the row of padding."""

    config_defaults = encoder_defaults.ROBERTA

    @classmethod
    def classifier_head(cls, raw: dict[str, Any], config: ModelConfig, labels: int) -> tuple[DenseConfig, ...]:
        return roberta_head(config, labels)

    @classmethod
    def _position_offset(cls, raw: dict[str, Any]) -> int:
        padding = raw.get("pad_token_id")
        return padding + 1 if type(padding) is int and padding >= -1 else 2


class XLMRobertaModel(RobertaModel):
    """RoBERTa whose configuration class takes another vocabulary for granted."""

    config_defaults = encoder_defaults.XLM_ROBERTA


def roberta_head(config: ModelConfig, labels: int) -> tuple[DenseConfig, ...]:
    """A classifier of RoBERTa's kin, of the first token."""
    hidden = config.hidden_size
    return DenseConfig("classifier.dense", hidden, hidden, "tanh"), DenseConfig("classifier.out_proj", hidden, labels)


def _table(build: Build, rows: int, hidden: int) -> Embedding:
    return Embedding(build, Tensor("weight", (rows, hidden)), (rows, hidden))
