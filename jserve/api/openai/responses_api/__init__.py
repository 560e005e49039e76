"""POST /v1/responses: OpenAI's Responses API, as chat in another shape that is remembered."""
