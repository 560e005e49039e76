"""`jserve inspect`: what a model's files hold, whether they run, and how much fits on a device. Reads headers only."""

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from jserve.checkpoint import Classifier, Embedder, open_checkpoint
from jserve.checkpoint.contents import Contents, read_contents
from jserve.checkpoint.hub import is_hub_name
from jserve.checkpoint.hub_headers import headers
from jserve.checkpoint.ollama_store import PREFIX
from jserve.commands.capacity_options import kv_cache_dtype
from jserve.commands.hub_model import MODEL_HELP
from jserve.commands.parser import Parser
from jserve.commands.sizes import shown_size
from jserve.commands.tables import print_table
from jserve.config import DTYPES, KV_CACHE_DTYPES, EngineConfig
from jserve.errors import StartupError


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is printed. Sizes are bytes; those of `memory` are per device. `problem` is None where the model runs."""

    path: str
    format: str
    architecture: str
    files: int
    bytes: int
    parameters: int
    stored: list[dict[str, Any]]
    quantization: str | None
    shape: dict[str, Any]
    runs: bool
    problem: str | None
    device: str
    tensor_parallel_size: int
    dtype: str | None = None
    kv_bytes_per_token: int | None = None
    kv_bytes_before_windows: int | None = None
    tokens_that_fit: int | None = None
    tokens_of_server: int | None = None
    max_model_len: int | None = None
    pooling: str | None = None
    """Set for a model for embeddings, which generates nothing."""
    labels: int | None = None
    """Set for a classifier; 1 is a cross-encoder."""
    memory: dict[str, int] | None = None


_SHAPE = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"),
    *("vocab_size", "max_position_embeddings", "sliding_window"),
)
"""Keys of `config.json` that are shown where they are there."""


def inspect(engine_config: EngineConfig, device: str) -> Inspection:
    """Look at the files and plan a start. Raises CheckpointError where there is nothing to look at."""
    contents = read_contents(engine_config.model)
    inner = contents.config.get("text_config")
    config = {**(inner if isinstance(inner, dict) else {}), **contents.config}
    inspection = Inspection(
        path=contents.path,
        format=contents.format,
        architecture=contents.architecture,
        files=len(contents.files),
        bytes=contents.num_bytes,
        parameters=contents.num_parameters,
        stored=[msgspec.to_builtins(kind) for kind in contents.stored],
        quantization=contents.notes.get("quantization"),
        shape={name: config[name] for name in _SHAPE if isinstance(config.get(name), int)},
        runs=False,
        problem=contents.problem,
        device=device,
        tensor_parallel_size=engine_config.tensor_parallel_size,
    )
    return _with_capacity(inspection, contents, engine_config)


def _with_capacity(inspection: Inspection, contents: Contents, engine_config: EngineConfig) -> Inspection:
    if contents.problem is not None:
        return inspection
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is put on a device, and a GPU takes seconds to open
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    from jserve.runtime.capacity import device_memory, estimate

    device_memory(inspection.device)  # an unknown device is no property of the model
    fields = {name: getattr(inspection, name) for name in Inspection.__dataclass_fields__}
    try:
        with closing(open_checkpoint(engine_config.model, architecture=engine_config.architecture)) as checkpoint:
            capacity = estimate(checkpoint, engine_config, inspection.device)
            embedder = Embedder.of(checkpoint.config(), source=checkpoint.path)
            classifier = Classifier.of(checkpoint.config(), source=checkpoint.path)
    except StartupError as problem:
        return Inspection(**fields | {"problem": str(problem)})
    plan = capacity.plan
    names = ("limit", "weights", "temporaries", "sampling", "states", "margin", "autotuning", "kv_pages")
    fields |= {
        "runs": True,
        "dtype": capacity.dtype,
        "kv_bytes_per_token": capacity.kv_bytes_per_token,
        "kv_bytes_before_windows": capacity.kv_bytes_before_windows,
        "tokens_that_fit": capacity.tokens_that_fit,
        "tokens_of_server": capacity.tokens,
        "max_model_len": capacity.shape.max_model_len,
        "pooling": None if embedder is None else embedder.pooling,
        "labels": None if classifier is None else len(classifier.labels),
        "memory": {name: getattr(plan, name) for name in names},
    }
    return Inspection(**fields)


def to_json(inspection: Inspection) -> str:
    """One JSON object, for scripts."""
    return msgspec.json.format(msgspec.json.encode(inspection), indent=2).decode()


def print_inspection(inspection: Inspection) -> None:
    """The same for a person, on standard output."""
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(inspection):
        table.add_row(name, value)
    print_table(table)


def _rows(inspection: Inspection) -> list[tuple[str, str]]:
    plural = "" if inspection.files == 1 else "s"
    rows = [
        ("model", inspection.path),
        ("format", f"{inspection.format}, {inspection.files} file{plural}, {shown_size(inspection.bytes)}"),
        ("architecture", inspection.architecture),
        ("shape", ", ".join(f"{name} {value:,}" for name, value in inspection.shape.items()) or "unknown"),
        ("parameters", f"{inspection.parameters:,}"),
    ]
    for number, kind in enumerate(inspection.stored):
        size = shown_size(kind["num_bytes"]) if kind["num_bytes"] else "size unknown"
        text = f"{kind['type']}: {kind['num_parameters']:,} in {kind['num_tensors']:,} tensors, {size}"
        rows.append(("stored as" if number == 0 else "", text))
    if inspection.quantization:
        rows.append(("quantization", inspection.quantization))
    where = (
        f"{inspection.tensor_parallel_size} x {inspection.device}"
        if inspection.tensor_parallel_size > 1
        else inspection.device
    )
    if inspection.memory is None or inspection.tokens_of_server is None or inspection.max_model_len is None:
        return [*rows, ("runs", f"no: {inspection.problem}")]
    spread = " per device" if inspection.tensor_parallel_size > 1 else ""
    used = ", ".join(f"{name.replace('_', ' ')} {shown_size(size)}" for name, size in inspection.memory.items() if size)
    rows += [("runs", f"yes, on {where} in {inspection.dtype}"), (f"memory{spread}", used)]
    if inspection.pooling:
        rows.append(("embeds", f"texts of up to {inspection.max_model_len:,} tokens, {inspection.pooling} pooling"))
    if inspection.labels:
        rows.append(
            ("classifies", f"texts of up to {inspection.max_model_len:,} tokens, labels: {inspection.labels:,}")
        )
    if not inspection.kv_bytes_per_token:
        return rows
    return [
        *rows,
        ("KV cache", f"{inspection.kv_bytes_per_token:,} bytes per token{_before_windows(inspection)}"),
        ("fits", f"{inspection.tokens_that_fit:,} tokens; a server of the default flags {_as_contexts(inspection)}"),
    ]


def _before_windows(inspection: Inspection) -> str:
    before = inspection.kv_bytes_before_windows
    return "" if before == inspection.kv_bytes_per_token else f", {before:,} where it lies before the window"


def _as_contexts(inspection: Inspection) -> str:
    tokens, longest = inspection.tokens_of_server or 0, inspection.max_model_len or 1
    return f"{tokens:,} = {max(1, tokens // longest):,} x {longest:,}"


@dataclass(frozen=True, slots=True)
class InspectOptions:
    """The command line of `jserve inspect`: what to look at, and the device to plan for."""

    config: EngineConfig
    device: str
    lists_all: bool
    """Whether `config.model` is a folder of models, or Ollama's store."""
    as_json: bool
    revision: str | None
    """The branch, tag or commit of a model on the hub."""


def parse_inspect(argv: Sequence[str]) -> InspectOptions:
    """Read the command line."""
    parser = Parser(
        prog="jserve inspect",
        description="Say what a model's files hold, whether jserve runs them, and how many tokens fit on a device. "
        "Reads headers, no weights.",
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", help=f"{MODEL_HELP}, of which the headers alone are read")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a model on the hub")
    parser.add_argument(
        "--all",
        dest="lists_all",
        action="store_true",
        help="list every model below the folder PATH, or in Ollama's store for `ollama:` (which lists without it, too)",
    )
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu (default), h200, h100, a100-80, l40s, rtx4090 and others"
    )
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1, metavar="N", help="devices (default: 1)")
    parser.add_argument(
        "--architecture", metavar="NAME", help="take a folder for one of this architecture (default: what it says)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="type of weights (default: auto)")
    parser.add_argument(
        "--kv-cache-dtype",
        type=kv_cache_dtype,
        choices=KV_CACHE_DTYPES,
        default="auto",
        help="type of keys and values (default: auto)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(list(argv))
    config = EngineConfig(
        model=options.path,
        architecture=options.architecture,
        dtype=options.dtype,
        kv_cache_dtype=options.kv_cache_dtype,
        tensor_parallel_size=options.tensor_parallel_size,
    )
    return InspectOptions(
        config, options.device.lower(), options.lists_all or options.path == PREFIX, options.json, options.revision
    )


def run(argv: Sequence[str]) -> None:
    """Print what a model is and what it would take, from its headers. Exits with 1 where it would not run; a list of
    models always ends well.
    """
    options = parse_inspect(argv)
    config = options.config
    if options.lists_all:
        from jserve.commands import inspect_all

        listed = inspect_all.list_all(config, options.device)
        print(inspect_all.to_json(listed)) if options.as_json else inspect_all.print_list(listed)
        return
    if is_hub_name(config.model):
        with headers(config.model, revision=options.revision) as path:
            local = msgspec.structs.replace(config, model=str(path))
            inspection = replace(inspect(local, options.device), path=config.model)
    else:
        inspection = inspect(config, options.device)
    if options.as_json:
        print(to_json(inspection))
    else:
        print_inspection(inspection)
    if not inspection.runs:
        sys.exit(1)
