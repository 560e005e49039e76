"""What a chat request says about tools, checked: which the model may call, which it must, how many."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jserve.api.openai.bodies import ChatBody, NamedToolChoice, ToolBody
from jserve.errors import RequestError
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
        if body.tools is None:
            if choice not in (None, "none"):
                raise RequestError("When using `tool_choice`, `tools` must be set.", param="tool_choice")
            return cls()
        if not body.tools:
            raise RequestError("`tools` must not be an empty list; leave it out to use none", param="tools")
        tools = {tool.function.name: _tool(tool, f"tools[{number}]") for number, tool in enumerate(body.tools)}
        descriptions = [_description(tool) for tool in body.tools]
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


def _tool(tool: ToolBody, where: str) -> Tool:
    function = tool.function
    if not _NAME.fullmatch(function.name):
        raise RequestError(
            f"{where}.function.name is {function.name[:80]!r} but must be 1 to 256 letters, digits and _-.:/",
            param=f"{where}.function.name",
        )
    parameters = function.parameters or NO_ARGUMENTS
    if parameters.get("type", "object") != "object":
        raise RequestError(
            f"{where}.function.parameters has type {str(parameters['type'])[:80]!r} but must be an object's schema",
            param=f"{where}.function.parameters",
        )
    return Tool(function.name, {"type": "object", **parameters}, is_strict=bool(function.strict))


def _description(tool: ToolBody) -> dict[str, Any]:
    """As templates expect it; how strictly a schema is enforced is not the model's business."""
    described = tool.model_dump(exclude_none=True)
    described["function"].pop("strict", None)
    return described
