"""A generation in the shape of the Responses API, streamed or whole."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET
from pydantic_core import to_json

from jserve.api.errors import ErrorAnswer
from jserve.api.generation.blocks import Block, BlockEvent, BlockRow, Closed, Grown, Opened
from jserve.api.generation.choice import ChoiceUpdate
from jserve.api.generation.generation import Generation
from jserve.api.http.answers import EVENT_STREAM
from jserve.api.json_writer import encode
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.logprobs import LogprobsFormatter
from jserve.api.openai.responses_api import shapes
from jserve.api.openai.responses_api.body import ResponsesBody
from jserve.api.openai.responses_api.tools import OfferedTools
from jserve.api.openai.shapes import TokenLogprob

Keep = Callable[[shapes.ResponseObject], None]

_ID_PREFIXES = {"reasoning": "rs", "text": "msg", "tool_call": "fc"}
_EMPTY_TOOL = {"description": None, "parameters": None, "strict": None}


class ResponsesAnswer:
    """Renders the one choice of a request. Each block of it is an item of the output."""

    stream_type = EVENT_STREAM

    def __init__(
        self, body: ResponsesBody, model: ServedModel, generation: Generation, keep: Keep | None = None
    ) -> None:
        """`keep` is given the finished response."""
        self._keep = keep
        self._body = body
        self._model = model
        self._generation = generation
        self._id = generation.request.public_id
        self._created = int(time.time())
        self._formatter = LogprobsFormatter(model.tokenizer)
        self._row = BlockRow()
        self._logprobs: defaultdict[int, list[bytes]] = defaultdict(list)
        """By block: JSON of the logprobs of its tokens."""
        self._offered = OfferedTools.of(body.tools)
        self._num_events = 0

    def chunk(self, updates: list[ChoiceUpdate]) -> bytes | Iterator[bytes]:
        """The events for what `updates` add; the response is announced before the first."""
        events = self._chunk(updates)
        repeats_logprobs = bool(self._logprobs) and any(update.finish_reason is not None for update in updates)
        return events if repeats_logprobs else b"".join(events)

    def last_chunk(self) -> bytes:
        """The finished response."""
        response = self._response()
        number = self._next_number()
        if response.status == "completed":
            return shapes.named_event(shapes.ResponseCompleted(sequence_number=number, response=response))
        return shapes.named_event(shapes.ResponseIncomplete(sequence_number=number, response=response))

    def error(self, problem: ErrorAnswer) -> bytes:
        """The error, and the response as failed; clients want it announced even so."""
        begun = b"".join(self._begin())
        event = shapes.ErrorEvent(
            sequence_number=self._next_number(),
            code=problem.code or "server_error",
            message=problem.message,
            param=problem.param,
        )
        response = self.describe("failed", error=shapes.Failure(problem.message))
        failed = shapes.ResponseFailed(sequence_number=self._next_number(), response=response)
        return begun + shapes.named_event(event) + shapes.named_event(failed)

    def collect(self, updates: list[ChoiceUpdate]) -> None:
        """Keep what `updates` add."""
        for update in updates:
            for event in self._row.push(update):
                if isinstance(event, Grown):
                    self._format_logprobs(event)

    def finished(self) -> shapes.ResponseObject:
        """The finished response, which is kept."""
        return self._response()

    def whole(self) -> Iterator[bytes]:
        """The response. Its logprobs were formatted as they came, so no more than copying is left to do."""
        yield encode(self._response())

    def _format_logprobs(self, event: Grown) -> list[TokenLogprob]:
        """The logprobs of an event, which are also kept for the part that they belong to."""
        formatted = [*self._formatter.chat_entries(event.token_ids, event.logprobs)]
        if formatted:
            self._logprobs[event.block.index].append(encode(formatted)[1:-1])
        return formatted

    def _next_number(self) -> int:
        self._num_events += 1
        return self._num_events - 1

    def _begin(self) -> Iterator[bytes]:
        if self._num_events == 0:
            begun = self.describe("in_progress")
            yield shapes.named_event(shapes.ResponseCreated(sequence_number=self._next_number(), response=begun))
            yield shapes.named_event(shapes.ResponseInProgress(sequence_number=self._next_number(), response=begun))

    def _chunk(self, updates: list[ChoiceUpdate]) -> Iterator[bytes]:
        yield from self._begin()
        for update in updates:
            for event in self._row.push(update):
                for shape in self._events(event):
                    yield shapes.named_event(shape)

    def _events(self, event: BlockEvent) -> Iterator[shapes.Event]:
        match event:
            case Opened(block):
                yield from self._opened(block)
            case Grown(block):
                yield self._grown(block, event)
            case Closed(block):
                yield from self._closed(block)

    def _opened(self, block: Block) -> Iterator[shapes.Event]:
        empty = Block(block.index, block.kind, call_id=block.call_id, name=block.name)
        yield shapes.OutputItemAdded(
            sequence_number=self._next_number(), output_index=block.index, item=self._item(empty, "in_progress")
        )
        if block.kind != "tool_call":
            yield shapes.ContentPartAdded(
                sequence_number=self._next_number(),
                item_id=self._item_id(block),
                output_index=block.index,
                part=self._part(empty),
            )

    def _grown(self, block: Block, event: Grown) -> shapes.Event:
        number, item_id = self._next_number(), self._item_id(block)
        if block.kind == "tool_call":
            return shapes.FunctionCallArgumentsDelta(
                sequence_number=number, item_id=item_id, output_index=block.index, delta=event.text
            )
        if block.kind == "reasoning":
            return shapes.ReasoningTextDelta(
                sequence_number=number, item_id=item_id, output_index=block.index, delta=event.text
            )
        return shapes.OutputTextDelta(
            sequence_number=number,
            item_id=item_id,
            output_index=block.index,
            delta=event.text,
            logprobs=self._format_logprobs(event),
        )

    def _closed(self, block: Block) -> Iterator[shapes.Event]:
        where: dict[str, Any] = {"item_id": self._item_id(block), "output_index": block.index}
        part = self._part(block)
        if block.kind == "tool_call":
            _, name = self._offered.origin(block.name)
            yield shapes.FunctionCallArgumentsDone(
                sequence_number=self._next_number(), name=name, arguments=block.text, **where
            )
        elif isinstance(part, shapes.OutputText):
            yield shapes.OutputTextDone(
                sequence_number=self._next_number(), text=part.text, logprobs=part.logprobs, **where
            )
        else:
            yield shapes.ReasoningTextDone(sequence_number=self._next_number(), text=part.text, **where)
        if block.kind != "tool_call":
            yield shapes.ContentPartDone(sequence_number=self._next_number(), part=part, **where)
        yield shapes.OutputItemDone(
            sequence_number=self._next_number(), output_index=block.index, item=self._item(block, self._status(block))
        )

    def _status(self, block: Block) -> str:
        is_cut = self._row.finish_reason == "length" and block is self._row.blocks[-1]
        return "incomplete" if is_cut else "completed"

    def _item_id(self, block: Block) -> str:
        return f"{_ID_PREFIXES[block.kind]}_{self._id.removeprefix('resp_')}_{block.index}"

    def _part(self, block: Block) -> shapes.Part:
        if block.kind == "reasoning":
            return shapes.ReasoningText(block.text)
        return shapes.OutputText(block.text, msgspec.Raw(b"[" + b",".join(self._logprobs[block.index]) + b"]"))

    def _item(self, block: Block, status: str) -> shapes.Item:
        item_id, has_begun = self._item_id(block), status != "in_progress"
        if block.kind == "tool_call":
            namespace, name = self._offered.origin(block.name)
            return shapes.FunctionCallItem(
                id=item_id,
                status=status,
                call_id=block.call_id,
                name=name,
                arguments=block.text,
                namespace=namespace or msgspec.UNSET,
            )
        part = self._part(block)
        if isinstance(part, shapes.OutputText):
            return shapes.MessageItem(id=item_id, status=status, content=[part] if has_begun else [])
        return shapes.ReasoningItem(id=item_id, status=status, content=[part] if has_begun else [])

    def _response(self) -> shapes.ResponseObject:
        """The finished response."""
        output = [self._item(block, self._status(block)) for block in self._row.blocks]
        usage = self._usage()
        if self._row.finish_reason == "length":
            cut = {"reason": "max_output_tokens"}
            response = self.describe("incomplete", incomplete_details=cut, output=output, usage=usage)
        else:
            response = self.describe("completed", completed_at=int(time.time()), output=output, usage=usage)
        if self._keep is not None:
            self._keep(response)
        return response

    def _usage(self) -> shapes.ResponseUsage:
        usage = self._generation.usage(with_details=True)
        details, thought = usage.prompt_tokens_details, usage.completion_tokens_details
        return shapes.ResponseUsage(
            usage.prompt_tokens,
            shapes.InputTokensDetails(details.cached_tokens if details else 0),
            usage.completion_tokens,
            shapes.OutputTokensDetails(thought.reasoning_tokens if thought else 0),
            usage.total_tokens,
        )

    def describe(self, status: str, **changing: Any) -> shapes.ResponseObject:
        """The response with the request's fields, as they were understood."""
        body, sampling = self._body, self._generation.request.sampling
        return shapes.ResponseObject(
            id=self._id,
            created_at=self._created,
            status=status,
            model=self._model.name,
            background=bool(body.background),
            previous_response_id=body.previous_response_id,
            store=body.store is not False,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            max_tool_calls=body.max_tool_calls,
            metadata=body.metadata or {},
            parallel_tool_calls=body.parallel_tool_calls is not False,
            prompt_cache_key=body.prompt_cache_key,
            reasoning=_reasoning(body),
            safety_identifier=body.safety_identifier,
            temperature=sampling.temperature,
            text=_echo(_text(body)),
            tool_choice=_echo(body.tool_choice or "auto"),
            tools=_echo([_EMPTY_TOOL | tool if tool["type"] == "function" else tool for tool in body.tools or ()]),
            top_logprobs=body.top_logprobs or 0,
            top_p=sampling.top_p,
            truncation=body.truncation or "disabled",
            user=UNSET if body.user is None else body.user,
            **changing,
        )


def _echo(value: Any) -> msgspec.Raw:
    """What the client wrote, as JSON. Its numbers may be of any size, which msgspec does not write."""
    return msgspec.Raw(to_json(value))


def _reasoning(body: ResponsesBody) -> dict[str, str | None]:
    reasoning = body.reasoning
    return {"effort": reasoning.effort if reasoning else None, "summary": reasoning.summary if reasoning else None}


def _text(body: ResponsesBody) -> dict[str, Any]:
    verbosity = (body.text.verbosity if body.text is not None else None) or "medium"
    if body.text is None or body.text.format is None:
        return {"format": {"type": "text"}, "verbosity": verbosity}
    return {"format": body.text.format.model_dump(by_alias=True, exclude_none=True), "verbosity": verbosity}
