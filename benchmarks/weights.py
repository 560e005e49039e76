"""How fast weights are read, against plain reads of the same files by `dd`.

    python -m benchmarks.weights --out result.json

Writes a checkpoint of random bfloat16 numbers in the shapes of an 8B llama, with fewer layers, as safetensors shards
into a temporary folder, and removes it at the end. Each round runs, in turn:

    dd          `dd` of every shard to /dev/null
    jserve      the engine's own loading in bfloat16, so that it keeps as many bytes as it reads, in the order that a
                CPU has for bfloat16: the checkpoint's
    transposed  the same in the order of GPUs, and of float32 on a CPU: inputs first

Loading runs in a process of its own and counts from opening the folder until all arrays are ready. Files are first in
the page cache (`warm`), then dropped from it (`cold`): synced, then `posix_fadvise(POSIX_FADV_DONTNEED)`, which needs
no privileges. The kernel says for both how many bytes came from the disk. Imports and the start of jax are outside the
times, because they go on while a server opens its files.
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from benchmarks.parts import ROOT, leave_on_sigterm
from jserve.commands.bench.report import machine

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 4096, 14_336, 32, 8, 128, 32_768
ITEM = 2  # bytes of a number
POOL = 1 << 24  # different numbers; tensors repeat them
READERS = ("dd", "jserve", "transposed")
CACHES = {
    "warm": "each shard read once before each measurement",
    "cold": "posix_fadvise(POSIX_FADV_DONTNEED) on each shard before each measurement, after fsync",
}


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over all shards. `disk_gb` is what did not come from the page cache, imports included."""

    reader: str
    cache: str
    round: int
    seconds: float
    gb_per_s: float
    cpu_s: float
    disk_gb: float
    peak_rss_gb: float


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape by its name; the embedding is tied."""
    layer = {
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for number in range(layers):
        tensors |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return tensors


def num_bytes(tensors: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of all tensors together."""
    return sum(ITEM * int(np.prod(shape)) for shape in tensors.values())


def write_checkpoint(folder: Path, gigabytes: float, num_shards: int) -> list[Path]:
    """As many layers as come nearest to the size, at least one; the shards, synced to the disk."""
    none = num_bytes(shapes(0))
    layers = max(1, round((gigabytes * 1e9 - none) / (num_bytes(shapes(1)) - none)))
    tensors = shapes(layers)
    per_shard = num_bytes(tensors) / num_shards
    of_shard: list[dict[str, tuple[int, ...]]] = [{} for _ in range(num_shards)]
    done = 0
    for name, shape in tensors.items():
        of_shard[min(num_shards - 1, int(done / per_shard))][name] = shape
        done += num_bytes({name: shape})
    pool = np.random.default_rng(0).standard_normal(POOL, np.float32).astype(ml_dtypes.bfloat16)
    paths: list[Path] = []
    places: dict[str, str] = {}
    for number, chosen in enumerate(of_shard, 1):
        path = folder / f"model-{number:05}-of-{num_shards:05}.safetensors"
        save_file({name: np.resize(pool, shape) for name, shape in chosen.items()}, path, metadata={"format": "pt"})
        sync(path)
        paths.append(path)
        places |= dict.fromkeys(chosen, path.name)
    index = {"metadata": {"total_size": num_bytes(tensors)}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(layers)))
    return paths


def config(layers: int) -> dict[str, object]:
    """The `config.json` of a llama with these shapes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def sync(path: Path, *, drop: bool = False) -> None:
    """Write a file's pages out and, with `drop`, take them from the page cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        if drop:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def prepare_cache(paths: Sequence[Path], cache: str) -> None:
    """Bring the page cache into the state of that name."""
    for path in paths:
        if cache == "cold":
            sync(path, drop=True)
        else:
            with path.open("rb", buffering=0) as stream:
                while stream.read(1 << 22):
                    pass


def measure(reader: str, cache: str, index: int, folder: Path, paths: Sequence[Path]) -> Pass:
    """One pass. Raises RuntimeError where a process fails."""
    prepare_cache(paths, cache)
    seconds = cpu = disk = 0.0
    peak = 0
    commands = (
        [["dd", f"if={path}", "of=/dev/null", "bs=4M", "status=none"] for path in paths]
        if reader == "dd"
        else [[sys.executable, "-m", "benchmarks.weights", "--load", str(folder), "--layout", reader]]
    )
    for command in commands:
        clock = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - clock
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{shlex.join(command)} ended with {process.returncode}")
        disk += usage.ru_inblock * 512 / 1e9
        peak = max(peak, usage.ru_maxrss)
        if output:
            own = json.loads(output)
            took, cpu = own["seconds"], own["cpu_s"]
        else:
            cpu += usage.ru_utime + usage.ru_stime
        seconds += took
    size = sum(path.stat().st_size for path in paths) / 1e9
    figures = (seconds, size / seconds, cpu, disk, peak * 1024 / 1e9)
    return Pass(reader, cache, index, *(round(figure, 3) for figure in figures))


def measure_rounds(rounds: int, deadline: float, folder: Path, paths: Sequence[Path]) -> list[Pass]:
    """Every reader with both states of the cache in each round: at least one, and no more than end by `deadline`."""
    passes: list[Pass] = []
    longest = 0.0
    for index in range(rounds):
        begin = time.monotonic()
        if passes and begin + longest > deadline:
            print(f"no time for {rounds - index} of {rounds} rounds", file=sys.stderr)
            break
        passes += [measure(reader, cache, index, folder, paths) for cache in CACHES for reader in READERS]
        longest = max(longest, time.monotonic() - begin)
    return passes


def load_once(folder: Path, *, transposed: bool) -> dict[str, float]:
    """The engine's loading, in this process: wall and CPU seconds."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jserve.checkpoint import open_checkpoint
    from jserve.layers.build import Build
    from jserve.models.registry import resolve
    from jserve.runtime import platform
    from jserve.weights.load import load

    mesh = platform.make_mesh(1)
    family, of_model = resolve(json.loads((folder / "config.json").read_text()), source=folder)
    dtype = jnp.dtype("bfloat16")
    build = Build(dtype, dtype, mesh, small_batch=not transposed)
    model = nnx.eval_shape(partial(family, build, of_model))
    clock, cpu = time.perf_counter(), time.process_time()
    checkpoint = open_checkpoint(folder)
    jax.block_until_ready(load(model, checkpoint, mesh))
    timings = {"seconds": time.perf_counter() - clock, "cpu_s": time.process_time() - cpu}
    checkpoint.close()
    return timings


def summary(passes: Sequence[Pass]) -> dict[str, dict[str, object]]:
    """Medians by state of the page cache and reader, and of the rounds' ratios of dd's time to ours."""
    medians: dict[str, dict[str, object]] = {}
    for cache in CACHES:
        by_reader = {reader: [r for r in passes if r.cache == cache and r.reader == reader] for reader in READERS}
        medians[cache] = {
            reader: {
                name: round(statistics.median(getattr(r, name) for r in taken), 3)
                for name in ("seconds", "gb_per_s", "cpu_s", "disk_gb", "peak_rss_gb")
            }
            for reader, taken in by_reader.items()
        }
        each = [dd.seconds / ours.seconds for dd, ours in zip(by_reader["dd"], by_reader["jserve"], strict=True)]
        medians[cache]["ratio"] = round(statistics.median(each), 3)
        medians[cache]["ratio_by_round"] = [round(ratio, 3) for ratio in each]
    return medians


def print_table(passes: Sequence[Pass], medians: Mapping[str, Mapping[str, object]]) -> None:
    """One row a pass, and the ratios."""
    names = ("cache", "round", "reader", "seconds", "gb_per_s", "cpu_s", "disk_gb", "peak_rss_gb")
    table = Table(*(name.replace("_", " ") for name in names))
    for r in passes:
        row = {**asdict(r), "round": r.round + 1}
        table.add_row(*(str(row[name]) for name in names))
    Console(width=120).print(table)
    for cache, of_cache in medians.items():
        print(f"{cache}: dd's time / jserve's {of_cache['ratio']} (rounds: {of_cache['ratio_by_round']})")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of weights; whole layers, at least one")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--limit",
        type=float,
        default=float("inf"),
        metavar="S",
        help="no round is begun that would end after S seconds",
    )
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes, such as another disk")
    parser.add_argument("--load", type=Path, metavar="DIR", help="only load this checkpoint, and tell the seconds")
    parser.add_argument("--layout", choices=READERS[1:], default=READERS[1], help="of what --load loads")
    parser.add_argument("--out", type=Path, help="write JSON")
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load_once(options.load, transposed=options.layout == "transposed")))
        return 0
    leave_on_sigterm()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="weights-", dir=options.folder) as name:
        paths = write_checkpoint(Path(name), options.gigabytes, options.shards)
        size = sum(path.stat().st_size for path in paths)
        passes = measure_rounds(options.rounds, begin + options.limit, Path(name), paths)
    medians = summary(passes)
    print_table(passes, medians)
    if options.out:
        git = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
        result = {
            "command": ["python", "-m", "benchmarks.weights", *sys.argv[1:]],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": {"commit": commit, **{name: version(name) for name in ("jax", "jaxlib", "numpy", "ml_dtypes")}},
            "bytes": size,
            "shards": len(paths),
            "page_cache": CACHES,
            "median": medians,
            "passes": [asdict(reading) for reading in passes],
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
