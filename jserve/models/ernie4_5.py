"""ERNIE 4.5: Llama that rotates neighbouring pairs; the mixture's experts are ranked by shares and a bias."""

from pathlib import Path
from typing import Any, ClassVar

from jserve.config import MOST_LAYERS, ModelConfig
from jserve.config.deepseek import GroupRouting
from jserve.config.fields import Fields
from jserve.layers.build import Build
from jserve.layers.grouped_router import GroupedMixture
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.grouped_mixture import GroupedMixtureDecoderLayer, GroupedMixtureForCausalLM
from jserve.models.llama import LlamaDecoderLayer

ERNIE4_5: defaults.Defaults = {
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "rope_interleaved": True,
    "tie_word_embeddings": True,
}
ERNIE4_5_MOE = {key: value for key, value in ERNIE4_5.items() if key != "head_dim"} | {
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    "norm_topk_prob": True,
    "use_bias": False,
}


class Ernie4_5ForCausalLM(CausalLM):
    layer_type = LlamaDecoderLayer
    config_defaults = ERNIE4_5
    config_names: ClassVar = {"attention_bias": "use_bias", "mlp_bias": "use_bias"}


class ErnieMixture(GroupedMixture):
    correction = "../moe_statics.e_score_correction_bias"
    correction_rows = 1


class ErnieMixtureDecoderLayer(GroupedMixtureDecoderLayer):
    def make_mixture(self, build: Build, config: ModelConfig) -> GroupedMixture:
        return ErnieMixture(build, config)


class Ernie4_5_MoeForCausalLM(GroupedMixtureForCausalLM):
    layer_type = ErnieMixtureDecoderLayer
    config_defaults = ERNIE4_5_MOE

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        fields.one_of("use_bias", (False,))
        named = {
            "n_routed_experts": raw["moe_num_experts"],
            "n_shared_experts": raw["moe_num_shared_experts"],
            "num_experts_per_tok": raw["moe_k"],
            "mlp_layer_types": _layer_types(fields),
        }
        return super().read_config({**raw, **named}, source=source)

    @classmethod
    def read_routing(cls, fields: Fields) -> GroupRouting:
        return GroupRouting("softmax", corrected=True)


def _layer_types(fields: Fields) -> list[str]:
    """Every so many-th layer has experts, from the first to the last that may."""
    layers, every = fields.integer("num_hidden_layers", most=MOST_LAYERS), fields.integer("moe_layer_interval")
    bounds = [fields.get(f"moe_layer_{end}_index") for end in ("start", "end")]
    if any(type(bound) is not int for bound in bounds):
        raise fields.unlike("moe_layer_start_index", "a number, as moe_layer_end_index must be")
    first, last = bounds[0], layers - 1 if bounds[1] == -1 else bounds[1]
    has_experts = [(layer + 1) % every == 0 and first <= layer <= last for layer in range(layers)]
    return ["sparse" if has else "dense" for has in has_experts]
