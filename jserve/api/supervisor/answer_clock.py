"""How long an engine has owed a sign of life: what `/health/decode`, the log and the restart of a hung engine go by."""

import time


class AnswerClock:
    """Runs from the first thing that an engine is sent until it has said that there is nothing left to do.

    Each frame sets it back to zero: an engine that works says so at every step, however long a prompt is and though no
    answer has a token yet. Clients that give up do not stop it, or an engine that hangs would never be noticed.
    """

    def __init__(self) -> None:
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Since its last frame, or since it was sent the first thing after that; 0 where it owes nothing."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def sent(self) -> None:
        """The engine has something to do, or to take note of."""
        if self._since is None:
            self._since = time.monotonic()

    def heard(self, *, has_work: bool) -> None:
        """A frame has come. `has_work`: requests are open, here or by the engine's own word."""
        self._since = time.monotonic() if has_work else None

    def compiled(self) -> None:
        """A program has been compiled behind. On a CPU that takes the cores of the steps, which then wait for it."""
        if self._since is not None:
            self._since = time.monotonic()

    def stop(self) -> None:
        """The engine is gone."""
        self._since = None
