"""How long a test waits for what must happen. It says no more than that something hangs: no test decides by it how
fast anything is, so it is far beyond what a busy machine needs.
"""

import time
from collections.abc import Callable

PATIENCE_S = 120.0
"""Seconds; a test as a whole has five times as many (`timeout` of pytest)."""


def wait_until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Return as soon as `condition` holds; fail where it never does."""
    give_up_at = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < give_up_at, f"it did not happen within {patience_s:g} s"
        time.sleep(0.005)
