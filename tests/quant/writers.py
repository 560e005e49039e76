"""Quantized checkpoints of the published formats, written tensor by tensor, and the float weights they stand for.

GPTQ: AutoGPTQ's QuantLinear.pack; AWQ: AutoAWQ's WQLinear_GEMM.from_linear; float8: DeepSeek-V3's README_WEIGHTS.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
Writer = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]
"""A weight [outputs, inputs] to the tensors that take its place, and to what they mean."""


@dataclass(frozen=True)
class Stored:
    """A format of the tests."""

    config: dict[str, Any]
    write: Writer
    activations: str = "float"
    fields: dict[str, Any] = field(default_factory=dict)


def grouped_codes(
    weight: torch.Tensor, bits: int, group_index: torch.Tensor, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes i64[outputs, inputs] from 0, scales f16[outputs, groups] and zero points i64[outputs, groups]."""
    groups = int(group_index.max()) + 1
    scale, zero = torch.zeros(len(weight), groups), torch.zeros(len(weight), groups)
    top = 2**bits - 1
    for group in range(groups):
        part = weight[:, group_index == group]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        scale[:, group] = (high - low) / top
        zero[:, group] = (top + 1) / 2 if symmetric else (-low / scale[:, group]).round()
    scale = scale.half()
    wide = scale.float()[:, group_index]
    codes = (weight / wide).round() + zero[:, group_index]
    return codes.clamp(0, top).long(), scale, zero.long()


def dequantized(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return (codes - zero[:, index]).float() * scale.float()[:, index]


def packed(codes: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """i64[rows, columns] to i32[rows, columns * bits / 32]; code i of a word is that of column order[i]."""
    per_word = 32 // bits
    words = torch.zeros(codes.shape[0], codes.shape[1] // per_word, dtype=torch.int64)
    for place in range(per_word):
        column = place if order is None else order[place]
        words |= (codes[:, column::per_word] & (2**bits - 1)) << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def gptq(bits: int, group_size: int, *, symmetric: bool, act_order: bool = False, version: int = 1) -> Stored:
    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        inputs = weight.shape[1]
        size = inputs if group_size == -1 else group_size
        index = torch.arange(inputs) // size
        if act_order:  # the same for all weights of the same inputs, as the same activations order them
            index = index[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]
        codes, scale, zero = grouped_codes(weight, bits, index, symmetric)
        tensors = {
            "qweight": packed(codes, bits).T,
            "scales": scale.T,
            "qzeros": packed((zero - (1 if version == 1 else 0)).T, bits),
            "g_idx": index.int(),
        }
        return tensors, dequantized(codes, scale, zero, index)

    config = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": act_order, "sym": symmetric}
    return Stored({**config, "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}, write)


def awq(group_size: int, *, ignored: tuple[str, ...] = ()) -> Stored:
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        index = torch.arange(weight.shape[1]) // group_size
        codes, scale, zero = grouped_codes(weight, 4, index, symmetric=False)
        tensors = {"qweight": packed(codes.T, 4, order), "scales": scale.T, "qzeros": packed(zero.T, 4, order)}
        return tensors, dequantized(codes, scale, zero, index)

    config: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True}
    return Stored({**config, "version": "gemm", "modules_to_not_convert": list(ignored) or None}, write)


def fp8_blocks(outputs: int, inputs: int) -> Stored:
    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        rows, columns = torch.arange(weight.shape[0]) // outputs, torch.arange(weight.shape[1]) // inputs
        scale = torch.zeros(int(rows[-1]) + 1, int(columns[-1]) + 1)
        for row in range(scale.shape[0]):
            for column in range(scale.shape[1]):
                scale[row, column] = weight[rows == row][:, columns == column].abs().max() / 448
        wide = scale[rows][:, columns]
        values = (weight / wide).to(torch.float8_e4m3fn)
        return {"weight": values, "weight_scale_inv": scale}, values.float() * wide

    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    return Stored({**config, "weight_block_size": [outputs, inputs]}, write)


def fp8_tensor(*, static: bool) -> Stored:
    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        scale = weight.abs().max() / 448
        values = (weight / scale).to(torch.float8_e4m3fn)
        tensors = {"weight": values, "weight_scale": scale}
        return tensors | ({"input_scale": torch.tensor(STATIC_SCALE)} if static else {}), values.float() * scale

    config = {"quant_method": "fp8", "activation_scheme": "static" if static else "dynamic"}
    return Stored(config, write, activations="fp8 static" if static else "fp8")


STATIC_SCALE = 0.02


def fbgemm() -> Stored:
    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        scale = weight.abs().amax(1, keepdim=True) / 448
        values = (weight / scale).to(torch.float8_e4m3fn)
        return {"weight": values, "weight_scale": scale}, values.float() * scale

    return Stored({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}, write, activations="fp8")


def compressed_act_order(group_size: int) -> Stored:
    """As older versions of the library wrote "actorder: group", which newer ones no longer do."""

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        index = torch.arange(weight.shape[1]) // group_size
        index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(len(index)))]
        codes, scale, zero = grouped_codes(weight, 4, index, symmetric=True)
        tensors = {"weight_packed": packed(codes, 4), "weight_scale": scale, "weight_g_idx": index.int()}
        shape = torch.tensor(weight.shape)
        return {**tensors, "weight_shape": shape}, dequantized(codes, scale, zero, index)

    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group_size, "actorder": "group"}
    group = {"targets": ["Linear"], "weights": weights}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
    return Stored(config, write)


def compressed(scheme: dict[str, Any], kind: str) -> Stored:
    """By the reference library, from the scales of its own observers' formula."""

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme
        from compressed_tensors.quantization.utils import calculate_qparams

        made = QuantizationScheme(targets=["Linear"], **scheme)
        args = made.weights
        assert args is not None
        outputs, inputs = weight.shape
        size = args.group_size or inputs
        index = torch.arange(inputs) // size
        extra: Tensors = {}
        if args.strategy == "tensor":
            low, high = weight.min().reshape(1), weight.max().reshape(1)
        elif args.strategy == "block":
            blocks = weight.reshape(outputs // 32, 32, inputs // 32, 32)
            low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
        else:
            parts = [weight[:, index == group] for group in range(inputs // size)]
            low, high = torch.stack([p.amin(1) for p in parts], 1), torch.stack([p.amax(1) for p in parts], 1)
        scale, zero = calculate_qparams(low, high, args)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        if made.input_activations is not None and not made.input_activations.dynamic:
            extra["input_scale"] = torch.tensor([STATIC_SCALE])
        compressor = BaseCompressor.get_value_from_registry(kind)
        tensors = {name: tensor for name, tensor in compressor.compress(state, made).items() if tensor is not None}
        float_weight = compressor.decompress(dict(tensors), made)["weight"].float()
        return {**tensors, **extra}, float_weight

    inputs = scheme.get("input_activations")
    rounded = "float"
    if inputs and scheme["weights"]["strategy"] in ("tensor", "channel"):
        rounded = ("fp8" if inputs["type"] == "float" else "int8") + ("" if inputs.get("dynamic") else " static")
    group = {"targets": ["Linear"], **scheme}
    config = {"quant_method": "compressed-tensors", "format": kind, "quantization_status": "compressed"}
    return Stored({**config, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}, write, activations=rounded)
