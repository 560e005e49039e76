"""How long a model's weights take to load, from safetensors and from what `jserve convert` made of them.

    python -m benchmarks.load_forms --out load-forms.json

Writes a checkpoint of random bfloat16 numbers in the shapes of an 8B llama, with fewer layers (`benchmarks.weights`),
into a temporary folder, converts it there as it is and with `--quantization int4`, and removes all of it in the end;
`--model` takes a folder or a GGUF file in its place. Then, in turn in each round, each form is loaded by a process of
its own, from opening it to all arrays being ready and one byte of each of their pages read: a CPU takes arrays that lie
as it wants them from the mapped file, without a copy. It is always a CPU that loads.

    bfloat16    weights in bfloat16, in the order of a GPU, inputs first
    float32     the same into float32, which is what a server on a CPU has where it fits
    int4        rounded on load, against rounded when it was converted

First with the files in the page cache (`warm`), then dropped from it (`cold`), as in `benchmarks.weights`. Imports and
the start of jax are outside the times. CPU seconds are those of all threads.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.parts import ROOT, leave_on_sigterm
from benchmarks.weights import CACHES, prepare_cache, sync, write_checkpoint
from jserve.commands.bench.report import machine

QUANTIZED = {"bfloat16": None, "float32": None, "int4": "int4"}
"""What `--quantization` says, by case."""
FORMS = ("source", "converted")
PAGE = 4096


@dataclass(frozen=True, slots=True)
class Loaded:
    """One load by one process."""

    case: str
    form: str
    cache: str
    round: int
    seconds: float
    cpu_s: float
    busy: float
    """Cores that other processes kept busy meanwhile."""


def load_once(model: str, case: str) -> dict[str, float]:
    """The engine's loading, in this process: wall and CPU seconds."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jserve.checkpoint import open_checkpoint
    from jserve.config import EngineConfig
    from jserve.layers.build import Build
    from jserve.layers.quantized import WeightPlan
    from jserve.models.blueprint import Blueprint
    from jserve.models.registry import resolve
    from jserve.quant import detect
    from jserve.runtime import platform
    from jserve.runtime.load_model import load_weights

    mesh = platform.make_mesh(1)
    dtype = jnp.dtype("float32" if case == "float32" else "bfloat16")
    clock, cpu = time.perf_counter(), time.process_time()
    checkpoint = open_checkpoint(model)
    quantization = None if checkpoint.format == "converted" else QUANTIZED[case]
    raw, tensors = checkpoint.config(), checkpoint.tensors()
    family, config = resolve(raw, source=checkpoint.path)
    plan = WeightPlan.of(detect(raw, quantization, tensors, source=checkpoint.path), tensors)
    blueprint = Blueprint(family, config, Build(dtype, dtype, mesh), plan)
    abstract = blueprint.abstract_model()
    engine_config = EngineConfig(model=model, quantization=quantization)
    arrays = jax.block_until_ready(load_weights(engine_config, abstract, blueprint, checkpoint, mesh, lambda *_: None))
    for array in arrays:
        np.asarray(array).reshape(-1).view(np.uint8)[::PAGE].sum()
    timings = {"seconds": time.perf_counter() - clock, "cpu_s": time.process_time() - cpu}
    checkpoint.close()
    return timings


def convert_into(model: str, folder: Path, quantization: str | None) -> None:
    """What `jserve convert` does; of a model without a tokenizer all the rest."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    from jserve.config import EngineConfig
    from jserve.runtime import load_model as fill

    if not any(Path(model).glob("*token*")) and Path(model).is_dir():
        for name in ("load_tokenizer", "save_tokenizer"):
            setattr(fill, name, lambda *_: None)
    fill.convert(EngineConfig(model=model, quantization=quantization), folder, lambda *_: None)


def files_of(model: Path) -> list[Path]:
    """All that a load may read."""
    return [model] if model.is_file() else [path for path in model.rglob("*") if path.is_file()]


def measure(case: str, form: str, cache: str, index: int, model: Path) -> Loaded:
    """One load. Raises RuntimeError where the process fails."""
    prepare_cache(files_of(model), cache)
    command = [sys.executable, "-m", "benchmarks.load_forms", "--load", str(model), "--case", case]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{shlex.join(command)} ended with {ran.returncode}")
    timings = json.loads(ran.stdout)
    return Loaded(case, form, cache, index, *(round(timings[name], 3) for name in ("seconds", "cpu_s", "busy")))


def busy_ticks() -> tuple[int, int]:
    """(of all cores that were not idle, of this process) since boot, in ticks."""
    user, nice, system, _, _, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    own = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return user + nice + system + irq + soft, int(own[11]) + int(own[12])


def summary(loads: Sequence[Loaded]) -> dict[str, dict[str, object]]:
    """By case and page cache: medians, and the rounds' ratios of converted to source, of seconds and CPU seconds."""
    medians: dict[str, dict[str, object]] = {}
    for case in dict.fromkeys(load.case for load in loads):
        for cache in dict.fromkeys(load.cache for load in loads):
            here = [load for load in loads if (load.case, load.cache) == (case, cache)]
            source, converted = ([load for load in here if load.form == form] for form in FORMS)
            row: dict[str, object] = {}
            for name in ("seconds", "cpu_s"):
                for form, taken in (("source", source), ("converted", converted)):
                    row[f"{form}_{name}"] = round(statistics.median(getattr(load, name) for load in taken), 3)
                each = [getattr(b, name) / getattr(a, name) for a, b in zip(source, converted, strict=True)]
                row[f"ratio_{name}"] = round(statistics.median(each), 3)
                row[f"ratio_{name}_by_round"] = [round(ratio, 3) for ratio in each]
            medians[f"{case}, {cache}"] = row
    return medians


def print_table(medians: dict[str, dict[str, object]]) -> None:
    """One row a case and state of the page cache."""
    names = ("source_seconds", "converted_seconds", "ratio_seconds", "ratio_seconds_by_round", "ratio_cpu_s")
    table = Table("load", *(name.replace("_", " ") for name in names))
    for case, row in medians.items():
        table.add_row(case, *(str(row[name]) for name in names))
    Console(width=140).print(table)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="load this folder or GGUF file, not random numbers")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of random weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default=",".join(QUANTIZED))
    parser.add_argument("--caches", default=",".join(CACHES))
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes, such as another disk")
    parser.add_argument("--load", type=Path, help="only load this, and tell the seconds")
    parser.add_argument("--case", choices=tuple(QUANTIZED), default="bfloat16", help="of what --load loads")
    parser.add_argument("--out", type=Path, help="write JSON")
    options = parser.parse_args()
    if options.load:
        clock, (all_before, own_before) = time.perf_counter(), busy_ticks()
        timings = load_once(str(options.load), options.case)
        took, (all_after, own_after) = time.perf_counter() - clock, busy_ticks()
        others = (all_after - all_before - (own_after - own_before)) / 100 / took
        print(json.dumps(timings | {"busy": max(0.0, others)}))
        return 0
    cases, caches = options.cases.split(","), options.caches.split(",")
    leave_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="load-forms-", dir=options.folder) as name:
        source = options.model
        if source is None:
            source = Path(name) / "source"
            source.mkdir()
            write_checkpoint(source, options.gigabytes, 4)
        converted = {case: Path(name) / f"converted-{QUANTIZED[case]}" for case in cases}
        for case, folder in converted.items():
            if not folder.exists():
                convert_into(str(source), folder, QUANTIZED[case])
                for path in files_of(folder):
                    sync(path)
        models = {(case, form): source if form == "source" else converted[case] for case in cases for form in FORMS}
        sizes = {
            str(QUANTIZED[case] or "as it is"): sum(path.stat().st_size for path in files_of(converted[case]))
            for case in cases
        }
        size = sum(path.stat().st_size for path in files_of(source))
        loads = [
            measure(case, form, cache, index, models[case, form])
            for cache in caches
            for index in range(options.rounds)
            for case in cases
            for form in (FORMS if index % 2 == 0 else FORMS[::-1])
        ]
    medians = summary(loads)
    print_table(medians)
    if options.out:
        git = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
        result = {
            "command": ["python", "-m", "benchmarks.load_forms", *sys.argv[1:]],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": {"commit": commit, **{name: version(name) for name in ("jax", "jaxlib", "numpy")}},
            "source_bytes": size,
            "converted_bytes": sizes,
            "page_cache": {cache: CACHES[cache] for cache in caches},
            "median": medians,
            "loads": [asdict(load) for load in loads],
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
