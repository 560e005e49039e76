"""What files say of rotary embeddings, field by field, and the length that follows from it."""

from typing import Any

import pytest

from jserve.errors import CheckpointError
from jserve.models.registry import resolve

LLAMA = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def read(fields: dict[str, Any], **others: Any) -> Any:
    return resolve({**LLAMA, **others, "rope_scaling": fields}, source="config.json")[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_type": "yarn"}, "factor is None but must be a positive number"),
        ({"rope_type": "yarn", "factor": "4"}, "factor is '4' but must be a positive number"),
        ({"rope_type": "yarn", "factor": 4, "beta_fast": "32"}, "beta_fast is '32' but must be a positive number"),
        ({"rope_type": "yarn", "factor": 4, "truncate": "no"}, "truncate is 'no' but must be true or false"),
        ({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 1.5}, "1.5 but must be a positive int"),
        ({"rope_type": "linear"}, "factor is None but must be a positive number"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor is nan but must be a positive number"),
        ({"rope_type": "llama3", "factor": 8}, "low_freq_factor is None but must be a positive number"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "long_factor must be a list of positive numbers"),
        ({"rope_type": "longrope", "short_factor": [1, "2"]}, "short_factor must be a list of positive numbers"),
        ({"rope_type": ["yarn"]}, r"rope_type is \['yarn'\] but must be text"),
        ({"rope_type": "dynamic", "factor": 2.0}, "rope scaling 'dynamic' is not supported"),
        ({"rope_theta": "10000"}, "rope_theta is '10000' but must be a positive number"),
        ({"partial_rotary_factor": 2}, "partial_rotary_factor is 2 but must be at most 1"),
        ({"rope_type": "default", "mrope_section": [1, 2]}, "the rope parameters have 'mrope_section'"),
        ({**YARN, "llama_4_scaling_beta": 0.1}, "the rope parameters have 'llama_4_scaling_beta'"),
    ],
)
def test_field_that_is_wrong_or_unknown_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(fields)


@pytest.mark.parametrize(
    ("fields", "positions", "length"),
    [
        (YARN, 32768, 131072),  # as the README of Qwen2.5 says
        (YARN, 40960, 131072),  # and that of Qwen3, whose file counts an answer's tokens too
        ({**YARN, "factor": 40.0, "original_max_position_embeddings": 4096}, 163840, 163840),
        ({"rope_type": "yarn", "factor": 2.0}, 4096, 8192),
        ({"rope_type": "linear", "factor": 4.0}, 4096, 16384),
        ({"rope_type": "default"}, 4096, 4096),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            131072,
            131072,
        ),
    ],
)
def test_length_that_a_model_is_for_follows_from_its_scaling(
    fields: dict[str, Any], positions: int, length: int
) -> None:
    """vllm-ascend#760"""
    assert read(fields, max_position_embeddings=positions).max_position_embeddings == length


def test_scaling_of_some_layers_leaves_the_length_of_all() -> None:
    raw = {"architectures": ["Gemma3ForCausalLM"], "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert resolve(raw, source="m")[1].max_position_embeddings == 131072


def test_queries_of_ministral_3_grow_with_the_position_by_the_files_own_numbers() -> None:
    rope = {**YARN, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16384}
    raw = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
    for text in ({"model_type": "ministral3", "rope_parameters": rope}, {"model_type": "ministral3"}):
        assert resolve({**raw, "text_config": text}, source="m")[1].attention_temperature == (16384.0, 0.1)
    assert resolve({**raw, "text_config": {"model_type": "mistral"}}, source="m")[1].attention_temperature is None
    with pytest.raises(CheckpointError, match="model_type 'mistral5', which Mistral3ForConditionalGeneration is not"):
        resolve({**raw, "text_config": {"model_type": "mistral5"}}, source="m")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_window_layers": "2", "use_sliding_window": True}, "max_window_layers is '2' but must be a positive int"),
        ({"tie_word_embeddings": "true"}, "tie_word_embeddings is 'true' but must be true or false"),
        ({"attention_bias": 1}, "attention_bias is 1 but must be true or false"),
        ({"torch_dtype": 16}, "torch_dtype is 16 but must be text"),
        ({"eos_token_id": "2"}, "eos_token_id is '2' but must be a token id or a list of them"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6' but must be a positive number"),
    ],
)
def test_field_of_another_type_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve({"architectures": ["Qwen2ForCausalLM"], **fields}, source="config.json")


def test_null_means_the_default_where_it_says_nothing() -> None:
    raw = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 7}
    windows = resolve({**raw, "max_window_layers": None}, source="m")[1].layer_windows
    assert windows == (None,) * 28 + (7,) * 4
