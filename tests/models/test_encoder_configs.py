"""Configurations of encoders as they are published: older names of fields, and what is refused of them."""

from typing import Any

import pytest

from jserve.config import ModelConfig
from jserve.errors import CheckpointError
from jserve.models.registry import resolve_encoder

NOMIC: dict[str, Any] = {
    "architectures": ["NomicBertModel"],
    "activation_function": "swiglu",
    "layer_norm_epsilon": 1e-12,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "model_type": "nomic_bert",
    "n_embd": 768,
    "n_head": 12,
    "n_inner": 3072,
    "n_layer": 12,
    "n_positions": 8192,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "type_vocab_size": 2,
    "use_rms_norm": False,
    "vocab_size": 30528,
}
"""nomic-embed-text-v1.5."""


def read(raw: dict[str, Any]) -> ModelConfig:
    resolved = resolve_encoder(raw, source="config.json")
    assert resolved is not None
    return resolved[1]


def test_first_files_of_nomic_are_read_under_their_names() -> None:
    config = read(NOMIC)
    assert (config.hidden_size, config.num_heads, config.intermediate_size, config.num_layers) == (768, 12, 3072, 12)
    assert (config.max_position_embeddings, config.norm_eps, config.rope.theta) == (8192, 1e-12, 1000.0)
    assert (config.hidden_act, config.token_types, config.is_causal) == ("silu", 2, False)


@pytest.mark.parametrize(
    "fields", [{"prenorm": True}, {"qkv_proj_bias": True}, {"num_experts": 8}, {"rotary_scaling_factor": 2.0}]
)
def test_what_no_model_here_computes_is_refused_by_name(fields: dict[str, Any]) -> None:
    [name] = fields
    with pytest.raises(CheckpointError, match=f"{name} is .* supported of NomicBertModel is"):
        read(NOMIC | fields)


def test_windows_and_ropes_of_modernbert_follow_its_older_fields() -> None:
    config = read(
        {
            "architectures": ["ModernBertModel"],
            "num_hidden_layers": 5,
            "global_attn_every_n_layers": 2,
            "local_attention": 64,
            "global_rope_theta": 70_000.0,
            "local_rope_theta": 5_000.0,
        }
    )
    assert config.layer_windows == (None, 32, None, 32, None)
    assert [rope.theta for rope in config.layer_ropes if rope] == [70_000.0, 5_000.0, 70_000.0, 5_000.0, 70_000.0]


def test_window_of_a_gemma_that_sees_both_ways_is_counted_to_both_sides() -> None:
    raw = {"architectures": ["Gemma3TextModel"], "num_hidden_layers": 6, "sliding_window": 512}
    config = read({**raw, "use_bidirectional_attention": True})
    assert config.layer_windows == (256,) * 5 + (None,)
    assert not config.is_causal
    assert resolve_encoder(raw, source="config.json") is None, "it is a decoder"


def test_other_decoders_that_see_both_ways_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"not supported of Phi3Model|is not supported"):
        read({"architectures": ["Phi3ForCausalLM"], "jserve_embedder": {}, "is_causal": False})
