"""From an `EngineConfig` to a `Runner` that is ready: the order of a start, and what it costs.

1. devices; 2. the model's shape from its files; 3. the memory plan; 4. weights and the required programs,
at the same time; 5. empty pages. The other programs follow behind, while requests are served.
"""

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
from jax.sharding import Mesh

from jserve.checkpoint import Checkpoint, Classifier, Embedder, open_checkpoint
from jserve.config import EngineConfig, ModelConfig
from jserve.config.fields import Fields
from jserve.layers.build import Build
from jserve.runtime import memory, platform
from jserve.runtime.compile_behind import Progress
from jserve.runtime.compile_threads import CompileThreads
from jserve.runtime.executables import ExecutableStore, Program, default_folder, with_precompiled_sizes
from jserve.runtime.load_model import check_weights, load_small_batch_weights, load_weights
from jserve.runtime.model_runner import ModelRunner
from jserve.runtime.prepare import kv_cache_name, prepare
from jserve.runtime.program_keys import ChosenLogprobs, EmptyState, InstallBias, InstallPages, InstallSampling
from jserve.runtime.program_table import ProgramTable
from jserve.runtime.shapes import EngineShape
from jserve.text.tokenizers.end_token import end_token_ids
from jserve.weights.finite import WatchedCheckpoint, listed

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=ModelRunner)
_SMALLEST = (EmptyState, InstallBias, InstallPages, InstallSampling, ChosenLogprobs)
"""Programs that take a tenth of a second to compile: enough to see which threads do."""


@dataclass(frozen=True, slots=True)
class Started(Generic[R]):
    """A runner with all that it was made from."""

    runner: R
    config: ModelConfig
    shape: EngineShape
    plan: memory.MemoryPlan
    build: Build
    device: str
    model: Path
    """The model's directory or file."""
    eos_token_ids: frozenset[int]
    seconds: dict[str, float] = field(default_factory=dict)
    embedder: Embedder | None = None
    """Set where the model is for embeddings alone."""
    classifier: Classifier | None = None
    """Set where it gives labels."""
    broken_tensors: tuple[str, ...] = ()
    """Tensors of the checkpoint that hold NaN or infinity."""
    compile_threads: CompileThreads = field(default_factory=CompileThreads)
    """Known where programs are to be compiled behind, on a CPU."""

    @property
    def generates(self) -> bool:
        """Whether the model answers with text."""
        return self.embedder is None and self.classifier is None

    @property
    def not_finite(self) -> str:
        """Why an answer is NaN or infinity, for whoever sent the request."""
        if self.broken_tensors:
            why = f"its weights hold such values, in {listed(self.broken_tensors)}: get the model again"
        elif self.build.dtype == "float16":
            why = "float16 ends at 65,504: serve it with --dtype bfloat16 or float32"
        else:
            why = "its weights are finite as they were read: check its configuration"
        return f"the model computed NaN or infinity for this request; {why}"


def start_runner(engine_config: EngineConfig, progress: Progress, *, early: bool = False) -> Started[Any]:
    """Load and compile. Raises StartupError with a message for the user where it cannot be done.

    `early` returns with the fewest programs that serve anything; `CompileBehind` brings the others.
    """
    mesh = platform.make_mesh(engine_config.tensor_parallel_size, engine_config.expert_parallel_size)
    needs_weights = engine_config.load_format != "dummy"
    with closing(
        open_checkpoint(engine_config.model, needs_weights=needs_weights, architecture=engine_config.architecture)
    ) as checkpoint:
        return _start(engine_config, checkpoint, mesh, progress, early=early)


def _start(
    engine_config: EngineConfig, checkpoint: Checkpoint, mesh: Mesh, progress: Progress, *, early: bool
) -> Started[Any]:
    clock = time.perf_counter()
    device = mesh.devices.flat[0]
    precompiled = Path(engine_config.executables).expanduser() if engine_config.executables else None
    if precompiled is not None:
        engine_config = with_precompiled_sizes(engine_config, precompiled)
    folders = (precompiled, stored_programs(engine_config))
    prepared = prepare(engine_config, checkpoint, mesh, folders)
    blueprint, model, shape, plan = prepared.blueprint, prepared.model, prepared.shape, prepared.plan
    if engine_config.load_format != "dummy":
        check_weights(model, blueprint, checkpoint)  # before anything is compiled
    store = ExecutableStore(folders[1], prepared.key, precompiled=precompiled)
    runner = prepared.make_runner(store, mesh)
    opened = time.perf_counter()
    compile_threads = CompileThreads()
    if early and device.platform == "cpu":
        with compile_threads.watch():
            add_all(runner.table, [p for p in runner.table.required(early=True) if isinstance(p.key, _SMALLEST)])
    with ThreadPoolExecutor(_workers(), "compile") as pool:
        compiled = pool.submit(add_all, runner.table, _left(runner.table, early=early), progress)

        def report(done: int, total: int) -> None:
            progress("weights", done, total, "")

        watched = WatchedCheckpoint(checkpoint)
        weights = load_weights(engine_config, model, blueprint, watched, mesh, report)
        small_batch: tuple[jax.Array, ...] = ()
        if blueprint.build.small_batch:
            small_batch = load_small_batch_weights(model, blueprint, weights, checkpoint, mesh)
        loaded = time.perf_counter()
        compiled.result()
    if watched.broken:
        logger.error(
            "%s: tensors hold NaN or infinity (%s); requests whose answers they reach end with an error: get the "
            "model again",
            checkpoint.path,
            listed(watched.broken),
        )
    runner.start(weights, small_batch)
    _check_temporaries(runner.table, plan)
    if precompiled is not None and store.num_compiled:
        logger.warning(
            "%d programs were not in %s, which was made for other flags, versions or devices, and were compiled",
            store.num_compiled,
            precompiled,
        )
    seconds = {
        "open": opened - clock,
        "weights": loaded - opened,
        "compile": time.perf_counter() - loaded,
    }
    config = prepared.config
    return Started(
        runner=runner,
        config=config,
        shape=shape,
        plan=plan,
        build=prepared.build,
        device=device.device_kind,
        model=checkpoint.path,
        eos_token_ids=_eos(checkpoint, config),
        seconds=seconds,
        embedder=Embedder.of(checkpoint.config(), source=checkpoint.path),
        classifier=Classifier.of(checkpoint.config(), source=checkpoint.path),
        broken_tensors=watched.broken,
        compile_threads=compile_threads,
    )


def stored_programs(engine_config: EngineConfig) -> Path | None:
    """Where programs are read and written; None for nowhere."""
    if engine_config.compile_cache_dir == "":
        return None
    return Path(engine_config.compile_cache_dir).expanduser() if engine_config.compile_cache_dir else default_folder()


def _workers() -> int:
    return max(2, min(8, os.cpu_count() or 1))


def _left(table: ProgramTable, *, early: bool) -> list[Program]:
    """What is required and not there yet."""
    return [program for program in table.required(early=early) if program.key not in table.compiled]


def add_all(table: ProgramTable, programs: list[Program], progress: Progress = lambda *_: None) -> None:
    """Load or compile programs in parallel: XLA releases the GIL. The first failure ends it."""
    with ThreadPoolExecutor(_workers(), "compile") as pool:
        names = {pool.submit(table.add, program): program.name for program in programs}
        progress("compile", 0, len(names), "")
        for done, future in enumerate(as_completed(names), 1):
            future.result()
            progress("compile", done, len(names), names[future])


def _check_temporaries(table: ProgramTable, plan: memory.MemoryPlan) -> None:
    actual = table.step_memory()
    if actual > plan.temporaries + plan.margin:
        logger.warning(
            "the largest step needs %s of temporaries, more than the %s planned; lower "
            "--max-num-batched-tokens if memory runs out",
            memory.gib(actual),
            memory.gib(plan.temporaries),
        )


def _eos(checkpoint: Checkpoint, config: ModelConfig) -> frozenset[int]:
    """End-of-sequence tokens of generation_config.json, config.json and the tokenizer together."""
    generation = Fields(checkpoint.generation_config(), checkpoint.path / "generation_config.json")
    ends = frozenset([*generation.token_ids("eos_token_id"), *config.eos_token_ids])
    return ends | end_token_ids(checkpoint.path) if checkpoint.path.is_dir() else ends


def describe(started: Started[Any]) -> dict[str, str]:
    """Facts about the engine for `vllm:cache_config_info` and the log."""
    shape, plan = started.shape, started.plan
    facts = {
        "block_size": shape.page_size,
        "num_gpu_blocks": shape.num_pages,
        "max_model_len": shape.max_model_len,
        "max_num_seqs": shape.max_num_seqs,
        "max_num_batched_tokens": shape.max_num_batched_tokens,
        "kv_cache_bytes": plan.kv_pages,
        "weights_bytes": plan.weights,
        "architecture": started.config.architecture,
        "dtype": started.build.dtype,
        "cache_dtype": kv_cache_name(started.build),
        "device": started.device,
    }
    return {name: str(value) for name, value in facts.items()}
