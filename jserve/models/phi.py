"""Phi-1.5 and Phi-2: attention and feed-forward side by side behind one norm, a part of each head rotated."""

from pathlib import Path
from typing import Any, ClassVar

import jax

from jserve.batch import LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.config.fields import Fields
from jserve.layers.attention import Attention, Projections
from jserve.layers.build import Build
from jserve.layers.mlp import MLP
from jserve.layers.norm import LayerNorm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM, DecoderLayer

PROJECTIONS = Projections(output="dense")


class PhiDecoderLayer(DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        self.input_layernorm = LayerNorm(build, config.hidden_size, config.norm_eps)
        self.self_attn = Attention(build, config, layer, qkv_bias=True, output_bias=True, projections=PROJECTIONS)
        self.mlp = MLP(build, config, names=("fc1", "fc2"), bias=True)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        normed = self.input_layernorm(x)
        attended, kv = self.self_attn(normed, kv, context)
        return x + attended + self.mlp(normed, context), kv


class FinalLayerNorm(LayerNorm):
    def __init__(self, build: Build, size: int, eps: float) -> None:
        super().__init__(build, size, eps, "../final_layernorm")


class PhiForCausalLM(CausalLM):
    layer_type = PhiDecoderLayer
    norm_type = FinalLayerNorm
    config_names: ClassVar = {"rms_norm_eps": "layer_norm_eps"}
    config_defaults = defaults.LLAMA | {
        "vocab_size": 51200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
    }

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        if Fields(raw, source).boolean("qk_layernorm", default=False):
            raise Fields(raw, source).unlike("qk_layernorm", "false: norms of heads are not supported in this family")
        return super().read_config({**raw, "lm_head_bias": True}, source=source)
