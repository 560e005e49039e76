"""Time of a decoder's matrix products on a CPU, beside the time that reading their weights takes.

    python -m benchmarks.cpu_products --rows 1,2,8,32

All products of 30 layers of 576 inputs (query-key-value, output, gate-up, down), each with weights of its own, so that
caches hold as little of them as in a real step. "floor" is the weights' bytes over the bandwidth that scanning a large
array reaches here in one thread. Run it with nothing else on the machine.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jserve.layers import small_batch
from jserve.quant.gguf_blocks import FORMS, take_apart
from jserve.quant.packing import pack
from pallas_kernels.dense_matmul import dense_matmul
from pallas_kernels.packed_matmul import ACTIVATIONS, PackedWeight, packed_matmul

SHAPES = ((576, 960), (576, 576), (576, 3072), (1536, 576))
LAYERS = 30
SMALL_BATCH = 2
"""Up to so many rows engines without native code use `small_batch`."""
Product = Callable[[jax.Array, Any], jax.Array]
native = partial(dense_matmul, implementation="native")


def main() -> None:
    """Print one line per kind of weight and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,2,8,32", help="numbers of rows, between commas")
    parser.add_argument("--rounds", type=int, default=10, help="the best counts")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    bandwidth = read_bandwidth()
    print(f"reading: {bandwidth / 1e9:.1f} GB/s")
    count = LAYERS * sum(inputs * outputs for inputs, outputs in SHAPES)
    for rows in map(int, args.rows.split(",")):
        for name, width, place, product in kinds(rows):
            seconds = chain_time(rows, place, product, args.rounds)
            floor = count * width / bandwidth
            print(f"{rows:4d} rows  {name:18s} {seconds * 1e3:7.2f} ms  floor {floor * 1e3:6.2f} ms")


def kinds(rows: int) -> list[tuple[str, float, Callable[[np.ndarray], Any], Product]]:
    """Name, bytes of a weight, how [inputs, outputs] is stored, and the product."""

    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.dot(x, w, precision=jax.lax.Precision.HIGHEST)

    def narrow(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.einsum("ti,oi->to", x.astype(w.dtype), w, preferred_element_type=jnp.float32)

    def outputs_first(w: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(w.T).astype(ml_dtypes.bfloat16)

    listed: list[tuple[str, float, Callable[[np.ndarray], Any], Product]] = [
        ("float32", 4, np.ascontiguousarray, plain),
        ("bfloat16", 2, outputs_first, narrow),
        ("native float32", 4, lambda w: np.ascontiguousarray(w.T), native),
        ("native bits", 2, lambda w: outputs_first(w).view(np.uint16), native),
    ]
    for kind, width in (("Q8_0", 8.5 / 8), ("Q4_1", 5 / 8)):
        for activations in ACTIVATIONS:
            product = partial(packed_matmul, activations=activations, implementation="native")
            listed.append((f"{kind}, x in {activations}", width, partial(packed, kind), product))
    if rows <= SMALL_BATCH:
        listed.append(("bits, XLA", 2, lambda w: outputs_first(w).view(np.uint16), small_batch.product))
    return listed


def packed(kind: str, weight: np.ndarray) -> PackedWeight:
    """A weight [inputs, outputs] in a GGML type."""
    form = FORMS[kind]
    blocks = gguf.quantize(np.ascontiguousarray(weight.T), gguf.GGMLQuantizationType[kind])
    arrays = pack(take_apart(blocks.reshape(len(blocks), -1, form.size), kind), form.coding)
    absent = dict.fromkeys(("high", "scale_codes", "minimum", "minimum_codes"))
    return PackedWeight(**{**absent, **arrays}, coding=form.coding)  # type: ignore[arg-type]


def chain_time(rows: int, place: Callable[[np.ndarray], Any], product: Product, rounds: int) -> float:
    """Seconds of all products, each after the one before; the best of `rounds`."""
    rng = np.random.default_rng(0)
    weights = [
        [jax.tree.map(jnp.asarray, place(rng.standard_normal(shape, np.float32) * 0.03)) for shape in SHAPES]
        for _ in range(LAYERS)
    ]

    def run(x: jax.Array, weights: list[list[jax.Array]]) -> jax.Array:
        for qkv, output, gate_up, down in weights:
            x = x + product(product(x, qkv)[:, :576], output)
            x = x + product(product(x, gate_up)[:, :1536], down)
            x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)
        return x

    x = jnp.ones((rows, 576), jnp.float32)
    compiled = jax.jit(run).lower(x, weights).compile()
    jax.block_until_ready(compiled(x, weights))
    return min(elapsed(lambda: jax.block_until_ready(compiled(x, weights))) for _ in range(rounds))


def read_bandwidth() -> float:
    """Bytes a second of the largest value of 512 MiB, in one thread."""
    data = np.ones(1 << 27, np.float32)
    return data.nbytes / min(elapsed(data.max) for _ in range(5))


def elapsed(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
