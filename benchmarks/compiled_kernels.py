"""What every GPU kernel takes of a GPU, compiled for three of them on a machine that has none.

  the table         python -m benchmarks.compiled_kernels          writes results/compiled-kernels.json and .md
  a new kernel's    python -m benchmarks.compiled_kernels --match quant_matmul
  Mosaic's part     python -m benchmarks.compiled_kernels --implementation mosaic          with JAX 0.12

Compiles the real cases of each kernel folder that has a Triton implementation (quick ones are for the interpreter, and
have shapes of no model), and reads XLA's dump and `ptxas -v`: registers a thread, shared memory a block, spilled bytes,
and how many blocks one core (SM) holds at once. Needs the jax-cuda12-plugin or -cuda13 wheels without a GPU (see
pallas_kernels/gpu_target.py) and a ptxas: of the CUDA toolkit, or of the wheels nvidia-cuda-nvcc-cu12 or triton.
With --match the other rows of the file stay, if they are of the same jax and ptxas. Mosaic's are a part of their own,
with the jax and ptxas that made them, and of the cases that it supports: for Hopper. Compiled, never executed: nothing
of this is a time. Status 1 where a kernel spills or does not compile.
"""

import argparse
import dataclasses
import functools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from benchmarks.kernel_resources import (
    Launch,
    dump_flags,
    find_ptxas,
    launches,
    mosaic_launch,
    occupancy,
    ptxas_version,
    resources,
)
from pallas_kernels import Kernel, KernelCase, abstract_inputs, discover
from pallas_kernels.gpu_target import GPUS, abstract_gpus, gpu_topology

TARGETS = {"a100": "sm_80", "h200": "sm_90a", "b200": "sm_100a"}
RESULTS = Path(__file__).parent / "results" / "compiled-kernels.json"


@dataclass(frozen=True, slots=True)
class Row:
    """One launch of one case on one GPU. Memory in bytes: `shared_memory` of a block, `local_memory` of a thread."""

    kernel: str
    case: str
    gpu: str
    launch: str
    grid: tuple[int, int, int]
    warps: int
    registers: int
    shared_memory: int
    local_memory: int
    spilled: int
    blocks_per_core: int
    limited_by: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A case that was not compiled; `reason` is in the words of who refused it."""

    kernel: str
    case: str
    gpu: str
    reason: str
    is_fault: bool
    """The compiler failed. Where the implementation does not support the case, another one runs: that is no fault."""


class Compiler:
    """Compiles one case after the other and reads what XLA, or Mosaic, dumps of it."""

    def __init__(self, ptxas: Path, dump: Path, implementation: str = "triton") -> None:
        self._ptxas = ptxas
        self._dump = dump
        self._implementation = implementation

    def rows(self, kernel: Kernel, case: KernelCase, gpu: str) -> Iterator[Row | Refused]:
        """A row for each of our launches of a case, in their order."""
        inputs = abstract_inputs(case)
        device = jax.sharding.SingleDeviceSharding(gpu_topology(gpu)[0])
        args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), inputs.args)
        run = jax.jit(functools.partial(kernel.implementations[self._implementation], **inputs.static))
        shutil.rmtree(self._dump, ignore_errors=True)
        self._dump.mkdir()
        try:
            with abstract_gpus(gpu):
                lowered = run.trace(*args).lower(lowering_platforms=("cuda",))
            lowered.compile()
        except NotImplementedError as reason:
            yield Refused(kernel.name, case.name, gpu, str(reason), False)
            return
        except jax.errors.JaxRuntimeError as error:
            yield Refused(kernel.name, case.name, gpu, str(error).splitlines()[0], True)
            return
        if self._implementation == "mosaic":
            for path in self._dump.glob("*.before_layout_inference.txt"):
                yield self._row(kernel, case, gpu, mosaic_launch(path.read_text()))
            return
        ours = _names(lowered)
        for launch in launches(self._thunks()):
            if re.sub(r"_\d+$", "", launch.kernel) in ours or launch.kernel in ours:
                yield self._row(kernel, case, gpu, launch)

    def _row(self, kernel: Kernel, case: KernelCase, gpu: str, launch: Launch) -> Row:
        used = self._resources(launch.kernel)
        held = occupancy(GPUS[gpu], launch.threads, used, launch.shared_memory)
        return Row(
            kernel=kernel.name,
            case=case.name,
            gpu=gpu,
            launch=launch.kernel,
            grid=launch.grid,
            warps=launch.threads // 32,
            registers=used.registers,
            shared_memory=used.static_shared + launch.shared_memory,
            local_memory=used.local_memory,
            spilled=used.spilled,
            blocks_per_core=held.blocks,
            limited_by=held.limited_by,
        )

    def _thunks(self) -> str:
        # The file of the passes is missing where they changed nothing.
        return max(self._dump.glob("*.thunk_sequence*.txt")).read_text()

    def _resources(self, name: str) -> Any:
        for path in sorted(self._dump.glob("*.ptx")):
            ptx = path.read_text()
            if f".entry {name}(" in ptx:
                return resources(ptx, self._ptxas)[name]
        raise LookupError(f"no PTX of {name!r} was dumped to {self._dump}; it is launched all the same")


def _names(lowered: jax.stages.Lowered) -> set[str]:
    """What the program calls its own kernels."""
    return set(re.findall(r'@__gpu\$xla\.gpu\.triton\(.*?\bname = "(\w+)"', lowered.as_text()))


def is_sound(outcomes: Sequence[Row | Refused]) -> bool:
    """Whether nothing spills, and the compiler took everything that the implementations support."""
    return not any(each.spilled if isinstance(each, Row) else each.is_fault for each in outcomes)


def chosen(match: str, implementation: str = "triton") -> list[tuple[Kernel, KernelCase]]:
    """The real cases of the kernels that have the implementation."""
    return [
        (kernel, case)
        for kernel in discover()
        if implementation in kernel.implementations
        for case in kernel.cases
        if not case.quick and match in f"{kernel.name}/{case.name}"
    ]


def with_others(result: dict[str, Any], file: Path) -> dict[str, Any]:
    """The report with the rows of cases that were not compiled now, if the file has them of the same tools."""
    if not file.exists():
        return result
    before = json.loads(file.read_text())
    result = result | {name: before[name] for name in ("mosaic",) if name in before}
    if (before["jax"], before["ptxas"]) != (result["jax"], result["ptxas"]):
        return result
    order = [(kernel.name, case.name) for kernel, case in chosen("")]
    now = {(each["kernel"], each["case"], each["gpu"]) for each in (*result["rows"], *result["refused"])}

    def joined(name: str) -> list[dict[str, Any]]:
        kept = [e for e in before[name] if (e["kernel"], e["case"], e["gpu"]) not in now]
        known = [e for e in (*kept, *result[name]) if (e["kernel"], e["case"]) in order]
        return sorted(known, key=lambda e: (order.index((e["kernel"], e["case"])), list(TARGETS).index(e["gpu"])))

    return {**result, "rows": joined("rows"), "refused": joined("refused")}


def with_mosaic(file: Path, rows: Sequence[Row], version: str) -> dict[str, Any]:
    """The file's report with another part of Mosaic."""
    part = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "jax": jax.__version__,
        "ptxas": version,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    return {**json.loads(file.read_text()), "mosaic": part}


def report(rows: Sequence[Row], refused: Sequence[Refused], version: str) -> dict[str, Any]:
    """What the JSON file holds."""
    return {
        "command": ["python", "-m", "benchmarks.compiled_kernels"],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "jax": jax.__version__,
        "ptxas": version,
        "targets": TARGETS,
        "rows": [dataclasses.asdict(row) for row in rows],
        "refused": [dataclasses.asdict(each) for each in refused],
    }


def markdown(result: dict[str, Any]) -> str:
    """The JSON file for a person: a table for each kernel, a line for each launch of a case."""
    spilled = sum(row["spilled"] for row in result["rows"])
    gpus = ", ".join(f"{gpu.upper()} ({target})" for gpu, target in result["targets"].items())
    command = " ".join(result["command"])
    lines = [
        "# The kernels as compiled, without a GPU",
        "",
        f"Written by `{command}` with jax {result['jax']} and ptxas {result['ptxas']}, for {gpus}. **Compiled, never",
        "executed.** A cell is registers a thread · shared memory a block · warps a block · blocks that fit on one",
        f"core (SM) at once. Bytes spilled to local memory, in all {len(result['rows'])} rows: {spilled}.",
    ]
    for kernel in dict.fromkeys(row["kernel"] for row in result["rows"]):
        mine = [row for row in result["rows"] if row["kernel"] == kernel]
        lines += ["", f"## {kernel}", "", *_table(mine, list(result["targets"]))]
    if mosaic := result.get("mosaic"):
        lines += [
            "",
            "## paged_attention, Mosaic GPU",
            "",
            f"With jax {mosaic['jax']} and ptxas {mosaic['ptxas']}, for H200 alone. Registers are those of the launch:",
            f"the kernel moves them from the warps that fetch to those that multiply. Bytes spilled: "
            f"{sum(row['spilled'] for row in mosaic['rows'])}.",
            "",
            *_table(mosaic["rows"], ["h200"]),
        ]
    if result["refused"]:
        lines += ["", "## Not compiled", "", "| kernel | case | GPU | why |", "|---|---|---|---|"]
        lines += [f"| {e['kernel']} | {e['case']} | {e['gpu'].upper()} | {e['reason']} |" for e in result["refused"]]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict[str, Any]], gpus: Sequence[str]) -> Iterator[str]:
    yield f"| case | kernel | {' | '.join(gpu.upper() for gpu in gpus)} |"
    yield "|---" * (2 + len(gpus)) + "|"
    for case, launch in dict.fromkeys((row["case"], row["launch"]) for row in rows):
        same = {row["gpu"]: row for row in rows if (row["case"], row["launch"]) == (case, launch)}
        yield f"| {case} | {launch} | {' | '.join(_cell(same[gpu]) if gpu in same else '' for gpu in gpus)} |"


def _cell(row: dict[str, Any]) -> str:
    spilled = f" · **{row['spilled']} spilled**" if row["spilled"] else ""
    shared = f"{row['shared_memory'] / 1024:.3g} KiB"
    return f"{row['registers']} · {shared} · {row['warps']} · {row['blocks_per_core']}{spilled}"


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 where a kernel spills or does not compile; 2 where the tools are missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled_kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--match", default="", metavar="TEXT", help="only cases whose kernel/case contains TEXT")
    parser.add_argument("--gpus", default=",".join(TARGETS), metavar="GPU,...", help="default: %(default)s")
    parser.add_argument("--implementation", default="triton", choices=("triton", "mosaic"))
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="FILE", help="JSON; a .md goes beside it (default %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.implementation == "mosaic" and not args.out.exists():
        parser.error(f"{args.out} is not there: Mosaic's part goes beside Triton's, which is written first")
    ptxas = find_ptxas()
    if ptxas is None:
        print("no ptxas is here: install the CUDA toolkit, or `pip install nvidia-cuda-nvcc-cu12`", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="compiled-kernels-") as folder:
        dump = Path(folder, "dump")
        # Both are read when the first backend starts, below.
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
        os.environ["XLA_FLAGS"] = dump_flags(dump)
        if args.implementation == "mosaic":
            os.environ["MOSAIC_GPU_DUMP_TO"] = str(dump)
        jax.config.update("jax_platforms", "cpu")
        compiler = Compiler(ptxas, dump, args.implementation)
        outcomes: list[Row | Refused] = []
        for kernel, case in chosen(args.match, args.implementation):
            for gpu in args.gpus.split(","):
                outcomes += (now := list(compiler.rows(kernel, case, gpu)))
                faults = [each.reason for each in now if isinstance(each, Refused) and each.is_fault]
                print(f"{kernel.name}/{case.name} {gpu}", *faults, file=sys.stderr, flush=True)
    rows = [each for each in outcomes if isinstance(each, Row)]
    refused = [each for each in outcomes if isinstance(each, Refused)]
    if args.implementation == "mosaic":
        result = with_mosaic(args.out, rows, ptxas_version(ptxas))
    else:
        result = with_others(report(rows, refused, ptxas_version(ptxas)), args.out)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(result))
    return 0 if is_sound(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
