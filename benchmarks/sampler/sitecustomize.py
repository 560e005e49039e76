"""Samples the stack of a Python process on its own CPU clock, without a change to the program.

With this folder on PYTHONPATH every Python process imports it at its start. Where JSERVE_SAMPLES names a folder, the
signal SIGUSR2 starts sampling, and the next one ends it and writes `samples-PID.json` there: the command line, and
stacks (innermost frame first) with the CPU seconds of the main thread that passed in each.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

_INTERVAL_S = 0.002
_MAX_DEPTH = 40

_seconds: dict[tuple[str, ...], float] = {}
_last = 0.0
_is_on = False


def _sample(number: int, frame: FrameType | None) -> None:
    """Python runs handlers in the main thread, so its clock weighs the stack that stood there."""
    global _last
    now = time.thread_time()
    stack: list[str] = []
    while frame is not None and len(stack) < _MAX_DEPTH:
        code = frame.f_code
        stack.append(f"{code.co_filename}:{frame.f_lineno}:{code.co_qualname}")
        frame = frame.f_back
    key = tuple(stack)
    _seconds[key] = _seconds.get(key, 0.0) + now - _last
    _last = time.thread_time()


def _toggle(number: int, frame: FrameType | None) -> None:
    global _is_on, _last
    _is_on = not _is_on
    signal.setitimer(signal.ITIMER_PROF, _INTERVAL_S if _is_on else 0, _INTERVAL_S if _is_on else 0)
    if _is_on:
        _last = time.thread_time()
        _seconds.clear()
        return
    path = Path(os.environ["JSERVE_SAMPLES"], f"samples-{os.getpid()}.json")
    written = path.with_suffix(".part")
    stacks = [{"stack": stack, "seconds": seconds} for stack, seconds in _seconds.items()]
    written.write_text(json.dumps({"command": sys.argv, "stacks": stacks}))
    written.rename(path)


if os.environ.get("JSERVE_SAMPLES"):
    signal.signal(signal.SIGPROF, _sample)
    signal.signal(signal.SIGUSR2, _toggle)
