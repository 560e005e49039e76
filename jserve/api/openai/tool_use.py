"""What a chat request says about tools, checked: which the model may call, which it must, how many."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jserve.api.openai.bodies import ChatBody, FunctionBody, NamedToolChoice, ToolBody
from jserve.api.openai.left_out import log_left_out
from jserve.errors import FieldPath, RequestError
from jserve.text.tools.tool import NO_ARGUMENTS, Tool

ToolMode = Literal["none", "auto", "required", "named"]

_NAME = re.compile(r"[\w.:/-]{1,256}")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """`tools` may be called, by name; `descriptions` is what the model is shown, in chat's form.

    With `mode` "named" the only tool in `tools` is the one that must be called.
    """

    mode: ToolMode = "none"
    tools: Mapping[str, Tool] | None = None
    descriptions: list[dict[str, Any]] | None = None
    is_parallel: bool = True

    @classmethod
    def of(cls, body: ChatBody, *, shows_tools_for_none: bool = False) -> "ToolUse":
        """From the body. Raises RequestError, in the contract's words."""
        _refuse_legacy(body)
        choice = body.tool_choice
        functions = _functions(body.tools or ())
        if not functions:
            _check_that_no_call_is_due(body)
            return cls()
        tools = {function.name: _tool(function, where) for where, function in functions.items()}
        descriptions = [_description(tool) for tool in body.tools or () if tool.type == "function"]
        is_parallel = body.parallel_tool_calls is not False
        if isinstance(choice, NamedToolChoice):
            name = choice.function.name
            if name not in tools:
                raise RequestError(
                    "The tool specified in `tool_choice` does not match any of the specified `tools`",
                    param="tool_choice",
                )
            return cls("named", {name: tools[name]}, descriptions, is_parallel=False)
        if choice == "none":
            return cls("none", None, descriptions if shows_tools_for_none else None)
        return cls("required" if choice == "required" else "auto", tools, descriptions, is_parallel)

    @property
    def is_forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.mode in ("required", "named")

    @property
    def is_constrained(self) -> bool:
        """Whether arguments must follow a schema, whatever the model wants."""
        return self.is_forced or any(tool.is_strict for tool in (self.tools or {}).values())

    @property
    def called_reason(self) -> str:
        """The finish reason of an answer with calls. A call by name is what an answer is, so it ends as one does."""
        return "stop" if self.mode == "named" else "tool_calls"


def _refuse_legacy(body: ChatBody) -> None:
    extra = body.model_extra or {}
    for name, successor in (("functions", "tools"), ("function_call", "tool_choice")):
        if extra.get(name) not in (None, [], "none"):
            raise RequestError(f"`{name}` is OpenAI's former name and not supported; use `{successor}`", param=name)


def _functions(tools: Sequence[ToolBody]) -> dict[str, FunctionBody]:
    """The functions among `tools`, by their place in the request. Tools of other types are never called."""
    functions: dict[str, FunctionBody] = {}
    for number, tool in enumerate(tools):
        if tool.type != "function":
            continue
        where = FieldPath(f"tools[{number}].function")
        if tool.function is None:
            raise RequestError(where, " is missing", param=where)
        functions[where] = tool.function
    log_left_out("tools", [tool.type for tool in tools if tool.type != "function"])
    return functions


def _check_that_no_call_is_due(body: ChatBody) -> None:
    """Raise RequestError where `tool_choice` needs a tool, and the request has none that can be called here."""
    if body.tool_choice in (None, "none") or (body.tool_choice == "auto" and body.tools is not None):
        return
    if not body.tools:
        raise RequestError("When using `tool_choice`, `tools` must be set.", param="tool_choice")
    types = ", ".join(sorted({f"{tool.type!r:.60}" for tool in body.tools}))
    raise RequestError(
        f"`tool_choice` needs a tool, and this server has none of type {types}; it calls tools of type 'function'",
        param="tool_choice",
    )


def _tool(function: FunctionBody, where: str) -> Tool:
    if not _NAME.fullmatch(function.name):
        raise RequestError(
            FieldPath(f"{where}.name"),
            f" is {function.name[:80]!r} but must be 1 to 256 letters, digits and _-.:/",
            param=f"{where}.name",
        )
    parameters = function.parameters or NO_ARGUMENTS
    if parameters.get("type", "object") != "object":
        raise RequestError(
            FieldPath(f"{where}.parameters"),
            f" has type {str(parameters['type'])[:80]!r} but must be an object's schema",
            param=f"{where}.parameters",
        )
    return Tool(function.name, {"type": "object", **parameters}, is_strict=bool(function.strict))


def _description(tool: ToolBody) -> dict[str, Any]:
    """As templates expect it; how strictly a schema is enforced is not the model's business."""
    described = tool.model_dump(exclude_none=True)
    described["function"].pop("strict", None)
    return described
