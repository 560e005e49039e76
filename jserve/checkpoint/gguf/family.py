"""How files name the tensors of a layer and of the top, and how they keep them, against Hugging Face's names.

What a family's configuration has beyond the common keys stands in `family_config.py`. Sources: `MODEL_TENSORS` of the
`gguf` package, and the classes of llama.cpp's converter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from jserve.checkpoint.gguf.joined import Join
from jserve.checkpoint.gguf.views import (
    AsStored,
    OneExpert,
    OneLess,
    RotatedInPairs,
    SomeHeads,
    Transposed,
    View,
)

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"} | {"attn_output": "self_attn.o_proj"}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
LATER_HEAD_NORMS = {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
GATED = {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
LLAMA = {**ATTENTION, **GATED, **NORMS}
NORMS_AROUND = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GEMMA3 = {**ATTENTION, **GATED, **HEAD_NORMS, **NORMS_AROUND}
EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    **{f"ffn_{part}_exps": f"mlp.experts.*.{part}_proj" for part in ("gate", "up", "down")},
}
ViewOfHeads = Callable[[int, int], View]
"""Made for a model with so many heads of queries, and of keys."""
ROTATED: Mapping[str, ViewOfHeads] = {
    "attn_q": lambda heads, kv_heads: RotatedInPairs(heads),
    "attn_k": lambda heads, kv_heads: RotatedInPairs(kv_heads),
}
SHARED_EXPERTS = {f"ffn_{part}_shexp": f"mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")}
WITH_SHARED = {**LLAMA, **EXPERTS, **SHARED_EXPERTS}
NORMS_AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
SECOND_NORM = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
"""Where `ffn_norm` has the name that other families have for a norm after attention."""
CORRECTION = "e_score_correction_bias"
LATENT = {
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{part}_b": f"self_attn.{part}_b_proj" for part in ("k", "v", "kv")},
}
GPT_OSS = {
    **ATTENTION,
    **NORMS,
    "attn_out": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
    **{f"ffn_{part}_exps": f"mlp.experts.{part}_proj" for part in ("gate", "up", "gate_up", "down")},
}
"""Both of llama.cpp's names and Ollama's, which has `ffn_norm`, `attn_out` and in its first files `attn_qkv`."""
MIXTRAL_EXPERTS = {"gate": "w1", "down": "w2", "up": "w3"}


@dataclass(frozen=True, slots=True)
class Family:
    """Tensors of a layer and of the top, by the names of files. "*" stands for each expert in a tensor of all."""

    architecture: str
    layer: Mapping[str, str]
    top: Mapping[str, str] = field(default_factory=lambda: TOP)
    layers: str = "model.layers"
    views: Mapping[str, ViewOfHeads] = field(default_factory=dict)
    """How tensors are read that have another form than Hugging Face's, by their name in a file."""
    offset_norms: bool = False
    """Whether Hugging Face adds 1 to the weight of each norm."""
    whole: Mapping[str, str] = field(default_factory=dict)
    """Parameters of a layer that Hugging Face names without ".weight" or ".bias", by name, with or without suffix."""
    fused_heads: bool = False
    """Whether `attn_qkv` stands for projections that are three tensors."""
    by_layer: bool = False
    """Whether layers differ in heads and sizes, for which keys then have a list."""
    latent: bool = False
    """Whether attention has latents, so that keys and values differ in size."""
    join: Join = dict
    """What makes Hugging Face's tensors of those of a file where one is kept in several."""

    def view(self, part: str, suffix: str, heads: int, kv_heads: int) -> View:
        """How the tensor `part` of a file is read."""
        if self.offset_norms and part.endswith("norm"):
            return OneLess() if suffix == "weight" else AsStored()
        view = self.views[part](heads, kv_heads) if part in self.views else AsStored()
        # A bias has one axis, whatever the form of its weight.
        return AsStored() if suffix == "bias" and isinstance(view, Transposed) else view


_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+?)(?:\.(weight|bias|scale))?")
_ANY_LAYER = re.compile(r"blk\.(\d+)\.")
_TOP_NAME = re.compile(r"([\w.]+?)\.(weight|bias)")


def is_beyond(name: str, layers: int) -> bool:
    """Whether a tensor belongs to a layer behind the first `layers`, which predicts a further token."""
    match = _ANY_LAYER.match(name)
    return match is not None and int(match.group(1)) >= layers


def huggingface_tensors(
    family: Family, name: str, shape: tuple[int, ...], *, heads: int, kv_heads: int
) -> Iterator[tuple[str, View]]:
    """The tensors of Hugging Face that one of a file stands for, and how each is read; none where it is unknown."""
    if match := _LAYER_NAME.fullmatch(name):
        layer, part, suffix = match.groups()
        prefix = f"{family.layers}.{int(layer)}."
        whole = family.whole.get(f"{part}.{suffix}", family.whole.get(part))
        if whole is not None:
            yield f"{prefix}{whole}", family.view(part, suffix, heads, kv_heads)
            return
        if part == "attn_qkv" and family.fused_heads and suffix:
            yield from _projections(prefix, suffix, heads, kv_heads)
            return
        stem = family.layer.get(part) if suffix else None
    elif match := _TOP_NAME.fullmatch(name):
        (part, suffix), prefix = match.groups(), ""
        stem = family.top.get(part)
    else:
        return
    if stem is None:
        return
    if "*" in stem:
        for number in range(shape[0]):
            yield f"{prefix}{stem.replace('*', str(number))}.{suffix}", OneExpert(number)
        return
    yield f"{prefix}{stem}.{suffix}", family.view(part, suffix, heads, kv_heads)


def _projections(prefix: str, suffix: str, heads: int, kv_heads: int) -> Iterator[tuple[str, View]]:
    """All queries, then all keys, then all values."""
    first, total = 0, heads + 2 * kv_heads
    for part, count in zip("qkv", (heads, kv_heads, kv_heads), strict=True):
        yield f"{prefix}self_attn.{part}_proj.{suffix}", SomeHeads(total, first, count)
        first += count
