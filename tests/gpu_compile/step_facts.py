"""What XLA makes of jserve's own programs for H200s that are not there, as one line of JSON on stdout.

    python -m tests.gpu_compile.step_facts --gpus 8 --layers 4 --buckets 32x32,1024x32

Compiles the steps and the samplers that `Programs` lowers, for the shape of Llama-3.1-8B in bfloat16, and
reads the optimized program, the memory plan, the thunks and the PTX. A kernel that spills fails the compile.
Compiled, never executed: GEMM tiles are not autotuned here, so nothing of this is a time.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before jax is imported. They are this process's own: nothing may import this module, tests run it.
DUMP = Path(tempfile.mkdtemp(prefix="step-facts-"))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
os.environ["XLA_FLAGS"] = f"--xla_dump_to={DUMP} --xla_gpu_fail_ptx_compilation_on_register_spilling=true"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jserve.layers.build import TENSOR_AXIS, Build
from jserve.models.registry import resolve
from jserve.runtime import sampling
from jserve.runtime.executables import Program
from jserve.runtime.memory import estimate_temporaries
from jserve.runtime.programs import Programs
from jserve.runtime.shapes import Bucket, EngineShape
from jserve.weights.load import parameters
from pallas_kernels.gpu_target import abstract_gpus, gpu_topology

GPU = "h200"
LLAMA_3_1_8B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
COLLECTIVES = r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
BIG = 1 << 20
"""Elements from which a copy is worth a look; far below a weight or the pages of a layer."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One of our Pallas kernels in the program. `registers` and `spilled` bytes are None without ptxas."""

    calls: int
    registers: int | None
    spilled: int | None


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
    collective_types: dict[str, int]
    kernels: dict[str, Kernel]
    kv_writes: int
    """Instructions that give an array of the shape of a layer's pages."""
    copies: list[str]
    """Copies, transposes and slices that give as much as `BIG` elements, and all that give a weight's shape."""
    graphs: int
    """CUDA graphs."""
    outside_graphs: dict[str, int]
    """Thunks beside the graphs, by kind."""
    launches: int
    """Kernels, in graphs or not."""


def programs(gpus: int, layers: int, seqs: int, tokens: int) -> Programs:
    """jserve's programs for the 8B shape over `gpus` compile-only devices."""
    family, config = resolve({**LLAMA_3_1_8B, "num_hidden_layers": layers}, source="llama-3.1-8b")
    mesh = Mesh(np.array(gpu_topology(GPU, gpus)), (TENSOR_AXIS,))
    build = Build(jnp.dtype("bfloat16"), jnp.dtype("bfloat16"), mesh)
    shape = EngineShape(seqs, tokens, 16384, 64, 4096, config.vocab_size)
    return Programs(family, config, build, shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seqs", type=int, default=256, help="slots of the engine")
    parser.add_argument("--buckets", default="32x32,1024x32", help="TOKENSxROWS, several with commas")
    parser.add_argument("--samplers", default="32", help="rows, several with commas; empty for none")
    args = parser.parse_args()
    buckets = [Bucket(*map(int, text.split("x"))) for text in args.buckets.split(",")]
    made = programs(args.gpus, args.layers, args.seqs, max(bucket.tokens for bucket in buckets))
    wanted = [made.step(bucket) for bucket in buckets]
    for rows in filter(None, args.samplers.split(",")):
        wanted += [made.sampler(int(rows), variant) for variant in sampling.VARIANTS]
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
    with abstract_gpus(GPU, made.build.tensor_parallel):
        lowered = program.lower()
    middle = time.perf_counter()
    compiled = lowered.compile()
    return _read(program.name, compiled, made, middle - clock, time.perf_counter() - middle)


def _read(
    name: str, compiled: jax.stages.Compiled, made: Programs, lower_s: float, compile_s: float
) -> Facts:
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text()
    graphs, outside, launches = _thunks()
    kv = _local(made.abstract_state().kv[0].k)
    found = re.findall(rf"\b({COLLECTIVES})(?:-start)?\(", text)
    types = re.findall(rf"= \(*(\w+)\[\S* (?:{COLLECTIVES})(?:-start)?\(", text)
    return Facts(
        name=name,
        lower_s=lower_s,
        compile_s=compile_s,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        collectives=dict(Counter(found)),
        collective_types=dict(Counter(types)),
        kernels=_kernels(text),
        kv_writes=sum(_results(line, kv) for line in _entry(text)),
        copies=_copies(text, made),
        graphs=graphs,
        outside_graphs=outside,
        launches=launches,
    )


def _entry(text: str) -> list[str]:
    """The instructions of the entry computation that make something: no parameter, no view of another."""
    views = ("parameter(", "bitcast(", "get-tuple-element(", "tuple(", "constant(")
    lines = text.split("\nENTRY", 1)[1].splitlines()[1:]
    return [line for line in lines if " = " in line and not any(f" {view}" in line for view in views)]


def _results(line: str, shape: str) -> bool:
    """Whether an instruction gives an array of this shape, such as "bf16[4096,8,64,128]"."""
    return shape in line.split(" = ", 1)[1].split("(%", 1)[0]


def _copies(text: str, made: Programs) -> list[str]:
    """Instructions of the whole program that only move many elements, or that give a weight's shape."""
    weights = {_local(weight) for weight in _weights(made) if weight.ndim > 1}
    kv = _local(made.abstract_state().kv[0].k)
    found = []
    for line in _entry(text):
        opcode = re.search(r" ([a-z][\w-]*)\(", line.split(" = ", 1)[1])
        moves = opcode is not None and opcode[1] in ("copy", "copy-start", "transpose", "slice", "concatenate")
        moves |= bool(re.search(r"calls=%(wrapped_)?(copy|transpose|slice)", line))
        if (moves and _elements(line) >= BIG) or any(_results(line, each) for each in weights):
            found.append(line.strip()[:200])
        if _results(line, kv) and "scatter" not in line:
            found.append(line.strip()[:200])
    return found


def _elements(line: str) -> int:
    """Elements of the largest array that an instruction gives."""
    shapes = re.findall(r"\w+\[([\d,]*)\]", line.split(" = ", 1)[1].split("(%", 1)[0])
    return max((int(np.prod([int(d) for d in s.split(",") if d])) for s in shapes), default=0)


def _kernels(text: str) -> dict[str, Kernel]:
    calls = Counter(re.findall(r'custom_call_target="__gpu\$xla\.gpu\.triton".*?/(\w+)/pallas_call"', text))
    return {name: Kernel(count, *_registers(name)) for name, count in calls.items()}


def _registers(name: str) -> tuple[int | None, int | None]:
    """Registers a thread and spilled bytes, by ptxas on the kernel's PTX."""
    ptxas = shutil.which("ptxas")
    for path in DUMP.glob("*.ptx"):
        ptx = path.read_text()
        if ptxas is None or not re.search(rf"\.entry {name}\b", ptx):
            continue
        target = re.search(r"\.target (\w+)", ptx)
        arch = target[1] if target else "sm_90a"
        done = subprocess.run(
            [ptxas, f"-arch={arch}", "-v", str(path), "-o", os.devnull], capture_output=True, text=True
        )
        if done.returncode:
            return None, None  # a ptxas older than the PTX
        registers = re.findall(r"Used (\d+) registers", done.stderr)
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
        return max(map(int, registers)), sum(map(int, spills))
    return None, None


def _thunks() -> tuple[int, dict[str, int], int]:
    """CUDA graphs, thunks outside of them by kind, and kernels launched in all."""
    # The file of the passes is missing where they changed nothing.
    lines = max(DUMP.glob("*.thunk_sequence*.txt")).read_text().splitlines()
    kinds = [match[1] for line in lines if (match := re.match(r"\d+: k(\w+)", line))]
    outside = Counter(kinds)
    graphs = outside.pop("CommandBuffer", 0)
    return graphs, dict(outside), sum("kCustomKernel" in line or "kKernel" in line for line in lines)


def _weights(made: Programs) -> list[jax.ShapeDtypeStruct]:
    return [
        jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding(made.build.mesh))
        for p in parameters(made.abstract_model())
    ]


def _local(array: Any) -> str:
    """How HLO writes one device's share of an array."""
    short = {"bfloat16": "bf16", "float32": "f32", "int32": "s32"}[str(array.dtype)]
    return f"{short}[{','.join(map(str, array.sharding.shard_shape(array.shape)))}]"


def _bytes(tree: Any) -> int:
    """Of one device's share."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


if __name__ == "__main__":
    main()
