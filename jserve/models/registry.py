"""Which class serves which architecture. One line per architecture name in `config.json`.

A decoder without a head (`Qwen3Model`) is served by the class of the one with a head, for embeddings alone.
"""

from pathlib import Path
from typing import Any

from jserve.checkpoint import Embedder
from jserve.config import ModelConfig
from jserve.errors import CheckpointError
from jserve.models.bamba import BambaForCausalLM
from jserve.models.bert import Encoder, RobertaModel, XLMRobertaModel
from jserve.models.causal_lm import CausalLM
from jserve.models.cohere2 import Cohere2ForCausalLM
from jserve.models.deepseek import DeepseekV2ForCausalLM, DeepseekV3ForCausalLM
from jserve.models.ernie4_5 import Ernie4_5_MoeForCausalLM, Ernie4_5ForCausalLM
from jserve.models.exaone4 import Exaone4ForCausalLM, ExaoneMoeForCausalLM
from jserve.models.gemma2 import Gemma2ForCausalLM
from jserve.models.gemma3 import Gemma3ForCausalLM
from jserve.models.glm4 import Glm4ForCausalLM, GlmForCausalLM
from jserve.models.glm4_moe import Glm4MoeForCausalLM
from jserve.models.gpt2 import GPT2LMHeadModel
from jserve.models.gpt_neox import GPTNeoXForCausalLM
from jserve.models.gpt_oss import GptOssForCausalLM
from jserve.models.granite import GraniteForCausalLM
from jserve.models.granite_hybrid import GraniteMoeHybridForCausalLM
from jserve.models.hunyuan import HunYuanDenseV1ForCausalLM, HunYuanMoEV1ForCausalLM
from jserve.models.lfm2 import Lfm2ForCausalLM, Lfm2MoeForCausalLM
from jserve.models.llama import LlamaForCausalLM
from jserve.models.llama4 import Llama4ForCausalLM
from jserve.models.minimax_m2 import MiniMaxM2ForCausalLM
from jserve.models.mistral import MistralForCausalLM
from jserve.models.mixtral import MixtralForCausalLM
from jserve.models.olmo2 import Olmo2ForCausalLM
from jserve.models.olmo3 import Olmo3ForCausalLM
from jserve.models.olmoe import OlmoeForCausalLM
from jserve.models.phi3 import Phi3ForCausalLM
from jserve.models.qwen2 import Qwen2ForCausalLM
from jserve.models.qwen2_moe import Qwen2MoeForCausalLM
from jserve.models.qwen3 import Qwen3ForCausalLM
from jserve.models.qwen3_moe import Qwen3MoeForCausalLM
from jserve.models.qwen3_next import Qwen3NextForCausalLM, Qwen35ForCausalLM, Qwen35MoeForCausalLM
from jserve.models.seed_oss import SeedOssForCausalLM
from jserve.models.smollm3 import SmolLM3ForCausalLM
from jserve.models.starcoder2 import Starcoder2ForCausalLM

ARCHITECTURES: dict[str, type[CausalLM]] = {
    "BambaForCausalLM": BambaForCausalLM,
    "Cohere2ForCausalLM": Cohere2ForCausalLM,
    "DeepseekV2ForCausalLM": DeepseekV2ForCausalLM,
    "DeepseekV3ForCausalLM": DeepseekV3ForCausalLM,
    "Ernie4_5ForCausalLM": Ernie4_5ForCausalLM,
    "Ernie4_5_MoeForCausalLM": Ernie4_5_MoeForCausalLM,
    "Exaone4ForCausalLM": Exaone4ForCausalLM,
    "ExaoneMoeForCausalLM": ExaoneMoeForCausalLM,
    "GPT2LMHeadModel": GPT2LMHeadModel,
    "GPTNeoXForCausalLM": GPTNeoXForCausalLM,
    "Gemma2ForCausalLM": Gemma2ForCausalLM,
    "Gemma3ForCausalLM": Gemma3ForCausalLM,
    "Gemma3ForConditionalGeneration": Gemma3ForCausalLM,
    "Glm4ForCausalLM": Glm4ForCausalLM,
    "Glm4MoeForCausalLM": Glm4MoeForCausalLM,
    "GlmForCausalLM": GlmForCausalLM,
    "GptOssForCausalLM": GptOssForCausalLM,
    "GraniteForCausalLM": GraniteForCausalLM,
    "GraniteMoeHybridForCausalLM": GraniteMoeHybridForCausalLM,
    "HunYuanDenseV1ForCausalLM": HunYuanDenseV1ForCausalLM,
    "HunYuanMoEV1ForCausalLM": HunYuanMoEV1ForCausalLM,
    "Lfm2ForCausalLM": Lfm2ForCausalLM,
    "Lfm2MoeForCausalLM": Lfm2MoeForCausalLM,
    "Llama4ForCausalLM": Llama4ForCausalLM,
    "Llama4ForConditionalGeneration": Llama4ForCausalLM,
    "LlamaForCausalLM": LlamaForCausalLM,
    "LlamaModel": LlamaForCausalLM,
    "MiniMaxM2ForCausalLM": MiniMaxM2ForCausalLM,
    "Ministral3ForCausalLM": MistralForCausalLM,
    "Mistral3ForConditionalGeneration": MistralForCausalLM,
    "MistralForCausalLM": MistralForCausalLM,
    "MistralModel": MistralForCausalLM,
    "MixtralForCausalLM": MixtralForCausalLM,
    "Olmo2ForCausalLM": Olmo2ForCausalLM,
    "Olmo3ForCausalLM": Olmo3ForCausalLM,
    "Phi3ForCausalLM": Phi3ForCausalLM,
    "OlmoeForCausalLM": OlmoeForCausalLM,
    "Qwen2ForCausalLM": Qwen2ForCausalLM,
    "Qwen2Model": Qwen2ForCausalLM,
    "Qwen2MoeForCausalLM": Qwen2MoeForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
    "Qwen3Model": Qwen3ForCausalLM,
    "Qwen3MoeForCausalLM": Qwen3MoeForCausalLM,
    "Qwen3NextForCausalLM": Qwen3NextForCausalLM,
    "Qwen3_5ForCausalLM": Qwen35ForCausalLM,
    "Qwen3_5ForConditionalGeneration": Qwen35ForCausalLM,
    "Qwen3_5MoeForCausalLM": Qwen35MoeForCausalLM,
    "Qwen3_5MoeForConditionalGeneration": Qwen35MoeForCausalLM,
    "SeedOssForCausalLM": SeedOssForCausalLM,
    "SmolLM3ForCausalLM": SmolLM3ForCausalLM,
    "Starcoder2ForCausalLM": Starcoder2ForCausalLM,
}


TEXT_TYPES = {
    "Gemma3ForConditionalGeneration": ("gemma3_text",),
    "Llama4ForConditionalGeneration": ("llama4_text",),
    "Mistral3ForConditionalGeneration": ("mistral", "ministral3"),
    "Qwen3_5ForConditionalGeneration": ("qwen3_5_text",),
    "Qwen3_5MoeForConditionalGeneration": ("qwen3_5_moe_text",),
}
"""Model types that the text part of a model of several parts may have; the first is meant where it names none."""

ENCODERS: dict[str, type[Encoder]] = {
    "BertForMaskedLM": Encoder,
    "BertModel": Encoder,
    "RobertaForMaskedLM": RobertaModel,
    "RobertaModel": RobertaModel,
    "XLMRobertaForMaskedLM": XLMRobertaModel,
    "XLMRobertaModel": XLMRobertaModel,
}


def resolve(raw: dict[str, Any], *, source: Path | str) -> tuple[type[CausalLM], ModelConfig]:
    """The class and the shape for a `config.json`; of a model that also sees or hears, its text part.

    Raises CheckpointError naming what is supported.
    """
    names = _names(raw, source)
    for name in names:
        if name in ARCHITECTURES:
            family = ARCHITECTURES[name]
            if isinstance(raw.get("text_config"), dict):
                raw = _text_part(raw, name, names, source)
            if Embedder.of(raw, source=source) is not None:
                raw = _without_head(raw, source)
            return family, family.read_config(raw, source=source)
    listed = ", ".join([*ARCHITECTURES, *ENCODERS])
    listed_names = ", ".join(map(str, names)) or "none"
    own = " (it comes with code of its own, named in auto_map, which is not run)" if raw.get("auto_map") else ""
    raise CheckpointError(f"{source}: architecture {listed_names} is not supported{own}; supported are {listed}")


def resolve_encoder(raw: dict[str, Any], *, source: Path | str) -> tuple[type[Encoder], ModelConfig] | None:
    """The same for an encoder, which attends both ways and keeps no cache; None for any other model."""
    family = next((ENCODERS[name] for name in _names(raw, source) if name in ENCODERS), None)
    if family is None:
        return None
    Embedder.of(raw, source=source)  # refuses what it does not support
    return family, family.read_config(raw, source=source)


def _text_part(raw: dict[str, Any], name: str, names: list[str], source: Path | str) -> dict[str, Any]:
    """The configuration of the part that reads and writes text, within what the whole model's says."""
    text = raw["text_config"]
    types = TEXT_TYPES.get(name, ())
    kind = text.get("model_type") or (types[0] if types else None)
    if types and kind not in types:
        raise CheckpointError(
            f"{source}: text_config has model_type {kind!r}, which {name} is not supported with; supported are "
            f"{', '.join(types)}"
        )
    return {**raw, **text, "model_type": kind, "architectures": names}


def _without_head(raw: dict[str, Any], source: Path | str) -> dict[str, Any]:
    """An embedding is made of what the output projection would read: it is not there, and not missed."""
    if raw.get("is_causal") is False or raw.get("use_bidirectional_attention"):
        raise CheckpointError(f"{source}: attention to later tokens is supported of encoders only, not of this decoder")
    return {**raw, "tie_word_embeddings": True}


def _names(raw: dict[str, Any], source: Path | str) -> list[str]:
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{source}: architectures is {names!r} but must be a list of names")
    return list(names)
