"""Which class serves which architecture. One line per architecture name in `config.json`.

A decoder without a head (`Qwen3Model`) is served by the class of the one with a head, for embeddings alone.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jserve.checkpoint import Classifier, Embedder
from jserve.config import DenseConfig, ModelConfig
from jserve.errors import CheckpointError
from jserve.models.apertus import ApertusForCausalLM
from jserve.models.arcee import ArceeForCausalLM
from jserve.models.bamba import BambaForCausalLM
from jserve.models.bert import BertModel, RobertaModel, XLMRobertaModel
from jserve.models.causal_lm import CausalLM
from jserve.models.cohere import CohereForCausalLM
from jserve.models.cohere2 import Cohere2ForCausalLM
from jserve.models.cohere2_moe import Cohere2MoeForCausalLM
from jserve.models.deepseek import DeepseekV2ForCausalLM, DeepseekV3ForCausalLM, Glm4MoeLiteForCausalLM
from jserve.models.dots1 import Dots1ForCausalLM
from jserve.models.encoder import Encoder, TextModel
from jserve.models.ernie4_5 import Ernie4_5_MoeForCausalLM, Ernie4_5ForCausalLM
from jserve.models.eurobert import EuroBertModel
from jserve.models.exaone4 import Exaone4ForCausalLM, ExaoneMoeForCausalLM
from jserve.models.falcon_h1 import FalconH1ForCausalLM
from jserve.models.gemma import GemmaForCausalLM
from jserve.models.gemma2 import Gemma2ForCausalLM
from jserve.models.gemma3 import Gemma3ForCausalLM
from jserve.models.gemma4 import Gemma4ForCausalLM
from jserve.models.glm4 import Glm4ForCausalLM, GlmForCausalLM
from jserve.models.glm4_moe import Glm4MoeForCausalLM
from jserve.models.gpt2 import GPT2LMHeadModel
from jserve.models.gpt_neox import GPTNeoXForCausalLM
from jserve.models.gpt_oss import GptOssForCausalLM
from jserve.models.granite import GraniteForCausalLM
from jserve.models.granite_hybrid import GraniteMoeHybridForCausalLM
from jserve.models.granite_moe import GraniteMoeForCausalLM, GraniteMoeSWAForCausalLM, GraniteSWAForCausalLM
from jserve.models.hunyuan import HunYuanDenseV1ForCausalLM, HunYuanMoEV1ForCausalLM
from jserve.models.lfm2 import Lfm2ForCausalLM, Lfm2MoeForCausalLM
from jserve.models.llama import LlamaForCausalLM
from jserve.models.llama4 import Llama4ForCausalLM
from jserve.models.minimax_m2 import MiniMaxM2ForCausalLM
from jserve.models.mistral import MistralForCausalLM
from jserve.models.mistral4 import Mistral4ForCausalLM
from jserve.models.mixtral import MixtralForCausalLM
from jserve.models.modernbert import ModernBertModel
from jserve.models.nemotron import NemotronForCausalLM
from jserve.models.nemotron_h import NemotronHForCausalLM
from jserve.models.olmo2 import Olmo2ForCausalLM
from jserve.models.olmo3 import Olmo3ForCausalLM
from jserve.models.olmoe import OlmoeForCausalLM
from jserve.models.phi import PhiForCausalLM
from jserve.models.phi3 import Phi3ForCausalLM
from jserve.models.phimoe import PhimoeForCausalLM
from jserve.models.qwen2 import Qwen2ForCausalLM
from jserve.models.qwen2_moe import Qwen2MoeForCausalLM
from jserve.models.qwen3 import Qwen3ForCausalLM
from jserve.models.qwen3_moe import Qwen3MoeForCausalLM
from jserve.models.qwen3_next import Qwen3NextForCausalLM, Qwen35ForCausalLM, Qwen35MoeForCausalLM
from jserve.models.qwen_vl import Qwen2VLForCausalLM, Qwen3VLForCausalLM, Qwen3VLMoeForCausalLM
from jserve.models.rope_bert import GteModel, JinaEmbeddingsV3Model, NomicBertModel
from jserve.models.seed_oss import SeedOssForCausalLM
from jserve.models.smollm3 import SmolLM3ForCausalLM
from jserve.models.solar_open import SolarOpenForCausalLM
from jserve.models.stablelm import StableLmForCausalLM
from jserve.models.starcoder2 import Starcoder2ForCausalLM

ARCHITECTURES: dict[str, type[CausalLM]] = {
    "BambaForCausalLM": BambaForCausalLM,
    "GemmaForCausalLM": GemmaForCausalLM,
    "Glm4MoeLiteForCausalLM": Glm4MoeLiteForCausalLM,
    "PhiForCausalLM": PhiForCausalLM,
    "FalconH1ForCausalLM": FalconH1ForCausalLM,
    "NemotronHForCausalLM": NemotronHForCausalLM,
    "ApertusForCausalLM": ApertusForCausalLM,
    "ArceeForCausalLM": ArceeForCausalLM,
    "CohereForCausalLM": CohereForCausalLM,
    "Cohere2ForCausalLM": Cohere2ForCausalLM,
    "Cohere2MoeForCausalLM": Cohere2MoeForCausalLM,
    "DeepseekV2ForCausalLM": DeepseekV2ForCausalLM,
    "DeepseekV3ForCausalLM": DeepseekV3ForCausalLM,
    "EuroBertForMaskedLM": EuroBertModel,
    "EuroBertModel": EuroBertModel,
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
    "Gemma3TextModel": Gemma3ForCausalLM,
    "Gemma4ForCausalLM": Gemma4ForCausalLM,
    "Gemma4ForConditionalGeneration": Gemma4ForCausalLM,
    "Glm4ForCausalLM": Glm4ForCausalLM,
    "Glm4MoeForCausalLM": Glm4MoeForCausalLM,
    "GlmForCausalLM": GlmForCausalLM,
    "GptOssForCausalLM": GptOssForCausalLM,
    "GraniteForCausalLM": GraniteForCausalLM,
    "GraniteMoeHybridForCausalLM": GraniteMoeHybridForCausalLM,
    "GraniteMoeForCausalLM": GraniteMoeForCausalLM,
    "GraniteMoeSharedForCausalLM": GraniteMoeForCausalLM,
    "GraniteMoeSWAForCausalLM": GraniteMoeSWAForCausalLM,
    "GraniteSWAForCausalLM": GraniteSWAForCausalLM,
    "HunYuanDenseV1ForCausalLM": HunYuanDenseV1ForCausalLM,
    "HunYuanMoEV1ForCausalLM": HunYuanMoEV1ForCausalLM,
    "KimiK25ForConditionalGeneration": DeepseekV3ForCausalLM,
    "Kimi_K25ForConditionalGeneration": DeepseekV3ForCausalLM,
    "Lfm2ForCausalLM": Lfm2ForCausalLM,
    "Lfm2MoeForCausalLM": Lfm2MoeForCausalLM,
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
    "Qwen3NextForCausalLM": Qwen3NextForCausalLM,
    "Qwen3_5ForCausalLM": Qwen35ForCausalLM,
    "Qwen3_5ForConditionalGeneration": Qwen35ForCausalLM,
    "Qwen3_5MoeForCausalLM": Qwen35MoeForCausalLM,
    "Qwen3_5MoeForConditionalGeneration": Qwen35MoeForCausalLM,
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
    "Qwen3_5ForConditionalGeneration": ("qwen3_5_text",),
    "Qwen3_5MoeForConditionalGeneration": ("qwen3_5_moe_text",),
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

_ENCODERS: dict[str, type[Encoder]] = {
    "BertModel": BertModel,
    "GteModel": GteModel,
    "JinaEmbeddingsV3Model": JinaEmbeddingsV3Model,
    "ModernBertModel": ModernBertModel,
    "NomicBertModel": NomicBertModel,
    "RobertaModel": RobertaModel,
    "XLMRobertaModel": XLMRobertaModel,
}
BOTH_WAYS = (EuroBertModel, Gemma3ForCausalLM, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
"""Decoders whose tokens may see each other both ways, where the configuration says so."""
ENCODERS: dict[str, type[Encoder]] = _ENCODERS | {
    f"{name.removesuffix('Model')}ForMaskedLM": family for name, family in _ENCODERS.items()
}
"""With and without the head that they were trained under, which is not read."""
CLASSIFIERS: dict[str, type[TextModel]] = {
    **{f"{name.removesuffix('Model')}ForSequenceClassification": family for name, family in _ENCODERS.items()},
    "LlamaForSequenceClassification": LlamaForCausalLM,
    "MistralForSequenceClassification": MistralForCausalLM,
    "Qwen2ForSequenceClassification": Qwen2ForCausalLM,
    "Qwen3ForSequenceClassification": Qwen3ForCausalLM,
}
"""With a head that gives labels, or scores a pair of texts."""


class UnknownArchitectureError(CheckpointError):
    """No class here serves the architecture. `unknown` is the first half of the message."""

    def __init__(self, raw: dict[str, Any], names: list[str], source: Path | str) -> None:
        own = " (it comes with code of its own, named in auto_map, which is never run)" if raw.get("auto_map") else ""
        self.unknown = f"{source}: architecture {', '.join(names) or 'none'} is not supported{own}"
        listed = ", ".join([*ARCHITECTURES, *ENCODERS, *CLASSIFIERS])
        super().__init__(f"{self.unknown}; supported are {listed}")


def resolve(raw: dict[str, Any], *, source: Path | str) -> tuple[type[CausalLM], ModelConfig]:
    """The class and the shape for a `config.json`; of a model that also sees or hears, its text part.

    Raises CheckpointError naming what is supported.
    """
    decoder = _decoder(raw, source)
    if decoder is not None:
        return decoder.family, decoder.config(source)
    raise UnknownArchitectureError(raw, _names(raw, source), source)


def resolve_encoder(raw: dict[str, Any], *, source: Path | str) -> tuple[type[TextModel], ModelConfig] | None:
    """The same for a model whose tokens see each other both ways, and which keeps no cache; None for any other."""
    names = _names(raw, source)
    encoder = next((ENCODERS[name] for name in names if name in ENCODERS), None)
    classifier = next((CLASSIFIERS[name] for name in names if name in CLASSIFIERS), None)
    encoder = encoder or (classifier if classifier is not None and issubclass(classifier, Encoder) else None)
    if encoder is not None:
        config = encoder.read_config(raw, source=source)
        return encoder, replace(config, dense=_head(encoder, raw, config, source))
    decoder = _decoder(raw, source)
    return None if decoder is None or not decoder.sees_both_ways else (decoder.family, decoder.config(source))


@dataclass(frozen=True, slots=True)
class _Decoder:
    """A decoder's family, and its text part's `config.json`."""

    name: str
    family: type[CausalLM]
    raw: dict[str, Any]
    has_head: bool
    """Whether it generates, through an output projection."""

    @property
    def sees_both_ways(self) -> bool:
        """Whether its tokens see later ones. Nothing can be generated so, whatever the file says."""
        raw = self.family.with_defaults(self.raw)
        return not self.has_head and (raw.get("is_causal") is False or raw.get("use_bidirectional_attention") is True)

    def config(self, source: Path | str) -> ModelConfig:
        """Its shape. An embedding is made of what the output projection would read, which is not there, nor missed."""
        if self.has_head:
            return self.family.read_config(self.raw, source=source)
        raw = {**self.raw, "tie_word_embeddings": True}
        config = self.family.read_config(raw, source=source)
        config = replace(config, dense=_head(self.family, raw, config, source))
        if not self.sees_both_ways:
            _check_sums(Embedder.of(raw, source=source), config, source)
            return config
        if self.family not in BOTH_WAYS:
            listed = ", ".join(sorted(name for name, family in ARCHITECTURES.items() if family in BOTH_WAYS))
            raise CheckpointError(
                f"{source}: attention to later tokens is not supported of {self.name}, only of {listed}"
            )
        if raw.get("use_bidirectional_attention") is True:  # its window is counted to both sides together
            config = replace(config, layer_windows=tuple(window and window // 2 for window in config.layer_windows))
        return replace(config, is_causal=False)


def _decoder(raw: dict[str, Any], source: Path | str) -> _Decoder | None:
    names = _names(raw, source)
    for name in names:
        family = ARCHITECTURES.get(name) or CLASSIFIERS.get(name)
        if family is not None and issubclass(family, CausalLM):
            if isinstance(raw.get("text_config"), dict):
                raw = _text_part(raw, name, names, source)
                family = TEXT_FAMILIES.get(raw["model_type"], family)
            generates = name in ARCHITECTURES and Embedder.of(raw, source=source) is None
            return _Decoder(name, family, raw, generates)
    return None


def _head(
    family: type[TextModel], raw: dict[str, Any], config: ModelConfig, source: Path | str
) -> tuple[DenseConfig, ...]:
    """What follows the pooling: a classifier's head, or the Dense modules of sentence-transformers."""
    classifier = Classifier.of(raw, source=source)
    if classifier is not None:
        return family.classifier_head(raw, config, len(classifier.labels))
    embedder = Embedder.of(raw, source=source)  # refuses what it does not support
    return tuple(
        DenseConfig(f"{module.folder}.linear", module.inputs, module.outputs, module.activation, module.bias)
        for module in (() if embedder is None else embedder.dense)
    )


def _check_sums(embedder: Embedder | None, config: ModelConfig, source: Path | str) -> None:
    """Where a text comes in chunks, a mean is a sum of sums: only what is linear may follow it."""
    is_linear = not any(each.bias or each.activation != "identity" for each in config.dense)
    if embedder is not None and embedder.pooling == "mean" and not is_linear:
        raise CheckpointError(
            f"{source}: a Dense module with a bias or an activation behind mean pooling is not supported of a decoder "
            "that attends to earlier tokens alone"
        )


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


def _names(raw: dict[str, Any], source: Path | str) -> list[str]:
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{source}: architectures is {names!r} but must be a list of names")
    return list(names)
