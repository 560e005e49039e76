"""How fast the host can go: a whole server with a model that costs nothing, and the CPU time of each of its processes.

Starts the server itself, with the folder of `tiny_model`, and drives it over HTTP with `raw_client`. Each load is a
kind of request, and the share of the streams that use something extra:

    stream        256 chat streams at once, all plain
    whole         the same, not streamed
    short         256 connections, 8 requests of one token each: the cost of a request
    n8            32 streams of 8 choices
    logprobs      all streams with 5 logprobs a token; `logprobs/2`: every second one
    penalties, json, stop   likewise with penalties, with a JSON grammar, with stop strings

    python -m benchmarks.host_ceiling --peer vllm --rounds 2 --out result.json
    python -m benchmarks.host_ceiling --loads stream --profile
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.parts import leave_on_sigterm
from benchmarks.process_cpu import read_cpu
from benchmarks.raw_client import Load, LoadResult
from benchmarks.server_under_test import ROOT, ServerUnderTest, start_server
from benchmarks.stack_samples import StackTable
from benchmarks.tiny_model import write_tiny_model
from jserve.commands.bench.prompts import WORDS_FILE
from jserve.commands.bench.report import machine

EXTRAS: Mapping[str, Mapping[str, Any]] = {
    "stream": {},
    "whole": {"stream": False},
    "short": {"max_tokens": 1},
    "n8": {"n": 8, "temperature": 1.0},
    "logprobs": {"logprobs": True, "top_logprobs": 5},
    "penalties": {"frequency_penalty": 0.1, "presence_penalty": 0.1, "repetition_penalty": 1.05},
    "json": {"response_format": {"type": "json_object"}, "ignore_eos": False},
    "stop": {"stop": ["###", "\n\n\n\n", "<|user|>"]},
}
_REQUESTS_OF_SHORT = 8
_MAX_OTHERS = 0.1
"""Share of the cores above which a run is flagged: somebody else was at work."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One load in one round. CPU in microseconds per output token; of `short` per request of one token."""

    target: str
    load: str
    round: int
    tokens: int
    seconds: float
    tokens_per_s: float
    tokens_per_cpu_s: float
    cpu_us_per_token: dict[str, float]
    system_share: float
    client_us_per_token: float
    tokens_per_read: float
    first_text_ms: dict[str, float]
    itl_ms: dict[str, float]
    others_share: float


def make_load(server: ServerUnderTest, model: str, label: str, options: argparse.Namespace, seed: str) -> Load:
    """The bodies of one load. Prompts differ between streams, rounds and targets."""
    kind, _, part = label.partition("/")
    every = int(part or 1)
    rng = random.Random(seed)
    words = WORDS_FILE.read_text().split()
    connections = options.streams // 8 if kind == "n8" else options.streams
    bodies = []
    for index in range(connections):
        extra = EXTRAS[kind] if index % every == 0 else {}
        count = _REQUESTS_OF_SHORT if kind == "short" else 1
        prompts = [" ".join(rng.choices(words, k=options.prompt_words)) for _ in range(count)]
        bodies.append([msgspec.Raw(chat_body(model, prompt, options.tokens, extra)) for prompt in prompts])
    return Load("127.0.0.1", server.port, "/v1/chat/completions", bodies, server.pid)


def chat_body(model: str, prompt: str, max_tokens: int, extra: Mapping[str, Any]) -> bytes:
    """One request as JSON."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        **extra,
    }
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(body)


def send(load: Load, prefix: Sequence[str]) -> LoadResult:
    """Run a load in a client process. Raises RuntimeError where it fails."""
    command = [*prefix, sys.executable, "-m", "benchmarks.raw_client"]
    # Files, not pipes: what a prefix leaves running must not be waited for.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        done = subprocess.run(
            command, input=msgspec.json.encode(load), stdout=out, stderr=errors, cwd=ROOT, check=False
        )
        out.seek(0)
        errors.seek(0)
        if done.returncode:
            raise RuntimeError(f"the client failed: {errors.read().decode()[-2000:]}")
        return msgspec.json.decode(out.read(), type=LoadResult)


def figures(target: str, label: str, round_: int, result: LoadResult) -> Figures:
    """What is reported of a result."""
    by_role: dict[str, float] = {}
    for times in result.cpu:
        by_role[times.role] = by_role.get(times.role, 0.0) + times.user + times.system
    total = sum(by_role.values())
    return Figures(
        target=target,
        load=label,
        round=round_,
        tokens=result.tokens,
        seconds=round(result.seconds, 3),
        tokens_per_s=round(result.tokens / result.seconds, 1),
        tokens_per_cpu_s=round(result.tokens / total, 1),
        cpu_us_per_token={role: round(used / result.tokens * 1e6, 2) for role, used in by_role.items()},
        system_share=round(sum(times.system for times in result.cpu) / total, 3),
        client_us_per_token=round(result.client_cpu_s / result.tokens * 1e6, 2),
        tokens_per_read=round(result.tokens / result.reads, 2),
        first_text_ms=spread(result.first_text_ms),
        itl_ms=spread(result.gaps_ms),
        others_share=round(result.others_share, 3),
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Quantiles of sorted values; none where there are none."""
    if not values:
        return {}
    return {f"p{q}": round(values[min(len(values) - 1, len(values) * q // 100)], 2) for q in (50, 99, 100)}


@contextmanager
def profiled(server: ServerUnderTest, folder: Path, *, is_on: bool) -> Iterator[None]:
    """Sample the API process and the engine process meanwhile."""
    if not is_on:
        yield
        return
    pids = [times.pid for times in read_cpu(server.pid) if times.role in ("api", "engine")]
    for pid in pids:
        os.kill(pid, signal.SIGUSR2)
    yield
    for pid in pids:
        os.kill(pid, signal.SIGUSR2)
    deadline = time.monotonic() + 10
    while len(list(folder.glob("samples-*.json"))) < len(pids) and time.monotonic() < deadline:
        time.sleep(0.1)


def warm_up(server: ServerUnderTest, options: argparse.Namespace) -> None:
    """Send every kind of load once, with short answers, and let the server finish what it does behind."""
    short = argparse.Namespace(**{**vars(options), "tokens": 16})
    for label in dict.fromkeys(["stream", *options.loads]):
        send(make_load(server, server.model_name(), label, short, f"warm {label}"), [])
    server.settle()


def measure(servers: Sequence[ServerUnderTest], options: argparse.Namespace, folder: Path) -> list[Figures]:
    """All loads in all rounds, every server in turn."""
    measured = []
    for round_ in range(options.rounds):
        for label in options.loads:
            for server in servers:
                seed = f"{options.seed} {server.name} {round_} {label}"
                load = make_load(server, server.model_name(), label, options, seed)
                is_profiled = options.profile and server.name == "jserve"
                with profiled(server, folder, is_on=is_profiled):
                    measured.append(figures(server.name, label, round_, send(load, options.client_prefix.split())))
                if is_profiled:
                    print_profiles(folder, measured[-1])
    return measured


def print_profiles(folder: Path, of: Figures) -> None:
    """The tables of both processes, in microseconds per token; the samples are removed."""
    for path in sorted(folder.glob("samples-*.json")):
        table = StackTable.read(path)
        Console().print(f"\n{of.load}: {table.title}", highlight=False)
        table.print(Console(), scale=1e6 / of.tokens, unit="us/token")
        path.unlink()


def print_figures(rows: Sequence[Figures]) -> None:
    """One row a load and round."""
    table = Table(title="CPU in us per token", title_justify="left")
    for heading in (
        "target",
        "load",
        "round",
        "tok/s",
        "tok/cpu-s",
        "tok/read",
        "cpu us/token",
        "itl p50/p99/max",
        "others",
    ):
        table.add_column(heading, justify="left" if heading in ("target", "load") else "right")
    for row in rows:
        cpu = " ".join(f"{role} {value:g}" for role, value in row.cpu_us_per_token.items() if value >= 0.005)
        others = f"{row.others_share:.0%}" + ("!" if row.others_share > _MAX_OTHERS else "")
        gaps = "/".join(f"{value:g}" for value in row.itl_ms.values())
        rates = f"{row.tokens_per_s:.0f}", f"{row.tokens_per_cpu_s:.0f}", f"{row.tokens_per_read:g}"
        table.add_row(row.target, row.load, str(row.round + 1), *rates, cpu, gaps, others)
    Console(width=150).print(table)


def ratios(rows: Sequence[Figures], peer: str) -> dict[str, dict[str, float]]:
    """jserve over the peer: the medians of the clean rounds, or of all where none is clean."""
    by_load = {}
    for label in dict.fromkeys(row.load for row in rows):
        ours, theirs = (
            [row for row in rows if row.load == label and row.target == target] for target in ("jserve", peer)
        )
        if ours and theirs:
            names = ("tokens_per_cpu_s", "tokens_per_s")
            by_load[label] = {name: round(median(ours, name) / median(theirs, name), 2) for name in names}
    return by_load


def median(rows: Sequence[Figures], name: str) -> float:
    """The median of one figure over the rounds, undisturbed ones where there are some."""
    clean = [row for row in rows if row.others_share <= _MAX_OTHERS] or rows
    return statistics.median(float(getattr(row, name)) for row in clean)


def versions(options: argparse.Namespace) -> dict[str, str]:
    """The versions of what took part, as far as they are known."""
    packages = {}
    for package in ("jax", "jaxlib", "uvloop", "uvicorn", "msgspec", "tokenizers"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False)
    packages["commit"] = git.stdout.strip()
    if options.peer:
        packages["peer"] = options.peer
    return packages


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=("vllm",), help="measure this one as well, from its script under peers/")
    parser.add_argument("--only-peer", action="store_true", help="leave jserve out")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=512, help="output tokens of a stream")
    parser.add_argument("--prompt-words", type=int, default=16)
    parser.add_argument("--loads", default="stream", help=f"comma-separated: {', '.join(EXTRAS)}, each with /N")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--profile", action="store_true", help="print where both processes of jserve spend their time")
    parser.add_argument("--client-prefix", default="", help="words before the client's command, such as `taskset -c 3`")
    parser.add_argument("--jserve-args", default="")
    parser.add_argument("--peer-args", default="")
    parser.add_argument("--start-timeout", type=float, default=600.0)
    parser.add_argument("--out", type=Path, help="write JSON")
    options = parser.parse_args()
    options.loads = options.loads.split(",")
    for label in options.loads:
        if label.partition("/")[0] not in EXTRAS:
            parser.error(f"--loads: {label!r} is none of {', '.join(EXTRAS)}")
    return options


def main() -> int:
    leave_on_sigterm()
    options = parse()
    targets = [] if options.only_peer else ["jserve"]
    targets += [options.peer] if options.peer else []
    with tempfile.TemporaryDirectory(prefix="host-ceiling-") as name:
        folder = Path(name)
        model = folder / "tiny"
        write_tiny_model(model)
        servers = []
        try:
            for target in targets:
                servers.append(start_server(target, model, options, folder))
                servers[-1].wait_until_ready(options.start_timeout)
                warm_up(servers[-1], options)
            rows = measure(servers, options, folder)
        finally:
            for server in servers:
                server.stop()
    print_figures(rows)
    peer_ratios = ratios(rows, options.peer) if options.peer else {}
    for label, ratio in peer_ratios.items():
        print(f"{label}: jserve / {options.peer}: {ratio}")
    if options.out:
        result = {
            "command": ["python", "-m", "benchmarks.host_ceiling", *sys.argv[1:]],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(options),
            "options": {key: value for key, value in vars(options).items() if key != "out"},
            "ratios": peer_ratios,
            "runs": [asdict(row) for row in rows],
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
