"""The bodies of POST /v1/messages and /v1/messages/count_tokens.

Unknown fields, such as those of betas, are kept in `model_extra`; those that chat knows are passed on to it.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jserve.api.openai.bodies import MAX_MESSAGES, Int64, StopString

MAX_STOP_SEQUENCES = 64
"""More than OpenAI's four, which are no limit of Anthropic's."""


class Thinking(BaseModel):
    """Whether the model is to think, and how much of it is shown."""

    model_config = ConfigDict(extra="allow")

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[Int64, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class JsonFormat(BaseModel):
    """The schema that the text must follow."""

    model_config = ConfigDict(extra="allow")

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    """What the text is to look like, and how much effort it is worth."""

    model_config = ConfigDict(extra="allow")

    format: JsonFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class MessageParam(BaseModel):
    """One message; its blocks are checked where they are translated."""

    model_config = ConfigDict(extra="allow")

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class CountTokensBody(BaseModel):
    """POST /v1/messages/count_tokens: what decides about the prompt."""

    model_config = ConfigDict(extra="allow")

    messages: Annotated[list[MessageParam], Field(max_length=MAX_MESSAGES)]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    mcp_servers: list[Any] | None = None


class MessagesBody(CountTokensBody):
    """POST /v1/messages."""

    max_tokens: Int64
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOP_SEQUENCES)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_k: Int64 | None = None
    top_p: float | None = None
    stream: bool | None = False
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    container: Any = None
