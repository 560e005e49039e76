"""A generation in the shapes of /api/chat and /api/generate: lines of JSON, or one object.

The last line adds no text: it says why the answer ended and how long everything took.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jserve.api.errors import Dialect, ErrorAnswer
from jserve.api.generation.choice import ChoiceUpdate
from jserve.api.generation.generation import Generation
from jserve.api.generation.transcript import Transcript
from jserve.api.json_writer import HOLE, encode, encode_around_holes, list_in_pieces
from jserve.api.model.served_model import ServedModel
from jserve.api.ollama.timestamps import nanoseconds, now
from jserve.api.ollama.tool_calls import ToolCallGatherer, render_tool_calls
from jserve.api.openai.logprobs import LogprobsFormatter
from jserve.protocol import TokenLogprobs


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """How an endpoint's answer looks.

    `model_name` is the client's own. With `is_chat` the text is a message's content, otherwise the `response`.
    `returns_context` adds all token ids to the end.
    """

    model_name: str
    is_chat: bool
    returns_context: bool = False

    def fields(self, text: str, thinking: str = "", calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """The object's beginning, made now."""
        more: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if calls:
            more["tool_calls"] = calls
        stamp = {"model": self.model_name, "created_at": now()}
        if self.is_chat:
            return stamp | {"message": {"role": "assistant", "content": text, **more}}
        return stamp | {"response": text, **more}


class OllamaAnswer:
    """Renders the one choice of a request. `received` is `time.time()` when the request came."""

    stream_type = "application/x-ndjson"

    def __init__(self, shape: AnswerShape, model: ServedModel, generation: Generation, received: float) -> None:
        self._shape = shape
        self._generation = generation
        self._received = received
        self._formatter = LogprobsFormatter(model.tokenizer)
        self._calls = ToolCallGatherer()
        self._token_ids: list[int] = []
        self._done_reason = "stop"
        self._transcript = Transcript(0)

    def chunk(self, updates: list[ChoiceUpdate]) -> bytes:
        """One line per update that has something to say."""
        return b"".join(self._line(update) for update in updates)

    def last_chunk(self) -> bytes:
        """The line with `done`."""
        return encode(self._shape.fields("") | self._end()) + b"\n"

    def error(self, problem: ErrorAnswer) -> bytes:
        """The error as the last line."""
        return problem.body(Dialect.OLLAMA) + b"\n"

    def collect(self, updates: list[ChoiceUpdate]) -> None:
        """Keep what `updates` add."""
        for update in updates:
            self._transcript.add(update)

    def whole(self) -> Iterator[bytes]:
        """The object that is not streamed."""
        done = self._transcript
        self._token_ids = done.token_ids.tolist()
        self._take_reason(done.finish_reason)
        fields = self._shape.fields(done.text, done.reasoning, render_tool_calls(done.tool_calls))
        logprobs = {} if done.logprobs is None else {"logprobs": [HOLE]}
        before, *behind = encode_around_holes(fields | logprobs | self._end())
        yield before
        if done.logprobs is not None:
            yield from list_in_pieces(self._formatter.chat_batches(done.token_ids, done.logprobs))
        yield from behind

    def _line(self, update: ChoiceUpdate) -> bytes:
        self._token_ids += update.token_ids
        self._take_reason(update.finish_reason)
        self._calls.push(update.tool_calls)
        calls = self._calls.take(is_last=update.finish_reason is not None)
        if not (update.text or update.reasoning or calls or update.logprobs):
            return b""
        fields = self._shape.fields(update.text, update.reasoning, calls)
        return encode(fields | {"done": False} | self._logprobs(update.token_ids, update.logprobs)) + b"\n"

    def _take_reason(self, finish_reason: str | None) -> None:
        if finish_reason is not None:
            self._done_reason = "length" if finish_reason == "length" else "stop"

    def _logprobs(self, token_ids: list[int], logprobs: list[TokenLogprobs] | None) -> dict[str, Any]:
        if logprobs is None:
            return {}
        return {"logprobs": self._formatter.chat(token_ids, logprobs).content}

    def _end(self) -> dict[str, Any]:
        """Why it ended, and the life of the request.

        `load_duration` is what passed before the model took the request up: template, tokenizer and queue.
        """
        [life] = self._generation.lives
        end: dict[str, Any] = {
            "done": True,
            "done_reason": self._done_reason,
            "total_duration": nanoseconds(self._received, life.ended or time.time()),
            "load_duration": nanoseconds(self._received, life.scheduled),
            "prompt_eval_count": life.num_prompt,
            "prompt_eval_cached_count": life.num_cached,
            "prompt_eval_duration": nanoseconds(life.scheduled, life.first_token),
            "eval_count": life.num_output,
            "eval_duration": nanoseconds(life.first_token, life.last_token),
        }
        if self._shape.returns_context:
            [prompt] = self._generation.request.prompts
            end["context"] = [*prompt.token_ids, *self._token_ids]
        return end


def without_prompt(shape: AnswerShape, *, unloads: bool) -> bytes:
    """The answer to a request without a prompt, which asks Ollama to load or unload the model.

    The model is always loaded. "unload" is what clients expect to read; nothing is unloaded.
    """
    reason = "unload" if unloads else "load"
    return encode(shape.fields("") | {"done": True, "done_reason": reason})
