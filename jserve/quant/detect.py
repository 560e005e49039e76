"""Which format a model's weights are in, or are to be brought into."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jserve.errors import CheckpointError, ConfigError
from jserve.quant.on_load import METHODS, OnLoad
from jserve.quant.scheme import Quantization

STORED: Mapping[str, Callable[[Mapping[str, Any]], Quantization]] = {}
"""By `quant_method`: reads the format's part of `quantization_config`, or raises CheckpointError."""


def detect(raw: Mapping[str, Any], asked: str | None, *, source: Path | str) -> Quantization | None:
    """The format of a model whose `config.json` is `raw` where `--quantization` is `asked`; None: as it is.

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
            f"{source}: the weights are quantized by {method!r}; supported are {', '.join(STORED) or 'none'}. "
            "Take the model's unquantized weights, and --quantization to quantize them while loading"
        )
    if asked not in (None, method):
        raise ConfigError(
            f"--quantization is {asked!r} but {source} is already quantized by {method}; leave the flag out, or "
            "take the model's unquantized weights"
        )
    try:
        return STORED[str(method)](stored)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
