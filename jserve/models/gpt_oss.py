"""gpt-oss: attention sinks, a window on every other layer, and experts with biases and a clamped gate, in MXFP4."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jserve.batch import StepContext
from jserve.config import MOST_LAYERS, MixtureConfig, ModelConfig
from jserve.config.fields import Fields
from jserve.layers.attention import Attention
from jserve.layers.build import INNER_AXIS, Build
from jserve.layers.expert_source import AllBiases, AllExperts
from jserve.layers.moe import Experts, ExpertSource, Routed, Router
from jserve.layers.source import Tensor
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.mixtral import MixtureDecoderLayer


class BiasedRouter(Router):
    """The softmax over the chosen experts alone is that over all, normalised."""

    def __init__(self, build: Build, config: ModelConfig, mixture: MixtureConfig) -> None:
        super().__init__(build, config, mixture)
        self.bias = build.param(Tensor("bias", (mixture.num_experts,)), (mixture.num_experts,))

    def logits(self, x: jax.Array) -> jax.Array:
        return super().logits(x) + self.bias[...].astype(jnp.float32)


class GptOssExperts(Experts):
    """Experts with biases, whose checkpoints keep gate and up in turn."""

    def __init__(self, build: Build, config: ModelConfig, mixture: MixtureConfig) -> None:
        count, hidden, inner = mixture.num_experts, config.hidden_size, mixture.intermediate_size
        both, down = "gate_up_proj", "down_proj"
        gate_up = AllExperts(both, count, inner, hidden, parts=2, interleaved=True)
        last = AllExperts(down, count, hidden, inner)
        super().__init__(
            build,
            config,
            mixture,
            ExpertSource(replace(gate_up, inputs_first=True), gate_up),
            ExpertSource(replace(last, inputs_first=True), last),
        )
        self.gate_up_proj_bias = build.stack(
            AllBiases(f"{both}_bias", count, inner, parts=2, interleaved=True), (count, 2, inner), inner=2
        )
        self.down_proj_bias = build.stack(AllBiases(f"{down}_bias", count, hidden), (count, hidden))
        self.slope, self.limit = mixture.gate_slope, mixture.gate_limit

    def activate(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
        return (up + 1) * gate * jax.nn.sigmoid(self.slope * gate)

    def _local(self, x: jax.Array, experts: jax.Array, weights: jax.Array, arrays: tuple[Any, ...]) -> jax.Array:
        *others, down_bias = arrays
        if self.build.tensor_parallel > self.build.expert_parallel:  # of the slices of an expert one adds it
            down_bias = jnp.where(jax.lax.axis_index(INNER_AXIS) == 0, down_bias, 0)
        return super()._local(x, experts, weights, (*others, down_bias))

    def _parameters(self) -> tuple[nnx.Param[Any], ...]:
        return (*super()._parameters(), self.gate_up_proj_bias, self.down_proj_bias)


class GptOssMixture(nnx.Module):
    """Named `mlp`."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        self.router = BiasedRouter(build, config, config.experts)
        self.experts = GptOssExperts(build, config, config.experts)

    def __call__(self, x: jax.Array, context: StepContext) -> jax.Array:
        routed: Routed = self.router(x, context.is_real)
        return self.experts(x, routed)


class GptOssDecoderLayer(MixtureDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        bias = config.attention_bias
        return Attention(build, config, layer, qkv_bias=bias, output_bias=bias, sinks=True)

    def make_mixture(self, build: Build, config: ModelConfig) -> GptOssMixture:
        return GptOssMixture(build, config)


class GptOssForCausalLM(CausalLM):
    layer_type = GptOssDecoderLayer
    config_defaults = defaults.GPT_OSS
    rope_defaults = defaults.GPT_OSS_ROPE

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        if not raw.get("layer_types"):
            kinds = ("sliding_attention", "full_attention")
            layers = Fields(raw, source).integer("num_hidden_layers", most=MOST_LAYERS)
            raw = {**raw, "layer_types": [kinds[layer % 2] for layer in range(layers)]}
        return super().read_config(raw, source=source)
