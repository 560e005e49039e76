"""A body of the Messages API as a chat's: what is passed on, what is refused, and under which names."""

from typing import Any

from jserve.api.anthropic.body import CountTokensBody, MessagesBody
from jserve.api.anthropic.conversation import messages_of
from jserve.api.openai.bodies import ChatBody
from jserve.api.openai.left_out import log_left_out
from jserve.api.openai.structured import refuse_unread_forms
from jserve.api.openai.translation import chat_body, extra_chat_fields
from jserve.errors import RequestError

_ENDPOINT = "the Messages API"
NAMES = {
    "max_completion_tokens": "max_tokens",
    "max_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "thinking_token_budget": "thinking.budget_tokens",
    "tools[].function": "tools[]",
    "tools[].function.parameters": "tools[].input_schema",
}
"""Fields of chat, by what they are called in the Messages API."""


def chat_of(body: MessagesBody, *, reasons: bool) -> ChatBody:
    """The chat request that `body` amounts to. Raises RequestError for what is not supported.

    A model that never `reasons` keeps to any budget of thought, so it is told none: Claude Code sends one always.
    """
    if body.container:
        raise RequestError("`container` is not supported: this server runs no code", param="container")
    thinking = body.thinking
    budget = thinking.budget_tokens if thinking is not None and thinking.type == "enabled" else None
    if budget is not None and budget >= body.max_tokens:
        message = f"`max_tokens` must be greater than `thinking.budget_tokens`; got {body.max_tokens} and {budget}"
        raise RequestError(message, param="max_tokens")
    user = (body.metadata or {}).get("user_id")
    fields = {
        **_prompt_fields(body, extra_chat_fields(body.model_extra or {}, _ENDPOINT)),
        "stream": body.stream,
        "max_completion_tokens": body.max_tokens,
        "temperature": body.temperature,
        "top_k": body.top_k,
        "top_p": body.top_p,
        **({"thinking_token_budget": budget} if budget is not None and reasons else {}),
        "user": user if isinstance(user, str) else None,
    }
    # Past the validation of chat, whose limit is OpenAI's four.
    return chat_body(fields, NAMES).model_copy(update={"stop": body.stop_sequences} if body.stop_sequences else {})


def chat_to_count(body: CountTokensBody) -> ChatBody:
    """A chat request with the prompt of `body`. Fields that come after the prompt may be there, and are ignored."""
    extra = body.model_extra or {}
    deciding: dict[str, Any] = {name: extra[name] for name in ("chat_template_kwargs", "documents") if name in extra}
    return chat_body(_prompt_fields(body, deciding), NAMES)


def _prompt_fields(body: CountTokensBody, extra: dict[str, Any]) -> dict[str, Any]:
    """The fields of chat that decide about the prompt, and `extra`."""
    messages = messages_of(body.system, body.messages)
    is_prefilled = messages[-1]["role"] == "assistant"
    if is_prefilled and "tool_calls" in messages[-1]:
        message = "the last message holds tool_use blocks; answer each with a tool_result in a message of the user"
        raise RequestError(message, param=f"messages[{len(body.messages) - 1}]")
    choice = body.tool_choice or {}
    effort = body.output_config.effort if body.output_config is not None else None
    tools = _tools(body)
    functions = [tool for tool in tools if tool["type"] == "function"]
    return {
        **extra,
        "messages": messages,
        "model": body.model,
        "continue_final_message": is_prefilled,
        "tools": tools or None,
        "tool_choice": _tool_choice(choice, functions, body),
        "parallel_tool_calls": False if choice.get("disable_parallel_tool_use") and functions else None,
        "response_format": _response_format(body),
        "reasoning_effort": effort,
        "chat_template_kwargs": _template_variables(body, extra.get("chat_template_kwargs")),
    }


def _template_variables(body: CountTokensBody, own: Any) -> Any:
    if body.thinking is None:
        return own
    return {"enable_thinking": body.thinking.type != "disabled", **(own or {})}


def _response_format(body: CountTokensBody) -> dict[str, Any] | None:
    json_format = (body.output_config.format if body.output_config is not None else None) or body.output_format
    if json_format is None:
        return None
    refuse_unread_forms(json_format.model_extra or {}, "output_config.format", json_format.type)
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": json_format.schema_, "strict": True}}


def _tools(body: CountTokensBody) -> list[dict[str, Any]]:
    """The client's own tools in chat's form. Of Anthropic's the type stands in their place: chat leaves them out, and
    counts as the client does.
    """
    tools: list[dict[str, Any]] = []
    for number, tool in enumerate(body.tools or ()):
        kind = tool.get("type")
        if kind is not None and not isinstance(kind, str):
            raise RequestError(f"tools[{number}].type must be a string, such as 'custom'", param=f"tools[{number}]")
        if kind == "function":  # OpenAI's form, sent here by mistake: to leave it out would take the client's tools.
            message = f"tools[{number}] has OpenAI's type 'function'; here a tool is name, description and input_schema"
            raise RequestError(message, param=f"tools[{number}]")
        tools.append(_tool(tool, f"tools[{number}]") if kind in (None, "custom") else {"type": kind})
    log_left_out("tools", ["mcp_servers"] if body.mcp_servers else [])
    return tools


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    name, schema = tool.get("name"), tool.get("input_schema")
    if not isinstance(name, str) or not name:
        raise RequestError(f"{where}.name must be a string that is not empty", param=f"{where}.name")
    if not isinstance(schema, dict):
        raise RequestError(f"{where}.input_schema must be a JSON schema", param=f"{where}.input_schema")
    optional = {field: tool[field] for field in ("description", "strict") if tool.get(field) is not None}
    return {"type": "function", "function": {"name": name, **optional, "parameters": schema}}


def _tool_choice(choice: dict[str, Any], tools: list[dict[str, Any]], body: CountTokensBody) -> Any:
    """The choice in chat's form. Raises RequestError where it needs a tool of a type that this server does not have."""
    kind, has_tools = choice.get("type"), bool(tools)
    if kind in ("any", "tool") and (body.tools or body.mcp_servers):
        names = {tool["function"]["name"] for tool in tools}
        others = [tool for tool in body.tools or () if tool.get("name") not in names]
        if not tools or (kind == "tool" and choice.get("name") in [tool.get("name") for tool in others]):
            types = ", ".join(f"{tool.get('type')!r:.60}" for tool in others) or "'mcp_servers'"
            raise RequestError(
                f"`tool_choice` needs a tool, and this server has none of type {types}; tools of your own, with name, "
                "description and input_schema, are supported",
                param="tool_choice",
            )
    match kind:
        case None if not choice:
            return None
        case "auto":
            return "auto" if has_tools else None
        case "none":
            return "none" if has_tools else None
        case "any":
            return "required"
        case "tool" if isinstance(choice.get("name"), str):
            return {"type": "function", "function": {"name": choice["name"]}}
        case "tool":
            raise RequestError("tool_choice of type 'tool' needs the tool's `name`", param="tool_choice.name")
        case _:
            message = f"tool_choice has type {kind!r} but must be one of 'auto', 'any', 'tool', 'none'"
            raise RequestError(message, param="tool_choice")
