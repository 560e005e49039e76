"""Files of models whose tokens see each other both ways: their tensors, and what their configuration has beside the
common keys. As `families.py` and `family_config.py` have it of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jserve.checkpoint.embedder import KEY
from jserve.checkpoint.gguf.family import GEMMA3, LLAMA, Family
from jserve.checkpoint.gguf.keys import Keys

Fields = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

_EMBEDDINGS = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
}
_BEHIND = {"attn_output_norm": "norm1", "layer_output_norm": "norm2", "ffn_down": "mlp.fc2"}
"""Names of Nomic's and Jina's layers, whose norms stand behind the blocks."""
DENSE = ("dense_2", "dense_3", "dense.0", "dense.1")
"""Dense modules behind the pooling, in llama.cpp's words and in Ollama's."""
_DENSE_TOP = {name: f"{name}.linear" for name in DENSE}
_DECODER_TOP = {"token_embd": "embed_tokens", "output_norm": "norm"}

ENCODER_FAMILIES = {
    "bert": Family(
        "BertModel",
        {
            "attn_q": "attention.self.query",
            "attn_k": "attention.self.key",
            "attn_v": "attention.self.value",
            "attn_output": "attention.output.dense",
            "attn_output_norm": "attention.output.LayerNorm",
            "ffn_up": "intermediate.dense",
            "ffn_down": "output.dense",
            "layer_output_norm": "output.LayerNorm",
        },
        top={
            **_EMBEDDINGS,
            "position_embd": "embeddings.position_embeddings",
            "token_embd_norm": "embeddings.LayerNorm",
            "cls": "classifier.dense",
            "cls.output": "classifier.out_proj",
        },
        layers="encoder.layer",
    ),
    "nomic-bert": Family(
        "NomicBertModel",
        {
            **_BEHIND,
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.out_proj",
            "ffn_up": "mlp.fc11",
            "ffn_gate": "mlp.fc12",
        },
        top={**_EMBEDDINGS, "token_embd_norm": "emb_ln"},
        layers="encoder.layers",
    ),
    "jina-bert-v3": Family(
        "JinaEmbeddingsV3Model",
        {**_BEHIND, "attn_qkv": "mixer.Wqkv", "attn_output": "mixer.out_proj", "ffn_up": "mlp.fc1"},
        top={**_EMBEDDINGS, "token_embd_norm": "emb_ln"},
        layers="encoder.layers",
    ),
    "modern-bert": Family(
        "ModernBertModel",
        {
            "attn_norm": "attn_norm",
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.Wo",
            "ffn_norm": "mlp_norm",
            "ffn_up": "mlp.Wi",
            "ffn_down": "mlp.Wo",
        },
        top={
            "token_embd": "embeddings.tok_embeddings",
            "token_embd_norm": "embeddings.norm",
            "output_norm": "final_norm",
            "cls": "head.dense",
            "cls.norm": "head.norm",
            "cls.output": "classifier",
        },
        layers="layers",
    ),
    "gemma-embedding": Family(
        "Gemma3TextModel", GEMMA3, top={**_DECODER_TOP, **_DENSE_TOP}, layers="layers", offset_norms=True
    ),
    "eurobert": Family("EuroBertModel", LLAMA, top=_DECODER_TOP, layers="layers"),
}
"""By `general.architecture`."""


def bert(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    """RoBERTa's files leave out the rows before the first token's position, so they are BERT's, under another head."""
    names = {"max_position_embeddings": "position_embeddings", "type_vocab_size": "token_type_embeddings"}
    rows = {field: shapes.get(f"embeddings.{table}.weight", (0,))[0] for field, table in names.items()}
    fields = {"hidden_act": "gelu", "layer_norm_eps": common["rms_norm_eps"], **rows}
    output = "classifier.out_proj.weight"
    if output not in shapes:
        return fields
    if "classifier.dense.weight" not in shapes:
        raise keys.wrong("pooling_type", "the head has no cls.weight, without which its scores mean nothing")
    own = {"architectures": ["RobertaForSequenceClassification"], "pad_token_id": -1}  # no row before the first
    return fields | own | _labels(keys, shapes[output][0])


def nomic_bert(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {"hidden_act": "silu", **_rope_bert(common, shapes)}


def jina_bert_v3(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {"hidden_act": "gelu", **_rope_bert(common, shapes)}


def _rope_bert(common: Fields, shapes: Shapes) -> Fields:
    types = shapes.get("embeddings.token_type_embeddings.weight", (0,))[0]
    return {"layer_norm_eps": common["rms_norm_eps"], "type_vocab_size": types}


def modern_bert(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    """The first layer and then every third see everything, where the file does not say."""
    fields = {
        "hidden_activation": keys.get("hidden_activation") or "gelu",
        "norm_eps": common["rms_norm_eps"],
        "global_rope_theta": common["rope_theta"],
        "local_rope_theta": keys.decimal("rope.freq_base_swa", default=10_000.0),
        "local_attention": keys.integer("attention.sliding_window"),
        "global_attn_every_n_layers": keys.integer("attention.sliding_window_pattern", default=3),
    }
    if "classifier.weight" not in shapes:
        return fields
    poolings = {1: "mean", 2: "cls"}
    number = keys.get("classifier.pooling_type", 1)
    if number not in poolings:
        raise keys.wrong("classifier.pooling_type", "supported are 1 (mean) and 2 (the first token)")
    own = {
        "architectures": ["ModernBertForSequenceClassification"],
        "classifier_pooling": poolings[number],
        "classifier_bias": "head.dense.bias" in shapes,
    }
    return fields | own | _labels(keys, shapes["classifier.weight"][0])


def eurobert(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {"is_causal": False}


def _labels(keys: Keys, count: int) -> Fields:
    named = keys.get("classifier.output_labels")
    labels = named if isinstance(named, list) and len(named) == count else [f"LABEL_{n}" for n in range(count)]
    return {"id2label": {str(number): str(label) for number, label in enumerate(labels)}}


def with_dense(config: Fields, shapes: Shapes) -> Fields:
    """`config` with the Dense modules that a file keeps beside the model, where it is one for embeddings."""
    facts = config.get(KEY)
    stored = {name: shapes[weight] for name in DENSE if (weight := f"{name}.linear.weight") in shapes}
    if not isinstance(facts, Mapping) or not stored:
        return config
    dense = [
        {
            "folder": name,
            "in_features": inputs,
            "out_features": outputs,
            "bias": f"{name}.linear.bias" in shapes,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        for name, (outputs, inputs) in stored.items()
    ]
    return {**config, KEY: {**facts, "dense": dense}}
