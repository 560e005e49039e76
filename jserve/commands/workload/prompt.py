"""What a request says about its prompt, reduced to numbers: lengths, and salted hashes of its blocks.

No text outlives this file: `PromptFacts` holds nothing that a prompt could be read from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jserve.api.telemetry.workload import BLOCK_TOKENS, ID_LIMIT, chained_ids

_CHARACTERS = 4
"""A token's, in English: prompts are cut into blocks by it, and so it decides which count as alike."""
_TEXT_FIELDS = ("system", "prompt", "instructions", "suffix", "input", "messages", "tools")
"""Where the APIs keep what becomes the prompt, in the order in which templates write it."""
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_USERS = ("user", "safety_identifier")
_IMAGE_TYPES = {"image_url", "image", "input_image"}


@dataclass(frozen=True, slots=True)
class PromptFacts:
    """Numbers about a prompt. `blocks` are the ids of its pieces of about `BLOCK_TOKENS` tokens."""

    model: str
    user: str
    stream: bool
    max_tokens: int | None
    tools: int
    images: int
    blocks: tuple[int, ...]
    guessed_tokens: int

    def block_ids(self, num_tokens: int) -> list[int]:
        """As many ids as so many tokens have blocks. Where the text has fewer, the last is varied: it is its own."""
        wanted = -(-num_tokens // BLOCK_TOKENS)
        ids = list(self.blocks[:wanted])
        last = ids[-1] if ids else 0
        return [*ids, *((last + 7919 * more) % ID_LIMIT for more in range(1, wanted - len(ids) + 1))]


def read_prompt(body: Mapping[str, Any], salt: bytes) -> PromptFacts:
    """The facts of a request's body; `salt` makes ids of one file mean nothing in another."""
    pieces = [piece for name in _TEXT_FIELDS if name in body for piece in _texts(body[name])]
    options = body.get("options") if isinstance(body.get("options"), dict) else {}
    limits = [body.get(name) for name in _LIMITS] + [options.get("num_predict") if options else None]
    metadata = body.get("metadata")
    users = [body.get(name) for name in _USERS] + ([metadata.get("user_id")] if isinstance(metadata, dict) else [])
    text = "\0".join(pieces)
    tools = body.get("tools")
    model = body.get("model")
    return PromptFacts(
        model=model if isinstance(model, str) else "",
        user=next((user for user in users if isinstance(user, str) and user), ""),
        stream=bool(body.get("stream", False)),
        max_tokens=next((limit for limit in limits if isinstance(limit, int) and limit > 0), None),
        tools=len(tools) if isinstance(tools, list) else 0,
        images=_images(body.get("messages")) + _images(body.get("input")),
        blocks=tuple(_chain(text, salt)),
        guessed_tokens=-(-len(text) // _CHARACTERS),
    )


def _texts(value: Any) -> Iterator[str]:
    """All strings and numbers in a value, in order, with the names of its fields left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def _images(messages: Any) -> int:
    if not isinstance(messages, list):
        return 0
    count = 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            count += sum(1 for part in content if isinstance(part, dict) and part.get("type") in _IMAGE_TYPES)
        if isinstance(message, dict) and isinstance(message.get("images"), list):
            count += len(message["images"])
    return count


def _chain(text: str, salt: bytes) -> Iterator[int]:
    """The ids of a text's blocks."""
    size = BLOCK_TOKENS * _CHARACTERS
    pieces = (text[start : start + size] for start in range(0, len(text), size))
    return chained_ids((piece.encode("utf-8", "surrogatepass") for piece in pieces), salt)
