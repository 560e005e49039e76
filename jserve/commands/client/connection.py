"""A running server as the commands for people use it: over OpenAI's API, whoever's server it is."""

import http.client
import json
import os
import socket
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from jserve.errors import JserveError

DEFAULT_URL = "http://127.0.0.1:8000"
_PATIENCE_S = 600.0
"""Without a byte: a first token may wait behind long prompts, or for a program that is compiled."""


class ServerError(JserveError):
    """The server refused, or is not there; the message is its own where it has one."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: text, or what the model thinks before it; `finish_reason` with the last one."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None


class Connection:
    """Where a server is, and how it is spoken to. `key` None means `JSERVE_API_KEY` or `OPENAI_API_KEY`, if set."""

    def __init__(self, url: str, key: str | None = None) -> None:
        bare = url.rstrip("/").removesuffix("/v1")
        self.url = bare if "://" in bare else f"http://{bare}"
        self._key = key or os.environ.get("JSERVE_API_KEY") or os.environ.get("OPENAI_API_KEY")

    def models(self) -> list[str]:
        """The names that it serves. Raises ServerError."""
        return [model["id"] for model in self.get("/v1/models")["data"]]

    def chat(self, model: str, messages: list[dict[str, Any]], **fields: Any) -> Generator[Piece]:
        """The answer to a conversation, piece by piece; closing the iterator ends it. Raises ServerError."""
        body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        for event in self._events("/v1/chat/completions", body | fields):
            choice = (event.get("choices") or [{}])[0]
            delta = choice.get("delta") or {}
            reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
            yield Piece(delta.get("content") or "", reasoning, choice.get("finish_reason"), event.get("usage"))

    def complete(self, model: str, prompt: str, **fields: Any) -> Generator[Piece]:
        """What follows a text, piece by piece. Raises ServerError."""
        body = {"model": model, "prompt": prompt, "stream": True}
        for event in self._events("/v1/completions", body | fields):
            choice = (event.get("choices") or [{}])[0]
            yield Piece(choice.get("text") or "", "", choice.get("finish_reason"), event.get("usage"))

    def get(self, path: str) -> Any:
        """The JSON of a page. Raises ServerError."""
        with self._open(Request(self.url + path, headers=self._headers())) as answer:
            return json.load(answer)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        headers = self._headers() | {"Content-Type": "application/json"}
        with self._open(Request(self.url + path, json.dumps(body).encode(), headers)) as answer:
            try:
                for line in answer:
                    data = line.strip().removeprefix(b"data:").strip()
                    if not line.startswith(b"data:"):
                        continue
                    if data == b"[DONE]":
                        return
                    event = json.loads(data)
                    if "error" in event:
                        raise ServerError(_message_of(event) or "the server ended the answer with an error")
                    yield event
            except (OSError, http.client.HTTPException) as error:
                raise ServerError(f"{self.url} broke off in the middle of the answer: {error}") from error
        raise ServerError(f"{self.url} broke off in the middle of the answer: the connection ended")

    def _open(self, request: Request) -> Any:
        try:
            return urlopen(request, timeout=_PATIENCE_S)
        except HTTPError as error:
            raise ServerError(self._refusal(error)) from error
        except (URLError, OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ConnectionRefusedError | socket.gaierror):
                raise ServerError(
                    f"no server answers at {self.url} ({reason}); start one with `jserve --model PATH`, or name "
                    "another with --url"
                ) from error
            raise ServerError(f"{self.url} could not be asked: {reason}") from error

    def _refusal(self, error: HTTPError) -> str:
        try:
            said = _message_of(json.load(error))
        except (ValueError, OSError):
            said = None
        if error.code == http.client.UNAUTHORIZED:
            return f"{self.url} wants a key: give --api-key, or set JSERVE_API_KEY ({said or error.reason})"
        return said or f"{self.url} answered {error.code} {error.reason}"


def _message_of(answer: Any) -> str | None:
    """OpenAI's `error.message`, or another server's plain text."""
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else None
