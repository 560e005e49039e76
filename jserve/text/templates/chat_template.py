"""A conversation as the text that the model was trained on, through the model's own Jinja template.

The same text as `tokenizer.apply_chat_template` of transformers. A template that is missing, does not compile
or refuses the messages fails the request and nothing else: completions work without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateSyntaxError

from jserve.errors import ConfigError, RequestError
from jserve.text.templates.chat_environment import TemplateRaised, chat_environment
from jserve.text.templates.go import GoTemplateError, looks_like_go, with_bos
from jserve.text.templates.messages import Message, MessageForm, normalize_messages
from jserve.text.tokenizers.template_files import read_text
from jserve.text.tokenizers.tokenizer import Tokenizer

_CONTINUE_MARK = "CONTINUE_FINAL_MESSAGE_MARK "
_PROBE = "probe-1f9c"
_CALLED: list[Message] = [
    {"role": "user", "content": "Hello"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {_PROBE: "a"}}},
        ],
    },
    {"role": "tool", "tool_call_id": "abcdefghi", "name": "f", "content": "b"},
]


class ChatTemplate:
    """Renders conversations. `templates` maps names to Jinja; "tool_use" serves requests with tools."""

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` (bos_token, ...) are variables of every template."""
        self.sources = dict(templates)
        self.special_tokens = dict(special_tokens)
        self._templates = {name: _NamedTemplate(source, special_tokens) for name, source in templates.items()}

    @classmethod
    def load(cls, tokenizer: Tokenizer, override: str | None = None) -> ChatTemplate:
        """The model's own templates, or the one that `--chat-template` gives (a file, or the template itself).

        Jinja, or Go as in Ollama's Modelfiles. Raises ConfigError where the given one cannot be read or does not
        compile.
        """
        if override is None:
            return cls(tokenizer.chat_templates, tokenizer.special_tokens)
        source = _read_override(override)
        if looks_like_go(source):
            try:
                source = with_bos(source, tokenizer)
            except GoTemplateError as error:
                raise ConfigError(f"--chat-template: the Go template cannot be translated: {error}") from None
        chat = cls({"default": source}, tokenizer.special_tokens)
        try:
            _ = chat._templates["default"].compiled
        except TemplateSyntaxError as error:
            raise ConfigError(f"--chat-template does not compile: line {error.lineno}: {error.message}") from None
        return chat

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. Tokenize it with `add_special_tokens=False`: templates write BOS themselves.

        `continue_final_message` leaves the last message open for the model to go on with, and
        `chat_template_kwargs` are further variables. Raises RequestError where there is no template or it
        refuses.
        """
        template = self._templates.get("tool_use" if tools else "default") or self._templates.get("default")
        if template is None:
            raise RequestError(
                "this model has no chat template; start the server with --chat-template FILE, "
                "or use the completions endpoint with a prompt"
            )
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other; set one to false",
                param="continue_final_message",
            )
        variables = {"tools": None, "documents": None, **(chat_template_kwargs or {})}
        variables["add_generation_prompt"] = add_generation_prompt
        if tools:
            variables["tools"] = list(tools)
        if documents:
            variables["documents"] = list(documents)
        normalized = template.normalize(messages)
        if continue_final_message:
            return template.render_open(normalized, variables)
        return template.render(normalized, variables)


class _NamedTemplate:
    """One template, compiled when it is first needed."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = special_tokens

    @cached_property
    def compiled(self) -> Template:
        return chat_environment().from_string(self.source)

    def normalize(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        form = self._content_form
        if any(message.get("tool_calls") for message in messages):
            form = self._call_form
        return normalize_messages(messages, form)

    def render(self, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        try:
            return self.compiled.render({**self._special_tokens, **variables, "messages": messages})
        except TemplateSyntaxError as error:
            raise RequestError(
                f"the chat template does not compile (line {error.lineno}: {error.message}); "
                "start the server with another, --chat-template FILE"
            ) from None
        except TemplateRaised as error:
            raise RequestError(f"the chat template refuses these messages: {error.message}", param="messages") from None
        except Exception as error:  # a template is a program, and may fail in any way one can
            raise RequestError(
                f"the chat template failed on these messages: {type(error).__name__}: {error}",
                param="messages",
            ) from error

    def render_open(self, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        """Render with a mark behind the last message's text, and cut there (as transformers does)."""
        last = dict(messages[-1])
        if isinstance(last["content"], list) and last["content"]:
            *parts, part = last["content"]
            text, last["content"] = part["text"], [*parts, {**part, "text": part["text"] + _CONTINUE_MARK}]
        else:
            text, last["content"] = last["content"], f"{last['content']}{_CONTINUE_MARK}"
        rendered = self.render([*messages[:-1], last], variables)
        mark = _CONTINUE_MARK.strip()
        cut = rendered.rfind(mark)
        if cut < 0 or str(text).strip() not in rendered:
            raise RequestError(
                "the chat template drops or changes the last message, so it cannot be continued; "
                "set continue_final_message to false",
                param="continue_final_message",
            )
        # A template that trims the text has trimmed the mark's own space, so the text's end is trimmed too.
        return rendered[:cut] if rendered.startswith(_CONTINUE_MARK, cut) else rendered[:cut].rstrip()

    @cached_property
    def _content_form(self) -> MessageForm:
        takes_lists = self._shows([{"role": "user", "content": [{"type": "text", "text": _PROBE}]}])
        takes_strings = not takes_lists or self._shows([{"role": "user", "content": _PROBE}])
        return MessageForm("developer" in self.source, takes_lists, takes_strings)

    @cached_property
    def _call_form(self) -> MessageForm:
        """The form of conversations with calls. Of several that the template renders, the first."""
        plain = self._content_form
        forms = [
            replace(plain, takes_none=takes_none, arguments_as_text=as_text)
            for as_text in (False, True)
            for takes_none in (True, False)
        ]
        return next((form for form in forms if self._shows(normalize_messages(_CALLED, form))), plain)

    def _shows(self, messages: list[dict[str, Any]]) -> bool:
        """Whether `_PROBE` comes out as itself, and nothing in Python's way to write a list, an object or None."""
        variables = {"tools": None, "documents": None, "add_generation_prompt": False}
        try:
            rendered = self.render(messages, variables)
        except RequestError:
            return False
        signs = ("'type'", '"type"', f"'{_PROBE}'", "None")
        return _PROBE in rendered and not any(sign in rendered and sign not in self.source for sign in signs)


def _read_override(override: str) -> str:
    if "{%" in override or "{{" in override:
        return override
    path = Path(override)
    if not path.is_file():
        raise ConfigError(f"--chat-template {override!r} is neither a file nor a template")
    return read_text(path)
