"""EXAONE 4: norms after each block, heads that are normed, and no rotary embedding on layers that see everything."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jserve.config import ModelConfig
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.grouped_router import GroupedMixture
from jserve.layers.norm import RMSNorm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.grouped_mixture import GroupedMixtureDecoderLayer, GroupedMixtureForCausalLM
from jserve.models.olmo2 import Olmo2DecoderLayer

EXAONE4 = {key: value for key, value in defaults.LLAMA.items() if key != "use_sliding_window"} | {
    "vocab_size": 102400,
    "intermediate_size": 16384,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}
EXAONE_MOE = EXAONE4 | {
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 1024,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}


class Exaone4DecoderLayer(Olmo2DecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        return Attention(build, config, layer, head_norm=RMSNorm)


class Exaone4ForCausalLM(CausalLM):
    layer_type = Exaone4DecoderLayer
    config_defaults = EXAONE4

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        return _rotated_in_windows(super().read_config(raw, source=source))


class ExaoneMixture(GroupedMixture):
    correction = "../e_score_correction_bias"


class ExaoneMoeDecoderLayer(GroupedMixtureDecoderLayer):
    """The mixture's norms stand before each block."""

    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        return Attention(build, config, layer, head_norm=RMSNorm)

    def make_mixture(self, build: Build, config: ModelConfig) -> ExaoneMixture:
        return ExaoneMixture(build, config)


class ExaoneMoeForCausalLM(GroupedMixtureForCausalLM):
    layer_type = ExaoneMoeDecoderLayer
    config_defaults = EXAONE_MOE

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        named = {"n_routed_experts": raw["num_experts"], "n_shared_experts": raw["num_shared_experts"]}
        return _rotated_in_windows(super().read_config({**raw, **named}, source=source))


def _rotated_in_windows(config: ModelConfig) -> ModelConfig:
    """Where some layers have a window, only these have a rotary embedding."""
    if set(config.layer_windows) == {None}:
        return config
    return replace(config, layer_ropes=tuple(config.rope if window else None for window in config.layer_windows))
