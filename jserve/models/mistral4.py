"""Mistral 4: DeepSeek's latent attention and mixture, ranked by a softmax; queries grow with the position."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jserve.config import ModelConfig
from jserve.config.deepseek import GroupRouting
from jserve.config.fields import Fields
from jserve.models import defaults
from jserve.models.deepseek import DeepseekForCausalLM
from jserve.models.grouped_mixture import grouped
from jserve.models.mistral import without_growth

MISTRAL4 = defaults.DEEPSEEK_V2 | {
    "vocab_size": 131072,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "max_position_embeddings": 1048576,
    "kv_lora_rank": 256,
    "q_lora_rank": 1024,
    "qk_nope_head_dim": 64,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 2048,
    "norm_topk_prob": True,
}
MISTRAL4_ROPE: defaults.Defaults = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


class Mistral4ForCausalLM(DeepseekForCausalLM):
    config_defaults = MISTRAL4
    rope_defaults = MISTRAL4_ROPE

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw, temperature = without_growth(cls.with_defaults(raw), source)
        for place in ("rope_parameters", "rope_scaling"):
            parameters = Fields(raw, source).dictionary(place)
            # The share of a head that is rotated, which the sizes of its two parts say already.
            raw = {**raw, place: {key: value for key, value in parameters.items() if key != "partial_rotary_factor"}}
        return replace(super().read_config(raw, source=source), attention_temperature=temperature)

    @classmethod
    def read_routing(cls, fields: Fields) -> GroupRouting:
        scale = fields.number("routed_scaling_factor", default=1.0)
        return grouped(fields, GroupRouting("softmax", group_best=2, scale=scale))
