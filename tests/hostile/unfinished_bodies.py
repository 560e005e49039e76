"""Bodies of nearly the largest size whose last bytes never come, on many connections at once."""

from contextlib import ExitStack, suppress

from tests.api.http.raw_connection import post
from tests.hostile.target import MIB, Outcome, Target, main

NUM_CONNECTIONS = 40
SIZE = 24 * MIB
"""Each body's; `--max-request-bytes` must allow it."""
MOST = (8 * 32 + 64) * MIB
"""Eight bodies of the largest size by default, what uvicorn holds of each connection, and the allocator's own."""


def attack(target: Target) -> Outcome:
    """Send all but the end of each body, one connection after the other."""
    target.neighbour()
    before = most = target.memory()
    unfinished = post("/v1/completions", b" " * (SIZE - 100), b"content-length: %d" % SIZE)
    with ExitStack() as opened:
        for _ in range(NUM_CONNECTIONS):
            raw = opened.enter_context(target.connect())
            with suppress(ConnectionError):  # It is one that was given up.
                raw.send(unfinished)
            most = max(most, target.memory())
        neighbour = target.neighbour()
        most = max(most, target.memory())
    return Outcome(most - before, MOST, neighbour)


if __name__ == "__main__":
    main(attack)
