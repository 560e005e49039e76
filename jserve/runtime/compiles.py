"""Counts programs that are compiled while requests are served. It must stay 0: see the metric of that name."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
    """Counts the compiles of the thread that watches; the thread that compiles behind is not counted."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Count what this thread compiles from here to the end of the block."""
        thread = threading.get_ident()

        def listen(event: str, duration_secs: float, **_: str | int) -> None:
            if event == COMPILE_EVENT and threading.get_ident() == thread:
                self.count += 1

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
