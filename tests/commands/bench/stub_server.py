"""A small OpenAI-compatible server whose timings and failures are known."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StubServer:
    """Answers with `max_tokens` words, one every `gap_s`; misbehaves as its fields say."""

    gap_s: float = 0.0
    usage: bool = True
    fail_every: int = 0  # every n-th request gets HTTP 500
    truncate: bool = False
    loading: int = 0  # so many requests get HTTP 503 first
    alone: int = 0  # so many requests are answered at once; those after them wait until `together` have been in flight
    together: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    url: str = ""

    async def serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if head.startswith("get /v1/models"):
                    self.respond(writer, 200, json.dumps({"data": [{"id": "stub"}]}))
                    continue
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.bodies.append(body)
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                while len(self.bodies) > self.alone and self.most_in_flight < self.together:
                    await asyncio.sleep(0.001)
                await self.answer(writer, body, chat="chat" in head.split()[1])
                self.in_flight -= 1
                if self.truncate:
                    break
        writer.close()

    async def answer(self, writer: asyncio.StreamWriter, body: dict[str, Any], chat: bool) -> None:
        if self.fail_every and len(self.bodies) % self.fail_every == 0:
            self.respond(writer, 500, "out of luck")
            return
        if len(self.bodies) <= self.loading:
            self.respond(writer, 503, "loading weights")
            return
        count = body["max_tokens"]
        usage = {"prompt_tokens": 7, "completion_tokens": count}
        if not body.get("stream"):
            choice = {"text": "word " * count, "finish_reason": "length"}
            self.respond(writer, 200, json.dumps({"choices": [choice]} | ({"usage": usage} if self.usage else {})))
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        if chat:
            self.event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for _ in range(count):
            await asyncio.sleep(self.gap_s)
            self.event(writer, {"choices": [{"delta": {"content": "w "}} if chat else {"text": "w "}]})
        if not self.truncate:
            self.event(writer, {"choices": [{"text": "", "finish_reason": "length"}]})
            if self.usage:
                self.event(writer, {"choices": [], "usage": usage})
            self.chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    def event(self, writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
        self.chunk(writer, b"data: " + json.dumps(content).encode() + b"\n\n")

    def chunk(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def respond(self, writer: asyncio.StreamWriter, status: int, text: str) -> None:
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())


@contextlib.contextmanager
def running(stub: StubServer) -> Iterator[StubServer]:
    """The stub on a free port, in a thread of its own."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(stub.serve_connection, "127.0.0.1", 0))
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield stub
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
