"""Sends requests to an OpenAI-compatible server, a fixed number at a time or at Poisson arrivals, and times them.

Every request ends as one `Outcome`, failed or not: nothing is dropped, nothing is tried again.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
from tokenizers import Tokenizer

from jserve.commands.bench.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Target:
    """A server under test. `url` ends before `/v1`; a None in `extra` removes that field from the body."""

    name: str
    url: str
    model: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestStyle:
    """How every request is put, whatever the target."""

    endpoint: str = "completions"
    stream: bool = True
    ignore_eos: bool = True
    temperature: float = 0.0
    keep_alive: bool = True
    timeout_s: float = 600.0
    api_key: str | None = None


@dataclass(slots=True)
class Outcome:
    """What became of one request. Times are `time.perf_counter()` seconds; 0 where it never came so far."""

    asked_tokens: int
    due: float
    sent: float = 0.0
    text_times: list[float] = field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Prompt tokens that the server had in its prefix cache; None where it does not say."""
    output_tokens: int = 0
    counted_by: str = "none"
    text: str = ""
    finish_reason: str | None = None
    error: str | None = None


class Delta(msgspec.Struct):
    """The part of a chat chunk or answer that carries text."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct):
    """A choice of any of the four answer shapes: chat or completion, streamed or whole."""

    text: str | None = None
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None

    def content(self) -> str:
        """The text it brings, thinking included."""
        said = self.delta or self.message
        if said is None:
            return self.text or ""
        return (said.reasoning_content or said.reasoning or "") + (said.content or "")


class PromptDetails(msgspec.Struct):
    """What a server tells of a prompt's tokens."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """The server's own token counts."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Answer(msgspec.Struct):
    """A streamed event or a whole answer, without the fields that nobody here reads."""

    choices: list[Choice] = msgspec.field(default_factory=list)
    usage: Usage | None = None
    error: Any = None


def request_body(prompt: Prompt, target: Target, style: RequestStyle) -> dict[str, Any]:
    """The JSON body; the target's `extra` comes last, and a None in it takes the field out."""
    body: dict[str, Any] = {
        "model": target.model,
        "max_tokens": prompt.output_len,
        "temperature": style.temperature,
        "stream": style.stream,
    }
    if style.endpoint == "chat":
        body["messages"] = [*prompt.history, {"role": "user", "content": prompt.text}]
    else:
        body["prompt"] = prompt.text
    if style.ignore_eos:
        body["ignore_eos"] = True
    if style.stream:
        body["stream_options"] = {"include_usage": True}
    return {key: value for key, value in (body | dict(target.extra)).items() if value is not None}


def arrival_offsets(rate: float, count: int, seed: str, burstiness: float = 1.0) -> list[float]:
    """Seconds from the start at which requests arrive, `rate` a second. Gaps have a gamma distribution whose shape is
    `burstiness`: 1 is a Poisson process.
    """
    rng = random.Random(seed)
    return list(itertools.accumulate(rng.gammavariate(burstiness, 1 / (rate * burstiness)) for _ in range(count)))


class LoadGenerator:
    """One HTTP client with one style of request; `on_answer` is called for each that is over. Use as `async with`."""

    def __init__(
        self, style: RequestStyle, tokenizer: Tokenizer | None = None, on_answer: Callable[[], object] = lambda: None
    ) -> None:
        self._style = style
        self._on_answer = on_answer
        self._tokenizer = tokenizer
        self._path = "/v1/chat/completions" if style.endpoint == "chat" else "/v1/completions"

    async def __aenter__(self) -> "LoadGenerator":
        headers = {"Authorization": f"Bearer {self._style.api_key}"} if self._style.api_key else None
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=not self._style.keep_alive),
            timeout=aiohttp.ClientTimeout(total=self._style.timeout_s),
            headers=headers,
            auto_decompress=False,
            read_bufsize=1 << 20,
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._http.close()

    async def closed_loop(self, target: Target, prompts: Sequence[Prompt], concurrency: int) -> list[Outcome]:
        """Keep `concurrency` requests in flight until all prompts are answered."""
        waiting = iter(prompts)
        outcomes: list[Outcome] = []

        async def worker() -> None:
            for prompt in waiting:
                outcomes.append(await self.send(target, prompt, time.perf_counter()))

        await asyncio.gather(*(worker() for _ in range(min(concurrency, len(prompts)))))
        return outcomes

    async def open_loop(
        self, target: Target, prompts: Sequence[Prompt], offsets: Sequence[float], most: int | None = None
    ) -> list[Outcome]:
        """Send each prompt at its time, whether or not earlier ones are answered, and no more than `most` at once."""
        start = time.perf_counter()
        places = contextlib.nullcontext() if most is None else asyncio.Semaphore(most)

        async def send_at(prompt: Prompt, due: float) -> Outcome:
            await asyncio.sleep(due - time.perf_counter())
            async with places:
                return await self.send(target, prompt, due if most is None else time.perf_counter())

        due_times = (start + offset for offset in offsets)
        return await asyncio.gather(*map(send_at, prompts, due_times))

    async def send(self, target: Target, prompt: Prompt, due: float) -> Outcome:
        """Send one request and read its answer to the end; a failure is in the outcome, never raised."""
        outcome = Outcome(asked_tokens=prompt.output_len, due=due)
        body = msgspec.json.encode(request_body(prompt, target, self._style))
        headers = {"Content-Type": "application/json"}
        outcome.sent = time.perf_counter()
        try:
            async with self._http.post(target.url + self._path, data=body, headers=headers) as response:
                if response.status != 200:
                    detail = (await response.text())[:300]
                    outcome.error = f"HTTP {response.status}: {detail}"
                elif self._style.stream:
                    await read_stream(response.content, outcome)
                else:
                    take_event(await response.read(), time.perf_counter(), outcome)
        except TimeoutError:
            outcome.error = f"no complete answer within {self._style.timeout_s:g} s"
        except (aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.ended = outcome.ended or time.perf_counter()
        self._count(outcome)
        self._on_answer()
        return outcome

    def _count(self, outcome: Outcome) -> None:
        """Fill in the number of output tokens if the server did not, and say by what it was counted."""
        if outcome.error or outcome.counted_by == "usage":
            return
        if self._tokenizer is not None:
            ids = self._tokenizer.encode(outcome.text, add_special_tokens=False).ids
            outcome.output_tokens, outcome.counted_by = len(ids), "tokenizer"
        elif self._style.stream:
            outcome.output_tokens, outcome.counted_by = len(outcome.text_times), "events"
        else:
            outcome.error = "the answer has no `usage`; give --tokenizer PATH to count its tokens"


async def read_stream(content: aiohttp.StreamReader, outcome: Outcome) -> None:
    """Read server-sent events to the end, stamping each with the time its bytes came."""
    rest = b""
    done = False
    async for data in content.iter_any():
        now = time.perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            payload = line[5:].strip()
            if payload == b"[DONE]":
                done = True
            elif payload:
                take_event(payload, now, outcome)
    if not done and outcome.finish_reason is None and outcome.error is None:
        outcome.error = "the stream ended without a finish_reason or [DONE]"


_decode = msgspec.json.Decoder(Answer).decode


def take_event(payload: bytes, now: float, outcome: Outcome) -> None:
    """Add one event, or a whole answer, to the outcome."""
    answer = _decode(payload)
    if answer.error is not None:
        outcome.error = f"the server sent an error: {answer.error}"[:300]
    for choice in answer.choices:
        outcome.ended = now
        outcome.finish_reason = choice.finish_reason or outcome.finish_reason
        if text := choice.content():
            outcome.text_times.append(now)
            outcome.text += text
    if answer.usage is not None and answer.usage.completion_tokens is not None:
        outcome.prompt_tokens = answer.usage.prompt_tokens
        details = answer.usage.prompt_tokens_details
        outcome.cached_tokens = details.cached_tokens if details else None
        outcome.output_tokens, outcome.counted_by = answer.usage.completion_tokens, "usage"
