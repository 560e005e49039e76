"""Time from a server's command to its first streamed token, cold and again, against peers.

    python -m benchmarks.start --model MODEL [--rounds 3] [--peer NAME='COMMAND with {port}'] [--out FILE]

In each round jserve starts with an empty folder for executables (cold), then with the folder that this left
(second), then each peer once; a peer keeps whatever caches it has, so its first round may be its slowest. Times are
from the start of the process: `health` the first 200 of /health, `ready` the first 200 of /ready (peers: /health,
or /v1/models where they have none), `token` the first event with text of a streamed completion. `--baked` adds
starts with the programs of `jserve compile`. Files are in the page cache from the second start on;
`--drop-caches` (root) empties it before each start.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import machine

_POLL_S = 0.01
_PHASE = "jserve:startup_seconds{"


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the command of one start; `phases` as the engine tells them."""

    server: str
    round: int
    seconds: dict[str, float]
    phases: dict[str, float]


def measure(server: str, index: int, command: list[str], port: int, *, limit_s: float) -> Start:
    """Run one server to its first token and end it. Raises TimeoutError where that takes too long."""
    url, clock = f"http://127.0.0.1:{port}", time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            is_ours = server.startswith("jserve")
            seconds = {}
            for name, paths in (
                ("health", ["/health"]),
                ("ready", ["/ready"] if is_ours else ["/health", "/v1/models"]),
            ):
                _wait(process, url, paths, clock + limit_s)
                seconds[name] = time.perf_counter() - clock
            model = json.loads(_get(f"{url}/v1/models"))["data"]
            _first_text(url, model[0]["id"] if model else command[-1], limit_s)
            seconds["token"] = time.perf_counter() - clock
            return Start(server, index, seconds, _phases(url) if is_ours else {})
        finally:
            _end(process)


def _wait(process: "subprocess.Popen[bytes]", url: str, paths: list[str], deadline: float) -> None:
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode} before it was ready")
        for path in paths:
            try:
                _get(url + path)
                return
            except (OSError, urllib.error.URLError):
                pass
        time.sleep(_POLL_S)
    raise TimeoutError(f"{url} was not ready in time")


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        found: bytes = response.read()
        return found


def _first_text(url: str, model: str, limit_s: float) -> None:
    body = {"model": model, "prompt": "The capital of France is", "max_tokens": 4, "stream": True, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=limit_s) as response:
        for line in response:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0].get("text"):
                return
    raise RuntimeError(f"{url} streamed no text")


def _phases(url: str) -> dict[str, float]:
    """The engine's own account: seconds by phase."""
    lines = [line for line in _get(f"{url}/metrics").decode().splitlines() if line.startswith(_PHASE)]
    return {line.partition('phase="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask it to leave; its session goes with it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(options: argparse.Namespace) -> list[Start]:
    """All rounds, interleaved."""
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(options.rounds):
            for server, command in commands(options, Path(folder)).items():
                if server == "jserve cold":
                    shutil.rmtree(Path(folder, "cache"), ignore_errors=True)
                if options.drop_caches:
                    subprocess.run(["sync"], check=True)
                    Path("/proc/sys/vm/drop_caches").write_text("3")
                port = free_port()
                given = [part.replace("{port}", str(port)) for part in command]
                starts.append(measure(server, index, given, port, limit_s=options.limit_s))
                shown = " ".join(f"{name} {value:.2f}" for name, value in starts[-1].seconds.items())
                print(f"round {index + 1} {server}: {shown}", flush=True)
    return starts


def commands(options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """The command of each server, with {port} in it."""
    base = [sys.executable, "-m", "jserve", "--model", options.model, "--port", "{port}", *shlex.split(options.args)]
    cached = [*base, "--compile-cache-dir", str(folder / "cache")]
    found = {"jserve cold": cached, "jserve second": cached}
    if options.baked:
        found["jserve baked"] = [*base, "--compile-cache-dir", str(folder / "empty"), "--executables", options.baked]
    for peer in options.peer:
        name, _, command = peer.partition("=")
        found[name] = shlex.split(command)
    return found


def summary(starts: list[Start]) -> dict[str, dict[str, float]]:
    """The median of each time, by server."""
    servers = dict.fromkeys(start.server for start in starts)
    return {
        server: {
            name: round(statistics.median(s.seconds[name] for s in starts if s.server == server), 3)
            for name in ("health", "ready", "token")
        }
        for server in servers
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.start", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--args", default="", help="further flags of jserve, in one string")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND", help="{port} stands for its port"
    )
    parser.add_argument("--baked", metavar="DIR", help="folder of `jserve compile`")
    parser.add_argument("--drop-caches", action="store_true", help="empty the page cache before each start; needs root")
    parser.add_argument("--limit-s", type=float, default=400.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    starts = run(options)
    found = summary(starts)
    print(json.dumps(found, indent=1))
    if options.out:
        result = {
            "command": shlex.join(["python", "-m", "benchmarks.start", *sys.argv[1:]]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "page_cache": "dropped before each start" if options.drop_caches else "warm but for the first start",
            "median_s": found,
            "starts": [{"server": s.server, "round": s.round, "s": s.seconds, "phases": s.phases} for s in starts],
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
