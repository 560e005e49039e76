"""Falcon-H1: Mamba-2 and attention side by side in every layer."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import jax

from jserve.batch import CacheArray, LayerKV, SlotArray, StepContext, TextContext
from jserve.config import ModelConfig
from jserve.config.fields import Fields
from jserve.config.hybrid import FalconH1Config
from jserve.layers.attention import Attention, kv_arrays
from jserve.layers.build import Build
from jserve.layers.mamba2 import Mamba2, mamba2_arrays
from jserve.layers.mlp import ACTIVATIONS, GatedMLP
from jserve.layers.norm import RMSNorm
from jserve.models import defaults
from jserve.models.bamba import FinalNorm
from jserve.models.causal_lm import CausalLM, DecoderLayer
from jserve.models.hybrid import MAMBA2, read_mamba2

FALCON_H1: dict[str, Any] = {key: value for key, value in defaults.LLAMA.items() if key != "use_sliding_window"} | {
    **MAMBA2,
    "vocab_size": 128000,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "mamba_d_ssm": 1024,
}


class FalconH1MLP(GatedMLP):
    """What the gate and the result are times."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        super().__init__(build, config)
        falcon = config.mixer
        assert isinstance(falcon, FalconH1Config)
        self.gate_multiplier, self.output_multiplier = falcon.mlp_gate, falcon.mlp_output

    def __call__(self, x: jax.Array, context: StepContext | TextContext) -> jax.Array:
        return super().__call__(x, context) * self.output_multiplier

    def _inner(self, x: jax.Array) -> jax.Array:
        gate_up = self.gate_up_proj(x)
        return ACTIVATIONS[self.activation](gate_up[:, 0] * self.gate_multiplier) * gate_up[:, 1]


class FalconH1DecoderLayer(DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        size, eps, bias = config.hidden_size, config.norm_eps, config.attention_bias
        self.input_layernorm = RMSNorm(build, size, eps)
        self.mamba = Mamba2(build, config)
        self.self_attn = Attention(build, config, layer, qkv_bias=bias, output_bias=bias)
        self.pre_ff_layernorm = RMSNorm(build, size, eps)
        self.feed_forward = FalconH1MLP(build, config)
        assert isinstance(config.mixer, FalconH1Config)
        self.falcon = config.mixer

    @classmethod
    def cache(cls, build: Build, config: ModelConfig, layer: int) -> tuple[CacheArray | SlotArray, ...]:
        del layer
        return *kv_arrays(build, config), *mamba2_arrays(build, config)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        falcon, normed = self.falcon, self.input_layernorm(x)
        mixed, states = self.mamba(normed * falcon.mamba_input, kv[2:], context)
        attended, pages = self.self_attn(normed * falcon.attention_input, kv[:2], context)
        x = x + mixed * falcon.mamba_output + attended * falcon.attention_output
        return x + self.feed_forward(self.pre_ff_layernorm(x), context), (*pages, *states)


class FalconH1ForCausalLM(CausalLM):
    layer_type = FalconH1DecoderLayer
    norm_type = FinalNorm
    config_defaults = FALCON_H1
    config_names: ClassVar = {"logit_scale": "lm_head_multiplier"}

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        config = super().read_config(raw, source=source)
        # Keys are times this before they are rotated, which changes the products with queries as much.
        scale = config.head_dim**-0.5 * fields.number("key_multiplier", default=1.0)
        states = frozenset(range(config.num_layers))
        return replace(config, attention_scale=scale, mixer=_mixer(fields), state_layers=states)


def _mixer(fields: Fields) -> FalconH1Config:
    if fields.boolean("projectors_bias", default=False) != fields.boolean("mamba_proj_bias", default=False):
        raise fields.unlike("projectors_bias", "what mamba_proj_bias is: biases of one of the two are not supported")
    before = fields.boolean("mamba_norm_before_gate", default=True)
    gate, down = _multipliers(fields, "mlp_multipliers", 2)
    return FalconH1Config(
        **asdict(read_mamba2(fields, inner=fields.optional_integer("mamba_d_ssm")))
        | {
            "norm": ("before_gate" if before else "behind_gate")
            if fields.boolean("mamba_rms_norm", default=False)
            else "none",
            "multipliers": _multipliers(fields, "ssm_multipliers", 5),
        },
        mamba_input=fields.number("ssm_in_multiplier", default=1.0),
        mamba_output=fields.number("ssm_out_multiplier", default=1.0),
        attention_input=fields.number("attention_in_multiplier", default=1.0),
        attention_output=fields.number("attention_out_multiplier", default=1.0),
        mlp_gate=gate,
        mlp_output=down,
    )


def _multipliers(fields: Fields, name: str, count: int) -> tuple[float, ...]:
    """All 1 where the file has none. Raises CheckpointError where they are too few or too many."""
    if fields.get(name) is None:
        return (1.0,) * count
    numbers = fields.numbers(name)
    if len(numbers) != count:
        raise fields.unlike(name, f"{count} numbers")
    return tuple(map(float, numbers))
