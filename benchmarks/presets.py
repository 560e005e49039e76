"""Shapes of published models, in the words of their config.json, to run or reckon with and without their weights."""

import json
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["LLAMA_3_1_8B", "LLAMA_3_1_70B", "PRESETS", "write_model"]

LLAMA_3_1_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
LLAMA_3_1_70B: dict[str, Any] = {
    **LLAMA_3_1_8B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
PRESETS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": LLAMA_3_1_8B,
    "llama-3.1-70b": LLAMA_3_1_70B,
    "llama-3.2-1b": {**LLAMA_3_1_8B, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "tiny": {
        **LLAMA_3_1_8B,
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def write_model(name: str, fields: dict[str, Any], layers: int | None) -> str:
    """A folder with a model's configuration and no weights."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    shape = {**fields, **({"num_hidden_layers": layers} if layers else {})}
    (folder / "config.json").write_text(json.dumps(shape))
    header = b"{}      "
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return str(folder)
