"""The frame that every decoder family shares: embedding, layers, final norm, output projection."""

from pathlib import Path
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import nnx

from jserve.batch import CacheArray, LayerKV, SlotArray, StepContext, TextContext
from jserve.config import DenseConfig, ModelConfig, read_model_config
from jserve.layers.attention import kv_arrays
from jserve.layers.build import Build
from jserve.layers.linear import Embedding
from jserve.layers.norm import Norm, RMSNorm
from jserve.layers.source import Tensor
from jserve.models.defaults import Defaults, filled


class DecoderLayer(nnx.Module):
    """What a family's layer looks like from outside."""

    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        raise NotImplementedError

    @classmethod
    def cache(cls, build: Build, config: ModelConfig, layer: int) -> tuple[CacheArray | SlotArray, ...]:
        """What the layer keeps: in pages, and of each sequence."""
        del layer  # in most families all layers keep the same
        return kv_arrays(build, config)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        """x: [T, E] to [T, E], and the layer's cache with the step's tokens in it."""
        raise NotImplementedError

    def encode(self, x: jax.Array, context: TextContext) -> jax.Array:
        """x: [T, E] to [T, E], of whole texts whose tokens see each other both ways; see `models/registry.py`."""
        # What a layer reads of its context both kinds have, until `Attention`, which tells them apart.
        return self(x, (), cast(StepContext, context))[0]


class Decoder(nnx.Module):
    """Named `model` in checkpoints."""

    def __init__(
        self, build: Build, config: ModelConfig, layer_type: type[DecoderLayer], norm_type: type[Norm]
    ) -> None:
        self.embed_tokens = token_table(build, config)
        self.layers = nnx.List([layer_type(build, config, layer) for layer in range(config.num_layers)])
        self.norm = norm_type(build, config.hidden_size, config.norm_eps)


class CausalLM(nnx.Module):
    """A decoder that predicts the next token. A family sets `layer_type`, and where it differs the others.

    The step walks it: `embed`, each of `layers` with its own cache, then `logits` of the rows that sample.
    """

    layer_type: ClassVar[type[DecoderLayer]]
    decoder_type: ClassVar[type[Decoder]] = Decoder
    norm_type: ClassVar[type[Norm]] = RMSNorm
    """The class of the last norm."""
    config_defaults: ClassVar[Defaults] = {}
    """What the family means where its `config.json` is silent."""
    rope_defaults: ClassVar[Defaults] = {}
    """`rope_parameters` where the file has neither them nor `rope_scaling`."""
    config_names: ClassVar[dict[str, str]] = {}
    """The family's own names of fields in its `config.json`, by the common ones."""

    dense: Any
    """What follows the pooling, where the model is for that, as `Blueprint` adds it."""

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        """The shape that a `config.json` describes. Raises CheckpointError where a field is missing or impossible."""
        raw = cls.with_defaults(raw)
        renamed = {ours: raw[theirs] for ours, theirs in cls.config_names.items() if theirs in raw}
        return read_model_config({**raw, **renamed}, source=source)

    @classmethod
    def with_defaults(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """A `config.json` with the family's values for keys that are missing, or null where null means nothing."""
        return filled(raw, cls.config_defaults, cls.rope_defaults)

    @classmethod
    def classifier_head(cls, raw: dict[str, Any], config: ModelConfig, labels: int) -> tuple[DenseConfig, ...]:
        """What stands in place of the output projection where a model of this family gives labels."""
        del raw  # which encoders read
        return (DenseConfig("score", config.hidden_size, labels, bias=False),)

    @classmethod
    def cache(cls, build: Build, config: ModelConfig) -> tuple[tuple[CacheArray | SlotArray, ...], ...]:
        """What each layer keeps: memory is planned, and pages and states are made from this."""
        return tuple(cls.layer_type.cache(build, config, layer) for layer in range(config.num_layers))

    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.model = self.decoder_type(build, config, self.layer_type, self.norm_type)
        self.config = config
        self.lm_head = None if config.tie_word_embeddings else token_table(build, config, bias=config.head_bias)

    @property
    def layers(self) -> list[DecoderLayer]:
        return list(self.model.layers)

    def embed(self, token_ids: jax.Array, positions: jax.Array) -> jax.Array:
        """i32[T], i32[T] to [T, E]."""
        del positions  # which the layers rotate by; other families add something here
        x = self.model.embed_tokens(token_ids)
        multiplier = self.config.embedding_multiplier
        return x if multiplier == 1.0 else x * jnp.asarray(multiplier, x.dtype)

    def embed_texts(self, token_ids: jax.Array, context: TextContext) -> jax.Array:
        """The same of whole texts."""
        return self.embed(token_ids, context.positions)

    def layer_inputs(self, token_ids: jax.Array, x: jax.Array) -> jax.Array | None:
        """[T, L, P] beside the residual, of i32[T] and what `embed` gave for them; None in most families."""
        del token_ids, x
        return None

    def final_norm(self, x: jax.Array) -> jax.Array:
        """What the last layer leaves, [T, E], as the output projection wants it."""
        return self.model.norm(x)

    @property
    def head(self) -> Embedding:
        """The output projection."""
        return self.model.embed_tokens if self.lm_head is None else self.lm_head

    def logits(self, x: jax.Array) -> jax.Array:
        """[S, E] to f32[S, V]."""
        logits = self.head.logits(self.final_norm(x))[:, : self.config.vocab_size] * self.config.logit_multiplier
        cap = self.config.logit_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


def token_table(build: Build, config: ModelConfig, *, bias: bool = False) -> Embedding:
    """A table of tokens, with as many rows as the tensor axis divides; `bias` is that of an output projection."""
    parts = build.tensor_parallel
    rows = -(-config.vocab_size // parts) * parts
    source = Tensor("weight", (config.vocab_size, config.hidden_size))
    return Embedding(build, source, (rows, config.hidden_size), Tensor("bias", (config.vocab_size,)) if bias else None)
