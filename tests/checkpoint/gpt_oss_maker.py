"""A tiny gpt-oss in MXFP4, as a folder in floating point, as a published one, and as a GGUF file of either kind."""

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.checkpoint.gguf.families_maker import write_family
from tests.worlds import make_model

FIELDS = {
    "num_local_experts": 4,
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 64,
    "sliding_window": 5,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "truncate": False,
    },
}
_MXFP4 = gguf.GGMLQuantizationType.MXFP4
_PAIRS = 4
"""Ollama's number for MXFP4 in its first files."""

Packed = dict[str, np.ndarray]


def make_gpt_oss(folder: Path) -> tuple[Path, Packed]:
    """The model in floating point, and its experts as published: NAME_blocks and NAME_scales."""
    plain = make_model(folder, "GptOssForCausalLM", **FIELDS)
    tensors = load_file(plain / "model.safetensors")
    rng, packed = np.random.default_rng(0), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        count, inputs, outputs = tensors[name].shape
        blocks = rng.integers(0, 256, (count, outputs, inputs // 32, 16), np.uint8)
        scales = rng.integers(121, 126, (count, outputs, inputs // 32), np.uint8)
        values = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32)
        tensors[name] = np.ascontiguousarray(values.numpy())
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    return plain, packed


def write_by_llama_cpp(path: Path, plain: Path, packed: Packed) -> Path:
    """Experts of gate and up apart, their blocks with a value of each half in a byte."""
    tensors = {}
    for name, (blocks, scales) in _pairs(packed).items():
        stored = np.concatenate([scales[..., None], _of_both_halves(blocks)], axis=-1)
        layer, part = name.split(".")[2], name.rpartition(".")[2]
        rows = {"gate": stored[:, ::2], "up": stored[:, 1::2]} if part == "gate_up_proj" else {"down": stored}
        tensors |= {f"blk.{layer}.ffn_{half}_exps.weight": values for half, values in rows.items()}
    return write_family(path, plain, "gpt-oss", packed={name: _flat(values) for name, values in tensors.items()})


def write_by_ollama(path: Path, plain: Path, packed: Packed) -> Path:
    """Ollama's first files: its own names, everything fused as OpenAI published it, and blocks as published."""
    source = gguf.GGUFReader(str(write_family(path.with_suffix(".plain"), plain, "gpt-oss")))
    state = {tensor.name: tensor.data for tensor in source.tensors}
    writer = gguf.GGUFWriter(str(path), "gptoss")
    for key, field in source.fields.items():
        if key.startswith("gpt-oss.") and not key.endswith("scaling.type"):
            writer.add_key_value(key.replace("gpt-oss.", "gptoss."), field.contents(), field.types[0])
    for layer in range(json.loads((plain / "config.json").read_text())["num_hidden_layers"]):
        block = f"blk.{layer}."
        for suffix in ("weight", "bias"):
            parts = [state.pop(f"{block}attn_{part}.{suffix}") for part in "qkv"]
            state[f"{block}attn_qkv.{suffix}"] = np.concatenate(parts)
            state[f"{block}attn_out.{suffix}"] = state.pop(f"{block}attn_output.{suffix}")
        state[f"{block}ffn_norm.weight"] = state.pop(f"{block}post_attention_norm.weight")
        state[f"{block}attn_sinks"] = state.pop(f"{block}attn_sinks.weight")
        halves = [state.pop(f"{block}ffn_{half}_exps.bias") for half in ("gate", "up")]
        state[f"{block}ffn_gate_up_exps.bias"] = np.stack(halves, axis=-1).reshape(len(halves[0]), -1)
        for half in ("gate", "up", "down"):
            del state[f"{block}ffn_{half}_exps.weight"]
    for name, values in state.items():
        writer.add_tensor(name, np.array(values))
    names = []
    for name, (blocks, scales) in _pairs(packed).items():
        part = name.rpartition(".")[2].removesuffix("_proj")
        names.append(f"blk.{name.split('.')[2]}.ffn_{part}_exps.weight")
        stored = np.concatenate([scales[..., None], blocks], axis=-1)
        writer.add_tensor(names[-1], _flat(stored), raw_dtype=_MXFP4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return _with_types(path, names)


def _pairs(packed: Packed) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    stems = [name.removesuffix("_blocks") for name in packed if name.endswith("_blocks")]
    return {stem: (packed[f"{stem}_blocks"], packed[f"{stem}_scales"]) for stem in stems}


def _of_both_halves(blocks: np.ndarray) -> np.ndarray:
    codes = np.stack([blocks & 0x0F, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    return codes[..., :16] | codes[..., 16:] << 4


def _flat(stored: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(stored.reshape(*stored.shape[:2], -1))


def _with_types(path: Path, names: list[str]) -> Path:
    """The `gguf` package writes no type that it does not know."""
    data = bytearray(path.read_bytes())
    for name in names:
        place = data.index(name.encode()) + len(name)
        (axes,) = struct.unpack_from("<I", data, place)
        struct.pack_into("<I", data, place + 4 + 8 * axes, _PAIRS)
    path.write_bytes(data)
    return path
