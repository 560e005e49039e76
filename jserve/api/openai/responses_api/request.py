"""A body of the Responses API as a chat's: what is passed on, what is refused, and under which names."""

from typing import Any

from jserve.api.openai.bodies import ChatBody
from jserve.api.openai.responses_api.body import LOGPROBS, ResponsesBody, TextOptions
from jserve.api.openai.responses_api.conversation import messages_of
from jserve.api.openai.translation import chat_body, extra_chat_fields
from jserve.errors import RequestError

ENDPOINT = "the Responses API"
NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "].function.": "].",
}
"""Fields of chat, by what they are called in the Responses API."""

_STATEFUL = {
    "previous_response_id": "this server keeps no responses; send the whole conversation as `input` instead",
    "conversation": "this server keeps no conversations; send the whole conversation as `input` instead",
    "prompt": "this server keeps no prompt templates; send `instructions` and `input` instead",
    "background": "this server keeps no responses to be fetched later; leave `background` out, and use `stream`",
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


def chat_of(body: ResponsesBody) -> ChatBody:
    """The chat request that `body` amounts to. Raises RequestError for what is not supported."""
    check_supported(body)
    reasoning = body.reasoning
    tools, choice = _tools(body)
    fields = {
        **extra_chat_fields(body.model_extra or {}, ENDPOINT),
        "messages": messages_of(body.input, body.instructions),
        "model": body.model,
        "stream": body.stream,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logprobs": True if body.wants_logprobs else None,
        "top_logprobs": body.top_logprobs,
        "reasoning_effort": reasoning.effort if reasoning is not None else None,
        "response_format": _response_format(body.text),
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls if tools else None,
        "user": body.user or body.safety_identifier,
    }
    return chat_body(fields, NAMES)


def check_supported(body: ResponsesBody) -> None:
    """Raise RequestError, naming the field, for what this server cannot do."""
    for name, reason in _STATEFUL.items():
        if getattr(body, name):
            raise RequestError(f"`{name}` is not supported: {reason}", param=name)
    if body.stream_options is not None and not body.stream:
        raise RequestError("Stream options can only be defined when `stream=True`.", param="stream_options")
    for name in body.include or ():
        if name not in _INCLUDABLE:
            known = ", ".join(sorted(_INCLUDABLE))
            raise RequestError(f"include holds {name!r}, which is not one of {known}", param="include")
    if body.text is not None and body.text.verbosity not in (None, "medium"):
        message = f"text.verbosity {body.text.verbosity!r} is not supported; leave it out and say it in `instructions`"
        raise RequestError(message, param="text.verbosity")
    if body.reasoning is not None and body.reasoning.mode not in (None, "standard"):
        message = f"reasoning.mode {body.reasoning.mode!r} is not supported; leave it out"
        raise RequestError(message, param="reasoning.mode")


def _response_format(text: TextOptions | None) -> dict[str, Any] | None:
    if text is None or text.format is None or text.format.type == "text":
        return None
    wanted = text.format
    if wanted.type == "json_object":
        return {"type": "json_object"}
    if wanted.schema_ is None:
        message = "text.format of type 'json_schema' needs the schema as text.format.schema"
        raise RequestError(message, param="text.format.schema")
    schema: dict[str, Any] = {"name": wanted.name or "response", "schema": wanted.schema_}
    schema |= {"strict": wanted.strict} if wanted.strict is not None else {}
    schema |= {"description": wanted.description} if wanted.description is not None else {}
    return {"type": "json_schema", "json_schema": schema}


def _tools(body: ResponsesBody) -> tuple[list[dict[str, Any]], Any]:
    """Tools and tool choice in chat's form."""
    tools = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(body.tools or ())]
    choice = body.tool_choice
    if isinstance(choice, str) or choice is None:
        return tools, None if choice in ("auto", "none") and not tools else choice
    match choice.get("type"):
        case "function":
            return tools, {"type": "function", "function": {"name": _name(choice, "tool_choice")}}
        case "allowed_tools":
            allowed = choice.get("tools")
            if not isinstance(allowed, list) or choice.get("mode") not in ("auto", "required"):
                message = "tool_choice 'allowed_tools' needs `tools`, a list, and a `mode` of 'auto' or 'required'"
                raise RequestError(message, param="tool_choice")
            names = {_name(tool, f"tool_choice.tools[{number}]") for number, tool in enumerate(allowed)}
            kept = [tool for tool in tools if tool["function"]["name"] in names]
            if not kept:
                raise RequestError("tool_choice allows none of the `tools`", param="tool_choice.tools")
            return kept, choice["mode"]
        case kind:
            raise RequestError(
                f"tool_choice has type {kind!r}, which is not supported; use 'auto', 'none', 'required', or one of "
                "type 'function' or 'allowed_tools'",
                param="tool_choice",
            )


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        raise RequestError(
            f"{where} has type {kind!r}, which this server does not have; tools of type 'function' are supported",
            param=where,
        )
    known = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in known if tool.get(name) is not None}
    return {"type": "function", "function": {**function, "name": _name(tool, where)}}


def _name(tool: Any, where: str) -> str:
    name = tool.get("name") if isinstance(tool, dict) else None
    if not isinstance(name, str) or not name:
        raise RequestError(f"{where}.name must be a string that is not empty", param=f"{where}.name")
    return name
