"""What clients send to /v1/score and /v1/rerank."""

from typing import Annotated

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from jserve.api.openai.bodies import MAX_PROMPTS, Int64, TokenIds
from jserve.protocol import MAX_CHOSEN

Texts = str | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]


class Document(BaseModel):
    """A document as Jina's clients send it."""

    model_config = ConfigDict(extra="allow")

    text: str


class ScoringBody(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    instruction: str | None = None
    """What the query asks for, in place of web search. jserve's own, of the generative method only."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    priority: Int64 | None = 0
    request_id: str | None = None
    cache_salt: str | None = None
    user: str | None = None


class ScoreBody(ScoringBody):
    """POST /v1/score: 1:1, 1:N or N:N texts; or SGLang's `query`, `items` and `label_token_ids`."""

    queries: Texts | None = Field(None, validation_alias=AliasChoices("queries", "text_1", "data_1"))
    documents: Texts | None = Field(None, validation_alias=AliasChoices("documents", "text_2", "data_2"))
    query: str | TokenIds | None = None
    items: str | TokenIds | list[str] | list[TokenIds] | None = None
    label_token_ids: Annotated[TokenIds, Field(min_length=1, max_length=MAX_CHOSEN)] | None = None
    apply_softmax: bool = False
    item_first: bool = False


class RerankBody(ScoringBody):
    """POST /v1/rerank."""

    query: str
    documents: Annotated[list[str | Document], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
    top_n: Int64 | None = None
    """0 or less: all."""
    return_documents: bool | None = True
