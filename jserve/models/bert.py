"""BERT, RoBERTa and XLM-RoBERTa: encoders, with norms after the blocks, learned positions and token types.

Attribute names equal those of the checkpoints, which may begin with `bert.` or `roberta.`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jax
from flax import nnx

from jserve.config import ModelConfig, read_model_config
from jserve.errors import CheckpointError
from jserve.layers.bidirectional import BidirectionalAttention
from jserve.layers.build import Build
from jserve.layers.linear import Embedding, Linear
from jserve.layers.mlp import ACTIVATIONS, checked_activation
from jserve.layers.norm import LayerNorm
from jserve.layers.source import Tensor


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

    config_defaults: ClassVar[dict[str, object]] = {"pad_token_id": 0}

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        """The shape that a `config.json` describes. Raises CheckpointError where it is not one of an encoder."""
        kind = raw.get("position_embedding_type") or "absolute"
        if kind != "absolute":
            raise CheckpointError(f"{source}: position_embedding_type is {kind!r}; supported is 'absolute'")
        if raw.get("is_decoder"):
            raise CheckpointError(f"{source}: is_decoder is set, but this architecture is supported as an encoder only")
        eps, act = raw.get("layer_norm_eps", 1e-12), raw.get("hidden_act", "gelu")
        positions = raw.get("max_position_embeddings", 512)
        named = {**raw, "rms_norm_eps": eps, "hidden_act": act, "max_position_embeddings": positions}
        config = read_model_config(named, source=source)
        offset, types = cls._position_offset({**cls.config_defaults, **raw}), raw.get("type_vocab_size", 2)
        if type(types) is not int or types < 1:
            raise CheckpointError(f"{source}: type_vocab_size is {types!r} but must be a positive integer")
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

    config_defaults: ClassVar = {"pad_token_id": 1}

    @classmethod
    def _position_offset(cls, raw: dict[str, Any]) -> int:
        padding = raw["pad_token_id"]
        return padding + 1 if type(padding) is int and padding >= 0 else 2


def _table(build: Build, rows: int, hidden: int) -> Embedding:
    return Embedding(build, Tensor("weight", (rows, hidden)), (rows, hidden))
