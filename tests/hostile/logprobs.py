"""A request of a hundred bytes that asks for millions of logprobs."""

from tests.hostile.target import MIB, Outcome, Target, main

MOST = 64 * MIB
BODIES = (
    {"prompt": "abc", "n": 2048, "logprobs": 5, "max_tokens": 2_000, "temperature": 1, "ignore_eos": True},
    {"prompt": ["abc"] * 1000, "logprobs": 5, "max_tokens": 2_000, "ignore_eos": True},
)


def attack(target: Target) -> Outcome:
    """Each is refused, before anything of it is kept."""
    target.neighbour()
    before = target.memory()
    for body in BODIES:
        status = target.neighbour(body=body)
        assert status == 400, f"{body} was answered {status}"
    return Outcome(target.memory() - before, MOST, target.neighbour())


if __name__ == "__main__":
    main(attack)
