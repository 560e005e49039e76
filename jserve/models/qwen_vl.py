"""The text parts of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, dense and with experts.

Their rotary embedding has three axes. Of text all three positions are the same, which is the plain one.
"""

from pathlib import Path
from typing import Any

from jserve.config import ModelConfig
from jserve.config.fields import Fields
from jserve.models import defaults
from jserve.models.qwen2 import Qwen2ForCausalLM
from jserve.models.qwen3 import Qwen3ForCausalLM
from jserve.models.qwen3_moe import Qwen3MoeForCausalLM

QWEN2_VL = defaults.QWEN2 | {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "max_window_layers": 80,
}
QWEN3_VL = {key: value for key, value in defaults.QWEN3.items() if key != "max_window_layers"} | {
    "max_position_embeddings": 128000,
    "rope_theta": 500_000.0,
}
QWEN3_VL_MOE = {key: value for key, value in QWEN3_VL.items() if key != "head_dim"} | {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "tie_word_embeddings": True,
    "moe_intermediate_size": 1408,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
}


class Qwen2VLForCausalLM(Qwen2ForCausalLM):
    config_defaults = QWEN2_VL

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        return super().read_config(_one_axis(cls.with_defaults(raw), source), source=source)


class Qwen3VLForCausalLM(Qwen3ForCausalLM):
    config_defaults = QWEN3_VL

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        return super().read_config(_one_axis(cls.with_defaults(raw), source), source=source)


class Qwen3VLMoeForCausalLM(Qwen3MoeForCausalLM):
    config_defaults = QWEN3_VL_MOE

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        return super().read_config(_one_axis(cls.with_defaults(raw), source), source=source)


def _one_axis(raw: dict[str, Any], source: Path | str) -> dict[str, Any]:
    """Without the sections of the axes."""
    plain = {}
    for place in ("rope_parameters", "rope_scaling"):
        parameters = Fields(raw, source).dictionary(place)
        rest = {name: value for name, value in parameters.items() if name not in ("mrope_section", "mrope_interleaved")}
        plain[place] = {name: "default" if value == "mrope" else value for name, value in rest.items()}
    return {**raw, **plain}
