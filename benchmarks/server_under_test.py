"""A server that a benchmark starts itself, by name, and ends again."""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.process_cpu import read_cpu

ROOT = Path(__file__).parents[1]
_SERVER_OPTIONS = ("--max-model-len", "4096")


class ServerUnderTest:
    """A server on a free port, in the process group of its parent: who ends that ends it as well."""

    def __init__(self, name: str, command: Sequence[str], port: int, env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.port = port
        self._log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=dict(env), cwd=ROOT)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return when it answers a chat request. Raises RuntimeError where it does not come up."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._popen.poll() is not None:
                break
            if self._answers("/v1/models") and self._answers("/ready" if self.name == "jserve" else "/health"):
                return
            time.sleep(0.25)
        raise RuntimeError(f"{self.name} is not ready; the end of its log:\n{self._log.read_text()[-3000:]}")

    def model_name(self) -> str:
        """The first name that it lists."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models") as response:
            return str(json.load(response)["data"][0]["id"])

    def settle(self, timeout_s: float = 60.0) -> None:
        """Wait until it has nothing left to do, such as compiling behind."""
        deadline = time.monotonic() + timeout_s
        before = self._used()
        while time.monotonic() < deadline:
            time.sleep(1.0)
            now = self._used()
            if now - before < 0.1:
                return
            before = now

    def stop(self) -> None:
        """End it and whatever it started."""
        processes = psutil.Process(self.pid).children(recursive=True) if self._popen.poll() is None else []
        self._popen.terminate()
        try:
            self._popen.wait(20)
        except subprocess.TimeoutExpired:
            self._popen.kill()
        for process in processes:
            if process.is_running():
                process.kill()

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _used(self) -> float:
        return sum(times.user + times.system for times in read_cpu(self.pid))


def start_server(name: str, model: Path, options: argparse.Namespace, folder: Path) -> ServerUnderTest:
    """Start jserve, or a peer by its script under `peers/`."""
    port = free_port()
    streams = ("--max-num-seqs", str(options.streams))
    env = dict(os.environ)
    if name == "jserve":
        command = [sys.executable, "-m", "jserve", "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
        command += [*_SERVER_OPTIONS, *streams, *options.jserve_args.split()]
        env["PYTHONPATH"] = str(ROOT)
        if options.profile:
            env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks/sampler"), str(ROOT)])
            env["JSERVE_SAMPLES"] = str(folder)
    else:
        script = ROOT / "benchmarks/peers" / f"{name}.sh"
        command = ["bash", str(script), str(model), str(port), *_SERVER_OPTIONS, *streams, *options.peer_args.split()]
        env.pop("PYTHONPATH", None)
    return ServerUnderTest(name, command, port, env, folder / f"{name}.log")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
