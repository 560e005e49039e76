"""BERT, RoBERTa and XLM-RoBERTa: encoders, with norms after the blocks, learned positions and token types.

Attribute names equal those of the checkpoints, which may begin with `bert.` or `roberta.`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jax
from flax import nnx

from jserve.config import ModelConfig, read_model_config
from jserve.config.fields import Fields
from jserve.errors import CheckpointError
from jserve.layers.bidirectional import BidirectionalAttention
from jserve.layers.build import Build
from jserve.layers.linear import Embedding, Linear
from jserve.layers.mlp import ACTIVATIONS, checked_activation
from jserve.layers.norm import LayerNorm
from jserve.layers.source import Tensor
from jserve.models import defaults


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


class EncoderLayer(nnx.Module):
    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.attention = _Attention(build, config)
        self.intermediate = _Dense(build, config.hidden_size, config.intermediate_size, shard=1)
        self.output = _Output(build, config, config.intermediate_size)
        self.activation = config.hidden_act

    def __call__(self, x: jax.Array, is_real: jax.Array) -> jax.Array:
        """x: [S * L, E] of S texts of L places, is_real: bool[S, L]; [S * L, E]."""
        x = self.attention.output(self.attention.self(x, is_real), x)
        return self.output(ACTIVATIONS[self.activation](self.intermediate.dense(x)), x)


class _Layers(nnx.Module):
    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.layer = nnx.List([EncoderLayer(build, config) for _ in range(config.num_layers)])


class _Embeddings(nnx.Module):
    def __init__(self, build: Build, config: ModelConfig) -> None:
        hidden, positions = config.hidden_size, config.max_position_embeddings + config.position_offset
        self.word_embeddings = _table(build, config.vocab_size, hidden)
        self.position_embeddings = _table(build, positions, hidden)
        self.token_type_embeddings = _table(build, config.token_types, hidden)
        self.LayerNorm = LayerNorm(build, hidden, config.norm_eps)


class Encoder(nnx.Module):
    """BERT, and with other settings its kin."""

    config_defaults: ClassVar[defaults.Defaults] = defaults.BERT

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        """The shape that a `config.json` describes. Raises CheckpointError where it is not one of an encoder."""
        raw = defaults.filled(raw, cls.config_defaults)
        fields = Fields(raw, source)
        kind = fields.text("position_embedding_type", default="absolute")
        if kind != "absolute":
            raise CheckpointError(f"{source}: position_embedding_type is {kind!r}; supported is 'absolute'")
        if fields.boolean("is_decoder", default=False):
            raise CheckpointError(f"{source}: is_decoder is set, but this architecture is supported as an encoder only")
        config = read_model_config({**raw, "rms_norm_eps": raw["layer_norm_eps"]}, source=source)
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
    def layers(self) -> list[EncoderLayer]:
        return list(self.encoder.layer)

    def embed(self, token_ids: jax.Array, positions: jax.Array) -> jax.Array:
        """i32[T], i32[T] from 0 in each text, to [T, E]. All tokens are of the first type."""
        own = self.embeddings
        x = own.word_embeddings(token_ids) + own.position_embeddings(positions + self.config.position_offset)
        return own.LayerNorm(x + own.token_type_embeddings(positions * 0))


class RobertaModel(Encoder):
    """The first token's position is one behind the row of padding."""

    config_defaults = defaults.ROBERTA

    @classmethod
    def _position_offset(cls, raw: dict[str, Any]) -> int:
        padding = raw.get("pad_token_id")
        return padding + 1 if type(padding) is int and padding >= 0 else 2


class XLMRobertaModel(RobertaModel):
    """RoBERTa whose configuration class takes another vocabulary for granted."""

    config_defaults = defaults.XLM_ROBERTA


def _table(build: Build, rows: int, hidden: int) -> Embedding:
    return Embedding(build, Tensor("weight", (rows, hidden)), (rows, hidden))
