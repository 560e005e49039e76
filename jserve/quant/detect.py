"""Which format a model's weights are in, or are to be brought into."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jserve.errors import CheckpointError, ConfigError
from jserve.quant.awq import read_awq
from jserve.quant.compressed_tensors import read_compressed_tensors
from jserve.quant.converted import read_converted
from jserve.quant.fp8 import read_fp8
from jserve.quant.gguf import Gguf
from jserve.quant.gguf_blocks import FORMS
from jserve.quant.gptq import read_gptq
from jserve.quant.mxfp4 import Mxfp4
from jserve.quant.on_load import METHODS, OnLoad
from jserve.quant.scheme import Quantization

STORED: Mapping[str, Callable[[Mapping[str, Any], str, Mapping[str, Any]], Quantization]] = {
    "compressed-tensors": lambda stored, scale_dtype, _: read_compressed_tensors(stored, scale_dtype),
    "awq": lambda stored, scale_dtype, _: read_awq(stored, scale_dtype),
    "gptq": lambda stored, scale_dtype, _: read_gptq(stored, scale_dtype),
    "fp8": lambda stored, _, tensors: read_fp8(stored, tensors),
    "fbgemm_fp8": lambda stored, _, tensors: read_fp8(stored, tensors),
    "mxfp4": lambda *_: Mxfp4(),
    "jserve": lambda stored, scale_dtype, _: read_converted(stored, scale_dtype),
}
"""By `quant_method`: reads `quantization_config`, from it, the type of scales and the checkpoint's tensors by name, or
raises CheckpointError.
"""
HALVES = ("float16", "bfloat16")


def detect(
    raw: Mapping[str, Any], requested: str | None, tensors: Mapping[str, Any], *, source: Path | str
) -> Quantization | Gguf | None:
    """The format of a model whose `config.json` is `raw` where `--quantization` is `requested`; None: as it is, and a
    GGUF file in floating point.

    `tensors` are those of the checkpoint by name, with their `dtype`; empty where it has none.

    Raises CheckpointError for a format that is not supported, ConfigError where both do not go together.
    """
    stored = _stored(raw)
    if not stored:
        if requested in (None, "none"):
            return None
        if requested in ("gguf", "gguf-a8"):
            return _blocks_of(tensors, requested, source)
        if requested not in METHODS:
            raise ConfigError(
                f"--quantization is {requested!r} but {source} is not quantized; to quantize while loading, "
                f"choose {', '.join(METHODS)}"
            )
        return OnLoad(requested)
    method = stored.get("quant_method") if isinstance(stored, Mapping) else stored
    if not isinstance(method, str) or not isinstance(stored, Mapping):
        raise CheckpointError(f"{source}: quantization_config is {stored!r} but must be an object with a quant_method")
    if method not in STORED:
        raise CheckpointError(
            f"{source}: the weights are quantized by {method!r}; supported are {', '.join(STORED)}. "
            "Take the model's unquantized weights, and --quantization to quantize them while loading"
        )
    if requested not in (None, method):
        raise ConfigError(
            f"--quantization is {requested!r} but {source} is already quantized by {method}; leave the flag out, or "
            "take the model's unquantized weights"
        )
    try:
        return STORED[method](stored, _scale_dtype(raw, tensors), tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except (TypeError, AttributeError, KeyError, ValueError) as error:  # a field of another type than it has
        raise CheckpointError(f"{source}: quantization_config of {method} does not hold together: {error}") from None


def _blocks_of(tensors: Mapping[str, Any], requested: str, source: Path | str) -> Gguf:
    kept = Gguf.of(tensors)
    if kept is None:
        raise ConfigError(
            f"--quantization is {requested!r} but {source} has no weights in {', '.join(FORMS)}; leave the flag out"
        )
    return kept


def _stored(raw: Mapping[str, Any]) -> Any:
    """What a configuration says of its quantized weights, under the names that writers have for it; None: nothing.

    MLX says it under `quantization`, and once more where others look, without a `quant_method`.
    """
    stored = raw.get("quantization_config") or raw.get("compression_config")
    of_mlx = raw.get("quantization")
    if isinstance(of_mlx, Mapping) and not (isinstance(stored, Mapping) and stored.get("quant_method")):
        return {**of_mlx, "quant_method": of_mlx.get("quant_method", "mlx")}
    return stored


def _scale_dtype(raw: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    """The 16-bit type that all scales are in, so that they stay as they are; float32 otherwise."""
    dtypes = {info.dtype for name, info in tensors.items() if name.endswith((".scales", ".weight_scale"))}
    declared = str(raw.get("dtype") or raw.get("torch_dtype"))
    return next((half for half in HALVES if dtypes == {half} or (not dtypes and declared == half)), "float32")
