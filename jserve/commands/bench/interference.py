"""How much of the machine's CPU went to what, while a run lasted.

Only where `psutil` is installed and the server runs on this machine; otherwise the answer is None, not zero.
"""

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

try:
    import psutil
except ImportError:
    psutil = None  # type: ignore[assignment, unused-ignore]

SHORTEST_S = 1.0  # the system counts in ticks of 10 ms: what is shorter has no shares worth telling
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1", "0.0.0.0")


@dataclass(frozen=True, slots=True)
class CpuShares:
    """Shares of all the machine's cores over a run: 0.5 on two cores is one core busy all the time.

    `others` is what neither this client nor the server under test used: idle peers, other programs,
    stolen time.
    """

    server: float
    client: float
    others: float


@dataclass(frozen=True, slots=True)
class CpuReading:
    """CPU seconds since boot or process start, at one moment."""

    wall: float
    machine: float
    client: float
    servers: Mapping[int, float]


class CpuWatch:
    """Reads CPU time before and after a run. `pids` adds processes per target name to those found by port."""

    def __init__(self, urls: Mapping[str, str], pids: Mapping[str, Collection[int]]) -> None:
        self._roots = {
            name: {*(listening_pids(url) if psutil else ()), *pids.get(name, ())} for name, url in urls.items()
        }

    def can_watch(self, name: str) -> bool:
        """Whether the target's processes are known, so that the rest can be told from them."""
        return psutil is not None and bool(self._roots[name])

    def read(self, name: str) -> CpuReading | None:
        """The state of now, for `shares` later."""
        if not self.can_watch(name):
            return None
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user as well
        used = os.times()
        return CpuReading(
            time.perf_counter(), sum(times) - idle - guests, used.user + used.system, self._server_times(name)
        )

    def shares(self, before: CpuReading | None, after: CpuReading | None) -> CpuShares | None:
        """Who used the CPU between two readings of the same target; None for less than `SHORTEST_S`."""
        if before is None or after is None or after.wall - before.wall < SHORTEST_S:
            return None
        whole = (after.wall - before.wall) * (psutil.cpu_count() or 1)
        server = sum(used - before.servers.get(pid, 0.0) for pid, used in after.servers.items())
        client = after.client - before.client
        others = max(0.0, after.machine - before.machine - server - client)
        return CpuShares(server / whole, client / whole, others / whole)

    def _server_times(self, name: str) -> dict[int, float]:
        """CPU seconds of each process of the target: those that listen, and all they started."""
        used = {}
        for root in self._roots[name]:
            try:
                family = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
            except psutil.Error:
                continue
            for process in family:
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                used[process.pid] = times.user + times.system
        return used


def listening_pids(url: str) -> set[int]:
    """Processes that listen on the URL's port, if the URL is of this machine and the system tells."""
    parts = urlsplit(url)
    if parts.hostname not in LOCAL_HOSTS:
        return set()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        sockets = psutil.net_connections("tcp")
    except psutil.Error:
        return set()
    return {s.pid for s in sockets if s.pid and s.status == psutil.CONN_LISTEN and s.laddr.port == port}
