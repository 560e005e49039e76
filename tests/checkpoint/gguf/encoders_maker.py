"""GGUF files of tiny encoders, written as llama.cpp's converter does from a Hugging Face folder."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from jserve.checkpoint import open_checkpoint

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS = [*SPECIAL, *(f"{first}{second}" for first in "abcdefghijk" for second in "abcdefghijk"), "a", "b"]
"""128 of BERT's, as many as tiny models have rows."""
LEFT_OUT = ("position_ids", "pooler.", "lm_head", "cls.predictions")
HEADS = {
    "classifier.dense": "cls",
    "classifier.out_proj": "cls.output",
    "head.dense": "cls",
    "head.norm": "cls.norm",
    "classifier": "cls.output",
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {}),
    "xlm-roberta": ("XLMRobertaModel", {"type_vocab_size": 1, "pad_token_id": 1}),
    "a cross-encoder": (
        "XLMRobertaForSequenceClassification",
        {"type_vocab_size": 1, "pad_token_id": 1, "num_labels": 1},
    ),
    "nomic-bert": ("NomicBertModel", {}),
    "jina-bert-v3": ("JinaEmbeddingsV3Model", {"type_vocab_size": 1}),
    "modern-bert": ("ModernBertModel", {"num_hidden_layers": 4, "local_attention": 8}),
    "a modern cross-encoder": ("ModernBertForSequenceClassification", {"num_labels": 1, "classifier_pooling": "mean"}),
    "gemma-embedding": (
        "Gemma3TextModel",
        {"use_bidirectional_attention": True, "sliding_window": 8, "head_dim": 16, "num_hidden_layers": 7}
        | {"query_pre_attn_scalar": 16},
    ),
    "eurobert": ("EuroBertModel", {}),
}
"""Architectures and fields of models, by what files call them."""


def architecture(case: str) -> str:
    """`general.architecture` of a case of ENCODERS."""
    names = {"xlm-roberta": "bert", "a cross-encoder": "bert", "a modern cross-encoder": "modern-bert"}
    return names.get(case, case)


def write_encoder(
    path: Path, case: str, folder: Path, *, wrong: Callable[[gguf.GGUFWriter], None] | None = None
) -> Path:
    """The model of a folder, which `case` of ENCODERS was made by. `wrong` writes further keys."""
    name = architecture(case)
    writer = gguf.GGUFWriter(str(path), name)
    with closing(open_checkpoint(folder)) as checkpoint:
        config = checkpoint.config()
        offset = config["pad_token_id"] + 1 if "Roberta" in config["architectures"][0] else 0
        _add_shape(writer, config, offset)
        _add_kind(writer, name, config)
        writer.add_tokenizer_model("bert")
        writer.add_token_list([t if t in SPECIAL else f"\u2581{t}" for t in TOKENS])
        writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
        for role, token in {"unknown": 1, "bos": 2, "seperator": 3, "padding": 0, "mask": 4}.items():
            writer.add_uint32(f"tokenizer.ggml.{role}_token_id", token)
        if config.get("type_vocab_size"):
            writer.add_token_type_count(config["type_vocab_size"])
        names = gguf.get_tensor_name_map(_arch(name), config["num_hidden_layers"])
        for tensor in checkpoint.tensors():
            stem, _, suffix = tensor.rpartition(".")
            for prefix in ("bert.", "roberta.", "model."):
                stem = stem.removeprefix(prefix)
            if any(part in tensor for part in LEFT_OUT):
                continue
            values = np.array(checkpoint.read(tensor), np.float32)
            values = values[offset:] if "position_embeddings" in tensor else values
            values = values + 1 if name == "gemma-embedding" and stem.endswith("norm") else values
            writer.add_tensor(f"{HEADS.get(stem) or names.get_name(stem)}.{suffix}", values)
    if wrong is not None:
        wrong(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _arch(name: str) -> gguf.MODEL_ARCH:
    return next(arch for arch, shown in gguf.MODEL_ARCH_NAMES.items() if shown == name)


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any], offset: int) -> None:
    writer.add_context_length(config["max_position_embeddings"] - offset)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    if "rms_norm_eps" in config:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(config.get("layer_norm_eps") or config["norm_eps"])


def _add_kind(writer: gguf.GGUFWriter, name: str, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    whole = rope.get("full_attention") or rope
    if whole:
        writer.add_rope_freq_base(whole["rope_theta"])
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if name == "modern-bert":
        writer.add_sliding_window(config["local_attention"])
        writer.add_string("modern-bert.hidden_activation", config["hidden_activation"])
    if name == "gemma-embedding":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    else:
        writer.add_causal_attention(False)
    classifies = config["architectures"][0].endswith("ForSequenceClassification")
    writer.add_pooling_type(gguf.PoolingType.RANK if classifies else gguf.PoolingType.MEAN)
