"""The queue in front of an encoder: which texts share a step, and whose come first."""

from collections import Counter

import pytest

from jserve.protocol import Request, SamplingParams
from jserve.schedule.texts import TextQueue


def _queue() -> TextQueue:
    return TextQueue(lengths=(16, 64, 256), max_model_len=256)


def _add(queue: TextQueue, name: str, length: int, tenant: int = 0, priority: int = 0) -> None:
    request = Request(
        name, [1] * length, SamplingParams(max_tokens=0), priority=priority, pooling="mean", tenant=tenant
    )
    assert queue.add(request) is None


def _step(queue: TextQueue, tokens: int = 256) -> list[str]:
    """The names of the texts of one step, which takes so many padded tokens."""
    waiting = queue.next_length()
    assert waiting is not None
    length, count = waiting
    return [request.request_id for request in queue.take(length, min(count, tokens // length))]


def test_texts_of_one_tenant_are_computed_in_order_of_arrival() -> None:
    queue = _queue()
    for number, length in enumerate((200, 10, 200, 12, 50)):
        _add(queue, str(number), length)
    assert [_step(queue) for _ in range(4)] == [["0"], ["1", "3"], ["2"], ["4"]]
    assert queue.next_length() is None


@pytest.mark.parametrize("length", [5, 60, 250])
def test_a_text_waits_for_no_more_than_a_step_of_another_tenants_flood(length: int) -> None:
    queue = _queue()
    for number in range(500):
        _add(queue, f"flood {number}", 250 if number % 2 else 10, tenant=1)
    for _ in range(7):
        _step(queue)
    _add(queue, "light", length, tenant=2)
    assert "light" in [name for _ in range(2) for name in _step(queue)]


def test_tenants_get_the_same_tokens_whatever_their_sizes() -> None:
    queue = _queue()
    lengths = {1: 250, 2: 10, 3: 60}
    for tenant, length in lengths.items():
        for number in range(20_000 // length):
            _add(queue, f"{tenant} {number}", length, tenant)
    served: Counter[int] = Counter()
    for _ in range(60):
        for name in _step(queue):
            tenant = int(name.split()[0])
            served[tenant] += lengths[tenant]
    assert max(served.values()) - min(served.values()) <= 2 * 256, served


def test_nobody_saves_up_while_it_is_idle() -> None:
    queue = _queue()
    for number in range(200):
        _add(queue, f"1 {number}", 250, tenant=1)
    for _ in range(100):
        _step(queue)
    for number in range(50):
        _add(queue, f"2 {number}", 250, tenant=2)
    assert Counter(_step(queue)[0][0] for _ in range(40)) == {"1": 20, "2": 20}


def test_a_higher_priority_is_served_before_shares() -> None:
    queue = _queue()
    _add(queue, "light", 250, tenant=2)
    for number in range(3):
        _add(queue, f"urgent {number}", 250, tenant=1, priority=-1)
    assert [_step(queue)[0] for _ in range(4)] == ["urgent 0", "urgent 1", "urgent 2", "light"]
