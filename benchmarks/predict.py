"""Step times, prefill rates and kernel times on an H200, computed from bytes and operations before one was measured.

    python -m benchmarks.predict        writes results/predicted.json and predicted.md

Nothing here is measured. A decode step is

    max(weights / memory, products / matrix rate) + max(KV / memory, attention / matrix rate) + all-reduces + launches

of one of the GPUs, each with its share, or what the host takes for it, whichever is more: it prepares a step while the
device does the one before. With several GPUs a step is as many CUDA graphs as there are gaps between all-reduces, each
launched by the host. `limit` takes the data sheet's rates and nothing for all-reduces, launches and the host;
`predicted` takes the share of a rate that programs reach, and the costs in `Device`. A kernel takes the most of its
bytes, its products, its arithmetic where it widens weights of few bits, and its passes where each depends on the one
before. Activations are left out: those of 256 rows stay in the L2 cache. `benchmarks.gpu` prints what it measures
beside these figures.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.presets import PRESETS
from jserve.config import ModelConfig, read_model_config
from pallas_kernels import KernelCase, discover

__all__ = ["BF16", "FP8", "H200", "INT4", "Device", "Step", "Weights", "decode", "fits", "prefill", "weights"]

RESULTS = Path(__file__).parent / "results" / "predicted.json"
PAGE = 64  # tokens
CHUNK = 4096  # tokens of a prompt that one step computes: the engine's default on a GPU
LAUNCHES_A_LAYER, LAUNCHES_A_STEP = (
    14,
    8,
)  # of the compiled decode step: tests/gpu_compile/test_step.py holds it to them


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU of a machine whose GPUs see each other over NVLink. Rates a second, sizes in bytes, times in seconds."""

    name: str
    memory: int
    memory_rate: float
    matrix_rate: dict[int, float]
    """Dense operations by the bytes of their operands."""
    link_rate: float
    """In one direction."""
    memory_reached: float
    matrix_reached: float
    attention_reached: float
    """The share of the reached matrix rate that prefill attention gets."""
    link_reached: float
    launch: float
    all_reduce: float
    """What the smallest takes."""
    dispatch: float
    """The host's time for the two programs of a step."""
    graph: float
    """The host's time for each CUDA graph beyond the first, which is part of `dispatch`."""
    lanes_rate: float
    """Operations on 32 bits outside the tensor cores."""
    core_rate: float
    """What one multiprocessor reads from the L2 cache."""
    reduction: float
    """A sum over a block, with its barriers."""
    cores: int


H200 = Device(
    name="H200",
    # nvidia-smi's 143,771 MiB; rates by NVIDIA's H200 data sheet, without sparsity; NVLink's 900 GB/s are both ways.
    memory=143_771 << 20,
    memory_rate=4.8e12,
    matrix_rate={2: 989e12, 1: 1979e12},
    link_rate=450e9,
    # Assumed, until they are measured: what large copies reach; large cuBLAS products under the power limit; our own
    # target; and NCCL's 366 GB/s of bus bandwidth, as nccl-tests were reported to say of four H100s.
    memory_reached=0.9,
    matrix_reached=0.7,
    attention_reached=0.6,
    link_reached=0.8,
    # One kernel after another within a CUDA graph of an H100, by "Look Ma, No Bubbles!" (Hazy Research, 2025); and
    # an all-reduce of some KiB among eight GPUs by NCCL, of which 8 to 10 us are commonly reported.
    launch=1.3e-6,
    all_reduce=9e-6,
    # 300 arguments, by `benchmarks.host_scaling` on a CPU; and a graph that is updated before its launch, as a profile
    # of another engine on JAX shows it (132 to 169 ms for 2,403 updates).
    dispatch=0.25e-3,
    graph=55e-6,
    # 132 multiprocessors of 128 lanes at 1.83 GHz; 64 bytes a clock from the L2 cache; six barriers of about 30 ns.
    lanes_rate=30.9e12,
    core_rate=117e9,
    reduction=0.2e-6,
    cores=132,
)
THRESHOLD_PASSES = 18
"""Over a row of logits, each after the one before: 16 of the search and two around it."""
LANES_A_CODE = 4.5
"""Operations that widen a code of four bits, counted in the PTX of the expert kernels."""


@dataclass(frozen=True, slots=True)
class Precision:
    """How the matrices of the layers are kept; the token table and the output projection stay in bfloat16."""

    name: str
    of_weight: float
    """Bytes of a weight, with its share of a group's scale and zero."""
    of_output: int
    """Bytes of a scale for each output."""
    operand: int
    """Bytes of what the tensor cores multiply."""


BF16 = Precision("bf16", 2, 0, 2)
FP8 = Precision("fp8", 1, 4, 1)
INT4 = Precision("int4", 0.5 + (2 + 1) / 128, 0, 2)  # groups of 128 with a scale in bfloat16 and a zero in int8
PLANS: tuple[tuple[str, Precision, tuple[int, ...]], ...] = (
    ("llama-3.1-8b", BF16, (1,)),
    ("llama-3.1-8b", FP8, (1,)),
    ("llama-3.1-8b", INT4, (1,)),
    ("llama-3.1-70b", BF16, (1, 2, 4, 8)),
    ("llama-3.1-70b", FP8, (1, 2, 4, 8)),
)
BATCHES = (1, 8, 32, 128, 256)
CONTEXTS = (1024, 8192, 32_768, 131_072)
PROMPTS = (512, 2048, 4096, 8192, 32_768, 131_072)


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes on one of `parts` GPUs. A step reads `layers` and `head`, and of `table` a row for each token."""

    layers: float
    head: float
    table: float

    @property
    def total(self) -> float:
        return self.layers + self.head + self.table


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one step. `weights` and `kv` are the time to read them, `products` and `attention` to compute."""

    weights: float
    kv: float
    products: float
    attention: float
    all_reduce: float
    launches: float
    host: float
    """Beside all of these."""

    @property
    def total(self) -> float:
        device = max(self.weights, self.products) + max(self.kv, self.attention) + self.all_reduce + self.launches
        return max(device, self.host)


def products(config: ModelConfig) -> list[tuple[int, int]]:
    """(outputs, inputs) of the matrices of a layer: query, key and value; output; gate and up; down."""
    E, F, D = config.hidden_size, config.intermediate_size, config.head_dim
    return [((config.num_heads + 2 * config.num_kv_heads) * D, E), (E, config.num_heads * D), (2 * F, E), (E, F)]


def weights(config: ModelConfig, precision: Precision, parts: int = 1) -> Weights:
    """Matrices are shared out over the GPUs, and each has the norms (in bfloat16)."""
    E, L = config.hidden_size, config.num_layers
    matrices = sum(n * k * precision.of_weight + n * precision.of_output for n, k in products(config)) * L
    head = config.vocab_size * E * 2
    table = 0 if config.tie_word_embeddings else head
    return Weights(matrices / parts + (2 * L + 1) * E * 2, head / parts, table / parts)


def kv_bytes(config: ModelConfig, parts: int = 1) -> int:
    """Bytes of one token on one GPU; with more GPUs than KV heads, each has one head."""
    return 2 * config.num_layers * max(1, config.num_kv_heads // parts) * config.head_dim * 2


def fits(config: ModelConfig, precision: Precision, parts: int, tokens: int, device: Device = H200) -> bool:
    """Whether the weights, `tokens` of KV and 1.5 GB for temporaries and sampling take at most 90% of the memory."""
    needed = weights(config, precision, parts).total + tokens * kv_bytes(config, parts) + 1.5e9
    return needed <= 0.9 * device.memory


def decode(
    config: ModelConfig, precision: Precision, parts: int, batch: int, context: int, device: Device = H200
) -> Step:
    """One token for each of `batch` rows of `context` tokens."""
    return _step(config, precision, parts, batch, batch, batch * context, batch * context, device)


def prefill(config: ModelConfig, precision: Precision, parts: int, prompt: int, device: Device = H200) -> float:
    """Seconds of a prompt alone, CHUNK tokens a step."""
    seconds = 0.0
    for start in range(0, prompt, CHUNK):
        tokens = min(CHUNK, prompt - start)
        pairs = tokens * start + tokens * (tokens + 1) / 2
        slower = dataclasses.replace(device, matrix_reached=device.matrix_reached * device.attention_reached)
        step = _step(config, precision, parts, tokens, 1, start + tokens, pairs, device)
        attention = _step(config, precision, parts, tokens, 1, start + tokens, pairs, slower).attention
        seconds += dataclasses.replace(step, attention=attention).total
    return seconds


def _step(
    config: ModelConfig,
    precision: Precision,
    parts: int,
    tokens: int,
    rows: int,
    kv_tokens: float,
    pairs: float,
    device: Device,
) -> Step:
    """A step of `tokens` tokens that reads the KV of `kv_tokens`, scores `pairs` and has logits for `rows`."""
    L, held = config.num_layers, weights(config, precision, parts)
    memory = device.memory_rate * device.memory_reached
    rate = {width: each * device.matrix_reached for width, each in device.matrix_rate.items()}
    matrices = sum(n * k for n, k in products(config)) * L
    head = config.vocab_size * config.hidden_size
    crossing = 2 * (parts - 1) / parts * tokens * config.hidden_size * 2 / (device.link_rate * device.link_reached)
    return Step(
        weights=(held.layers + held.head) / memory,
        kv=kv_tokens * kv_bytes(config, parts) / memory,
        products=(2 * matrices * tokens / rate[precision.operand] + 2 * head * rows / rate[2]) / parts,
        attention=4 * L * config.num_heads * config.head_dim * pairs / parts / rate[2],
        all_reduce=(2 * L + 1) * (device.all_reduce + crossing) if parts > 1 else 0.0,
        launches=(LAUNCHES_A_LAYER * L + LAUNCHES_A_STEP) * device.launch,
        host=device.dispatch + ((2 * L + 1) * device.graph if parts > 1 else 0.0),
    )


def limit(device: Device = H200) -> Device:
    """The same device without a loss."""
    return dataclasses.replace(
        device,
        memory_reached=1.0,
        matrix_reached=1.0,
        attention_reached=1.0,
        link_reached=1.0,
        launch=0.0,
        all_reduce=0.0,
        dispatch=0.0,
        graph=0.0,
    )


def steps() -> Iterator[dict[str, Any]]:
    """Decode steps of all plans that fit."""
    for model, precision, splits in PLANS:
        config = read_model_config(PRESETS[model], source=model)
        for parts in splits:
            for context in CONTEXTS:
                for batch in BATCHES:
                    entry = {
                        "model": model,
                        "weights": precision.name,
                        "gpus": parts,
                        "batch": batch,
                        "context": context,
                    }
                    if not fits(config, precision, parts, batch * context):
                        yield {**entry, "predicted_ms": None}
                        continue
                    step = decode(config, precision, parts, batch, context)
                    best = decode(config, precision, parts, batch, context, limit())
                    yield {
                        **entry,
                        "split_ms": {name: 1e3 * value for name, value in dataclasses.asdict(step).items()},
                        "limit_ms": 1e3 * best.total,
                        "predicted_ms": 1e3 * step.total,
                        "tokens_per_s": batch / step.total,
                    }


def prefills() -> Iterator[dict[str, Any]]:
    """Prompts alone, by all plans that fit."""
    for model, precision, splits in PLANS:
        config = read_model_config(PRESETS[model], source=model)
        for parts in splits:
            for prompt in PROMPTS:
                if fits(config, precision, parts, prompt):
                    seconds = prefill(config, precision, parts, prompt)
                    yield {
                        "model": model,
                        "weights": precision.name,
                        "gpus": parts,
                        "prompt": prompt,
                        "limit_ms": 1e3 * prefill(config, precision, parts, prompt, limit()),
                        "predicted_ms": 1e3 * seconds,
                        "tokens_per_s": prompt / seconds,
                    }


def kernels() -> Iterator[dict[str, Any]]:
    """The real cases of every kernel folder for GPUs, by what they must move and compute at least."""
    for kernel in (kernel for kernel in discover() if "triton" in kernel.implementations):
        for case in (case for case in kernel.cases if not case.quick):
            yield {"kernel": kernel.name, "case": case.name, **_kernel(kernel.name, case)}


def _kernel(kernel: str, case: KernelCase, device: Device = H200) -> dict[str, Any]:
    fp8 = getattr(case, "activations", "float") == "fp8"
    by_memory = case.bytes_moved / device.memory_rate
    by_matrix = case.flops / device.matrix_rate[1 if fp8 else 2]
    reached = {
        "memory": by_memory / device.memory_reached,
        "compute": by_matrix / device.matrix_reached,
        "arithmetic": _widening(kernel, case) / device.lanes_rate,
        "passes": _passes(kernel, case, device),
    }
    return {
        "bytes": case.bytes_moved,
        "flops": case.flops,
        "bound": max(reached, key=lambda bound: reached[bound]),
        "limit_us": 1e6 * max(by_memory, by_matrix),
        "predicted_us": 1e6 * max(reached.values()),
    }


def _widening(kernel: str, case: KernelCase) -> float:
    """Operations that widen the codes of experts' weights of four bits, two in a byte."""
    is_packed = kernel == "moe" and ("int4" in case.name or "mxfp4" in case.name)
    return LANES_A_CODE * 2 * case.bytes_moved if is_packed else 0.0


def _passes(kernel: str, case: KernelCase, device: Device) -> float:
    """Seconds of the passes over rows of logits, a multiprocessor for each row."""
    if kernel != "sampling":
        return 0.0
    rows, vocabulary = case.S, case.V  # type: ignore[attr-defined]
    one = THRESHOLD_PASSES * (4 * vocabulary / device.core_rate + device.reduction)
    return -(-rows // device.cores) * one


def report() -> dict[str, Any]:
    """What the JSON file holds: figures with six digits, so that it is the same on every machine."""
    prediction = {
        "command": ["python", "-m", "benchmarks.predict"],
        "measured": False,
        "device": dataclasses.asdict(H200),
        "steps": list(steps()),
        "prefills": list(prefills()),
        "kernels": list(kernels()),
    }
    rounded: dict[str, Any] = json.loads(json.dumps(prediction), parse_float=lambda text: float(f"{float(text):.6g}"))
    return rounded


def main(argv: Sequence[str] | None = None) -> int:
    """Write both files."""
    from benchmarks.predicted_tables import markdown

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help="a .md goes beside it")
    args = parser.parse_args(argv)
    prediction = report()
    args.out.write_text(json.dumps(prediction, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(prediction))
    return 0


if __name__ == "__main__":
    sys.exit(main())
