"""A conversation in a terminal: lines in, answers as they come, and the words that begin with a slash."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jserve.commands.client.connection import Connection, Piece, ServerError
from jserve.commands.client.options import parse_field

_HELP = """/set system TEXT          what the model is told first; without TEXT, nothing
/set parameter NAME N     a field of the requests, such as temperature 0.2
/set format json|SCHEMA   hold answers to JSON, or to a JSON schema; without one, to nothing
/show                     the model, the system prompt and the parameters
/clear                    forget the conversation
/bye                      leave, as Ctrl-D does
\"\"\"                       begins and ends several lines
Ctrl-C                    ends an answer"""
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_QUOTES = '"""'
_MAX_HISTORY = 1000


@dataclass(slots=True)
class Conversation:
    """Messages so far, and what each request carries."""

    connection: Connection
    model: str
    system: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str, show: Callable[[Piece], None]) -> None:
        """Send a message and show the answer, which is remembered as far as it came. Raises ServerError."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        sent = [*system, *self.messages, {"role": "user", "content": text}]
        answer: list[str] = []
        with contextlib.closing(self.connection.chat(self.model, sent, **self.fields)) as pieces:
            try:
                for piece in pieces:
                    answer.append(piece.text)
                    show(piece)
            except KeyboardInterrupt:
                show(Piece(finish_reason="interrupted"))
        if answer:
            self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "".join(answer)}]

    def command(self, line: str) -> str | None:
        """What a line that begins with a slash does; the text to show, None to leave."""
        word, _, rest = line.partition(" ")
        match word:
            case "/bye" | "/exit" | "/quit":
                return None
            case "/clear":
                self.messages.clear()
                return "The conversation is forgotten."
            case "/show":
                return self._shown()
            case "/set":
                return self._set(*rest.strip().partition(" ")[::2])
            case "/?" | "/help":
                return _HELP
        return f"{word} is not a command; /? lists them"

    def _set(self, what: str, value: str) -> str:
        value = value.strip()
        if what == "system":
            self.system = value.strip('"')
            return "The system prompt is set." if self.system else "There is no system prompt now."
        if what == "format":
            return self._set_format(value)
        if what == "parameter" and value:
            name, _, text = value.partition(" ")
            try:
                self.fields[name] = parse_field(name, text.strip())
            except ValueError as error:
                return str(error)
            return f"{name} is {self.fields[name]}."
        return "/set system TEXT, /set parameter NAME N, or /set format json"

    def _set_format(self, value: str) -> str:
        if not value:
            self.fields.pop("response_format", None)
            return "Answers may have any form."
        if value == "json":
            self.fields["response_format"] = {"type": "json_object"}
            return "Answers are JSON."
        try:
            schema = json.loads(value)
        except ValueError as error:
            return f"that is neither `json` nor a JSON schema: {error}"
        self.fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        return "Answers are held to the schema."

    def _shown(self) -> str:
        lines = [f"model       {self.model} at {self.connection.url}", f"system      {self.system or '(none)'}"]
        return "\n".join([*lines, *(f"{name:<11} {json.dumps(value)}" for name, value in self.fields.items())])


class Screen:
    """Writes an answer as it comes; what the model thinks is dim, where there is a terminal."""

    def __init__(self, *, is_terminal: bool) -> None:
        self._is_terminal = is_terminal
        self._is_thinking = False

    def show(self, piece: Piece) -> None:
        """Write a piece."""
        if piece.reasoning and self._is_terminal:
            self._write(("" if self._is_thinking else _DIM) + piece.reasoning)
            self._is_thinking = True
        if piece.text:
            if self._is_thinking:
                self._write(f"{_PLAIN}\n\n")
                self._is_thinking = False
            self._write(piece.text)
        if piece.finish_reason == "length":
            print("\n[cut at the limit of tokens]", end="", file=sys.stderr)

    def end(self) -> None:
        """After an answer."""
        self._write((_PLAIN if self._is_thinking else "") + "\n")
        self._is_thinking = False

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def answer_once(conversation: Conversation, text: str) -> None:
    """One message and its answer on standard output. Raises ServerError."""
    screen = Screen(is_terminal=sys.stdout.isatty())
    conversation.say(text, screen.show)
    screen.end()


def converse(conversation: Conversation) -> None:
    """Talk until the end of the input. What goes wrong with a message is told, and the next may be sent."""
    screen = Screen(is_terminal=sys.stdout.isatty())
    print(f"{conversation.model} at {conversation.connection.url}; /? for help", file=sys.stderr)
    for text in _inputs():
        if text.startswith("/"):
            said = conversation.command(text)
            if said is None:
                return
            print(said, file=sys.stderr)
            continue
        try:
            conversation.say(text, screen.show)
            screen.end()
        except ServerError as error:
            screen.end()
            print(f"jserve: {error}", file=sys.stderr)


def _inputs() -> Iterator[str]:
    """What is typed, without empty lines; several lines between triple quotes are one."""
    prompt = ">>> " if sys.stdin.isatty() else ""
    with _history() if prompt else contextlib.nullcontext():
        while True:
            try:
                text = input(prompt).strip()
                if text.startswith(_QUOTES):
                    text = _until_quotes(text.removeprefix(_QUOTES), "... " if prompt else "")
            except EOFError:
                return
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /bye to leave)", file=sys.stderr)
                continue
            if text:
                yield text


def _until_quotes(first: str, prompt: str) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(_QUOTES):
        lines.append(input(prompt))
    return "\n".join(lines).rstrip().removesuffix(_QUOTES).strip()


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Lines of earlier conversations under the arrow keys, kept in the state folder of the user alone."""
    try:
        import readline
    except ImportError:
        yield
        return
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(root, "jserve", "history")
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_MAX_HISTORY)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)
