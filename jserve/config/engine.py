"""What the user asks of the engine, checked and frozen. None and "auto" are resolved once, when the device and the
model are known. Imports no jax: both processes read it.
"""

import msgspec

from jserve.config.speculation import SpeculativeConfig
from jserve.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")


QUANTIZATIONS = ("int8", "int8-w8a8", "fp8", "int4")
"""What weights can be rounded to while they are loaded."""


STORED_QUANTIZATIONS = ("compressed-tensors", "awq", "gptq", "fp8", "fbgemm_fp8", "mxfp4", "jserve")
"""What checkpoints can be quantized in; `--quantization` may say so."""


FILE_QUANTIZATIONS = ("gguf", "gguf-a8", "none")
"""How `--quantization` keeps a file's weights: those of a GGUF file in its own bits, the second time with activations
rounded to int8, or all in floating point.
"""


KV_CACHE_DTYPES = ("auto", "fp8", "int8")
"""What keys and values are kept in; `auto` is the type of the activations."""


LOAD_FORMATS = ("auto", "dummy")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine process is told. None means automatic."""

    model: str
    architecture: str | None = None
    """In place of the one that `config.json` names."""
    dtype: str = "auto"
    load_format: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    page_size: int | None = None
    gpu_memory_utilization: float = 0.92
    kv_cache_memory_bytes: int | None = None
    tensor_parallel_size: int = 1
    expert_parallel_size: int = 1
    enable_prefix_caching: bool = True
    speculative_config: SpeculativeConfig | None = None
    compile_cache_dir: str | None = None
    executables: str | None = None
    seed: int = 0
    log_level: str = "info"
    log_format: str = "text"

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("kv-cache-dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        _one_of("load-format", self.load_format, LOAD_FORMATS)
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes"):
            _positive(name, getattr(self, name))
        _positive("tensor_parallel_size", self.tensor_parallel_size)
        _positive("expert_parallel_size", self.expert_parallel_size)
        if self.page_size is not None and (self.page_size < 1 or self.page_size & (self.page_size - 1)):
            raise ConfigError(f"--page-size is {self.page_size} but must be a power of two, such as 16 or 64")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(
                f"--gpu-memory-utilization is {self.gpu_memory_utilization} but must be above 0 and at most 1"
            )


QUANTIZE_BITS = {"awq": (4,), "gptq": (4, 8)}
"""What `jserve quantize --method` offers, with the bits that the format's layout has."""


class QuantizeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What `jserve quantize` is told. None means automatic."""

    model: str
    method: str
    bits: int = 4
    group_size: int | None = None
    samples: int = 64
    sequence_length: int = 512
    steps: int = 60
    """Steps of Adam for each group of linear layers that share an input; awq alone."""
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        _one_of("method", self.method, tuple(QUANTIZE_BITS))
        if self.bits not in QUANTIZE_BITS[self.method]:
            supported = " and ".join(map(str, QUANTIZE_BITS[self.method]))
            raise ConfigError(f"--bits is {self.bits} but the layout of --method {self.method} holds {supported}")
        for name in ("group_size", "samples"):
            _positive(name, getattr(self, name))
        if self.sequence_length < 2:
            raise ConfigError(f"--sequence-length is {self.sequence_length} but must be at least 2")
        if self.steps < 0 or not 0 < self.learning_rate <= 1:
            raise ConfigError(
                f"--steps is {self.steps} and --learning-rate {self.learning_rate}, but steps must be at least 0 and "
                "the rate above 0 and at most 1"
            )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"--{name} is {value!r} but must be one of {', '.join(allowed)}")


def _positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"--{name.replace('_', '-')} is {value} but must be at least 1")
