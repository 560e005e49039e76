"""Ollama's HTTP API, so that its clients work with the base URL changed. One server, one model, always loaded.

Every endpoint translates its body into that of chat, completions or embeddings, where all checks are, and renders
the result in Ollama's shapes. What Ollama does silently, dropping the start of a prompt that is too long,
is never done.
"""
