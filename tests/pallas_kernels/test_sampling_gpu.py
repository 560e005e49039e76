"""The sampler's threshold compiles for real GPUs on a machine that has none: one launch, no spills, no copy."""

import re

import jax
import pytest

from pallas_kernels.gpu_target import abstract_gpus, gpu_topology, why_unavailable
from pallas_kernels.sampling import kept_threshold
from pallas_kernels.sampling.cases import CASES

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=why_unavailable() or "")

NO_SPILLS = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}
LARGE = next(case for case in CASES if case.name == "llama3_256x128k")


@pytest.mark.parametrize(
    "kind", ["h200", "a100", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("h100", "b200"))]
)
def test_threshold_is_one_kernel_without_spills(kind: str) -> None:
    device = jax.sharding.SingleDeviceSharding(gpu_topology(kind)[0])
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for x in LARGE.shapes().args]
    with abstract_gpus(kind):
        lowered = jax.jit(kept_threshold).trace(*shapes).lower(lowering_platforms=("cuda",))
    program = lowered.compile(compiler_options=NO_SPILLS).as_text().split("ENTRY", 1)[1]
    assert len(re.findall(r"custom-call\(", program)) == 1, program
    assert not re.search(r"\b(copy|transpose|sort|while)\(|= \S+ fusion\(", program), program
