"""Structural tags: free text in which marked passages follow a grammar, as xgrammar and vLLM describe them.

Both forms are read: `{"structures": [...], "triggers": [...]}`, and `{"type": "structural_tag", "format": {...}}`
with nested formats. A format that cannot be said to llguidance is refused by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jserve.errors import RequestError
from jserve.text.grammars.grammar import json_rule, literal, regex_rule

_ANY = "/(.|\\n)*/"
_MAX_DEPTH = 32


def structural_tag_grammar(tag: Mapping[str, Any], *, any_whitespace: bool = True) -> str:
    """The grammar of a structural tag in either form. Raises RequestError that names what is missing or unknown."""
    writer = _Writer(any_whitespace)
    if "format" in tag:
        start = writer.rule_of(_mapping(tag, "format", "structural_tag"), "", 0)
    elif "structures" in tag:
        tags = [
            {
                "begin": structure.get("begin"),
                "content": {"type": "json_schema", "json_schema": structure.get("schema", {})},
                "end": structure.get("end", ""),
            }
            for structure in _mappings(tag, "structures", "structural_tag")
        ]
        start = writer.rule_of({"type": "triggered_tags", "triggers": tag.get("triggers"), "tags": tags}, "", 0)
    else:
        raise RequestError("a structural tag needs `format`, or `structures` and `triggers`")
    return "\n".join([f"start: {start}", *writer.rules]) + "\n"


class _Writer:
    """Writes the rules of one structural tag; each method returns an expression that names them."""

    def __init__(self, any_whitespace: bool) -> None:
        self.rules: list[str] = []
        self._any_whitespace = any_whitespace
        self._writers: dict[str, Callable[[Mapping[str, Any], str, int], str]] = {
            "any_text": self._any_text,
            "const_string": lambda format, end, depth: self._then(literal(_text(format, "value")), end),
            "json_schema": self._json_schema,
            "or": self._or,
            "regex": lambda format, end, depth: self._then(regex_rule(_text(format, "pattern")), end),
            "sequence": self._sequence,
            "tag": self._tag,
            "tags_with_separator": self._tags_with_separator,
            "triggered_tags": self._triggered_tags,
        }

    def rule_of(self, format: Mapping[str, Any], end: str, depth: int) -> str:
        """An expression for `format` followed by the text `end`."""
        kind = format.get("type")
        if not isinstance(kind, str) or kind not in self._writers:
            known = ", ".join(sorted(self._writers))
            raise RequestError(f"the structural tag's format type {kind!r:.99} is not supported; supported are {known}")
        if depth > _MAX_DEPTH:
            raise RequestError(f"the structural tag is nested deeper than {_MAX_DEPTH} levels")
        return self._writers[kind](format, end, depth)

    def _rule(self, body: str, options: str = "") -> str:
        name = f"r{len(self.rules)}"
        self.rules.append(f"{name}{options}: {body}")
        return name

    def _then(self, rule: str, end: str) -> str:
        return f"{rule} {literal(end)}" if end else rule

    def _any_text(self, format: Mapping[str, Any], end: str, depth: int) -> str:
        if format.get("excludes"):
            raise RequestError("the structural tag's `excludes` is not supported")
        return self._until(end) if end else self._rule(_ANY)

    def _until(self, end: str) -> str:
        """Any text up to the first `end`, with it."""
        name = f"T{len(self.rules)}"
        self.rules.append(f"{name}: {_ANY} {literal(end)}")
        return self._rule(name, "[lazy]")

    def _json_schema(self, format: Mapping[str, Any], end: str, depth: int) -> str:
        style = format.get("style", "json")
        if style != "json":
            raise RequestError(f"the structural tag's json_schema style {style!r:.99} is not supported; use 'json'")
        if "json_schema" not in format:
            raise RequestError("the structural tag's json_schema format needs `json_schema`")
        rule = json_rule(format["json_schema"], any_whitespace=self._any_whitespace)
        return self._then(self._rule(rule), end)

    def _or(self, format: Mapping[str, Any], end: str, depth: int) -> str:
        elements = _mappings(format, "elements", "or")
        return "(" + " | ".join(self.rule_of(element, end, depth + 1) for element in elements) + ")"

    def _sequence(self, format: Mapping[str, Any], end: str, depth: int) -> str:
        elements = _mappings(format, "elements", "sequence")
        for element in elements[:-1]:
            if element.get("type") in ("any_text", "triggered_tags"):
                raise RequestError(f"the structural tag's {element['type']} must be the last element of its sequence")
        rules = [self.rule_of(element, "", depth + 1) for element in elements[:-1]]
        return "(" + " ".join([*rules, self.rule_of(elements[-1], end, depth + 1)]) + ")"

    def _tag(self, format: Mapping[str, Any], end: str, depth: int) -> str:
        return self._then(self._tag_after("", format, depth), end)

    def _tag_after(self, begun: str, tag: Mapping[str, Any], depth: int) -> str:
        """What is left of a tag once `begun`, a beginning of its `begin`, is there."""
        ends = tag.get("end", "")
        ends = ends if isinstance(ends, list) else [ends]
        if not all(isinstance(end, str) for end in ends) or not ends:
            raise RequestError("the structural tag's `end` must be a string or a list of strings")
        content = _mapping(tag, "content", "tag")
        bodies = [self.rule_of(content, end, depth + 1) for end in ends]
        begin = _text(tag, "begin")[len(begun) :]
        return self._rule(" | ".join(f"{literal(begin)} {body}" if begin else body for body in bodies))

    def _tags_with_separator(self, format: Mapping[str, Any], end: str, depth: int) -> str:
        tags = [self._tag_after("", tag, depth + 1) for tag in _mappings(format, "tags", "tags_with_separator")]
        one = self._rule(" | ".join(tags))
        separator = _text(format, "separator")
        more = "" if format.get("stop_after_first") else f" ({literal(separator)} {one})*" if separator else f" {one}*"
        all_tags = f"({one}{more})" if format.get("at_least_one") else f"({one}{more})?"
        return self._then(all_tags, end)

    def _triggered_tags(self, format: Mapping[str, Any], end: str, depth: int) -> str:
        if end:
            raise RequestError("the structural tag's triggered_tags cannot stand inside a tag with an `end`")
        triggers = format.get("triggers")
        if not isinstance(triggers, list) or not triggers or not all(isinstance(t, str) and t for t in triggers):
            raise RequestError("the structural tag's `triggers` must be a list of strings that are not empty")
        if format.get("excludes"):
            raise RequestError("the structural tag's `excludes` is not supported")
        after: dict[str, list[str]] = {}
        for tag in _mappings(format, "tags", "triggered_tags"):
            begin = _text(tag, "begin")
            trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
            if trigger is None:
                raise RequestError(f"the structural tag's begin {begin!r:.99} starts with none of the triggers")
            after.setdefault(trigger, []).append(self._tag_after(trigger, tag, depth + 1))
        passages = [self._rule(f"{self._until(trigger)} ({' | '.join(tags)})") for trigger, tags in after.items()]
        one, tail = self._rule(" | ".join(passages)), self._rule(_ANY)
        if format.get("stop_after_first"):
            return one if format.get("at_least_one") else f"({one} | {tail})"
        return f"({one}{'+' if format.get('at_least_one') else '*'} {tail})"


def _text(format: Mapping[str, Any], name: str) -> str:
    value = format.get(name)
    if not isinstance(value, str):
        raise RequestError(f"the structural tag's `{name}` must be a string")
    return value


def _mapping(format: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = format.get(name)
    if not isinstance(value, dict):
        raise RequestError(f"the structural tag's `{name}` of `{where}` must be an object")
    return value


def _mappings(format: Mapping[str, Any], name: str, where: str) -> list[Mapping[str, Any]]:
    values = format.get(name)
    if not isinstance(values, list) or not values or not all(isinstance(value, dict) for value in values):
        raise RequestError(f"the structural tag's `{name}` of `{where}` must be a list of objects that is not empty")
    return values
