"""How a model thinks and calls tools: the formats of its text, from its chat template or the command line."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jserve.api.settings import ServerSettings
from jserve.errors import ConfigError, RequestError
from jserve.text.output.reasoning import FORMATS as REASONING_FORMATS
from jserve.text.output.reasoning import ReasoningFormat, reasoning_named, recognise_reasoning
from jserve.text.tokenizers.tokenizer import Tokenizer
from jserve.text.tools.format import ToolFormat
from jserve.text.tools.generic import describe_tools, plain_history, with_instructions
from jserve.text.tools.harmony import Harmony
from jserve.text.tools.registry import FORMATS as TOOL_FORMATS
from jserve.text.tools.registry import GENERIC, format_named, recognise_tools
from jserve.text.tools.template_probe import PROBES, Probe, TemplateFacts

logger = logging.getLogger(__name__)

AUTO = "auto"
NONE = "none"

Render = Callable[[Probe], Awaitable[str]]
Message = Mapping[str, Any]
ToolDescription = Mapping[str, Any]


@dataclass(slots=True)
class ModelSpeech:
    """The formats of one chat template. `is_known`: the template's own tool format is understood here."""

    tokenizer: Tokenizer
    tool_format: ToolFormat
    reasoning: ReasoningFormat | None
    is_known: bool
    _facts: TemplateFacts | None = field(default=None, init=False)

    @classmethod
    def of(cls, template: str, tokenizer: Tokenizer, settings: ServerSettings) -> "ModelSpeech":
        """The formats that the settings name, else those that the template gives away."""
        recognised = recognise_tools(template)
        named = None if settings.tool_call_parser == AUTO else format_named(settings.tool_call_parser)
        reasoning = recognise_reasoning(template)
        if settings.reasoning_parser != AUTO:
            reasoning = reasoning_named(settings.reasoning_parser)
        tool_format = named or recognised or GENERIC
        if settings.reasoning_parser == "openai_gptoss":
            tool_format = named = Harmony()
        if isinstance(tool_format, Harmony):
            reasoning = None  # Its channels hold the reasoning.
        return cls(tokenizer, tool_format, reasoning, is_known=bool(named or recognised))

    @property
    def has_channels(self) -> bool:
        """Whether every message must be taken apart, tools or no tools."""
        return isinstance(self.tool_format, Harmony)

    @property
    def reasons(self) -> bool:
        """Whether answers may hold reasoning."""
        return self.has_channels or self.reasoning is not None

    def describe(self) -> str:
        """For the log, in a few words."""
        tools = self.tool_format.name if self.is_known else f"{self.tool_format.name} (generic)"
        reasoning = "channels" if self.has_channels else self.reasoning.name if self.reasoning else "none"
        return f"tool calls {tools}, reasoning {reasoning}"

    def visible_tokens(self, *, with_tools: bool) -> frozenset[int]:
        """Special tokens that the parser of a message must see."""
        markers = [] if self.reasoning is None else [*self.reasoning.markers]
        if with_tools or self.has_channels:
            markers += self.tool_format.markers
        ids = (self.tokenizer.token_id(marker) for marker in markers)
        return frozenset(token for token in ids if token is not None and self.tokenizer.is_special(token))

    async def prepare(
        self, messages: Sequence[Message], tools: Sequence[ToolDescription] | None, render: Render
    ) -> tuple[Sequence[Message], Sequence[ToolDescription] | None]:
        """Messages and tools for the template, where it knows tools; else messages that say all of it."""
        has_calls = any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)
        if not tools and not has_calls:
            return messages, None
        facts = await self._probe(render)
        form = self.tool_format.form
        if not (self.is_known and facts.shows_calls):
            messages = plain_history(messages, form)
        if tools and not (self.is_known and facts.shows_tools):
            text = describe_tools(tools, form)
            messages, tools = with_instructions(messages, text, takes_system=facts.takes_system), None
        return messages, tools

    async def _probe(self, render: Render) -> TemplateFacts:
        if self._facts is None:
            rendered = {}
            for name, probe in PROBES.items():
                try:
                    rendered[name] = await render(probe)
                except RequestError:
                    rendered[name] = ""
            self._facts = TemplateFacts.of(rendered)
            logger.info("chat template: %s; %s", self.describe(), self._facts)
        return self._facts


def check_parser_names(tool_call_parser: str, reasoning_parser: str) -> None:
    """Raise ConfigError where a name on the command line is none that is known."""
    if tool_call_parser != AUTO and format_named(tool_call_parser) is None:
        known = ", ".join([AUTO, *(known.name for known in TOOL_FORMATS)])
        raise ConfigError(f"--tool-call-parser {tool_call_parser!r} is not known; choose one of {known}")
    if reasoning_parser not in (AUTO, NONE, "openai_gptoss") and reasoning_named(reasoning_parser) is None:
        known = ", ".join([AUTO, NONE, "openai_gptoss", *(known.name for known in REASONING_FORMATS)])
        raise ConfigError(f"--reasoning-parser {reasoning_parser!r} is not known; choose one of {known}")
