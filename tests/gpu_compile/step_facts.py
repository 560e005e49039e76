"""What XLA makes of jserve's own programs for H200s that are not there, as one line of JSON on stdout.

    python -m tests.gpu_compile.step_facts --gpus 8 --layers 4 --buckets 32x32,1024x32

Compiles the steps and the samplers that `Programs` lowers, in bfloat16, for the shape of Llama-3.1-8B or another
--model, and reads the optimized program, the memory plan, the thunks and the PTX. A kernel that spills fails the
compile.
Compiled, never executed: GEMM tiles are not autotuned here, so nothing of this is a time.
"""

import argparse
import dataclasses
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernel_resources import Resources, dump_flags, find_ptxas, resources
from benchmarks.presets import PRESETS
from jserve.layers.build import Build, mesh_over
from jserve.layers.quantized import WeightPlan
from jserve.models.blueprint import Blueprint
from jserve.models.registry import resolve
from jserve.quant import OnLoad
from jserve.runtime import sampling
from jserve.runtime.executables import Program
from jserve.runtime.layout import choose_windows
from jserve.runtime.memory import estimate_temporaries
from jserve.runtime.program_keys import Step
from jserve.runtime.programs import Programs
from jserve.runtime.shapes import Bucket, EngineShape
from jserve.weights.load import parameters
from pallas_kernels.gpu_target import abstract_gpus, gpu_topology
from tests.gpu_compile import program_text as text
from tests.models.published import PUBLISHED
from tests.pallas_kernels.triton_ir import offsets

GPU = "h200"
DUMP = Path(tempfile.gettempdir()) / f"step-facts-{os.getpid()}"
BIG = 1 << 22
"""Elements from which a copy counts; a weight or a layer's pages have as many on one of eight devices."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One compiled program. Sizes are bytes on one device."""

    name: str
    lower_s: float
    compile_s: float
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    collectives: dict[str, int]
    kernels: dict[str, int]
    """Calls of each of our kernels."""
    custom_calls: dict[str, int]
    registers: dict[str, int]
    """What each of our kernels takes, by ptxas; empty where there is none that reads this PTX."""
    spilled: dict[str, int]
    """Bytes of each of our kernels, likewise."""
    page_writes: int
    atomics: list[str]
    """Kernels of XLA's and ours that write with atomic instructions, such as a compare-and-swap for each element."""
    wrapping: list[str]
    """Offsets of our kernels that are counted in fewer bits than their arrays need."""
    copies: list[str]
    graphs: int
    outside_graphs: dict[str, int]
    launches: int


def programs(gpus: int, layers: int, seqs: int, tokens: int, model: str, quantization: str | None = None) -> Programs:
    """jserve's programs over `gpus` compile-only devices, for the shape of a preset or a published model."""
    fields = PRESETS[model] if model in PRESETS else PUBLISHED[model].fields
    family, config = resolve({**fields, "num_hidden_layers": layers}, source=model)
    mesh = mesh_over(gpu_topology(GPU, gpus))
    build = Build(jnp.dtype("bfloat16"), jnp.dtype("bfloat16"), mesh)
    windows = choose_windows(config.layer_windows, alike=True)
    shape = EngineShape(seqs, tokens, 16384, 64, 4096, config.vocab_size, windows=windows)
    weights = None if quantization is None else WeightPlan(OnLoad(quantization))
    return Programs(Blueprint(family, config, build, weights), shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4)
    names = [*PRESETS, *PUBLISHED]
    parser.add_argument("--model", default="llama-3.1-8b", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--quantization", help="of the weights, as jserve's own option")
    parser.add_argument("--seqs", type=int, default=256, help="slots of the engine")
    parser.add_argument("--buckets", default="32x32,1024x32", help="TOKENSxROWS, several with commas")
    parser.add_argument("--samplers", default="32", help="rows, several with commas; empty for none")
    args = parser.parse_args()
    buckets = [Bucket(*map(int, each.split("x"))) for each in args.buckets.split(",")]
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["XLA_FLAGS"] = dump_flags(DUMP)  # read when the first backend starts, below
    jax.config.update("jax_platforms", "cpu")
    most = max(bucket.tokens for bucket in buckets)
    made = programs(args.gpus, args.layers, args.seqs, most, args.model, args.quantization)
    wanted = [made.step(bucket) for bucket in buckets]
    for rows in filter(None, args.samplers.split(",")):
        wanted += [made.sampler(int(rows), variant) for variant in sampling.VARIANTS]
        wanted += [made.few_sampler(int(rows)), made.logprobs(int(rows)), made.few_logprobs(int(rows))]
    report = {
        "kv_bytes": _bytes(made.abstract_state().kv),
        "weight_bytes": _bytes(_weights(made)),
        "table_bytes": _bytes(made.abstract_state().page_table),
        "sampling_bytes": _bytes(made.abstract_sampling()),
        "estimate": estimate_temporaries(made.config, made.build, made.shape),
        "programs": [dataclasses.asdict(_compile(program, made)) for program in wanted],
    }
    shutil.rmtree(DUMP, ignore_errors=True)
    print(json.dumps(report))


def _compile(program: Program, made: Programs) -> Facts:
    shutil.rmtree(DUMP, ignore_errors=True)
    clock = time.perf_counter()
    with abstract_gpus(GPU, made.build.mesh.shape):
        lowered = program.lower()
    middle = time.perf_counter()
    # Not in the samplers, whose sort is XLA's and another one where there is a GPU to compile on.
    strict = {"xla_gpu_fail_ptx_compilation_on_register_spilling": isinstance(program.key, Step)}
    compiled = lowered.compile(compiler_options=strict)
    wrapping = [str(offset) for offset in offsets(lowered) if offset.may_wrap]
    return _read(program.name, compiled, made, middle - clock, time.perf_counter() - middle, wrapping)


def _read(
    name: str, compiled: jax.stages.Compiled, made: Programs, lower_s: float, compile_s: float, wrapping: list[str]
) -> Facts:
    memory: Any = compiled.memory_analysis()
    program = compiled.as_text()
    # The file of the passes is missing where they changed nothing.
    thunks = text.thunks(max(DUMP.glob("*.thunk_sequence*.txt")).read_text())
    pages = _local(made.abstract_state().kv[0][0])
    weights = {_local(weight) for weight in _weights(made) if weight.ndim > 1}
    kernels = text.pallas_calls(program)
    used = {kernel: taken for kernel in kernels if (taken := _resources(kernel))}
    return Facts(
        name=name,
        lower_s=lower_s,
        compile_s=compile_s,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        collectives=text.collectives(program),
        kernels=kernels,
        custom_calls=text.custom_calls(program),
        registers={kernel: taken.registers for kernel, taken in used.items()},
        spilled={kernel: taken.spilled for kernel, taken in used.items()},
        page_writes=text.page_writes(program, pages),
        atomics=[kernel for path in DUMP.glob("*.ptx") for kernel in text.atomic_kernels(path.read_text())],
        wrapping=wrapping,
        copies=text.copies(program, pages, weights, BIG),
        graphs=thunks.graphs,
        outside_graphs=thunks.outside,
        launches=thunks.launches,
    )


def _resources(kernel: str) -> Resources | None:
    """By ptxas on the kernel's PTX; None where there is no ptxas."""
    ptxas = find_ptxas()
    for path in DUMP.glob("*.ptx") if ptxas else ():
        ptx = path.read_text()
        if f".entry {kernel}(" in ptx:
            return resources(ptx, ptxas)[kernel]
    return None


def _weights(made: Programs) -> list[jax.ShapeDtypeStruct]:
    return [
        jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding(made.build.mesh))
        for p in parameters(made.blueprint.abstract_model())
    ]


def _local(array: Any) -> str:
    """How HLO writes one device's share of an array."""
    shorts = {"bfloat16": "bf16", "float32": "f32", "int32": "s32", "uint8": "u8", "int8": "s8"}
    short = shorts[str(array.dtype)]
    return f"{short}[{','.join(map(str, array.sharding.shard_shape(array.shape)))}]"


def _bytes(tree: Any) -> int:
    """The bytes of one device's share."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


if __name__ == "__main__":
    main()
