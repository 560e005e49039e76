"""Requests of a few bytes, thousands a second, behind one that takes long: none waits in the server's memory."""

import json
import time
from contextlib import ExitStack

from tests.api.http.raw_connection import post
from tests.hostile.target import MIB, Outcome, Target, main

NUM_CONNECTIONS = 8
MOST = 24 * MIB
"""Growth that is no queue: 256 KiB a connection of what the socket gave in one read, and the allocator's own."""
_GET = b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n" * 500


def attack(target: Target) -> Outcome:
    """Send until the sockets take no more, and then for a while longer."""
    target.neighbour()
    before = most = target.memory()
    with ExitStack() as opened:
        raws = [opened.enter_context(target.connect()) for _ in range(NUM_CONNECTIONS)]
        body = json.dumps({"prompt": "abc", "max_tokens": 2_000, "ignore_eos": True}).encode()
        for raw in raws:
            raw.send(post("/v1/completions", body))
        idle = 0
        while idle < 20:
            taken = sum(raw.send_some(_GET) for raw in raws)
            idle = 0 if taken else idle + 1
            most = max(most, target.memory())
            time.sleep(0.01)
        neighbour = target.neighbour()
        most = max(most, target.memory())
    return Outcome(most - before, MOST, neighbour)


if __name__ == "__main__":
    main(attack)
