"""Offers to speak another protocol in each of thousands of requests, each of which makes a parser anew."""

from tests.api.http.raw_connection import post
from tests.hostile.target import MIB, Outcome, Target, main

NUM_REQUESTS = 2000
MOST = 16 * MIB
_OFFER = (b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAEAAEAAAAIAAAABAAMAAABk")


def attack(target: Target) -> Outcome:
    """All are answered, in order, as HTTP/1.1."""
    target.neighbour()
    before = target.memory()
    request = post("/tokenize", b'{"prompt": "abc"}', *_OFFER)
    with target.connect() as raw:
        for _ in range(NUM_REQUESTS // 20):
            raw.send(request * 20)
            for _ in range(20):
                status = raw.answer()[0]
                assert status == 200, status
    return Outcome(target.memory() - before, MOST, target.neighbour())


if __name__ == "__main__":
    main(attack)
