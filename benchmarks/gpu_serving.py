"""The parts of a visit to a GPU that start a server: cold, again, under load, and a peer on the same load."""

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_plan import limit_of
from benchmarks.parts import MODULE, FailedError, SkippedError, Visit, must, stop

__all__ = ["RANDOM", "SERVED", "peer", "serving", "startup"]

RANDOM = Path("random")
SERVED = "llama-3.2-1b"
PROGRAMS = "programs"
"""A folder of the visit in which `startup` leaves what `serving` starts from."""


@dataclass(slots=True)
class Server:
    """A running `jserve`, with the seconds until it was ready."""

    process: subprocess.Popen[Any]
    url: str
    seconds: float


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_server(visit: Visit, name: str, cache: Path, limit: float) -> Server:
    """Start `jserve` on a free port and wait until it says that it is ready."""
    port = free_port()
    options = ["--model", str(served_model(visit)), "--port", str(port), "--compile-cache-dir", str(cache)]
    if visit.tiny:
        options += ["--max-num-seqs", "4", "--max-num-batched-tokens", "32", "--max-model-len", "256"]
    clock = time.monotonic()
    process = visit.start(name, [*MODULE, "jserve", *options])
    url = f"http://127.0.0.1:{port}"
    give_up = clock + min(limit, visit.left())
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=2):
                return Server(process, url, time.monotonic() - clock)
        except OSError:
            time.sleep(0.05)
    stop(process)
    raise FailedError(f"jserve did not get ready; see {name}.log")


def served_model(visit: Visit) -> Path:
    """The model that is given, else one with random weights, made when it is first needed."""
    if visit.model != RANDOM:
        if not visit.model.exists():
            raise SkippedError(f"{visit.model} is not there; without --model one of random weights is made")
        return visit.model
    folder = visit.folder / "served-model"
    if not (folder / "model.safetensors").exists():
        code = "import sys; from pathlib import Path; from benchmarks import presets, tiny_model as t; "
        code += "f = Path(sys.argv[1]); "
        code += "t.write_tiny_model(f)" if visit.tiny else f"t.write_random_model(f, presets.PRESETS[{SERVED!r}])"
        must(visit.run("served-model", [sys.executable, "-c", code, str(folder)], 60), "making a model")
    return folder


def load(visit: Visit, name: str, url: str, limit: float, *more: str) -> tuple[str, ...]:
    """The load generator against one server, by streams."""
    out = visit.folder / f"{name}.json"
    sizes = "--input-len 256 --output-len 128 --concurrency 1,32,256"
    if visit.tiny:
        sizes = "--input-len 8 --output-len 4 --concurrency 1,2 --num-prompts 2"
    command = [*MODULE, "jserve", "bench", "serve", "--url", f"{name}={url}", *sizes.split(), *more, "--out", str(out)]
    must(visit.run(f"{name}-load", command, limit), "jserve bench serve")
    return tuple(
        f"{r['load']}: {r['metrics']['output_tokens_per_s']:,.0f} output tokens/s, "
        f"ttft p50 {r['metrics']['latency_ms']['ttft'].get('p50', 0):,.0f} ms, "
        f"itl p50 {r['metrics']['latency_ms']['itl'].get('p50', 0):,.1f} ms"
        for r in json.loads(out.read_text())["runs"]
    )


def serving(visit: Visit) -> tuple[str, ...]:
    """jserve under load, with all of its programs there: those that `startup` stored."""
    begin, limit = time.monotonic(), limit_of(visit, "serving")
    server = start_server(visit, "serving-server", visit.folder / PROGRAMS, limit - 20)
    try:
        wait_for_programs(server, limit - 20 - (time.monotonic() - begin))
        return load(visit, "serving", server.url, limit - (time.monotonic() - begin))
    finally:
        stop(server.process)


def wait_for_programs(server: Server, limit: float) -> None:
    """Until none is still compiled behind. FailedError at the limit in seconds: the figures would mean nothing."""
    give_up = time.monotonic() + limit
    while True:
        with urllib.request.urlopen(f"{server.url}/ready", timeout=10) as response:
            counts = json.load(response)["programs"]
        if not counts["pending"]:
            return
        if time.monotonic() > give_up:
            raise FailedError(f"{counts['pending']} of {counts['total']} programs were still to be compiled")
        time.sleep(0.2)


def peer(name: str) -> Callable[[Visit], tuple[str, ...]]:
    """A part that puts the same load on a peer that this Python has, on the same model in bfloat16."""

    def part(visit: Visit) -> tuple[str, ...]:
        program = Path(sys.executable).with_name(name)
        if visit.tiny or importlib.util.find_spec(name) is None or not program.exists():
            raise SkippedError("on a CPU: `make bench`" if visit.tiny else f"{name} is not installed in this Python")
        port, folder = free_port(), served_model(visit)
        words = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
        more: list[str] = []
        if name == "transformers":
            words += ["--continuous-batching", "--device", "cuda"]
            # It lists no local model, and refuses `ignore_eos`: an end token that never comes.
            no_end = {"ignore_eos": None, "generation_config": '{"eos_token_id": -1}'}
            more = ["--model", str(folder), "--extra", json.dumps(no_end)]
        process = visit.start(f"serving-{name}-server", [str(program), *words])
        try:
            limit = limit_of(visit, f"serving-{name}")
            return load(visit, f"serving-{name}", f"http://127.0.0.1:{port}", limit, "--wait", f"{limit / 2}", *more)
        except FailedError as error:
            last_words = visit.log(f"serving-{name}-server").read_text(errors="replace").strip().splitlines()[-1:]
            raise SkippedError(
                f"{name} could not be compared: {error}; its last words: {' '.join(last_words)[:200]}"
            ) from error
        finally:
            stop(process)

    return part


def startup(visit: Visit) -> tuple[str, ...]:
    """Seconds from the command to /ready and to all programs, with nothing compiled before, and again."""
    cache, begin = visit.folder / PROGRAMS, time.monotonic()
    seconds: dict[str, float] = {}
    for name in ("cold", "second"):
        left = limit_of(visit, "startup") - (time.monotonic() - begin)
        server = start_server(visit, f"startup-{name}", cache, left)
        try:
            seconds[name] = server.seconds
            (visit.folder / "startup.json").write_text(json.dumps({"seconds_to_ready": seconds}) + "\n")
            if name == "cold":
                wait_for_programs(server, left - server.seconds - 10)
        finally:
            stop(server.process)
    return tuple(f"{name} start {value:.1f} s" for name, value in seconds.items())
