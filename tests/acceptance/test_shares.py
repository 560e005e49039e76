"""Shares of the real engine, over HTTP: by the order in which answers are complete, never by a clock."""

import asyncio

import httpx
import pytest

from tests.acceptance.conftest import LiveServer, StartServer
from tests.acceptance.test_smoke import SMALL

LONG = "It is said of the people of this valley that they keep bees under the roofs of their barns, and " * 8
FLOOD, LONGS = 20, 4


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> LiveServer:
    return start_server(*SMALL, "--kv-cache-memory-bytes", "128MiB", "--api-key", "flood", "light")


class Callers:
    """Sends completions, and notes the order in which their answers are complete."""

    def __init__(self, server: LiveServer, client: httpx.AsyncClient) -> None:
        self._url = f"{server.url}/v1/completions"
        self._client = client
        self.done: list[str] = []
        self.has_begun = asyncio.Event()

    async def send(self, name: str, key: str, prompt: str, max_tokens: int) -> None:
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        answer = await self._client.post(self._url, json=body, headers={"x-api-key": key})
        assert answer.status_code == 200, answer.text
        self.done.append(name)
        if len(self.done) == 2:
            self.has_begun.set()


def test_one_keys_flood_does_not_hold_up_another_key(server: LiveServer) -> None:
    """First come, first served, the light one would be the last."""

    async def run() -> tuple[list[str], int]:
        async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=100)) as client:
            callers = Callers(server, client)
            flood = [asyncio.create_task(callers.send("", "flood", f"{n}. {LONG}", 16)) for n in range(FLOOD)]
            await callers.has_begun.wait()
            before = len(callers.done)
            await callers.send("light", "light", "The capital of France is", 4)
            await asyncio.gather(*flood)
            return callers.done, before

    done, before = asyncio.run(run())
    assert len(done) == FLOOD + 1
    assert done.index("light") - before <= 5, done


def test_a_short_request_passes_long_prompts_of_its_own_key(server: LiveServer) -> None:
    async def run() -> list[str]:
        async with httpx.AsyncClient(timeout=300) as client:
            callers = Callers(server, client)
            longs = [asyncio.create_task(callers.send("", "light", f"{n}! {LONG * 2}", 2)) for n in range(LONGS)]
            await asyncio.sleep(0)  # they are sent first
            await asyncio.gather(*longs, callers.send("short", "light", "2 + 2 =", 2))
            return callers.done

    assert asyncio.run(run()).index("short") <= 1
