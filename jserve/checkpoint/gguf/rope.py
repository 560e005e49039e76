"""A rotary embedding's scaling from GGUF metadata and the tensors of factors that some files have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jserve.checkpoint.gguf.keys import Keys, shortest_decimal
from jserve.errors import CheckpointError

_MATCH_TOLERANCE = 1e-4
"""llama3 factors are float32 of a float32 computation; the next plausible parameters differ by far more."""

Factors = Mapping[str, Sequence[float]]
"""f32[R/2] by the name of their tensor: rope_freqs.weight, or rope_factors_short.weight and _long."""


def rope_scaling(keys: Keys, factors: Factors, rotary: int) -> dict[str, Any] | None:
    """The scaling of an embedding that rotates so many of a head's dimensions; None where there is none."""
    short, long = factors.get("rope_factors_short.weight"), factors.get("rope_factors_long.weight")
    if short is not None and long is not None:
        return _longrope(keys, short, long)
    if "rope_freqs.weight" in factors:
        return _scaling_from_factors(keys, factors["rope_freqs.weight"], rotary)
    kind = keys.get("rope.scaling.type", "linear" if keys.get("rope.scale_linear") else "none")
    factor = keys.decimal("rope.scaling.factor", default=keys.decimal("rope.scale_linear", default=1.0))
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return yarn(keys, factor)
    raise keys.wrong("rope.scaling.type", "supported are none, linear and yarn")


def yarn(keys: Keys, factor: float) -> dict[str, Any]:
    """YaRN's parameters, those that the file names."""
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


def _longrope(keys: Keys, short: Sequence[float], long: Sequence[float]) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": [shortest_decimal(factor) for factor in short],
        "long_factor": [shortest_decimal(factor) for factor in long],
        "original_max_position_embeddings": keys.integer(
            "rope.scaling.original_context_length", default=keys.integer("context_length")
        ),
    }


def _scaling_from_factors(keys: Keys, factors: Sequence[float], head_dim: int) -> dict[str, Any] | None:
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
