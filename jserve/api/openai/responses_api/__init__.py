"""POST /v1/responses: OpenAI's Responses API without state, as chat in another shape."""
