"""Granite 3 MoE, with or without a shared expert, and Granite with windows, sinks and a rope for each layer."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from jserve.config import MOST_LAYERS, ModelConfig, RopeConfig
from jserve.config.fields import Fields
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.mlp import GatedMLP
from jserve.layers.moe import ExpertNames, MixtureOfExperts
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.granite import GraniteDecoderLayer
from jserve.models.mixtral import MixtureDecoderLayer

GRANITE_MOE = defaults.GRANITE | {"num_local_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True}
WINDOWED: defaults.Defaults = {"sliding_window": 128, "use_sliding_window": True}
GRANITE_SWA = (
    defaults.GRANITE
    | WINDOWED
    | {
        "vocab_size": 100352,
        "hidden_size": 2560,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
)
FOLDER = "../../block_sparse_moe"
NAMES = ExpertNames(
    folder="block_sparse_moe",
    router="router.layer",
    all_gate_up=f"{FOLDER}.input_linear.weight",
    all_down=f"{FOLDER}.output_linear.weight",
    shared="shared_mlp",
)


SWA_NAMES = ExpertNames(
    folder="block_sparse_moe",
    router="router",
    all_gate_up=f"{FOLDER}.experts.gate_up_proj",
    all_down=f"{FOLDER}.experts.down_proj",
    shared="shared_mlp",
)


class GraniteMixture(MixtureOfExperts):
    """The shared expert stands beside the mixture in checkpoints, not in it."""

    def make_shared(self, build: Build, config: ModelConfig) -> GatedMLP:
        above = "../../shared_mlp"
        names = ("gate_proj", "up_proj", f"{above}.output_linear")
        return GatedMLP(build, config, fused=f"{above}.input_linear", names=names)


class GraniteMoeDecoderLayer(MixtureDecoderLayer, GraniteDecoderLayer):
    def make_mixture(self, build: Build, config: ModelConfig) -> MixtureOfExperts:
        return GraniteMixture(build, config, NAMES)


class GraniteMoeForCausalLM(CausalLM):
    """And the one with a shared expert."""

    layer_type: ClassVar = GraniteMoeDecoderLayer
    config_defaults = GRANITE_MOE
    config_names: ClassVar = {"shared_expert_intermediate_size": "shared_intermediate_size"}


class GraniteSWADecoderLayer(GraniteDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        bias = config.attention_bias
        return Attention(build, config, layer, qkv_bias=bias, output_bias=bias, sinks=True)


class GraniteSWAForCausalLM(CausalLM):
    layer_type = GraniteSWADecoderLayer
    config_defaults = GRANITE_SWA

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        return _layered(super().read_config(_with_windows(raw, source), source=source), raw, source)


class GraniteMoeSWADecoderLayer(GraniteMoeDecoderLayer, GraniteSWADecoderLayer):
    def make_mixture(self, build: Build, config: ModelConfig) -> MixtureOfExperts:
        return GraniteMixture(build, config, SWA_NAMES)


class GraniteMoeSWAForCausalLM(GraniteMoeForCausalLM):
    layer_type = GraniteMoeSWADecoderLayer
    config_defaults = GRANITE_MOE | WINDOWED

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        return _layered(super().read_config(_with_windows(raw, source), source=source), raw, source)


def _with_windows(raw: dict[str, Any], source: Path | str) -> dict[str, Any]:
    """With a window on all layers but each fourth, from the first on, where the file does not say."""
    layers = Fields(raw, source).integer("num_hidden_layers", most=MOST_LAYERS)
    kinds = ["sliding_attention" if layer % 4 else "full_attention" for layer in range(layers)]
    return {**raw, "layer_types": raw.get("layer_types") or kinds}


def _layered(config: ModelConfig, raw: dict[str, Any], source: Path | str) -> ModelConfig:
    """Each layer's own base of the rotary embedding; 0 is none."""
    fields = Fields(raw, source)
    thetas = fields.for_each_layer("layer_rope_theta", config.num_layers)
    if thetas is None:
        return config

    def rope(theta: Any) -> RopeConfig | None:
        if theta == 0:
            return None
        return replace(
            config.rope, theta=Fields({"layer_rope_theta": theta}, source).required_number("layer_rope_theta")
        )

    return replace(config, layer_ropes=tuple(map(rope, thetas)))
