"""The bodies of responses as msgspec structs: one encode per chunk, and UNSET fields stay out of it."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from jserve.api.generation.usage import RequestMetrics, Usage
from jserve.api.json_writer import HOLE, encode

StopReason = int | str | None


class TopLogprob(msgspec.Struct, frozen=True):
    """One alternative of a position. `bytes` are the token's own, which may be part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """The sampled token of a position and its best alternatives, best first."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Logprobs in chat's shape. `refusal` must be there: null in a whole answer, a list in a chunk."""

    content: list[TokenLogprob] | list[str]
    """A list with `HOLE` alone where it is written in pieces; so are others of such types."""
    refusal: list[TokenLogprob] | None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Logprobs in completions' shape: parallel arrays."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class PromptLogprob(msgspec.Struct, frozen=True):
    """One token at a position of the prompt."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By token id: the prompt's own token, and the best. None for the first, which nothing predicts."""


class FunctionCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call, or what a chunk adds to one. `arguments` is JSON as text."""

    arguments: str | UnsetType = UNSET
    name: str | UnsetType = UNSET


class ChatToolCall(msgspec.Struct, frozen=True):
    """A tool call of a message."""

    id: str
    function: FunctionCall
    type: str = "function"


class ChatToolCallDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to a tool call. `id`, `type` and the name come with its first."""

    index: int
    function: FunctionCall
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class ChatMessage(msgspec.Struct, frozen=True):
    """The assistant's answer. `reasoning_content` is an older name of `reasoning`, which many clients read."""

    role: str
    content: str | None
    refusal: None = None
    audio: None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ChatToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One choice of a chat response."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: StopReason
    token_ids: list[int] | None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a chat response that is not streamed."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: None = None
    system_fingerprint: str
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None
    kv_transfer_params: None = None
    metrics: RequestMetrics | None = None


class ChatDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to a message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ChatToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """One choice of a chat chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | UnsetType = UNSET
    finish_reason: str | None = None
    stop_reason: StopReason | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a chat stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType = UNSET
    system_fingerprint: str | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_text: str | UnsetType = UNSET
    metrics: RequestMetrics | UnsetType = UNSET


class CompletionChoice(msgspec.Struct, frozen=True):
    """One choice of a completions response."""

    index: int
    text: str
    logprobs: CompletionLogprobs | str | None
    finish_reason: str | None
    stop_reason: StopReason
    token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | list[str] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a completions response that is not streamed."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    service_tier: None = None
    system_fingerprint: str
    usage: Usage
    kv_transfer_params: None = None
    metrics: RequestMetrics | None = None


class CompletionChunkChoice(msgspec.Struct, frozen=True):
    """One choice of a completions chunk."""

    index: int
    text: str
    logprobs: CompletionLogprobs | str | None = None
    finish_reason: str | None = None
    stop_reason: StopReason = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a completions stream."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | UnsetType = UNSET
    system_fingerprint: str | UnsetType = UNSET
    metrics: RequestMetrics | UnsetType = UNSET


class Embedding(msgspec.Struct, frozen=True):
    """One input's vector, as numbers or as the base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an embeddings response."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Embedding] | list[str]
    usage: Usage


class Score(msgspec.Struct, frozen=True):
    """How relevant a document is to a query."""

    index: int
    score: float
    object: str = "score"


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a score response."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Score]
    usage: Usage


class Classification(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of one text: its most likely label, and the number of each."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classifications(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a classify response."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Classification]
    usage: Usage


class LabelScores(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a score response in SGLang's form: for each item the probabilities of the labels."""

    scores: list[list[float]]
    model: str
    usage: Usage
    object: str = "scoring"


class RankedDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """One document of a rerank response. `index` is its place in the request."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class Ranking(msgspec.Struct, frozen=True):
    """The body of a rerank response, the most relevant first."""

    id: str
    model: str
    usage: Usage
    results: list[RankedDocument]


def event(message: Any) -> bytes:
    """One server-sent event that carries `message` as JSON."""
    return b"data: " + encode(message) + b"\n\n"


class TextEvent:
    """Events that differ in one string only, which is all that is encoded for each of them."""

    __slots__ = ("_parts",)

    def __init__(self, message: Any) -> None:
        """`message` has `HOLE`, and nothing else, wherever the string is to stand."""
        self._parts = event(message).split(encode(HOLE))

    def of(self, text: str) -> bytes:
        """The event with `text`."""
        return encode(text).join(self._parts)
