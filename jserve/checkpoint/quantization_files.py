"""Files beside `config.json` that say how weights are quantized, where it does not say so itself.

What is told is passed on as `quantization_config`; `jserve.quant` decides what is supported.
"""

from pathlib import Path
from typing import Any

from jserve.checkpoint.json_file import read_json

_LIMIT = 8 << 20
"""Bytes; lists of modules are the longest part."""
GPTQ, AWQ, MODELOPT = "quantize_config.json", "quant_config.json", "hf_quant_config.json"
"""Written by AutoGPTQ, by AutoAWQ and by NVIDIA's ModelOpt."""


def with_quantization(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`config` with a `quantization_config` from another file of the folder, where it has none.

    Raises CheckpointError where that file is damaged.
    """
    if any(config.get(name) for name in ("quantization_config", "compression_config", "quantization")):
        return config
    if (folder / GPTQ).exists():
        return {**config, "quantization_config": {"quant_method": "gptq", **read_json(folder / GPTQ, limit=_LIMIT)}}
    if (folder / AWQ).exists():
        return {**config, "quantization_config": {"quant_method": "awq", **read_json(folder / AWQ, limit=_LIMIT)}}
    if (folder / MODELOPT).exists():
        section = read_json(folder / MODELOPT, limit=_LIMIT).get("quantization")
        algorithm = section.get("quant_algo") if isinstance(section, dict) else None
        method = f"modelopt ({algorithm}, says {MODELOPT})"
        return {**config, "quantization_config": {"quant_method": method}}
    return config
