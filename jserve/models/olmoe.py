"""OLMoE: Llama with experts, and norms over all heads of queries and of keys."""

from pathlib import Path
from typing import Any

from jserve.config import ModelConfig
from jserve.errors import CheckpointError
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.mixtral import MixtureDecoderLayer


class OlmoeDecoderLayer(MixtureDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        bias = config.attention_bias
        return Attention(build, config, layer, qkv_bias=bias, output_bias=bias, projection_norm=True)


class OlmoeForCausalLM(CausalLM):
    layer_type = OlmoeDecoderLayer
    config_defaults = defaults.OLMOE

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        if raw.get("clip_qkv") is not None:
            raise CheckpointError(
                f"{source}: clip_qkv is {raw['clip_qkv']!r}; supported is null, as OLMoE-1B-7B has it"
            )
        return super().read_config(raw, source=source)
