"""A body of the Responses API as a chat's: what is passed on, what is refused, and under which names."""

from collections.abc import Sequence
from typing import Any

from jserve.api.generation.recent_items import RecentItems
from jserve.api.openai.bodies import ChatBody
from jserve.api.openai.responses_api.body import LOGPROBS, ResponsesBody, TextOptions
from jserve.api.openai.responses_api.conversation import messages_of
from jserve.api.openai.responses_api.tools import OfferedTools, chat_tools
from jserve.api.openai.structured import refuse_unread_forms
from jserve.api.openai.translation import chat_body, extra_chat_fields
from jserve.errors import RequestError

_REFERENCE = "item_reference"
ENDPOINT = "the Responses API"
NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "tools[].function": "tools[]",
}
"""Fields of chat, by what they are called in the Responses API; see `names_of` for the places of tools."""

_STATEFUL = {
    "conversation": "this server keeps no conversations; send the whole conversation as `input` instead",
    "prompt": "this server keeps no prompt templates; send `instructions` and `input` instead",
    "context_management": "this server does not compact conversations; shorten `input`, or set truncation to 'auto'",
    "moderation": "this server has no moderation",
}
_INCLUDABLE = frozenset({
    LOGPROBS,
    # Reasoning is given as it is, so there is nothing to encrypt; the others are of tools that do not exist here.
    "reasoning.encrypted_content", "message.input_image.image_url", "file_search_call.results",
    "web_search_call.results", "web_search_call.action.sources", "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
})  # fmt: skip


def with_items(body: ResponsesBody, recent: RecentItems, caller: bytes) -> ResponsesBody:
    """`body` with the items that its input refers to. Raises RequestError for one that is not known (any more)."""
    if isinstance(body.input, str) or not any(item.get("type") == _REFERENCE for item in body.input):
        return body
    items = [
        _referred(item, f"input[{number}]", recent, caller) if item.get("type") == _REFERENCE else item
        for number, item in enumerate(body.input)
    ]
    return body.model_copy(update={"input": items})


def _referred(reference: dict[str, Any], where: str, recent: RecentItems, caller: bytes) -> dict[str, Any]:
    item_id = reference.get("id")
    item = recent.find(caller, item_id) if isinstance(item_id, str) else None
    if item is None:
        raise RequestError(
            f"{where} refers to the item {item_id!r:.80}, which this server does not know or has forgotten: it keeps "
            "the newest items of answers only, and none of a request with `store: false`. Send the item itself (the "
            "AI SDK does with `providerOptions: {openai: {store: false}}`)",
            param=where,
        )
    return item


def chat_of(body: ResponsesBody, earlier: Sequence[dict[str, Any]] = ()) -> ChatBody:
    """The chat request that `body` amounts to, behind the items of an `earlier` conversation.

    Raises RequestError for what is not supported.
    """
    check_supported(body)
    reasoning = body.reasoning
    offered = OfferedTools.of(body.tools)
    tools, choice = chat_tools(offered, body.tool_choice)
    fields = {
        **extra_chat_fields(body.model_extra or {}, ENDPOINT),
        "messages": messages_of(body.input, body.instructions, offered, earlier),
        "model": body.model,
        "stream": body.stream,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logprobs": True if body.wants_logprobs else None,
        "top_logprobs": body.top_logprobs,
        "reasoning_effort": reasoning.effort if reasoning is not None else None,
        "verbosity": body.text.verbosity if body.text is not None else None,
        "response_format": _response_format(body.text),
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls if tools else None,
        "user": body.user or body.safety_identifier,
    }
    return chat_body(fields, {**NAMES, **offered.client_paths(tool["function"]["name"] for tool in tools)})


def names_of(body: ResponsesBody, chat: ChatBody) -> dict[str, str]:
    """The fields of `chat`, which was made of `body`, by what they are called there."""
    names = (tool.function.name for tool in chat.tools or () if tool.function is not None)
    return {**NAMES, **OfferedTools.of(body.tools).client_paths(names)}


def check_supported(body: ResponsesBody) -> None:
    """Raise RequestError, naming the field, for what this server cannot do."""
    for name, reason in _STATEFUL.items():
        if getattr(body, name):
            raise RequestError(f"`{name}` is not supported: {reason}", param=name)
    if body.background and (body.stream or body.store is False):
        other = "stream" if body.stream else "store: false"
        message = f"`background` cannot be combined with `{other}`: its answer is fetched with GET /v1/responses/ID"
        raise RequestError(message, param="background")
    if body.stream_options is not None and not body.stream:
        raise RequestError("Stream options can only be defined when `stream=True`.", param="stream_options")
    for name in body.include or ():
        if name not in _INCLUDABLE:
            known = ", ".join(sorted(_INCLUDABLE))
            raise RequestError(f"include holds {name!r}, which is not one of {known}", param="include")
    if body.reasoning is not None and body.reasoning.mode not in (None, "standard"):
        message = f"reasoning.mode {body.reasoning.mode!r} is not supported; leave it out"
        raise RequestError(message, param="reasoning.mode")


def _response_format(text: TextOptions | None) -> dict[str, Any] | None:
    if text is None or text.format is None:
        return None
    format_ = text.format
    refuse_unread_forms(format_.model_extra or {}, "text.format", format_.type)
    if format_.type == "text":
        refuse_unread_forms({"schema": format_.schema_}, "text.format", format_.type)
        return None
    if format_.type == "json_object":
        held_to = {} if format_.schema_ is None else {"schema": format_.schema_}
        return {"type": "json_object", **held_to}
    if format_.schema_ is None:
        message = "text.format of type 'json_schema' needs the schema as text.format.schema"
        raise RequestError(message, param="text.format.schema")
    schema: dict[str, Any] = {"name": format_.name or "response", "schema": format_.schema_}
    schema |= {"strict": format_.strict} if format_.strict is not None else {}
    schema |= {"description": format_.description} if format_.description is not None else {}
    return {"type": "json_schema", "json_schema": schema}
