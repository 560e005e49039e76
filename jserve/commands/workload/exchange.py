"""Watches the bytes of one connection in both directions and reports each request with its answer. It changes nothing.

What it cannot read, an upgraded connection or a message that is no HTTP, it stops looking at; the bytes go on.
"""

import hmac
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from jserve.api.telemetry.workload import RecordedRequest
from jserve.commands.workload.answer import AnswerFacts
from jserve.commands.workload.prompt import PromptFacts, read_prompt

_MOST_BODY = 64 << 20
"""Bytes of a request's body that are looked at."""
GENERATING = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/api/chat",
    "/api/generate", "/api/embed", "/api/embeddings", "/completion", "/infill",
)  # fmt: skip
"""What costs a model work; probes and lists of models are not part of a workload."""


@dataclass(slots=True)
class _Open:
    """A request whose answer is not complete."""

    facts: PromptFacts
    endpoint: str
    came_at: float
    method: str
    user: str
    first_at: float | None = None


class Exchange:
    """`data_from_client` and `data_from_server` take what passes by; `report` gets each request when it is over."""

    def __init__(self, peer: str, salt: bytes, began: float, report: Callable[[RecordedRequest], None]) -> None:
        self._peer, self._salt, self._began, self._report = peer, salt, began, report
        self._open: deque[_Open | None] = deque()
        self._is_blind = False
        self._requests = httptools.HttpRequestParser(_RequestReader(self))
        self._answers = httptools.HttpResponseParser(_AnswerReader(self))

    @property
    def is_waiting(self) -> bool:
        """Whether a request is complete, or nothing is known of what the client sends."""
        return bool(self._open) or self._is_blind

    def data_from_client(self, data: bytes) -> None:
        """Look at bytes of requests."""
        self._look(self._requests, data)

    def data_from_server(self, data: bytes) -> None:
        """Look at bytes of answers."""
        self._look(self._answers, data)

    def close(self) -> None:
        """The connection is over: requests without a complete answer are reported as such."""
        for request in self._open:
            if request is not None:
                self.finish(request, 0, None)
        self._open.clear()
        self._is_blind = True

    def _look(self, parser: Any, data: bytes) -> None:
        if self._is_blind:
            return
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._is_blind = True

    def begin(self, method: str, url: bytes, headers: dict[bytes, bytes], body: bytes) -> None:
        """A request is complete."""
        path = urlsplit(url.decode("latin-1")).path
        endpoint = next((known for known in GENERATING if path.endswith(known)), None)
        if endpoint is None or method != "POST":
            self._open.append(None)
            self._is_blind = self._is_blind or method in ("HEAD", "CONNECT")  # their answers have no body to wait for
            return
        try:
            fields = msgspec.json.decode(body)
        except msgspec.DecodeError:
            fields = {}
        facts = read_prompt(fields if isinstance(fields, dict) else {}, self._salt)
        key = headers.get(b"authorization") or headers.get(b"x-api-key") or b""
        user = facts.user or key.decode("latin-1") or self._peer
        self._open.append(_Open(facts, endpoint, time.monotonic(), method, user))

    def current(self) -> _Open | None:
        """The request that the server is answering."""
        return self._open[0] if self._open else None

    def answered(self, status: int, answer: AnswerFacts) -> None:
        """An answer is complete."""
        if self._open and (request := self._open.popleft()) is not None:
            self.finish(request, status, answer)

    def finish(self, request: _Open, status: int, answer: AnswerFacts | None) -> None:
        """Report a request; `answer` None where none was complete."""
        now, facts = time.monotonic(), request.facts
        counted = answer is not None and answer.input_length is not None
        num_input = (
            answer.input_length if answer is not None and answer.input_length is not None else facts.guessed_tokens
        )
        num_output = 0
        if answer is not None:
            num_output = answer.guessed_tokens if answer.output_length is None else answer.output_length
        session = hmac.digest(self._salt, request.user.encode("utf-8", "surrogatepass"), sha256).hex()[:16]
        self._report(
            RecordedRequest(
                timestamp=round(1000 * (request.came_at - self._began), 3),
                input_length=num_input,
                output_length=num_output if status and status < 400 else 0,
                hash_ids=facts.block_ids(num_input),
                session_id=session,
                model=facts.model,
                endpoint=request.endpoint,
                stream=request.first_at is not None or facts.stream,
                status=status,
                ttft_ms=None if request.first_at is None else round(1000 * (request.first_at - request.came_at), 3),
                e2e_ms=None if answer is None else round(1000 * (now - request.came_at), 3),
                max_tokens=facts.max_tokens,
                tools=facts.tools,
                images=facts.images,
                estimated=not counted,
            )
        )


class _RequestReader:
    """httptools' callbacks for requests."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._reset()

    def _reset(self) -> None:
        self._url, self._headers, self._body = b"", dict[bytes, bytes](), bytearray()

    def on_message_begin(self) -> None:
        self._reset()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        if len(self._body) + len(body) <= _MOST_BODY:
            self._body += body

    def on_message_complete(self) -> None:
        method = self._exchange._requests.get_method().decode("latin-1")
        self._exchange.begin(method, self._url, self._headers, bytes(self._body))
        self._reset()


class _AnswerReader:
    """httptools' callbacks for answers."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._type = ""
        self._facts = AnswerFacts("")

    def on_message_begin(self) -> None:
        self._type = ""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._type = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._facts = AnswerFacts(self._type)

    def on_body(self, body: bytes) -> None:
        request = self._exchange.current()
        if request is not None and self._facts.feed(body):
            request.first_at = time.monotonic()

    def on_message_complete(self) -> None:
        status = self._exchange._answers.get_status_code()
        if status >= 200:  # 100 Continue comes before the answer
            self._facts.end()
            self._exchange.answered(status, self._facts)
