"""Divides scales of input channels out of what comes before a linear layer: tensors of the checkpoint that change."""

from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (numpy then knows bfloat16 by name)
import numpy as np

from jserve.commands.quantize.layers import DecoderLayers, module_at
from jserve.commands.quantize.products import Group
from jserve.layers.norm import LayerNorm, OffsetRMSNorm

Array = np.ndarray[Any, Any]
ReadWhole = Callable[[str], Array]
"""A tensor of the checkpoint in the type in which it is written."""


def fold_into_norm(layers: DecoderLayers, number: int, group: Group, scale: Array, read: ReadWhole) -> tuple:
    """The norm's tensors with `scale`, f32[channels], divided out, and the scale that this is exactly.

    Rounding the norm to its type would change the layer's inputs; instead the weights take up what it became.
    """
    assert group.norm is not None
    module = module_at(layers.layer(number), group.norm)
    prefix = ".".join((*layers.path(number), *group.norm))
    offset = np.float32(isinstance(module, OffsetRMSNorm))
    name = layers.names[f"{prefix}.weight"]
    stored = read(name)
    before = stored.astype(np.float32) + offset
    changed = (before / scale - offset).astype(stored.dtype)
    after = changed.astype(np.float32) + offset
    usable = (after != 0) & (before != 0)
    exact = np.where(usable, before / np.where(usable, after, 1), scale).astype(np.float32)
    tensors = {name: changed}
    if isinstance(module, LayerNorm) and module.bias is not None:
        name = layers.names[f"{prefix}.bias"]
        stored = read(name)
        tensors[name] = (stored.astype(np.float32) / exact).astype(stored.dtype)
    return tensors, exact


def fold_into_rows(group: Group, scale: Array, weight: Array, read: ReadWhole) -> dict[str, Array]:
    """Divide rows of the producer's weight, in place, and return its biases likewise."""
    assert group.producer is not None
    assert group.rows is not None
    weight[group.rows] /= scale[:, None]
    divisor = np.ones(len(weight), np.float32)
    divisor[group.rows] = scale
    parts = zip(group.producer.biases, group.producer.slices().values(), strict=False)
    return {name: (read(name).astype(np.float32) / divisor[rows]).astype(read(name).dtype) for name, rows in parts}
