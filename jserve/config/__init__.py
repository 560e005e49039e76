"""Configuration, frozen once read: what the user asks of the engine, and what the model's file says."""

from jserve.config.deepseek import GroupRouting, LatentConfig
from jserve.config.dense import DenseConfig
from jserve.config.engine import (
    DTYPES,
    FILE_QUANTIZATIONS,
    KV_CACHE_DTYPES,
    LOAD_FORMATS,
    QUANTIZATIONS,
    QUANTIZE_BITS,
    STORED_QUANTIZATIONS,
    EngineConfig,
    QuantizeConfig,
)
from jserve.config.fields import MOST_LAYERS
from jserve.config.model import (
    LAYER_TYPES,
    MOST_EXPERTS,
    MixtureConfig,
    ModelConfig,
    read_model_config,
)
from jserve.config.rope import ROPE_KINDS, RopeConfig, read_rope

__all__ = [
    "DTYPES",
    "FILE_QUANTIZATIONS",
    "KV_CACHE_DTYPES",
    "LAYER_TYPES",
    "LOAD_FORMATS",
    "MOST_EXPERTS",
    "MOST_LAYERS",
    "QUANTIZATIONS",
    "QUANTIZE_BITS",
    "ROPE_KINDS",
    "STORED_QUANTIZATIONS",
    "DenseConfig",
    "EngineConfig",
    "GroupRouting",
    "LatentConfig",
    "MixtureConfig",
    "ModelConfig",
    "QuantizeConfig",
    "RopeConfig",
    "read_model_config",
    "read_rope",
]
