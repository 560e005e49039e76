"""As many connections as the attacker can open, which say nothing. The server goes on, and can start its engine."""

from contextlib import suppress

from tests.api.http.raw_connection import RawConnection
from tests.hostile.target import MIB, Outcome, Target, main

NUM_CONNECTIONS = 500
MOST = 32 * MIB


def attack(target: Target) -> Outcome:
    """Open them all, then let them go but for one, so that the neighbour finds a place."""
    target.neighbour()
    before = target.memory()
    raws: list[RawConnection] = []
    try:
        for _ in range(NUM_CONNECTIONS):
            with suppress(OSError):
                raws.append(target.connect())
        most = target.memory()
    finally:
        for raw in raws:
            raw.close()
    target.settle(lambda: _is_answered(target))
    return Outcome(most - before, MOST, target.neighbour())


def _is_answered(target: Target) -> bool:
    with suppress(OSError):
        return target.health() == 200
    return False


if __name__ == "__main__":
    main(attack)
