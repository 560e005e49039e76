"""GGUF's tensor names and row order, and Hugging Face's.

llama.cpp renames tensors and, for the llama family only, reorders the rows of Q and K within each head,
because its rotary embedding pairs neighbouring rows where Hugging Face pairs the two halves of a head. Qwen
files keep the order (llama.cpp rotates them in halves). Source: `LlamaModel.permute`, convert_hf_to_gguf.py.
"""

import re

PERMUTED_ARCHITECTURES = frozenset({"llama"})

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_TOP_NAME = re.compile(r"(\w+)\.(weight|bias)")

NOT_WEIGHTS = frozenset({"rope_freqs.weight"})
"""Tensors that are configuration: `gguf_config` reads them."""


def huggingface_name(name: str) -> str | None:
    """The Hugging Face name of a GGUF tensor, or None where the model families here have no such tensor."""
    if match := _LAYER_NAME.fullmatch(name):
        layer, part, suffix = match.groups()
        return f"model.layers.{int(layer)}.{_LAYER[part]}.{suffix}" if part in _LAYER else None
    match = _TOP_NAME.fullmatch(name)
    return f"{_TOP[match[1]]}.{match[2]}" if match and match[1] in _TOP else None


def permuted_part(name: str) -> str | None:
    """ "q" or "k" where llama.cpp reorders the rows of this GGUF tensor, else None."""
    match = _LAYER_NAME.fullmatch(name)
    return {"attn_q": "q", "attn_k": "k"}.get(match[2]) if match else None
