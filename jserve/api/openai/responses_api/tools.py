"""The tools of a response's request in chat's form, and the names under which the model knows them.

Functions are kept, those in a namespace too; tools of other types are never called and are left out. A function of
a namespace keeps its name where no other function has it, else the namespace's name stands before it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jserve.api.openai.left_out import log_left_out
from jserve.errors import RequestError


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """`functions` are in chat's form; `left_out` are the types of the tools that are no functions."""

    functions: list[dict[str, Any]]
    left_out: list[str]
    _names: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """What the model calls the function of this namespace and this name."""
    _paths: Mapping[str, str] = field(default_factory=dict)
    """Where in the request the function stands that the model calls so."""

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]] | None) -> "OfferedTools":
        """The tools of a request. Raises RequestError for a function without a name."""
        left_out: list[str] = []
        entries = [entry for number, tool in enumerate(tools or ()) for entry in _entries(tool, number, left_out)]
        counts = Counter(name for _, name, _, _ in entries)
        names = {
            (namespace, name): _qualified(namespace, name) if namespace and counts[name] > 1 else name
            for namespace, name, _, _ in entries
        }
        functions = [_function(tool, names[namespace, name]) for namespace, name, tool, _ in entries]
        paths = {names[namespace, name]: where for namespace, name, _, where in entries}
        return cls(functions, left_out, names, paths)

    def client_paths(self, names: Iterable[str]) -> dict[str, str]:
        """Where the client wrote the functions of these names, by where they stand in chat's `tools`."""
        return {f"tools[{place}].function": self._paths[name] for place, name in enumerate(names)}

    def name_for_model(self, name: str, namespace: str = "") -> str:
        """What the model calls a function that the client calls `name`. A name without its namespace is found too."""
        if (namespace, name) in self._names:
            return self._names[namespace, name]
        return next((known for (_, inner), known in self._names.items() if inner == name), name)

    def origin(self, name: str) -> tuple[str, str]:
        """The namespace ("" for none) and the name in it of the function that the model calls `name`."""
        return next((origin for origin, known in self._names.items() if known == name), ("", name))


_Entry = tuple[str, str, Mapping[str, Any], str]


def _entries(tool: Any, number: int, left_out: list[str]) -> list[_Entry]:
    """Namespace, name, description and path of the functions of a tool; the types of what is none go to `left_out`."""
    where = f"tools[{number}]"
    kind = tool.get("type")
    if not isinstance(kind, str):
        raise RequestError(f"{where}.type must be a string, such as 'function'", param=f"{where}.type")
    if kind == "function":
        return [("", name_of(tool, where), tool, where)]
    members = tool.get("tools")
    if kind != "namespace" or not isinstance(members, list):
        left_out.append(kind)
        return []
    namespace = name_of(tool, where)
    entries: list[_Entry] = []
    for index, member in enumerate(members):
        inner = member.get("type") if isinstance(member, dict) else None
        if inner == "function":
            path = f"{where}.tools[{index}]"
            entries.append((namespace, name_of(member, path), member, path))
        else:
            left_out.append(f"{kind}.{inner}")
    return entries


def _qualified(namespace: str, name: str) -> str:
    return f"{namespace}{name}" if namespace.endswith(("_", ".", "/", ":")) else f"{namespace}__{name}"


def _function(tool: Mapping[str, Any], name: str) -> dict[str, Any]:
    known = ("description", "parameters", "strict")
    fields = {key: tool[key] for key in known if tool.get(key) is not None}
    return {"type": "function", "function": {"name": name, **fields}}


def name_of(tool: Any, where: str) -> str:
    """The `name` of a tool. Raises RequestError where there is none."""
    name = tool.get("name") if isinstance(tool, dict) else None
    if not isinstance(name, str) or not name:
        raise RequestError(f"{where}.name must be a string that is not empty", param=f"{where}.name")
    return name


def chat_tools(offered: OfferedTools, choice: str | dict[str, Any] | None) -> tuple[list[dict[str, Any]], Any]:
    """Tools and tool choice in chat's form. Raises RequestError where the choice needs a tool that is not there."""
    log_left_out("tools", offered.left_out)
    tools = offered.functions
    if choice is None or choice in ("auto", "none"):
        return tools, choice if tools else None
    if isinstance(choice, str):
        if not tools and offered.left_out:
            _refuse_choice(", ".join(f"{kind!r:.60}" for kind in offered.left_out))
        return tools, choice
    kind = choice.get("type")
    if kind == "function":
        namespace = choice.get("namespace")
        name = name_of(choice, "tool_choice")
        name = offered.name_for_model(name, namespace if isinstance(namespace, str) else "")
        return tools, {"type": "function", "function": {"name": name}}
    if kind == "allowed_tools":
        return _allowed(offered, choice)
    _refuse_choice(f"{kind!r:.60}")


def _allowed(offered: OfferedTools, choice: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
    allowed, mode = choice.get("tools"), choice.get("mode")
    if not isinstance(allowed, list) or mode not in ("auto", "required"):
        message = "tool_choice 'allowed_tools' needs `tools`, a list, and a `mode` of 'auto' or 'required'"
        raise RequestError(message, param="tool_choice")
    names = [
        offered.name_for_model(name_of(tool, f"tool_choice.tools[{number}]"))
        for number, tool in enumerate(allowed)
        if not isinstance(tool, dict) or tool.get("type", "function") == "function"
    ]
    kept = [tool for tool in offered.functions if tool["function"]["name"] in names]
    if not kept and (mode == "required" or len(names) == len(allowed)):
        raise RequestError("tool_choice allows none of the `tools`", param="tool_choice.tools")
    return kept, mode if kept else None


def _refuse_choice(kinds: str) -> NoReturn:
    raise RequestError(
        f"`tool_choice` needs a tool of type {kinds}, which this server does not have; use 'auto', 'none', "
        "'required', or one of type 'function' or 'allowed_tools', with `tools` of type 'function'",
        param="tool_choice",
    )
