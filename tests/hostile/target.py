"""The server under attack, and a neighbour on it who means well."""

import argparse
import http.client
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.api.http.raw_connection import RawConnection

MIB = 1 << 20
NEIGHBOUR = {"prompt": "The neighbour's words", "max_tokens": 16, "ignore_eos": True}


@dataclass(frozen=True, slots=True)
class Target:
    """A server that listens at `url`, in process `pid`, or in one that is not known (None)."""

    url: str
    pid: int | None = None

    def connect(self) -> RawConnection:
        """A connection of the attacker's."""
        return RawConnection(self.url)

    def memory(self) -> int:
        """Resident bytes of the server process; 0 where it is not known."""
        return psutil.Process(self.pid).memory_info().rss if self.pid is not None else 0

    def memory_of_all(self) -> int:
        """Resident bytes of the server and of what it has started; 0 where it is not known."""
        total = self.memory()
        for child in psutil.Process(self.pid).children(recursive=True) if self.pid is not None else ():
            with suppress(psutil.NoSuchProcess):
                total += child.memory_info().rss
        return total

    def neighbour(self, path: str = "/v1/completions", body: dict[str, Any] | None = None) -> int:
        """The status of a neighbour's request, on a connection of its own. Waits as long as it takes."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=300)
        try:
            content = json.dumps(NEIGHBOUR if body is None else body)
            connection.request("POST", path, content, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def health(self) -> int:
        """The status of `/health`."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=300)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        finally:
            connection.close()

    def settle(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds."""
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attack cost the server: bytes of memory at its height, and how it went for the neighbour."""

    grown: int
    most: int
    neighbour: int

    def check(self) -> None:
        """Raise AssertionError where that is more than it may be."""
        assert self.grown <= self.most, f"the server grew by {self.grown / MIB:.0f} MiB, above {self.most / MIB:.0f}"
        assert self.neighbour == 200, f"the neighbour heard {self.neighbour}"


def main(attack: Callable[[Target], Outcome]) -> None:
    """Run `attack` on the server that the command line names."""
    parser = argparse.ArgumentParser(description=attack.__doc__)
    parser.add_argument("url", help="such as http://127.0.0.1:8000")
    parser.add_argument("--pid", type=int, help="its process, whose memory is measured")
    options = parser.parse_args()
    outcome = attack(Target(options.url.rstrip("/"), options.pid))
    print(
        f"the server grew by {outcome.grown / MIB:.1f} MiB of {outcome.most / MIB:.0f}; neighbour {outcome.neighbour}"
    )
    outcome.check()
