"""A Hugging Face `config.json` from GGUF metadata.

Keys follow llama.cpp's convert_hf_to_gguf.py read backwards. Owns what all families have; what one of them has
beyond that stands in `gguf_family_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jserve.checkpoint.gguf.encoder_families import ENCODER_FAMILIES
from jserve.checkpoint.gguf.end_tokens import end_tokens
from jserve.checkpoint.gguf.families import FAMILIES
from jserve.checkpoint.gguf.family import Family
from jserve.checkpoint.gguf.family_config import further_fields
from jserve.checkpoint.gguf.keys import Keys, shortest_decimal
from jserve.checkpoint.gguf.rope import Factors, rope_scaling
from jserve.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


def family_of(metadata: Mapping[str, Any], *, source: Path) -> Family:
    """The family of a file. Raises CheckpointError naming those that are supported."""
    name = metadata.get("general.architecture")
    if name == "llama" and metadata.get("llama.expert_count"):
        name = "mixtral"
    families = FAMILIES | ENCODER_FAMILIES
    if not isinstance(name, str) or name not in families:
        raise CheckpointError(
            f"{source} is a GGUF file of architecture {name!r}; supported are "
            f"{', '.join(families)}. Other models load from their Hugging Face directory"
        )
    return families[name]


def read_heads(metadata: Mapping[str, Any], *, source: Path) -> tuple[int, int]:
    """Heads of queries, and of keys and values."""
    keys, family = Keys(metadata, source), family_of(metadata, source=source)
    heads = keys.integer("attention.head_count")
    read = keys.largest if family.by_layer else keys.integer
    return heads, read("attention.head_count_kv", default=heads)


def read_layers(metadata: Mapping[str, Any], *, source: Path) -> int:
    """Layers of the model itself: those that predict further tokens come last, and are counted in the file."""
    keys = Keys(metadata, source)
    layers, further = keys.integer("block_count"), keys.count("nextn_predict_layers")
    if further >= layers:
        raise keys.wrong("nextn_predict_layers", f"must be less than block_count, {layers}")
    return layers - further


def build_config(metadata: Mapping[str, Any], shapes: Shapes, *, factors: Factors, source: Path) -> dict[str, Any]:
    """The configuration. `shapes` has Hugging Face names; `factors` are the tensors of the rotary embedding.

    Raises CheckpointError where a key is missing or says what no model family here can do.
    """
    keys, family = Keys(metadata, source), family_of(metadata, source=source)
    heads, kv_heads = read_heads(metadata, source=source)
    hidden = keys.integer("embedding_length")
    head_dim = keys.integer("attention.key_length", default=hidden // heads)
    rotary = keys.integer("rope.dimension_count", default=head_dim)
    if not family.latent:
        _check_values(keys, head_dim)
    eos = end_tokens(metadata)
    eps = "layer_norm_epsilon" if keys.get("attention.layer_norm_epsilon") else "layer_norm_rms_epsilon"
    config = {
        "architectures": [family.architecture],
        "model_type": keys.architecture,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": (keys.largest if family.by_layer else keys.integer)("feed_forward_length"),
        "num_hidden_layers": read_layers(metadata, source=source),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.decimal(f"attention.{eps}", default=1e-6),
        "rope_theta": keys.decimal("rope.freq_base", default=10000.0),
        "rope_scaling": rope_scaling(keys, factors, rotary),
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
        "mlp_bias": "model.layers.0.mlp.up_proj.bias" in shapes,
        "vocab_size": _vocab_size(family, shapes, source),
        "tie_word_embeddings": f"{family.top.get('output')}.weight" not in shapes,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }
    further = further_fields(family.architecture, keys, config, shapes)
    if rotary != head_dim and not family.latent and "partial_rotary_factor" not in further:
        raise keys.wrong("rope.dimension_count", f"rotating a part of the head's {head_dim} is not supported")
    return config | further


def build_generation_config(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens, and the sampling that the file recommends (`general.sampling.*`), where it does."""
    names = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
    names["penalty_repeat"] = "repetition_penalty"
    generation = {
        hf: shortest_decimal(value) if isinstance(value, float) else value
        for gguf, hf in names.items()
        if (value := metadata.get(f"general.sampling.{gguf}")) is not None
    }
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if config[name] is not None:
            generation[name] = config[name]
    return generation


def _check_values(keys: Keys, head_dim: int) -> None:
    """Refuse what would load and then answer nonsense."""
    if keys.integer("attention.value_length", default=head_dim) != head_dim:
        raise keys.wrong("attention.value_length", f"values must have the {head_dim} dimensions of keys")


def _vocab_size(family: Family, shapes: Shapes, source: Path) -> int:
    """Rows of the embedding; the metadata may leave padding rows out."""
    embedding = shapes.get(f"{family.top['token_embd']}.weight")
    if embedding is None:
        raise CheckpointError(f"{source} has no tensor 'token_embd.weight'; the file is damaged")
    return embedding[0]
