"""What a chat request says about tools, checked: which the model may call, which it must, how many."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from jserve.api.openai.bodies import ChatBody, FunctionBody, NamedToolChoice, OtherToolChoice, ToolBody
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
        if isinstance(choice, OtherToolChoice):
            choice, tools, descriptions = _allowed(choice, tools, descriptions)
            if not tools:
                return cls()
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


def _allowed(
    choice: OtherToolChoice, tools: Mapping[str, Tool], descriptions: list[dict[str, Any]]
) -> tuple[Literal["auto", "required"], dict[str, Tool], list[dict[str, Any]]]:
    """The mode, the tools and the descriptions that a choice of type `allowed_tools` leaves, as OpenAI has it.

    Raises RequestError for any other type, and where the mode is `required` and no function is left.
    """
    if choice.type != "allowed_tools":
        _refuse_choice([choice.type])
    allowed = (choice.model_extra or {}).get("allowed_tools")
    listed, mode = (allowed.get("tools"), allowed.get("mode")) if isinstance(allowed, dict) else (None, None)
    if not isinstance(listed, list) or mode not in ("auto", "required"):
        message = "tool_choice.allowed_tools needs `tools`, a list, and a `mode` of 'auto' or 'required'"
        raise RequestError(message, param="tool_choice")
    entries = [entry for entry in listed if isinstance(entry, dict) and entry.get("type", "function") == "function"]
    names = [function.get("name") for entry in entries if isinstance(function := entry.get("function", entry), dict)]
    kept = {name: tool for name, tool in tools.items() if name in names}
    if not kept and (mode == "required" or len(entries) == len(listed)):
        raise RequestError("tool_choice allows none of the `tools`", param="tool_choice.tools")
    return mode, kept, [described for described in descriptions if described["function"]["name"] in kept]


def _check_that_no_call_is_due(body: ChatBody) -> None:
    """Raise RequestError where `tool_choice` needs a tool, and the request has none that can be called here."""
    if body.tool_choice in (None, "none") or (body.tool_choice == "auto" and body.tools is not None):
        return
    if not body.tools:
        raise RequestError("When using `tool_choice`, `tools` must be set.", param="tool_choice")
    if isinstance(body.tool_choice, OtherToolChoice):
        _allowed(body.tool_choice, {}, [])
        return
    _refuse_choice([tool.type for tool in body.tools])


def _refuse_choice(kinds: Sequence[str]) -> NoReturn:
    types = ", ".join(sorted({f"{kind!r:.60}" for kind in kinds}))
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
    types = parameters.get("type") or "object"
    if types != "object" and not (isinstance(types, list) and "object" in types):
        raise RequestError(
            FieldPath(f"{where}.parameters"),
            f" has type {str(parameters['type'])[:80]!r} but must be an object's schema",
            param=f"{where}.parameters",
        )
    return Tool(function.name, {**parameters, "type": "object"}, is_strict=bool(function.strict))


def _description(tool: ToolBody) -> dict[str, Any]:
    """As templates expect it; how strictly a schema is enforced is not the model's business."""
    described = tool.model_dump(exclude_none=True)
    described["function"].pop("strict", None)
    return described
