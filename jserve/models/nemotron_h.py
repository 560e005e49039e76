"""Nemotron-H and Nemotron Nano 2: layers that are one block each, of Mamba-2, attention or feed-forward."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
from flax import nnx

from jserve.batch import CacheArray, LayerKV, SlotArray, StepContext
from jserve.config import MOST_LAYERS, ModelConfig
from jserve.config.fields import Fields
from jserve.config.hybrid import Mamba2Config, NemotronHConfig
from jserve.layers.attention import Attention, kv_arrays
from jserve.layers.build import Build
from jserve.layers.linear import Embedding
from jserve.layers.mamba2 import Mamba2, mamba2_arrays
from jserve.layers.mlp import MLP
from jserve.layers.norm import RMSNorm
from jserve.models.causal_lm import CausalLM, DecoderLayer, token_table
from jserve.models.hybrid import ATTENTION, read_step_limit

MAMBA, FEED_FORWARD, MIXTURE = "linear_attention", "mlp", "moe"
TYPES = {"mamba": MAMBA, "attention": ATTENTION}
"""Names of types of layers in earlier files, by transformers'."""
LETTERS = {"M": MAMBA, "*": ATTENTION, "-": FEED_FORWARD, "E": MIXTURE}
"""The same in `hybrid_override_pattern`."""

NEMOTRON_H: dict[str, Any] = {
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 21504,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "mlp_hidden_act": "relu2",
    "max_position_embeddings": 4096,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
    "ssm_state_size": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "conv_kernel": 4,
}


class NemotronHLayer(DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        self.norm = RMSNorm(build, config.hidden_size, config.norm_eps)
        self.mixer: Mamba2 | MLP | Attention
        if layer in config.state_layers:
            self.mixer = Mamba2(build, config)
        elif layer in _feed_forward_layers(config):
            self.mixer = MLP(build, config, names=("up_proj", "down_proj"), bias=config.mlp_bias)
        else:
            self.mixer = Attention(build, config, layer)

    @classmethod
    def cache(cls, build: Build, config: ModelConfig, layer: int) -> tuple[CacheArray | SlotArray, ...]:
        if layer in _feed_forward_layers(config):
            return ()
        return mamba2_arrays(build, config) if layer in config.state_layers else kv_arrays(build, config)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        normed = self.norm(x)
        if isinstance(self.mixer, MLP):
            return x + self.mixer(normed, context), kv
        mixed, kv = self.mixer(normed, kv, context)
        return x + mixed, kv


class NemotronHModel(nnx.Module):
    """Named `backbone` in checkpoints."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.embeddings = token_table(build, config)
        self.layers = nnx.List([NemotronHLayer(build, config, layer) for layer in range(config.num_layers)])
        self.norm_f = RMSNorm(build, config.hidden_size, config.norm_eps)


class NemotronHForCausalLM(CausalLM):
    layer_type = NemotronHLayer
    config_defaults = NEMOTRON_H
    config_names: ClassVar = {"rms_norm_eps": "layer_norm_epsilon", "hidden_act": "mlp_hidden_act"}

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        types = _types(fields)
        layers = len(types)
        config = super().read_config(
            {**raw, "num_hidden_layers": layers, "layer_types": [ATTENTION] * layers}, source=source
        )
        mixer = NemotronHConfig(
            **asdict(_mamba2(fields)),
            feed_forward_layers=frozenset(layer for layer, kind in enumerate(types) if kind == FEED_FORWARD),
        )
        states = frozenset(layer for layer, kind in enumerate(types) if kind == MAMBA)
        return replace(config, layer_ropes=(None,) * layers, mixer=mixer, state_layers=states)

    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.backbone = NemotronHModel(build, config)
        self.lm_head = None if config.tie_word_embeddings else token_table(build, config)
        self.config = config

    @property
    def layers(self) -> list[DecoderLayer]:
        return list(self.backbone.layers)

    def embed(self, token_ids: jax.Array, positions: jax.Array) -> jax.Array:
        return self.backbone.embeddings(token_ids)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return self.backbone.norm_f(x)

    @property
    def head(self) -> Embedding:
        return self.backbone.embeddings if self.lm_head is None else self.lm_head


def _feed_forward_layers(config: ModelConfig) -> frozenset[int]:
    assert isinstance(config.mixer, NemotronHConfig)
    return config.mixer.feed_forward_layers


def _types(fields: Fields) -> list[str]:
    """The block of each layer. Raises CheckpointError where one is unknown, and where none is attention."""
    pattern = fields.text("hybrid_override_pattern", default="")
    key = "hybrid_override_pattern" if pattern else "layers_block_type"
    kinds = list(pattern) or fields.get(key) or fields.get("layer_types")
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise fields.unlike(
            "layers_block_type", "a list of each layer's block, unless there is hybrid_override_pattern"
        )
    types = [LETTERS.get(kind, TYPES.get(kind, kind)) for kind in kinds[: MOST_LAYERS + 1]]
    if MIXTURE in types:
        raise fields.wrong(key, "has experts without gates, which are not supported; models without them are")
    unknown = [kind for kind in types if kind not in LETTERS.values()]
    if unknown:
        raise fields.wrong(key, f"has {unknown[0]!r}; supported are {MAMBA}, {ATTENTION}, {FEED_FORWARD}")
    if len(types) > MOST_LAYERS or ATTENTION not in types:
        raise fields.unlike(key, f"at most {MOST_LAYERS:,} layers, one of attention among them")
    return types


def _mamba2(fields: Fields) -> Mamba2Config:
    heads, groups = fields.integer("mamba_num_heads"), fields.integer("n_groups")
    if heads % groups:
        raise fields.unlike("mamba_num_heads", f"a multiple of n_groups, {groups}")
    return Mamba2Config(
        heads=heads,
        groups=groups,
        head_dim=fields.integer("mamba_head_dim"),
        state=fields.integer("ssm_state_size"),
        conv_width=fields.integer("conv_kernel"),
        conv_bias=fields.boolean("use_conv_bias", default=True),
        bias=fields.boolean("use_bias", default=False),
        step_limit=read_step_limit(fields),
    )
