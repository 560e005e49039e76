"""Regular expressions of a hundred bytes whose automata are huge: one after the other, each another one."""

import threading

from tests.hostile.target import MIB, Outcome, Target, main

NUM_EACH = 4
MOST = 512 * MIB
"""Two processes that compile, of 150 MiB each with a vocabulary, and what an engine keeps compiled. The sixty grammars
would take gigabytes if each were kept.
"""
PATTERNS = (
    "((a{0,100}){0,100}b{0,%d}){0,30}",
    "([a-z]{0,50}[0-9]{0,50}){0,%d}",
    "(.{0,200}x){0,%d}",
    ".*x.{%d}",
    "(x|y|z)*z(x|y|z){%d}",
    "([^,]{0,30},){%d}",
    r"(\w+\s){0,%d}\w{1,20}",
    r"(\p{L}{1,20} ){0,%d}",
    "(a|aa|aaa|aaaa){0,200}(b|bb){0,%d}",
    "([a-f]{0,9}|[c-z]{0,9}){0,%d}",
    "(.*a.{0,20}){0,%d}b",
    "(([a-z]{1,9}[0-9]{1,9}){1,9}[.]{1,9}){1,%d}",
    r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)[.,]){0,%d}",
    "(((((a?){9}b?){9}c?){9}d?){9}e?){%d}",
    r"(\p{Lu}{0,99}\p{Ll}{0,99}){0,%d}",
)


def attack(target: Target) -> Outcome:
    """Each is refused with the cause, or followed; a neighbour that needs a grammar too gets its own."""
    _ask(target, "warm|up")
    before = most = target.memory_of_all()
    patterns = [pattern % (300 + number) for number in range(NUM_EACH) for pattern in PATTERNS]
    lock = threading.Lock()
    statuses: list[int] = []

    def work() -> None:
        while True:
            with lock:
                if not patterns:
                    return
                pattern = patterns.pop()
            statuses.append(_ask(target, pattern))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    neighbours: set[int] = set()
    while any(worker.is_alive() for worker in workers):
        neighbours.add(_ask(target, "yes|no"))
        most = max(most, target.memory_of_all())
        workers[0].join(0.05)
    assert len(statuses) == NUM_EACH * len(PATTERNS)
    assert set(statuses) <= {200, 400}, f"answered {sorted(set(statuses))}"
    return Outcome(most - before, MOST, max(neighbours | {target.neighbour()}))


def _ask(target: Target, pattern: str) -> int:
    return target.neighbour(body={"prompt": "abc", "max_tokens": 64, "structured_outputs": {"regex": pattern}})


if __name__ == "__main__":
    main(attack)
