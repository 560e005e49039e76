"""What quantization tests share: the float model that a quantized one stands for, and its answers."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from jserve.engine.core import EngineCore
from tests.quant.writers import STATIC_SCALE
from tests.worlds import greedy, reference, reference_logits, run, tokens_of

PROMPTS = {"long": list(range(3, 44)), "short": [5], "middle": [9, 8, 7, 6, 5, 4, 3, 9, 8, 7]}
SHAPE = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

EXACT = 1e-4
"""How far logits of about 10 may differ where the numbers are the same: float32 sums in another order."""
FLIPPED = 0.05
"""Where activations are rounded: one that lies between two values may fall to either, here and there."""


def is_linear(name: str) -> bool:
    """Whether a tensor of a tiny Llama is a matrix that is quantized."""
    return name.endswith(".weight") and name.split(".")[-2] in LINEAR


def with_tensors(folder: Path, to: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A copy of a model with other tensors."""
    shutil.copytree(folder, to)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, to / "model.safetensors")
    return to


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def float_logits(folder: Path, prompt: list[int], activations: str = "float", parts: int = 1) -> np.ndarray:
    """What transformers says of the float model, f32[len(prompt), V]; each linear layer's input is first rounded to
    `activations`, token by token, as `parts` devices do it, each for its own share of split inputs.
    """
    model = reference(folder)
    if activations != "float":
        for name, module in model.named_modules():
            if name.split(".")[-1] in LINEAR:
                shares = parts if name.endswith(("o_proj", "down_proj")) else 1
                module.register_forward_pre_hook(partial(_round_input, activations, shares))
    return reference_logits(model, prompt)


def _round_input(kind: str, shares: int, _: torch.nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
    return torch.cat([_rounded_rows(share, kind) for share in args[0].chunk(shares, -1)], -1)


def _rounded_rows(x: torch.Tensor, activations: str) -> torch.Tensor:
    """`activations`: "int8" or "fp8", and "static" where the scale is fixed."""
    kind, _, static = activations.partition(" ")
    largest = 127 if kind == "int8" else 448
    scale = torch.tensor(STATIC_SCALE) if static else x.abs().amax(-1, keepdim=True) / largest
    scaled = (x / scale).clamp(-largest, largest)
    return (scaled.round() if kind == "int8" else scaled.to(torch.float8_e4m3fn).float()) * scale


def first_tokens(core: EngineCore, count: int) -> dict[str, list[int]]:
    """Greedy answers to all prompts at once."""
    return {name: tokens_of(deltas) for name, deltas in run(core, PROMPTS, greedy(count)).items()}
