"""The frame of a model whose tokens see each other both ways: whole texts in, hidden states out, nothing kept."""

from pathlib import Path
from typing import Any, ClassVar

import jax
from flax import nnx

from jserve.batch import TextContext
from jserve.config import DenseConfig, ModelConfig
from jserve.layers.build import Build
from jserve.models.causal_lm import CausalLM, DecoderLayer
from jserve.models.defaults import Defaults


class EncoderLayer(nnx.Module):
    """What a family's layer looks like from outside."""

    def encode(self, x: jax.Array, context: TextContext) -> jax.Array:
        """x: [T, E] to [T, E]."""
        raise NotImplementedError


class Encoder(nnx.Module):
    """A model that was never a decoder. One that was, and attends both ways, has the same methods (`CausalLM`)."""

    config: ModelConfig
    layers: Any
    """One `EncoderLayer` after the other."""
    dense: Any
    """What follows the pooling, as `Blueprint` adds it."""
    config_defaults: ClassVar[Defaults] = {}
    """What the family means where its `config.json` is silent."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        raise NotImplementedError

    @classmethod
    def classifier_head(cls, raw: dict[str, Any], config: ModelConfig, labels: int) -> tuple[DenseConfig, ...]:
        """What a classifier of this family makes of the pooled vector: BERT's pooler, and the classifier."""
        del raw  # which other families read
        hidden = config.hidden_size
        return DenseConfig("pooler.dense", hidden, hidden, "tanh"), DenseConfig("classifier", hidden, labels)

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        """The shape that a `config.json` describes. Raises CheckpointError where it is not one of this family."""
        raise NotImplementedError

    def embed_texts(self, token_ids: jax.Array, context: TextContext) -> jax.Array:
        """i32[T] to [T, E]."""
        raise NotImplementedError

    def final_norm(self, x: jax.Array) -> jax.Array:
        """What the last layer leaves, [T, E], as poolings want it."""
        return x


TextModel = Encoder | CausalLM
TextLayer = EncoderLayer | DecoderLayer
