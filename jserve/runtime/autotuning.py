"""XLA's trying out of products on a GPU while it compiles: the memory that takes, where results are kept, and failures.

The compiler makes every input of a product on the device, and its output twice, to compare a candidate's with the
first one's. Where that does not fit, the compile fails (XLA's `Autotuner::ProfileAll`); it knows no way back.
"""

import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jserve.layers.build import EXPERT_AXIS
from jserve.weights.load import parameters
from pallas_kernels.owned_files import check_folder

__all__ = ["CACHE_FLAG", "WITHOUT", "Product", "has_failed", "keep_results", "products_of", "reserve"]

logger = logging.getLogger(__name__)

WITHOUT: dict[str, Any] = {"xla_gpu_autotune_level": 0}
"""Options of a compile that tries nothing out: each product gets what XLA takes for good."""
CACHE_FLAG = "--xla_gpu_per_fusion_autotune_cache_dir"
SUMS_BYTES = 4
"""A number in an output: sums are float32."""
REDZONES = 64 << 20
"""For the guards around the arrays, and what cuBLAS takes for itself."""


@dataclass(frozen=True, slots=True)
class Product:
    """One product of a step, on one device."""

    weight_bytes: int
    inputs: int
    outputs: int
    of_tokens: bool
    """Whether it has a row for each token of a step; logits have one for each sequence."""


def products_of(model: nnx.Module, mesh: Any, dtype: jnp.dtype, vocab_size: int) -> list[Product]:
    """Those with each matrix of a model without arrays, in the type `dtype` of what is multiplied.

    A quantized weight counts as written out, and of experts' weights that of one.
    """
    products = []
    for parameter in parameters(model):
        shape: tuple[int, ...] = parameter.sharding(mesh).shard_shape(parameter.shape)
        shape = shape[1:] if parameter.axes[:1] == (EXPERT_AXIS,) else shape
        if len(shape) < 2 or parameter.part not in ("", "values"):
            continue
        packed = 2 if parameter.dtype == jnp.uint8 else 1
        elements = math.prod(shape) * packed
        is_table = vocab_size in parameter.shape
        inputs = min(shape) if is_table else shape[0]
        products.append(Product(elements * dtype.itemsize, inputs, elements // inputs, not is_table))
    return products


def reserve(products: Iterable[Product], tokens: int, rows: int, dtype: jnp.dtype) -> int:
    """Bytes to leave free on a device, so that a step of so many tokens and rows can be compiled at any time."""

    def size(product: Product) -> int:
        count = tokens if product.of_tokens else rows
        return product.weight_bytes + count * (dtype.itemsize * product.inputs + 2 * SUMS_BYTES * product.outputs)

    return max(map(size, products), default=0) + REDZONES


def has_failed(error: BaseException) -> bool:
    """Whether a compile failed because nothing could be tried out."""
    text = str(error)
    return "RESOURCE_EXHAUSTED" in text or "autotuning failed" in text.lower()


def keep_results(folder: Path | None) -> None:
    """Have XLA keep in this folder what it found fastest, beside the programs that are stored there. Before jax looks
    for devices; the user's own flag stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if folder is None or CACHE_FLAG in flags:
        return
    kept = folder / "autotuned"
    try:
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(kept)
    except OSError as error:
        logger.warning("what the compiler finds fastest is not kept in %s: %s", kept, error)
        return
    os.environ["XLA_FLAGS"] = f"{flags} {CACHE_FLAG}={kept}".strip()
