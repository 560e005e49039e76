"""Seeds of choices, ids of engine requests, and the lines that a request leaves in the log."""

import asyncio
import logging
import re

import pytest

from jserve.api.generation.generation import choice_seed
from jserve.api.supervisor.inbox import Inbox
from jserve.errors import EngineFailedError
from jserve.protocol import TokenDelta
from tests.api.live_server import LiveServer
from tests.patience import wait_until


def test_seeds_of_choices_are_distinct_int64_and_reproducible() -> None:
    for seed in (0, 7, -1, 2**63 - 1, -(2**63)):
        seeds = [choice_seed(seed, k) for k in range(1000)]
        assert seeds[0] == seed
        assert len(set(seeds)) == 1000
        assert all(-(2**63) <= value < 2**63 for value in seeds)
        assert seeds == [choice_seed(seed, k) for k in range(1000)]


def test_without_a_seed_every_choice_draws_its_own() -> None:
    assert len({choice_seed(None, 0) for _ in range(100)}) == 100


def test_inbox_wakes_its_listener_once_for_all_that_has_arrived() -> None:
    async def listen() -> list[list[list[int]]]:
        inbox = Inbox(("a", "b"))
        heard: list[list[list[int]]] = []
        inbox.listen(lambda: heard.append([delta.token_ids for delta in inbox.drain()]))
        assert inbox.put(TokenDelta("a", [1]))
        assert not inbox.put(TokenDelta("b", [2]))
        inbox.wake()
        assert inbox.put(TokenDelta("a", [3]))
        inbox.wake()
        return heard

    assert asyncio.run(listen()) == [[[1], [2]], [[3]]]


def test_a_listener_is_told_of_tokens_and_then_of_the_error_that_came_with_them() -> None:
    async def listen() -> list[object]:
        inbox = Inbox(("a",))
        heard: list[object] = []

        def take() -> None:
            try:
                heard.extend(delta.token_ids for delta in inbox.drain())
            except EngineFailedError as error:
                heard.append(error)

        inbox.put(TokenDelta("a", [1]))
        inbox.fail(EngineFailedError("gone"))
        inbox.listen(take)
        inbox.wake()
        for _ in range(3):
            await asyncio.sleep(0)
        return heard

    tokens, error = asyncio.run(listen())[:2]
    assert tokens == [1]
    assert isinstance(error, EngineFailedError)


def test_a_request_leaves_one_line_at_its_end(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="jserve"):
        server.complete("abc", max_tokens=4, request_id="logged")
        wait_until(lambda: "logged" in caplog.text)
    lines = [record.getMessage() for record in caplog.records if "logged" in record.getMessage()]
    assert len(lines) == 1
    assert re.search(r"finished: reason=length prompt=3 cached=3 output=4 first_token=\d+\.", lines[0])
