"""Gemma 4's `config.json`: heads by layer, which layers read keys and values of others, and what each is given."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jserve.config import MOST_LAYERS, ModelConfig
from jserve.config.fields import Fields
from jserve.config.gemma import GemmaConfig, LayerHeads
from jserve.errors import CheckpointError
from jserve.models.defaults import GEMMA3, Defaults

LEFT_OUT = ("attn_logit_softcapping", "query_pre_attn_scalar", "sliding_window_pattern")
GEMMA4: Defaults = {
    key: value for key, value in GEMMA3.items() if key not in (*LEFT_OUT, "rope_theta", "rope_local_base_freq")
} | {
    "vocab_size": 262144,
    "num_hidden_layers": 30,
    "sliding_window": 512,
    "global_head_dim": 512,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "attention_k_eq_v": False,
    "num_kv_shared_layers": 0,
    "enable_moe_block": False,
    "use_double_wide_mlp": False,
    "num_experts": None,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
    },
}
FULL, WINDOWED = "full_attention", "sliding_attention"
PATTERN = 6
"""One of so many layers sees everything, where the file does not say."""


def read_gemma4(raw: dict[str, Any], read: Callable[..., ModelConfig], *, source: Path | str) -> ModelConfig:
    """The shape, of a configuration with its defaults; `read` reads what all families have.

    Raises CheckpointError where a field is missing or impossible.
    """
    fields = Fields(raw, source)
    layers = fields.integer("num_hidden_layers", most=MOST_LAYERS)
    kinds = fields.for_each_layer("layer_types", layers) or [
        WINDOWED if (layer + 1) % PATTERN else FULL for layer in range(layers)
    ]
    kinds[-1] = FULL  # transformers forces it
    has_experts = fields.boolean("enable_moe_block", default=False)
    named = {
        "hidden_act": raw["hidden_activation"],
        "layer_types": kinds,
        "num_experts": raw.get("num_experts") if has_experts else None,
        "num_experts_per_tok": raw.get("top_k_experts"),
        "norm_topk_prob": True,
        "query_pre_attn_scalar": 1.0,
    }
    config = read({**raw, **named}, source=source)
    if raw.get("use_bidirectional_attention") == "all":
        raise fields.unlike("use_bidirectional_attention", "null or 'vision': this architecture generates")
    heads = _layer_heads(fields, kinds, config, source)
    shared = _count(fields, "num_kv_shared_layers")
    sources = _sources(kinds, shared, source)
    reading = frozenset(layer for layer in range(layers) if sources[layer] != layer)
    same = fields.boolean("attention_k_eq_v", default=False)
    return replace(
        config,
        embedding_multiplier=math.sqrt(config.hidden_size),
        layer_ropes=tuple(
            None if rope is None else replace(rope, head_dim=own.head_dim)
            for rope, own in zip(config.layer_ropes, heads, strict=True)
        ),
        gemma=GemmaConfig(
            heads=heads,
            sources=sources,
            keys_are_values=frozenset(layer for layer in range(layers) if same and kinds[layer] == FULL),
            wide_layers=reading if fields.boolean("use_double_wide_mlp", default=False) else frozenset(),
            input_size=_count(fields, "hidden_size_per_layer_input"),
            input_vocab=fields.integer("vocab_size_per_layer_input"),
        ),
    )


def _layer_heads(fields: Fields, kinds: list[str], config: ModelConfig, source: Path | str) -> tuple[LayerHeads, ...]:
    """By layer, as transformers 5 writes them, or for all layers without a window, as published files do."""
    same = fields.boolean("attention_k_eq_v", default=False)
    of_all = LayerHeads(config.num_kv_heads, config.head_dim)
    fewer = fields.optional_integer("num_global_key_value_heads") if same else None
    of_full = LayerHeads(fewer or config.num_kv_heads, fields.integer("global_head_dim"))
    by_layer = _numbered(fields, "per_layer_config")
    heads = []
    for layer, kind in enumerate(kinds):
        own = of_full if kind == FULL and not by_layer else of_all
        if by_layer:
            each = Fields(
                Fields({"per_layer_config": by_layer.get(layer)}, source).dictionary("per_layer_config"), source
            )
            own = LayerHeads(
                each.integer("num_key_value_heads", default=of_all.kv_heads),
                each.integer("head_dim", default=of_all.head_dim),
            )
        if config.num_heads % own.kv_heads:
            raise fields.wrong("num_key_value_heads", f"is {own.kv_heads} in layer {layer}, no divisor of the heads")
        heads.append(own)
    return tuple(heads)


def _numbered(fields: Fields, name: str) -> dict[int, Any]:
    """By number of the layer, which files write as text, of one width ("05")."""
    try:
        return {int(key): value for key, value in fields.dictionary(name).items()}
    except ValueError as error:
        raise fields.unlike(name, "an object whose keys are numbers of layers") from error


def _sources(kinds: list[str], shared: int, source: Path | str) -> tuple[int, ...]:
    """The last layers read those of the last layer of their kind before them that has its own."""
    own = len(kinds) - shared
    last = {kind: layer for layer, kind in enumerate(kinds[: max(own, 0)])}
    if own < 1 or set(kinds) != set(last):
        raise CheckpointError(
            f"{source}: num_kv_shared_layers is {shared}, which leaves no layer of each kind with keys and values"
        )
    return tuple(layer if layer < own else last[kind] for layer, kind in enumerate(kinds))


def _count(fields: Fields, name: str) -> int:
    """A number that may be 0."""
    return fields.optional_integer(name) or 0
