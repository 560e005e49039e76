"""What the answers of chat and of completions have in common: whose they are, the usage, and the end of a stream."""

import time
from collections.abc import Callable
from typing import Any

from msgspec import UNSET, UnsetType

from jserve.api.errors import ErrorAnswer
from jserve.api.generation.generation import Generation
from jserve.api.generation.usage import RequestMetrics, Usage
from jserve.api.http.answers import DONE
from jserve.api.json_writer import HOLE
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.bodies import GenerationBody
from jserve.api.openai.shapes import TextEvent, event
from jserve.api.openai.streaming import wants_usage, wants_usage_always
from jserve.api.settings import ServerSettings

Shape = Callable[..., Any]
"""One of the structs of `shapes.py`, which are made by keyword."""


class AnswerFrame:
    """The fields around the choices of one request. `with_ids`: token ids are wanted too."""

    def __init__(
        self, body: GenerationBody, model: ServedModel, generation: Generation, settings: ServerSettings
    ) -> None:
        self.with_ids = bool(body.return_token_ids)
        self.usage_always = wants_usage_always(body)
        self.is_bare = not (self.with_ids or self.usage_always)
        """Whether an event with text holds nothing else that changes."""
        self._generation = generation
        self._identity = {"id": generation.request.public_id, "created": int(time.time()), "model": model.name}
        self._fingerprint = model.fingerprint
        self._with_usage = wants_usage(body)
        self._with_details = settings.enable_prompt_tokens_details
        self._with_metrics = settings.enable_per_request_metrics
        self._text_events: dict[int, TextEvent] = {}

    def usage(self) -> Usage:
        """Token counts so far."""
        return self._generation.usage(with_details=self._with_details)

    def chunk_usage(self) -> Usage | UnsetType:
        """The usage, where every chunk carries it."""
        return self.usage() if self.usage_always else UNSET

    def event(self, chunk: Shape, choice: Any, *, is_last: bool = False, **fields: Any) -> bytes:
        """The event of a chunk with one choice; the last of a choice tells the fingerprint."""
        fields.setdefault("usage", self.chunk_usage())
        fingerprint = self._fingerprint if is_last else UNSET
        return event(chunk(**self._identity, choices=[choice], system_fingerprint=fingerprint, **fields))

    def text_event(self, chunk: Shape, index: int, choice: Callable[[str], Any], text: str) -> bytes:
        """The event of a chunk whose choice says `text` and nothing else."""
        known = self._text_events.get(index)
        if known is None:
            known = TextEvent(chunk(**self._identity, choices=[choice(HOLE)]))
            self._text_events[index] = known
        return known.of(text)

    def last_chunk(self, chunk: Shape) -> bytes:
        """The usage, where the request wants it, and the end."""
        if not self._with_usage:
            return DONE
        fields = {"usage": self.usage(), "metrics": self._metrics() or UNSET}
        return event(chunk(**self._identity, choices=[], system_fingerprint=self._fingerprint, **fields)) + DONE

    def error(self, problem: ErrorAnswer) -> bytes:
        """The error as an event, and the end."""
        return b"data: " + problem.body() + b"\n\n" + DONE

    def whole(self, completion: Shape, choices: list[Any], **fields: Any) -> Any:
        """The body that is not streamed, around `choices`."""
        return completion(
            **self._identity,
            choices=choices,
            system_fingerprint=self._fingerprint,
            usage=self.usage(),
            metrics=self._metrics(),
            **fields,
        )

    def _metrics(self) -> RequestMetrics | None:
        return self._generation.request_metrics() if self._with_metrics else None
