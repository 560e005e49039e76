"""The text of Anthropic's content blocks, of documents and of what tools of Anthropic's own have found too."""

from typing import Any

from jserve.errors import RequestError

_CONTENT = ("image", "document", "container_upload")
"""Blocks in which the user shows something to the model: without it the answer would be about nothing."""


class UnreadableBlockError(RequestError):
    """A model that takes text cannot read this block."""


def text_of(block: Any) -> str | None:
    """The text of a block that is no call and no tool's result; None for one of another kind without text.

    Raises UnreadableBlockError for an image and for a document that is no text, RequestError for what is no block.
    """
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise RequestError(f"has type {kind!r:.60}; it must be a block with a type, such as 'text'")
    if kind == "text":
        if not isinstance(block.get("text"), str):
            raise RequestError("has type 'text' and no text; `text` must be a string")
        return str(block["text"])
    texts = texts_in(block)
    if not texts and kind in _CONTENT:
        raise UnreadableBlockError(
            f"has type {kind!r}, which is not supported here: this model takes text only. Supported are text, "
            "search_result, document with a source of text, tool_result (of the user), tool_use and thinking (of the "
            "assistant)"
        )
    return "\n".join(texts) if texts else None


def texts_in(value: Any) -> list[str]:
    """Every text in a block and in the blocks that lie in it, in reading order."""
    if isinstance(value, list):
        return [text for entry in value for text in texts_in(entry)]
    if not isinstance(value, dict):
        return []
    source = value.get("source")
    if isinstance(source, dict):  # Of a document: text, or blocks. Of an image or a PDF: base64, a URL, a file's id.
        return _titles(value) + (_texts_of_source(source))
    names = ("text", "content", "stdout", "stderr")
    texts = [text for name in names for text in _texts_under(value.get(name))]
    return _titles(value) + texts if texts or value.get("type") == "web_search_result" else []


def _titles(block: dict[str, Any]) -> list[str]:
    names = ("title", "source", "url", "context")
    return [block[name] for name in names if isinstance(block.get(name), str) and block[name]]


def _texts_under(value: Any) -> list[str]:
    return ([value] if value else []) if isinstance(value, str) else texts_in(value)


def _texts_of_source(source: dict[str, Any]) -> list[str]:
    if source.get("type") == "text":
        return _texts_under(source.get("data"))
    return _texts_under(source.get("content")) if source.get("type") == "content" else []
