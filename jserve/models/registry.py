"""Which class serves which architecture. One line per architecture name in `config.json`.

A decoder without a head (`Qwen3Model`) is served by the class of the one with a head, for embeddings alone.
"""

from pathlib import Path
from typing import Any

from jserve.checkpoint import Embedder
from jserve.config import ModelConfig
from jserve.errors import CheckpointError
from jserve.models.apertus import ApertusForCausalLM
from jserve.models.arcee import ArceeForCausalLM
from jserve.models.bert import Encoder, RobertaModel, XLMRobertaModel
from jserve.models.causal_lm import CausalLM
from jserve.models.cohere import CohereForCausalLM
from jserve.models.cohere2 import Cohere2ForCausalLM
from jserve.models.cohere2_moe import Cohere2MoeForCausalLM
from jserve.models.deepseek import DeepseekV2ForCausalLM, DeepseekV3ForCausalLM
from jserve.models.dots1 import Dots1ForCausalLM
from jserve.models.ernie4_5 import Ernie4_5_MoeForCausalLM, Ernie4_5ForCausalLM
from jserve.models.exaone4 import Exaone4ForCausalLM, ExaoneMoeForCausalLM
from jserve.models.gemma2 import Gemma2ForCausalLM
from jserve.models.gemma3 import Gemma3ForCausalLM
from jserve.models.gemma4 import Gemma4ForCausalLM
from jserve.models.glm4 import Glm4ForCausalLM, GlmForCausalLM
from jserve.models.glm4_moe import Glm4MoeForCausalLM
from jserve.models.gpt2 import GPT2LMHeadModel
from jserve.models.gpt_neox import GPTNeoXForCausalLM
from jserve.models.gpt_oss import GptOssForCausalLM
from jserve.models.granite import GraniteForCausalLM
from jserve.models.granite_moe import GraniteMoeForCausalLM, GraniteMoeSWAForCausalLM, GraniteSWAForCausalLM
from jserve.models.hunyuan import HunYuanDenseV1ForCausalLM, HunYuanMoEV1ForCausalLM
from jserve.models.lfm2 import Lfm2ForCausalLM
from jserve.models.llama import LlamaForCausalLM
from jserve.models.llama4 import Llama4ForCausalLM
from jserve.models.minimax_m2 import MiniMaxM2ForCausalLM
from jserve.models.mistral import MistralForCausalLM
from jserve.models.mistral4 import Mistral4ForCausalLM
from jserve.models.mixtral import MixtralForCausalLM
from jserve.models.nemotron import NemotronForCausalLM
from jserve.models.olmo2 import Olmo2ForCausalLM
from jserve.models.olmo3 import Olmo3ForCausalLM
from jserve.models.olmoe import OlmoeForCausalLM
from jserve.models.phi3 import Phi3ForCausalLM
from jserve.models.phimoe import PhimoeForCausalLM
from jserve.models.qwen2 import Qwen2ForCausalLM
from jserve.models.qwen2_moe import Qwen2MoeForCausalLM
from jserve.models.qwen3 import Qwen3ForCausalLM
from jserve.models.qwen3_moe import Qwen3MoeForCausalLM
from jserve.models.qwen_vl import Qwen2VLForCausalLM, Qwen3VLForCausalLM, Qwen3VLMoeForCausalLM
from jserve.models.seed_oss import SeedOssForCausalLM
from jserve.models.smollm3 import SmolLM3ForCausalLM
from jserve.models.solar_open import SolarOpenForCausalLM
from jserve.models.stablelm import StableLmForCausalLM
from jserve.models.starcoder2 import Starcoder2ForCausalLM

ARCHITECTURES: dict[str, type[CausalLM]] = {
    "ApertusForCausalLM": ApertusForCausalLM,
    "ArceeForCausalLM": ArceeForCausalLM,
    "CohereForCausalLM": CohereForCausalLM,
    "Cohere2ForCausalLM": Cohere2ForCausalLM,
    "Cohere2MoeForCausalLM": Cohere2MoeForCausalLM,
    "DeepseekV2ForCausalLM": DeepseekV2ForCausalLM,
    "DeepseekV3ForCausalLM": DeepseekV3ForCausalLM,
    "Dots1ForCausalLM": Dots1ForCausalLM,
    "Ernie4_5ForCausalLM": Ernie4_5ForCausalLM,
    "Ernie4_5_MoeForCausalLM": Ernie4_5_MoeForCausalLM,
    "Exaone4ForCausalLM": Exaone4ForCausalLM,
    "ExaoneMoeForCausalLM": ExaoneMoeForCausalLM,
    "GPT2LMHeadModel": GPT2LMHeadModel,
    "GPTNeoXForCausalLM": GPTNeoXForCausalLM,
    "Gemma2ForCausalLM": Gemma2ForCausalLM,
    "Gemma3ForCausalLM": Gemma3ForCausalLM,
    "Gemma3ForConditionalGeneration": Gemma3ForCausalLM,
    "Gemma4ForCausalLM": Gemma4ForCausalLM,
    "Gemma4ForConditionalGeneration": Gemma4ForCausalLM,
    "Glm4ForCausalLM": Glm4ForCausalLM,
    "Glm4MoeForCausalLM": Glm4MoeForCausalLM,
    "GlmForCausalLM": GlmForCausalLM,
    "GptOssForCausalLM": GptOssForCausalLM,
    "GraniteForCausalLM": GraniteForCausalLM,
    "GraniteMoeForCausalLM": GraniteMoeForCausalLM,
    "GraniteMoeSharedForCausalLM": GraniteMoeForCausalLM,
    "GraniteMoeSWAForCausalLM": GraniteMoeSWAForCausalLM,
    "GraniteSWAForCausalLM": GraniteSWAForCausalLM,
    "HunYuanDenseV1ForCausalLM": HunYuanDenseV1ForCausalLM,
    "HunYuanMoEV1ForCausalLM": HunYuanMoEV1ForCausalLM,
    "KimiK25ForConditionalGeneration": DeepseekV3ForCausalLM,
    "Kimi_K25ForConditionalGeneration": DeepseekV3ForCausalLM,
    "Lfm2ForCausalLM": Lfm2ForCausalLM,
    "Llama4ForCausalLM": Llama4ForCausalLM,
    "Llama4ForConditionalGeneration": Llama4ForCausalLM,
    "LlamaForCausalLM": LlamaForCausalLM,
    "LlamaModel": LlamaForCausalLM,
    "MiniMaxM2ForCausalLM": MiniMaxM2ForCausalLM,
    "Ministral3ForCausalLM": MistralForCausalLM,
    "Mistral3ForConditionalGeneration": MistralForCausalLM,
    "Mistral4ForCausalLM": Mistral4ForCausalLM,
    "MistralForCausalLM": MistralForCausalLM,
    "MistralModel": MistralForCausalLM,
    "MixtralForCausalLM": MixtralForCausalLM,
    "NemotronForCausalLM": NemotronForCausalLM,
    "Olmo2ForCausalLM": Olmo2ForCausalLM,
    "Olmo3ForCausalLM": Olmo3ForCausalLM,
    "Phi3ForCausalLM": Phi3ForCausalLM,
    "PhimoeForCausalLM": PhimoeForCausalLM,
    "OlmoeForCausalLM": OlmoeForCausalLM,
    "Qwen2VLForConditionalGeneration": Qwen2VLForCausalLM,
    "Qwen2_5_VLForConditionalGeneration": Qwen2VLForCausalLM,
    "Qwen2ForCausalLM": Qwen2ForCausalLM,
    "Qwen2Model": Qwen2ForCausalLM,
    "Qwen2MoeForCausalLM": Qwen2MoeForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
    "Qwen3Model": Qwen3ForCausalLM,
    "Qwen3MoeForCausalLM": Qwen3MoeForCausalLM,
    "Qwen3VLForConditionalGeneration": Qwen3VLForCausalLM,
    "Qwen3VLMoeForConditionalGeneration": Qwen3VLMoeForCausalLM,
    "SeedOssForCausalLM": SeedOssForCausalLM,
    "SmolLM3ForCausalLM": SmolLM3ForCausalLM,
    "SolarOpenForCausalLM": SolarOpenForCausalLM,
    "StableLmForCausalLM": StableLmForCausalLM,
    "Starcoder2ForCausalLM": Starcoder2ForCausalLM,
}


TEXT_TYPES = {
    "Gemma3ForConditionalGeneration": ("gemma3_text",),
    "Llama4ForConditionalGeneration": ("llama4_text",),
    "Gemma4ForConditionalGeneration": ("gemma4_text",),
    "KimiK25ForConditionalGeneration": ("deepseek_v3", "kimi_k2"),
    "Kimi_K25ForConditionalGeneration": ("deepseek_v3", "kimi_k2"),
    "Mistral3ForConditionalGeneration": ("mistral", "ministral3", "mistral4"),
    "Qwen2VLForConditionalGeneration": ("qwen2_vl_text",),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2_5_vl_text",),
    "Qwen3VLForConditionalGeneration": ("qwen3_vl_text",),
    "Qwen3VLMoeForConditionalGeneration": ("qwen3_vl_moe_text",),
}
"""Model types that the text part of a model of several parts may have; the first is meant where it names none."""

TEXT_FAMILIES: dict[str, type[CausalLM]] = {"mistral4": Mistral4ForCausalLM}
"""Where the model type of the text part decides, and not the architecture of the whole."""

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
                family = TEXT_FAMILIES.get(raw["model_type"], family)
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
    whole = {"model_type": kind, "architectures": names}
    if raw.get("tie_word_embeddings") is not None:
        whole["tie_word_embeddings"] = raw["tie_word_embeddings"]  # the projection is the whole model's
    return {**raw, **text, **whole}


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
