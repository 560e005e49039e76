"""The bodies of requests, as pydantic models. Responses are structs in `shapes.py`.

A field that is absent means the server's default, so almost everything is optional. Unknown fields are
accepted and kept in `model_extra`, where `unsupported.py` looks for those that would change the output.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr

MAX_PROMPTS = 1024
MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 1024
"""Matching takes, for each token, up to the square of this in steps."""

MAX_MESSAGES = 32_768
MAX_LOGIT_BIAS = 4_096
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARS = 256
MAX_PATTERN = 1_024

Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]
"""A list of any length. The first wrong token ends the check: to collect a million errors would take a second."""
StopString = Annotated[str, Field(max_length=MAX_STOP_CHARS)]
StopStrings = StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None

BadWords = Annotated[list[Annotated[str, Field(max_length=MAX_BAD_WORD_CHARS)]], Field(max_length=MAX_BAD_WORDS)]


class StreamOptions(BaseModel):
    """What a stream carries beside the text."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool = False
    continuous_usage_stats: bool = False


class JsonSchemaFormat(BaseModel):
    """The schema of a `response_format`, which is enforced in any case, `strict` or not."""

    model_config = ConfigDict(extra="allow")

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's way to ask for JSON. A structural tag carries its own fields beside `type`."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(BaseModel):
    """vLLM's way to ask for a form of output: exactly one of the first six.

    Objects that do not speak of `additionalProperties` have none, so `disable_additional_properties` adds nothing.
    """

    model_config = ConfigDict(extra="allow")

    json_: dict[str, Any] | bool | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: dict[str, Any] | str | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def value_of(self, kind: str) -> Any:
        """The field of this name."""
        return getattr(self, "json_" if kind == "json" else kind)


class RepetitionDetectionBody(BaseModel):
    """When an output that goes round in circles ends, with finish_reason "repetition"."""

    max_pattern_size: Annotated[int, Field(ge=0, le=MAX_PATTERN)] = 0
    min_pattern_size: Annotated[int, Field(ge=0, le=MAX_PATTERN)] = 0
    min_count: Annotated[int, Field(ge=0, le=MAX_PATTERN)] = 0


@dataclass(frozen=True, slots=True)
class SamplingDialect:
    """What the API that a request came by says about sampling and OpenAI's has no field for.

    `has_ranges`: a value out of OpenAI's ranges is an error. `penalty_window`: see `SamplingParams`.
    """

    has_ranges: bool = True
    penalty_window: int | None = None


class GenerationBody(BaseModel):
    """The fields that chat and completions share."""

    model_config = ConfigDict(extra="allow")

    _dialect: SamplingDialect = PrivateAttr(SamplingDialect())

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Int64 | None = 1
    max_tokens: Int64 | None = None
    min_tokens: Int64 | None = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    min_p: float | None = None
    seed: Int64 | None = None
    frequency_penalty: float | None = 0.0
    presence_penalty: float | None = 0.0
    repetition_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=MAX_LOGIT_BIAS)] | None = None
    stop: StopStrings = None
    stop_token_ids: TokenIds | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: BadWords | None = None
    repetition_detection: RepetitionDetectionBody | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    echo: bool | None = False
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    priority: Int64 | None = 0
    request_id: str | None = None
    cache_salt: str | None = None
    stream_interval: Annotated[Int64, Field(ge=1)] | None = None
    spaces_between_special_tokens: bool | None = True
    """Without effect: special tokens that are shown are never set apart by spaces."""
    user: str | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_json_object: bool | None = None
    guided_whitespace_pattern: str | None = None
    guided_decoding_backend: str | None = None
    session_id: str | None = None

    @property
    def dialect(self) -> SamplingDialect:
        return self._dialect

    def speak(self, dialect: SamplingDialect) -> None:
        """Say that the request was written in another dialect than OpenAI's."""
        self._dialect = dialect


class FunctionBody(BaseModel):
    """A function that the model may call. `parameters` is a JSON schema of an object."""

    model_config = ConfigDict(extra="allow")

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(BaseModel):
    """A tool. Only a function can be called here; `tool_use.py` leaves tools of other types out."""

    model_config = ConfigDict(extra="allow")

    type: str = "function"
    function: FunctionBody | None = None


class NamedFunction(BaseModel):
    """A function by its name."""

    name: str


class NamedToolChoice(BaseModel):
    """The one tool that must be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class OtherToolChoice(BaseModel):
    """A choice of another type: `allowed_tools`, or one that needs a tool that this server does not have."""

    model_config = ConfigDict(extra="allow")

    type: str


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(max_length=MAX_MESSAGES)]
    max_completion_tokens: Int64 | None = None
    logprobs: bool | None = False
    top_logprobs: Int64 | None = 0
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool = False
    return_prompt_text: bool | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | OtherToolChoice | None = None
    parallel_tool_calls: bool | None = True
    include_reasoning: bool = True
    thinking_token_budget: int | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """A variable of the template, like `reasoning_effort`; most templates do not read it."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[TokenIds], Field(fail_fast=True)]
        | None
    ) = None
    logprobs: Int64 | None = None
    add_special_tokens: bool = True


class PooledBody(BaseModel):
    """What endpoints take that make one vector of each input."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    input: (
        str
        | TokenIds
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[TokenIds], Field(fail_fast=True)]
        | None
    ) = None
    messages: Annotated[list[dict[str, Any]], Field(max_length=MAX_MESSAGES)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    """By default true for `input`, and false for `messages`, whose template has its own."""
    add_generation_prompt: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    priority: Int64 | None = 0
    request_id: str | None = None
    cache_salt: str | None = None
    user: str | None = None


class EmbeddingBody(PooledBody):
    """POST /v1/embeddings."""

    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Int64 | None = None
    pooling: Literal["last", "mean", "cls"] | None = None
    """jserve's own: instead of the server's `--pooling`."""
    prompt_name: str | None = None
    """One of the prompts that a model for embeddings comes with, as in text-embeddings-inference."""
    embed_dtype: Literal["float32"] | None = None
    endianness: Literal["little", "native"] | None = None
    normalize: Literal[True] | None = None
    """Embeddings always have length 1."""


class ClassifyBody(PooledBody):
    """POST /classify."""

    use_activation: Annotated[
        bool | None, Field(validation_alias=AliasChoices("use_activation", "activation", "softmax"))
    ] = None
    """False gives the logits in place of probabilities. The other names are vLLM's older ones."""


class TokenizeBody(BaseModel):
    """POST /tokenize: either `prompt` or `messages`."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    """By default true for `prompt`, and false for `messages`, whose template has its own."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    return_token_strs: bool | None = False
    tools: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeBody(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    tokens: TokenIds
