"""Clients that ask for long answers and read nothing, or leave at once: the neighbour is served all the same."""

import json
from contextlib import ExitStack

from tests.api.http.raw_connection import post
from tests.hostile.target import MIB, Outcome, Target, main

NUM_CLIENTS = 40
MOST = 64 * MIB


def attack(target: Target) -> Outcome:
    """Half of them stay and read nothing, the others close as soon as they have asked."""
    target.neighbour()
    before = most = target.memory()
    body = {"prompt": "abc", "max_tokens": 2_000, "ignore_eos": True, "stream": True}
    with ExitStack() as opened:
        for number in range(NUM_CLIENTS):
            raw = target.connect()
            raw.send(post("/v1/completions", json.dumps(body).encode()))
            if number % 2:
                raw.close()
            else:
                opened.callback(raw.close)
            most = max(most, target.memory())
        neighbour = target.neighbour()
        most = max(most, target.memory())
    return Outcome(most - before, MOST, neighbour)


if __name__ == "__main__":
    main(attack)
