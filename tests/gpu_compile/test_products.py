"""What XLA makes of jserve's products for an H200 where a library multiplies: sums leave it rounded."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jserve.layers.build import Build, mesh_over
from jserve.layers.linear import Linear
from jserve.layers.source import Tensor
from pallas_kernels.gpu_target import abstract_gpus, gpu_topology, why_unavailable
from pallas_kernels.quant_matmul import quant_matmul

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=why_unavailable() or "")


def test_a_product_that_is_rounded_at_once_is_written_in_16_bits_by_the_library() -> None:
    devices = gpu_topology("h200")
    build = Build(jnp.dtype("bfloat16"), jnp.dtype("bfloat16"), mesh_over(devices))
    linear = nnx.eval_shape(lambda: Linear(build, Tensor("weight", (8192, 1024)), (1024, 8192), shard=None))
    graph, state = nnx.split(linear)
    place = jax.sharding.SingleDeviceSharding(devices[0])

    def run(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x)

    def placed(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

    args = jax.tree.map(placed, (state, jax.ShapeDtypeStruct((2048, 1024), jnp.bfloat16)))
    with abstract_gpus("h200"):
        lowered = jax.jit(run).trace(*args).lower(lowering_platforms=("cuda",))
    program = lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False}).as_text()
    assert re.search(r"bf16\[2048,8192\]\S*[^\n]* custom-call\([^\n]*__cublas\$", program), program
    assert "f32[2048,8192]" not in program


def test_sums_of_float8_are_written_in_16_bits_too() -> None:
    place = jax.sharding.SingleDeviceSharding(gpu_topology("h200")[0])
    shapes = ((1024, 4096), jnp.bfloat16), ((28672, 4096), jnp.float8_e4m3fn), ((28672, 1), jnp.float32)
    args = [jax.ShapeDtypeStruct(*shape, sharding=place) for shape in shapes]

    def run(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
        return quant_matmul(x, values, scale, activations="fp8").astype(x.dtype)

    with abstract_gpus("h200"):
        lowered = jax.jit(run).trace(*args).lower(lowering_platforms=("cuda",))
    program = lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False}).as_text()
    assert re.search(r"bf16\[1024,28672\]\S*[^\n]* custom-call\([^\n]*__cublas\$lt\$matmul\$f8", program), program
    assert "= f32[1024,28672]" not in program.split("ENTRY", 1)[1]
