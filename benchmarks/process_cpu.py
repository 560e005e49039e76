"""The CPU time of a server, process by process, with the part that each plays."""

import os
from collections.abc import Sequence

import msgspec
import psutil

_ROLES = (
    ("jserve.engine", "engine"),
    ("jserve.text.", "template"),
    ("EngineCore", "engine"),
    ("Worker", "worker"),
    ("resource_tracker", "other"),
)
"""Part of a command line, and what that process is. The root of a server is its API process."""


class CpuTimes(msgspec.Struct, frozen=True):
    """Seconds of CPU that one process has used."""

    pid: int
    role: str
    user: float
    system: float

    def since(self, before: "CpuTimes") -> "CpuTimes":
        """What was used between two readings."""
        return CpuTimes(self.pid, self.role, self.user - before.user, self.system - before.system)

    def zero(self) -> "CpuTimes":
        """The process before it did anything."""
        return CpuTimes(self.pid, self.role, 0.0, 0.0)


class MachineTimes(msgspec.Struct, frozen=True):
    """Seconds that all cores together were not idle."""

    busy: float
    num_cores: int

    def busy_since(self, later: "MachineTimes") -> float:
        """Seconds of CPU that were used between this reading and a later one."""
        return later.busy - self.busy


def read_cpu(root: int) -> list[CpuTimes]:
    """The root process and everything that it has started."""
    process = psutil.Process(root)
    processes = [CpuTimes(root, "api", *_times(process))]
    for child in process.children(recursive=True):
        try:
            processes.append(CpuTimes(child.pid, role_of(child.cmdline()), *_times(child)))
        except psutil.NoSuchProcess:
            continue
    return processes


def role_of(command: Sequence[str]) -> str:
    """What a process of a server is for, by its command line; "other" where that is unknown."""
    line = " ".join(command)
    return next((role for part, role in _ROLES if part in line), "other")


def machine_times() -> MachineTimes:
    """What the whole machine has done so far."""
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq
    return MachineTimes(busy, os.cpu_count() or 1)


def _times(process: psutil.Process) -> tuple[float, float]:
    times = process.cpu_times()
    return times.user, times.system
