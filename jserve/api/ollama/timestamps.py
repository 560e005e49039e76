"""Times as Go writes them: RFC 3339 to the nanosecond, durations in nanoseconds or as "1h30m"."""

import math
import re
import time

from jserve.errors import RequestError

_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_MAX_DURATION_CHARS = 100

NEVER = "2318-01-01T00:00:00Z"
"""When a model that is never unloaded expires; Ollama's own answer lies as far away."""


def rfc3339(nanoseconds: int) -> str:
    """A time since 1970, in UTC."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def now() -> str:
    """The present, in UTC."""
    return rfc3339(time.time_ns())


def nanoseconds(start: float, end: float) -> int:
    """From one `time.time()` to another; 0 where one of them has not happened."""
    return max(0, round((end - start) * 1e9)) if start and end else 0


def keep_alive_seconds(value: float | str | None) -> float | None:
    """`keep_alive` in seconds: a number of them, or a Go duration. None where it is absent.

    Raises RequestError where it is neither.
    """
    if value is None or value == "":
        return None
    if isinstance(value, int | float):
        if math.isfinite(value):
            return float(value)
        raise _not_a_duration(value)
    unsigned = value.removeprefix("-").removeprefix("+")
    if unsigned == "0":
        return 0.0
    parts = _PART.findall(unsigned) if len(value) <= _MAX_DURATION_CHARS else []
    if not parts or "".join(number + unit for number, unit in parts) != unsigned:
        raise _not_a_duration(value)
    seconds = math.fsum(float(number) * _UNIT_S[unit] for number, unit in parts)
    return -seconds if value.startswith("-") else seconds


def _not_a_duration(value: object) -> RequestError:
    message = f'keep_alive is {str(value)[:50]!r} but must be seconds or a duration such as "5m" or "1h30m"'
    return RequestError(message, param="keep_alive")
