"""A Hugging Face `config.json` from GGUF metadata.

Keys follow llama.cpp's convert_hf_to_gguf.py read backwards. A number that llama.cpp stores as float32 comes
back as the shortest decimal that rounds to it (1e-05, not 9.999999747378752e-06), as it was in the original.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jserve.errors import CheckpointError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

_END_TOKENS = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>"}
)
"""Tokens that end an answer by their name. llama.cpp stops at them too: many files name only one `eos`."""
_CONTROL = 3
_MATCH_TOLERANCE = 1e-4
"""llama3 factors are float32 of a float32 computation; the next plausible parameters differ by far more."""

Shapes = Mapping[str, tuple[int, ...]]


def build_config(
    metadata: Mapping[str, Any], shapes: Shapes, *, frequency_factors: Sequence[float] | None, source: Path
) -> dict[str, Any]:
    """The configuration. `shapes` has Hugging Face names; `frequency_factors`: f32[D/2], rope_freqs.weight.

    Raises CheckpointError where a key is missing or says what no model family here can do.
    """
    keys = _Keys(metadata, source)
    heads = keys.integer("attention.head_count")
    kv_heads = keys.integer("attention.head_count_kv", default=heads)
    hidden = keys.integer("embedding_length")
    head_dim = keys.integer("attention.key_length", default=hidden // heads)
    _check_dense(keys, head_dim)
    eos = _end_tokens(metadata)
    return {
        "architectures": [ARCHITECTURES[keys.architecture]],
        "model_type": keys.architecture,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.decimal("attention.layer_norm_rms_epsilon", default=1e-6),
        "rope_theta": keys.decimal("rope.freq_base", default=10000.0),
        "rope_scaling": _rope_scaling(keys, frequency_factors, head_dim),
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
        "mlp_bias": "model.layers.0.mlp.up_proj.bias" in shapes,
        "vocab_size": _vocab_size(keys, shapes),
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }


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


def shortest_decimal(value: float) -> float:
    """The number with the fewest digits that is the same float32."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


class _Keys:
    """Checked access to the metadata of the file's own architecture."""

    def __init__(self, metadata: Mapping[str, Any], source: Path) -> None:
        self.metadata = metadata
        self.source = source
        self.architecture: str = metadata["general.architecture"]

    def get(self, name: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.architecture}.{name}", default)

    def integer(self, name: str, *, default: int | None = None) -> int:
        value = self.get(name, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # some converters write one number for each layer
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(name, "must be a positive integer")
        return value

    def decimal(self, name: str, *, default: float) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.wrong(name, "must be a positive number")
        return shortest_decimal(value)

    def wrong(self, name: str, need: str) -> CheckpointError:
        value = self.get(name)
        shown = f"{value[:4]}..." if isinstance(value, list) else repr(value)
        return CheckpointError(f"{self.source}: metadata key {self.architecture}.{name} is {shown} but {need}")


def _check_dense(keys: _Keys, head_dim: int) -> None:
    """Refuse what would load and then answer nonsense."""
    if keys.get("expert_count", 0):
        raise keys.wrong("expert_count", "mixtures of experts are not supported from GGUF")
    rotary = keys.integer("rope.dimension_count", default=head_dim)
    values = keys.integer("attention.value_length", default=head_dim)
    if rotary != head_dim:
        raise keys.wrong("rope.dimension_count", f"rotating a part of the head's {head_dim} is not supported")
    if values != head_dim:
        raise keys.wrong("attention.value_length", f"values must have the {head_dim} dimensions of keys")


def _vocab_size(keys: _Keys, shapes: Shapes) -> int:
    """Rows of the embedding; the metadata may leave padding rows out."""
    embedding = shapes.get("model.embed_tokens.weight")
    if embedding is None:
        raise CheckpointError(f"{keys.source} has no tensor 'token_embd.weight'; the file is damaged")
    return embedding[0]


def _end_tokens(metadata: Mapping[str, Any]) -> list[int]:
    """Every token that ends an answer, the file's own `eos` first."""
    ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens, types = metadata.get("tokenizer.ggml.tokens", ()), metadata.get("tokenizer.ggml.token_type", ())
    named = (
        number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind == _CONTROL and token in _END_TOKENS
    )
    return list(dict.fromkeys(number for number in (*ids, *named) if isinstance(number, int)))


def _rope_scaling(keys: _Keys, factors: Sequence[float] | None, head_dim: int) -> dict[str, Any] | None:
    if factors is not None:
        return _scaling_from_factors(keys, factors, head_dim)
    kind = keys.get("rope.scaling.type", "linear" if keys.get("rope.scale_linear") else "none")
    factor = keys.decimal("rope.scaling.factor", default=keys.decimal("rope.scale_linear", default=1.0))
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn(keys, factor)
    raise keys.wrong("rope.scaling.type", "supported are none, linear and yarn")


def _yarn(keys: _Keys, factor: float) -> dict[str, Any]:
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.integer(
            "rope.scaling.original_context_length", default=keys.integer("context_length")
        ),
    }
    names = {
        "yarn_attn_factor": "attention_factor",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    }
    for gguf, hf in names.items():
        if keys.get(f"rope.scaling.{gguf}") is not None:
            scaling[hf] = keys.decimal(f"rope.scaling.{gguf}", default=1.0)
    return scaling


def _scaling_from_factors(keys: _Keys, factors: Sequence[float], head_dim: int) -> dict[str, Any] | None:
    """llama3's parameters where they explain the factors, else the factors themselves.

    Every published llama3 scaling has low 1, high 4 and 8192 original positions; only `factor` varies, and it
    is the largest of the factors.
    """
    if len(factors) != head_dim // 2 or not all(0 < factor < math.inf for factor in factors):
        raise CheckpointError(
            f"{keys.source}: tensor 'rope_freqs.weight' must hold {head_dim // 2} positive numbers, "
            f"one for each pair of the head's {head_dim} dimensions"
        )
    if all(factor == 1.0 for factor in factors):
        return None
    factor = shortest_decimal(max(factors))
    theta = keys.decimal("rope.freq_base", default=10000.0)
    expected = llama3_factors(factor, theta, head_dim)
    if all(
        math.isclose(mine, theirs, rel_tol=_MATCH_TOLERANCE) for mine, theirs in zip(expected, factors, strict=True)
    ):
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return {"rope_type": "freq_factors", "factors": list(factors)}


def llama3_factors(
    factor: float, theta: float, head_dim: int, *, low: float = 1.0, high: float = 4.0, positions: int = 8192
) -> list[float]:
    """What llama3 scaling divides each of the D/2 inverse frequencies by (LlamaModel of the converter)."""
    factors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / head_dim)
        if wavelength < positions / high:
            factors.append(1.0)
        elif wavelength > positions / low:
            factors.append(factor)
        else:
            smooth = (positions / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
