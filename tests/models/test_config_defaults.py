"""A key that `config.json` leaves out means what the class of that family in transformers takes it for."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import transformers

from jserve.config import ModelConfig
from jserve.models.registry import ARCHITECTURES, ENCODERS, resolve, resolve_encoder

TEXT_PARTS = {
    "Qwen2VLForConditionalGeneration": "Qwen2VLTextConfig",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2_5_VLTextConfig",
    "Qwen3VLForConditionalGeneration": "Qwen3VLTextConfig",
    "Qwen3VLMoeForConditionalGeneration": "Qwen3VLMoeTextConfig",
}
"""Classes of text parts that no architecture is named after."""
COMPOSED = {name for name in ARCHITECTURES if name.endswith("ForConditionalGeneration")} - TEXT_PARTS.keys()
FAMILIES = [name for name in (*ARCHITECTURES, *ENCODERS) if name not in COMPOSED]
UNLIKE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 3840,
    "n_embd": 3840,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "n_layer": 6,
    "num_attention_heads": 128,
    "n_head": 128,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 77,
    "n_positions": 77,
    "rms_norm_eps": 1e-3,
    "layer_norm_eps": 1e-3,
    "num_experts": 12,
    "num_local_experts": 12,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
"""Values that no class has by default."""
NEEDED = {
    "DeepseekV2ForCausalLM": {"num_experts_per_tok": 6},
    "Dots1ForCausalLM": {"num_experts_per_tok": 6, "n_routed_experts": 64},
    "NemotronHForCausalLM": {"layers_block_type": ["linear_attention", "full_attention", "mlp"]},
}
"""What the class leaves open and no model can; of Nemotron-H its class has experts, which are not supported."""


def config_class(name: str) -> type[Any]:
    if name in TEXT_PARTS:
        text: type[Any] = getattr(transformers, TEXT_PARTS[name])
        return text
    actual: type[Any] = getattr(transformers, name).config_class
    return actual


@cache
def keys_of(name: str) -> tuple[str, ...]:
    """Every key that the class writes and that says something of the model's shape or numbers."""
    plain = set(transformers.PreTrainedConfig().to_dict())
    return tuple(key for key in config_class(name)().to_dict() if key not in plain or key == "tie_word_embeddings")


def meant_by_transformers(name: str, fields: dict[str, Any]) -> ModelConfig:
    return read(name, config_class(name)(**fields).to_dict())


def read(name: str, fields: dict[str, Any]) -> ModelConfig:
    raw = {**fields, "architectures": [name], "model_type": config_class(name).model_type}
    raw.pop("dtype", None)
    encoder = resolve_encoder(raw, source=name)
    config = encoder[1] if encoder is not None else resolve(raw, source=name)[1]
    return replace(config, bos_token_id=None, eos_token_ids=())


@pytest.mark.parametrize("name", FAMILIES)
def test_file_that_says_nothing_means_the_defaults_of_the_class(name: str) -> None:
    needed = NEEDED.get(name, {})
    assert read(name, needed) == meant_by_transformers(name, needed)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_key_that_is_left_out_means_the_default_of_the_class(name: str) -> None:
    whole = {**config_class(name)(**NEEDED.get(name, {})).to_dict()}
    unlike = {key: value for key, value in UNLIKE.items() if key in whole}
    for key in keys_of(name):
        for fields in (whole, unlike):
            if key in fields and key not in NEEDED.get(name, {}):
                rest = {other: value for other, value in fields.items() if other != key}
                rest |= {other: value for other, value in NEEDED.get(name, {}).items() if other not in rest}
                assert read(name, rest) == meant_by_transformers(name, rest), key
