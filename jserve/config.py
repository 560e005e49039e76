"""Configuration, frozen once read: what the user asked of the engine, and what the model's file says.

"auto" values (None here) are resolved once, when the device and the model are known, and logged then.
Imports no jax: both processes read it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from jserve.errors import CheckpointError, ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
LOAD_FORMATS = ("auto", "dummy")
ROPE_KINDS = ("default", "linear", "llama3", "yarn", "freq_factors")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine process is told. None means automatic."""

    model: str
    dtype: str = "auto"
    load_format: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    page_size: int | None = None
    gpu_memory_utilization: float = 0.92
    kv_cache_memory_bytes: int | None = None
    tensor_parallel_size: int = 1
    enable_prefix_caching: bool = True
    compile_cache_dir: str | None = None
    executables: str | None = None
    seed: int = 0
    log_level: str = "info"
    log_format: str = "text"

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("load-format", self.load_format, LOAD_FORMATS)
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes"):
            _positive(name, getattr(self, name))
        _positive("tensor_parallel_size", self.tensor_parallel_size)
        if self.page_size is not None and (self.page_size < 1 or self.page_size & (self.page_size - 1)):
            raise ConfigError(f"--page-size is {self.page_size} but must be a power of two, such as 16 or 64")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(
                f"--gpu-memory-utilization is {self.gpu_memory_utilization} but must be above 0 and at most 1"
            )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"--{name} is {value!r} but must be one of {', '.join(allowed)}")


def _positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"--{name.replace('_', '-')} is {value} but must be at least 1")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. `scaling` is the checkpoint's own dictionary, without theta, or None."""

    theta: float
    kind: str = "default"
    scaling: tuple[tuple[str, Any], ...] = ()

    def get(self, key: str, default: Any = None) -> Any:
        """A field of the scaling dictionary."""
        return dict(self.scaling).get(key, default)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder, family-neutral, read from a Hugging Face `config.json` (or GGUF metadata).

    Axis letters: `hidden_size` E, `intermediate_size` F, `num_heads` H, `num_kv_heads` K, `head_dim` D,
    `vocab_size` V, `num_layers` L.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    layer_windows: tuple[int | None, ...] = ()
    """Sliding window of each layer in tokens, None where a layer sees everything."""
    dtype: str = "bfloat16"
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct entries of `layer_windows`, in a fixed order."""
        return tuple(dict.fromkeys(self.layer_windows))


def read_model_config(raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
    """Read a Hugging Face configuration dictionary. `source` names the file in errors.

    Raises CheckpointError where a field is missing or impossible.
    """
    reader = _Fields(raw, source)
    heads = reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", default=heads)
    hidden = reader.integer("hidden_size")
    layers = reader.integer("num_hidden_layers")
    if heads % kv_heads:
        raise CheckpointError(
            f"{source}: num_attention_heads is {heads}, not a multiple of num_key_value_heads {kv_heads}"
        )
    eos = raw.get("eos_token_id")
    architectures = raw.get("architectures") or ["(none)"]
    return ModelConfig(
        architecture=architectures[0],
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=reader.integer("head_dim", default=hidden // heads),
        max_position_embeddings=reader.integer("max_position_embeddings", default=2048),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=read_rope(raw, source=source),
        hidden_act=raw.get("hidden_act", "silu"),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
        layer_windows=_layer_windows(raw, layers),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16"),
        eos_token_ids=tuple([eos] if isinstance(eos, int) else eos or ()),
        bos_token_id=raw.get("bos_token_id"),
    )


def read_rope(raw: dict[str, Any], *, source: Path | str) -> RopeConfig:
    """Rope of a configuration, in the old spelling (rope_theta, rope_scaling) or the new (rope_parameters)."""
    merged = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    theta = float(merged.pop("rope_theta", raw.get("rope_theta") or 10000.0))
    kind = merged.pop("rope_type", merged.pop("type", "default"))
    merged.pop("type", None)
    if kind not in ROPE_KINDS:
        raise CheckpointError(
            f"{source}: rope scaling {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}"
        )
    merged.setdefault("original_max_position_embeddings", raw.get("original_max_position_embeddings"))
    if merged["original_max_position_embeddings"] is None:
        merged["original_max_position_embeddings"] = raw.get("max_position_embeddings", 2048)
    scaling = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in merged.items())
    return RopeConfig(theta=theta, kind=kind, scaling=scaling if kind != "default" else ())


def _layer_windows(raw: dict[str, Any], layers: int) -> tuple[int | None, ...]:
    window = raw.get("sliding_window")
    if not window or raw.get("use_sliding_window") is False:
        return (None,) * layers
    types = raw.get("layer_types")
    if types:
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    first = raw.get("max_window_layers", 0) if "use_sliding_window" in raw else 0
    return tuple(window if layer >= first else None for layer in range(layers))


class _Fields:
    """Checked access to a configuration dictionary."""

    def __init__(self, raw: dict[str, Any], source: Path | str) -> None:
        self._raw = raw
        self._source = source

    def integer(self, name: str, *, default: int | None = None) -> int:
        value = self._raw.get(name)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{self._source}: {name} is {value!r} but must be a positive integer")
        return value
