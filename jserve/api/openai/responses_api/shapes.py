"""The response object, its items, and the events of its stream, as msgspec structs."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from jserve.api.json_writer import encode
from jserve.api.openai.shapes import TokenLogprob


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    """The content of a reasoning item."""

    text: str


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """The content of a message."""

    text: str
    logprobs: msgspec.Raw
    """A list of `TokenLogprob`, which may be long: it is encoded as it grows."""
    annotations: list[Any] = []


Part = ReasoningText | OutputText


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model thought. It is shown as it is, so there is no summary and nothing encrypted."""

    id: str
    status: str
    summary: list[Any] = []
    content: list[ReasoningText]
    encrypted_content: None = None


class MessageItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """What the model said."""

    id: str
    status: str
    role: str = "assistant"
    content: list[OutputText]


class FunctionCallItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A function that the model calls. `arguments` is a JSON object as text."""

    id: str
    status: str
    call_id: str
    name: str
    arguments: str
    namespace: str | msgspec.UnsetType = msgspec.UNSET
    """Where the function was offered in one."""


Item = ReasoningItem | MessageItem | FunctionCallItem


class InputTokensDetails(msgspec.Struct, frozen=True):
    """Where input tokens came from."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """What output tokens were spent on."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Failure(msgspec.Struct, frozen=True):
    """Why a response failed."""

    message: str
    code: str = "server_error"


class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """The response. Fields of the request come back as they were understood."""

    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None = None
    status: str
    error: Failure | None = None
    incomplete_details: dict[str, str] | None = None
    model: str
    output: list[Item] = []
    usage: ResponseUsage | UnsetType = UNSET
    background: bool
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: str = "default"
    store: bool
    temperature: float
    text: msgspec.Raw
    tool_choice: msgspec.Raw
    tools: msgspec.Raw
    top_logprobs: int
    top_p: float
    truncation: str
    user: str | UnsetType


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    sequence_number: int


class _OfResponse(_Event, frozen=True, kw_only=True):
    response: ResponseObject


class ResponseCreated(_OfResponse, frozen=True, tag="response.created"):
    """The first event."""


class ResponseInProgress(_OfResponse, frozen=True, tag="response.in_progress"):
    """The second event."""


class ResponseCompleted(_OfResponse, frozen=True, tag="response.completed"):
    """The last event of a response that came to its end."""


class ResponseIncomplete(_OfResponse, frozen=True, tag="response.incomplete"):
    """The last event of a response that was cut off by a limit."""


class ResponseFailed(_OfResponse, frozen=True, tag="response.failed"):
    """The last event of a response that failed."""


class _OfItem(_Event, frozen=True, kw_only=True):
    output_index: int
    item: Item


class OutputItemAdded(_OfItem, frozen=True, tag="response.output_item.added"):
    """An item begins."""


class OutputItemDone(_OfItem, frozen=True, tag="response.output_item.done"):
    """An item is complete."""


class _InItem(_Event, frozen=True, kw_only=True):
    item_id: str
    output_index: int


class _InPart(_InItem, frozen=True, kw_only=True):
    content_index: int = 0


class ContentPartAdded(_InPart, frozen=True, kw_only=True, tag="response.content_part.added"):
    """The content of an item begins; each item has one part."""

    part: Part


class ContentPartDone(_InPart, frozen=True, kw_only=True, tag="response.content_part.done"):
    """The content of an item is complete."""

    part: Part


class OutputTextDelta(_InPart, frozen=True, kw_only=True, tag="response.output_text.delta"):
    """More text, with the logprobs of its tokens where they are wanted."""

    delta: str
    logprobs: list[TokenLogprob]


class OutputTextDone(_InPart, frozen=True, kw_only=True, tag="response.output_text.done"):
    """All text of an item."""

    text: str
    logprobs: msgspec.Raw


class ReasoningTextDelta(_InPart, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    """More reasoning."""

    delta: str


class ReasoningTextDone(_InPart, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    """All reasoning of an item."""

    text: str


class FunctionCallArgumentsDelta(_InItem, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    delta: str


class FunctionCallArgumentsDone(_InItem, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    """All arguments of a call."""

    name: str
    arguments: str


class ErrorEvent(_Event, frozen=True, kw_only=True, tag="error"):
    """The response cannot go on; `response.failed` follows."""

    code: str | None
    message: str
    param: str | None


Event = (
    ResponseCreated | ResponseInProgress | ResponseCompleted | ResponseIncomplete | ResponseFailed
    | OutputItemAdded | OutputItemDone | ContentPartAdded | ContentPartDone | OutputTextDelta | OutputTextDone
    | ReasoningTextDelta | ReasoningTextDone | FunctionCallArgumentsDelta | FunctionCallArgumentsDone | ErrorEvent
)  # fmt: skip


def named_event(event: msgspec.Struct) -> bytes:
    """A server-sent event that is named after the type of its struct."""
    return b"event: %b\ndata: %b\n\n" % (str(event.__struct_config__.tag).encode(), encode(event))
