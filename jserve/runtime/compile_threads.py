"""The threads in which XLA compiles on a CPU, and their priority.

XLA keeps them apart from those that run programs, but their names do not tell. They are known by what they do while
this process compiles and runs nothing. A thread's lower priority cannot be taken back without privileges, so it is
lowered once, when the server is ready.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["CompileThreads"]

LEAST_NS = 1_000_000
"""Time on a core from which a thread counts as one that compiles: others may wake up without having work."""
NICENESS = 10
"""Such a thread gets a tenth of a core that others want all of. At 19, the lowest, it would be a hundredth: on a busy
machine an hour for what takes a minute.
"""


class CompileThreads:
    """The ones of this process that are known: none before `watch`, and none elsewhere than on Linux."""

    def __init__(self) -> None:
        self.ids: frozenset[int] = frozenset()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note the threads that work in the block. In it this process compiles in XLA and runs no program."""
        before = _on_core()
        yield
        python = {thread.native_id for thread in threading.enumerate()}
        worked = {thread for thread, ns in _on_core().items() if ns - before.get(thread, 0) >= LEAST_NS}
        self.ids |= worked - python

    def lower_priority(self) -> None:
        """Give way to all other threads from now on."""
        if not self.ids:
            return
        lower = min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
        for thread in self.ids:
            with suppress(OSError):  # it is gone, or the system does not let us
                os.setpriority(os.PRIO_PROCESS, thread, lower)

    def seconds(self) -> float | None:
        """Their time on a core; None where no thread is known."""
        if not self.ids:
            return None
        on_core = _on_core()
        return sum(on_core.get(thread, 0) for thread in self.ids) / 1e9


def _on_core() -> dict[int, int]:
    """Nanoseconds on a core of each of this process's threads; empty where the system does not say."""
    seen: dict[int, int] = {}
    if sys.platform == "linux":
        for folder in Path("/proc/self/task").iterdir():
            with suppress(OSError, ValueError, IndexError):  # a thread that ended, a kernel that does not count
                seen[int(folder.name)] = int((folder / "schedstat").read_text().split()[0])
    return seen
