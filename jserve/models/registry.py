"""Which class serves which architecture. One line per architecture name in `config.json`."""

from pathlib import Path
from typing import Any

from jserve.config import ModelConfig, read_model_config
from jserve.errors import CheckpointError
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaForCausalLM, MistralForCausalLM
from jserve.models.qwen2 import Qwen2ForCausalLM
from jserve.models.qwen3 import Qwen3ForCausalLM

ARCHITECTURES: dict[str, type[CausalLM]] = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "MistralForCausalLM": MistralForCausalLM,
    "Qwen2ForCausalLM": Qwen2ForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
}


def resolve(raw: dict[str, Any], *, source: Path | str) -> tuple[type[CausalLM], ModelConfig]:
    """The class and the shape for a `config.json`. Raises CheckpointError naming what is supported."""
    quantization = raw.get("quantization_config")
    if quantization:
        kind = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else quantization
        raise CheckpointError(
            f"{source}: the weights are quantized ({kind}), which jserve does not load yet; "
            "take the model's unquantized weights, or a GGUF file of it"
        )
    names = raw.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            family = ARCHITECTURES[name]
            return family, read_model_config({**family.config_defaults, **raw}, source=source)
    listed = ", ".join(ARCHITECTURES)
    found = ", ".join(map(str, names)) or "none"
    raise CheckpointError(f"{source}: architecture {found} is not supported; supported are {listed}")
