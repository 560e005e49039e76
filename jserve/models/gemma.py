"""Gemma, CodeGemma: Llama whose norms count weights from 1, and whose embedding is times the root of its size."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from jserve.config import ModelConfig
from jserve.layers.norm import Norm, OffsetRMSNorm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer


class GemmaDecoderLayer(LlamaDecoderLayer):
    norm_type: ClassVar[type[Norm]] = OffsetRMSNorm


class GemmaForCausalLM(CausalLM):
    layer_type = GemmaDecoderLayer
    norm_type = OffsetRMSNorm
    config_defaults = defaults.LLAMA | {
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        config = super().read_config(raw, source=source)
        # The first files say `gelu` and mean its approximation, as the code that they were made for did.
        act = "gelu_pytorch_tanh" if config.hidden_act == "gelu" else config.hidden_act
        return replace(config, hidden_act=act, embedding_multiplier=math.sqrt(config.hidden_size))
