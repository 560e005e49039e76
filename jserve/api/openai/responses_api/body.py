"""The body of POST /v1/responses.

Unknown fields are kept in `model_extra`; those that chat knows are passed on to it.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jserve.api.openai.bodies import MAX_MESSAGES, Int64

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class Reasoning(BaseModel):
    """How much the model is to think. A `summary` is accepted, but the reasoning itself is given instead."""

    model_config = ConfigDict(extra="allow")

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    mode: str | None = None


class TextFormat(BaseModel):
    """The format of the text. In chat the last four fields lie one object deeper."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(BaseModel):
    """What the text is to look like."""

    model_config = ConfigDict(extra="allow")

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesBody(BaseModel):
    """POST /v1/responses."""

    model_config = ConfigDict(extra="allow")

    input: str | Annotated[list[dict[str, Any]], Field(max_length=MAX_MESSAGES)]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Int64 | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Int64 | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Int64 | None = None
    include: list[str] | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the text comes with the logprobs of its tokens."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())


LOGPROBS = "message.output_text.logprobs"
