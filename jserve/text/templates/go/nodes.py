"""Go's text/template as nodes: text, actions, and blocks of `if`, `with` and `range`.

Grammar: https://pkg.go.dev/text/template. `define`, `template` and `block` are refused: no chat template of
Ollama's library uses them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

MAX_NESTING = 40
_ACTION = re.compile(
    r"\{\{(- )?(-(?=\s))?\s*(/\*.*?\*/|(?:\"(?:\\.|[^\"\\\n])*\"|`[^`]*`|[^\"`])*?)\s*( -)?\}\}", re.DOTALL
)
_TOKEN = re.compile(
    r"""\s+|(?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?)|(?P<variable>\$\w*)"""
    r"""|(?P<field>\.\w+)|(?P<word>[A-Za-z_]\w*)|(?P<sign>:=|[()=|,.])""",
)


class GoTemplateError(Exception):
    """The template is damaged, or uses what has no translation. `str` is fit for a user's eyes."""


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is the group's name in the expression; `spaced`: white space stands before it."""

    kind: str
    text: str
    spaced: bool


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """A pipeline that is printed, an assignment, `break` or `continue`."""

    tokens: tuple[Token, ...]


@dataclass(slots=True)
class Block:
    """`kind` is "if", "with" or "range". An `else if` is a Block in `otherwise`."""

    kind: str
    tokens: tuple[Token, ...]
    body: list[Node] = field(default_factory=list)
    otherwise: list[Node] = field(default_factory=list)


Node = Text | Action | Block


def parse(source: str) -> list[Node]:
    """The nodes of a template. Raises GoTemplateError."""
    return _Parser(source).parse()


class _Parser:
    def __init__(self, source: str) -> None:
        self._pieces = _split(source)
        self._position = 0

    def parse(self) -> list[Node]:
        nodes, end = self._list(0)
        if end is not None:
            raise GoTemplateError(f"{{{{ {end} }}}} belongs to no block")
        return nodes

    def _list(self, depth: int) -> tuple[list[Node], str | None]:
        """Nodes up to `end` or `else`, which is consumed; and that word, with what follows `else`."""
        if depth > MAX_NESTING:
            raise GoTemplateError(f"blocks are nested more than {MAX_NESTING} deep")
        nodes: list[Node] = []
        while self._position < len(self._pieces):
            piece = self._pieces[self._position]
            self._position += 1
            if isinstance(piece, Text):
                nodes.append(piece)
                continue
            word = piece[0].text if piece[0].kind == "word" else ""
            if word in ("end", "else"):
                return nodes, " ".join(token.text for token in piece)
            if word in ("if", "with", "range"):
                nodes.append(self._block(word, piece[1:], depth))
            elif word in ("define", "template", "block"):
                raise GoTemplateError(f"{{{{ {word} }}}} is not supported")
            else:
                nodes.append(Action(piece))
        return nodes, None

    def _block(self, kind: str, tokens: tuple[Token, ...], depth: int) -> Block:
        block = Block(kind, tokens)
        block.body, end = self._list(depth + 1)
        if end == "else":
            block.otherwise, end = self._list(depth + 1)
        elif end is not None and end.startswith("else "):
            words = self._pieces[self._position - 1]
            assert not isinstance(words, Text)
            # `else if` closes with the same `end` as the block that it continues.
            block.otherwise = [self._block(words[1].text, words[2:], depth + 1)]
            return block
        if end != "end":
            raise GoTemplateError(f"{{{{ {kind} }}}} has no end")
        return block


def _split(source: str) -> list[Text | tuple[Token, ...]]:
    """Text and actions in turn, with the white space that `{{-` and `-}}` take away gone."""
    pieces: list[Text | tuple[Token, ...]] = []
    position, trims = 0, False
    while True:
        start = source.find("{{", position)
        text = source[position:] if start < 0 else source[position:start]
        text = text.lstrip() if trims else text
        if start < 0:
            pieces.append(Text(text))
            return [piece for piece in pieces if piece != Text("")]
        match = _ACTION.match(source, start)
        if match is None:
            raise GoTemplateError(f"an action is not closed: {source[start : start + 40]!r}")
        pieces.append(Text(text.rstrip() if match[1] or match[2] else text))
        if not match[3].startswith("/*"):
            pieces.append(_tokens(match[3]))
        position, trims = match.end(), bool(match[4])


def _tokens(action: str) -> tuple[Token, ...]:
    tokens: list[Token] = []
    position, spaced = 0, True
    while position < len(action):
        match = _TOKEN.match(action, position)
        if match is None:
            _refuse(action)
        position = match.end()
        if match.lastgroup is None:
            spaced = True
            continue
        tokens.append(Token(match.lastgroup, match[0], spaced))
        spaced = False
    if not tokens:
        _refuse(action)
    return tuple(tokens)


def _refuse(action: str) -> NoReturn:
    raise GoTemplateError(f"{{{{ {action[:60]} }}}} is not understood")
