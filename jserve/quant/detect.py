"""Which format a model's weights are in, or are to be brought into."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jserve.errors import CheckpointError, ConfigError
from jserve.quant.awq import read_awq
from jserve.quant.compressed_tensors import read_compressed_tensors
from jserve.quant.converted import read_converted
from jserve.quant.fp8 import read_fp8
from jserve.quant.gptq import read_gptq
from jserve.quant.mxfp4 import Mxfp4
from jserve.quant.on_load import METHODS, OnLoad
from jserve.quant.scheme import Quantization

STORED: Mapping[str, Callable[[Mapping[str, Any], str], Quantization]] = {
    "compressed-tensors": read_compressed_tensors,
    "awq": read_awq,
    "gptq": read_gptq,
    "fp8": read_fp8,
    "fbgemm_fp8": read_fp8,
    "mxfp4": lambda _stored, _scale_dtype: Mxfp4(),
    "jserve": read_converted,
}
"""By `quant_method`: reads `quantization_config`, told in which type scales are, or raises CheckpointError."""
HALVES = ("float16", "bfloat16")


def detect(
    raw: Mapping[str, Any], asked: str | None, tensors: Mapping[str, Any], *, source: Path | str
) -> Quantization | None:
    """The format of a model whose `config.json` is `raw` where `--quantization` is `asked`; None: as it is.

    `tensors` are those of the checkpoint by name, with their `dtype`; empty where it has none.

    Raises CheckpointError for a format that is not supported, ConfigError where both do not go together.
    """
    stored = raw.get("quantization_config") or raw.get("compression_config")
    if not stored:
        if asked is None:
            return None
        if asked not in METHODS:
            raise ConfigError(
                f"--quantization is {asked!r} but {source} is not quantized; to quantize while loading, "
                f"choose {', '.join(METHODS)}"
            )
        return OnLoad(asked)
    method = stored.get("quant_method") if isinstance(stored, Mapping) else stored
    if method not in STORED or not isinstance(stored, Mapping):
        raise CheckpointError(
            f"{source}: the weights are quantized by {method!r}; supported are {', '.join(STORED)}. "
            "Take the model's unquantized weights, and --quantization to quantize them while loading"
        )
    if asked not in (None, method):
        raise ConfigError(
            f"--quantization is {asked!r} but {source} is already quantized by {method}; leave the flag out, or "
            "take the model's unquantized weights"
        )
    try:
        return STORED[str(method)](stored, _scale_dtype(raw, tensors))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _scale_dtype(raw: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    """The 16-bit type that all scales are in, so that they stay as they are; float32 otherwise."""
    found = {info.dtype for name, info in tensors.items() if name.endswith((".scales", ".weight_scale"))}
    declared = str(raw.get("dtype") or raw.get("torch_dtype"))
    return next((half for half in HALVES if found == {half} or (not found and declared == half)), "float32")
