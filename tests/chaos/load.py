"""Clients of all APIs. Most wait for their answers; some leave early, read slowly, or never finish what they send."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

CLIENTS = 12
ANSWER_WITHIN_S = 60.0
"""Above this a request counts as lost: it was neither answered nor failed."""
_TEXT = "the quick brown fox "
_MESSAGES = [{"role": "user", "content": _TEXT}]
APIS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": _MESSAGES, "max_tokens": 60, "ignore_eos": True},
    "/v1/completions": {"prompt": _TEXT, "max_tokens": 60, "ignore_eos": True},
    "/v1/responses": {"input": _TEXT, "max_output_tokens": 60, "ignore_eos": True},
    "/v1/messages": {"model": "tiny", "messages": _MESSAGES, "max_tokens": 60},
    "/api/chat": {"model": "tiny", "messages": _MESSAGES, "options": {"num_predict": 60}},
    "/api/generate": {"model": "tiny", "prompt": _TEXT, "raw": True, "options": {"num_predict": 60}},
    "/v1/embeddings": {"input": [_TEXT, _TEXT]},
    "/tokenize": {"prompt": _TEXT},
}
ENDS = ('"finish_reason":"', '"done":true', "message_stop", "response.completed", "response.incomplete", "[DONE]")
"""What a stream that is complete holds."""
FAILURES = ('"error":{', '"error":"', '"type":"error"', "event: error")


@dataclass
class Tally:
    """What became of all requests, by API and outcome."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Requests that were neither answered nor failed, or answered with what is not right."""
    longest_s: float = 0.0
    failed_at: list[float] = field(default_factory=list)
    """When the requests failed that an engine took with it, on the monotonic clock."""

    def add(self, path: str, outcome: str) -> None:
        self.outcomes[path, outcome] += 1


class Load:
    """Clients that send until they are told to stop."""

    def __init__(self, url: str, seed: int, tally: Tally) -> None:
        self._url = url
        self._random = random.Random(seed)
        self._tally = tally
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Let the requests that are open come to their ends, and send no more."""
        self._stopped.set()

    async def run(self) -> None:
        """Send until `stop`."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=CLIENTS)
        http = httpx.AsyncClient(base_url=self._url, timeout=ANSWER_WITHIN_S, limits=limits)
        async with http, asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(self._client(http))

    async def _client(self, http: httpx.AsyncClient) -> None:
        kinds = (self._whole, self._stream, self._stream, self._leave, self._read_slowly, self._half)
        while not self._stopped.is_set():
            path = self._random.choice(list(APIS))
            began = time.monotonic()
            await self._random.choice(kinds)(http, path)
            self._tally.longest_s = max(self._tally.longest_s, time.monotonic() - began)

    async def _whole(self, http: httpx.AsyncClient, path: str) -> None:
        try:
            answer = await http.post(path, json={**APIS[path], "stream": False})
        except httpx.HTTPError as error:
            self._tally.wrong.append(f"{path}: {error!r}")
            return
        self._judge(path, answer.status_code, answer.text, is_stream=False)
        if answer.status_code in (429, 503):
            await asyncio.sleep(0.05)

    async def _stream(self, http: httpx.AsyncClient, path: str, pause_s: float = 0.0) -> None:
        parts = []
        try:
            async with http.stream("POST", path, json={**APIS[path], "stream": True}) as answer:
                async for part in answer.aiter_text():
                    parts.append(part)
                    await asyncio.sleep(pause_s)
        except httpx.HTTPError as error:
            self._tally.wrong.append(f"{path}: {error!r}")
            return
        has_stream = answer.headers.get("content-type", "").startswith(("text/event-stream", "application/x-ndjson"))
        self._judge(path, answer.status_code, "".join(parts), is_stream=has_stream)
        if answer.status_code in (429, 503):
            await asyncio.sleep(0.05)

    async def _read_slowly(self, http: httpx.AsyncClient, path: str) -> None:
        await self._stream(http, path, 0.02)

    async def _leave(self, http: httpx.AsyncClient, path: str) -> None:
        """Go away in the middle of an answer, or before it."""
        with contextlib.suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(self._random.random() * 0.1):
                await self._stream(http, path, 10.0)
        self._tally.add(path, "left")

    async def _half(self, http: httpx.AsyncClient, path: str) -> None:
        """Send half of a request, and go."""
        host, port = self._url.removeprefix("http://").split(":")
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        self._tally.add(path, "half a request")

    def _judge(self, path: str, status: int, text: str, *, is_stream: bool) -> None:
        """Whether an answer is whole and right, or an error that says so."""
        if status == 500 or (is_stream and any(mark in text for mark in FAILURES)):
            self._tally.failed_at.append(time.monotonic())
        if status != 200:
            is_error = '"error"' in text and status in (429, 500, 503)
            self._tally.add(path, str(status)) if is_error else self._tally.wrong.append(
                f"{path}: {status} {text[:200]}"
            )
        elif is_stream and any(mark in text for mark in FAILURES):
            self._tally.add(path, "failed in its stream")
        elif is_stream and not any(mark in text for mark in ENDS):
            self._tally.wrong.append(f"{path}: a stream without an end: ...{text[-200:]}")
        elif path not in ("/tokenize", "/v1/embeddings") and "quick" not in text.replace('"', "") and not is_stream:
            self._tally.wrong.append(f"{path}: {text[:200]}")
        else:
            self._tally.add(path, "answered")
