"""What every engine core is to the loop around it, whatever its model."""

from typing import Protocol

from jserve.protocol import EngineStats, Request, TokenDelta
from jserve.runtime.compiles import CompileCounter
from jserve.runtime.shapes import EngineShape


class Core(Protocol):
    """Takes requests and makes steps. Driven from one thread."""

    shape: EngineShape
    compiles: CompileCounter

    @property
    def is_idle(self) -> bool:
        """Nothing to schedule and nothing in flight."""
        ...

    @property
    def num_deferred(self) -> int:
        """Requests that wait for their grammar."""
        ...

    def prepare(self) -> None:
        """Begin what the first requests would otherwise wait for; returns at once."""
        ...

    def add(self, request: Request) -> TokenDelta | None:
        """Queue a request; the final delta of one that can never run, else None."""
        ...

    def abort(self, request_ids: list[str]) -> None:
        """Stop requests and free what they hold."""
        ...

    def step(self) -> list[TokenDelta]:
        """Dispatch the next step, then read the one before it back."""
        ...

    def stats(self) -> EngineStats:
        """Gauges and counters as of now."""
        ...
