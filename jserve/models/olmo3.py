"""OLMo 3: OLMo 2 with a window on three of four layers, whose rotary embedding is never scaled."""

from pathlib import Path
from typing import Any

from jserve.config import ModelConfig
from jserve.config.fields import Fields
from jserve.models import defaults
from jserve.models.olmo2 import Olmo2ForCausalLM


class Olmo3ForCausalLM(Olmo2ForCausalLM):
    config_defaults = defaults.OLMO2 | {
        "rope_theta": 500_000.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "use_sliding_window": True,
    }

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        whole = Fields(raw, source).dictionary("rope_parameters").get("full_attention") or raw
        theta = whole.get("rope_theta") if isinstance(whole, dict) else None
        return super().read_config({"rope_local_base_freq": theta or raw["rope_theta"], **raw}, source=source)
