"""What handlers need, in one value that the app carries; nothing in `api/` is a module global."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request

from jserve.api.access.account import Accounts
from jserve.api.access.incoming_bodies import IncomingBodies
from jserve.api.access.keys import KeyRing
from jserve.api.call import Call, current_call
from jserve.api.generation.generation import Generator
from jserve.api.generation.recent_items import RecentItems
from jserve.api.model.grammars import GrammarChecker
from jserve.api.model.served_model import ServedModel
from jserve.api.settings import ServerSettings
from jserve.api.store.store import Store
from jserve.api.supervisor.client import EngineClient
from jserve.api.telemetry.audit import AuditLog
from jserve.api.telemetry.metrics import Metrics
from jserve.api.telemetry.tracing import Tracer
from jserve.api.telemetry.workload import ServedWorkload
from jserve.errors import EngineUnavailableError, UnknownModelError
from jserve.text.grammars.grammar_worker import GrammarSetup

_MOST_BODIES = 8
"""Bodies of the largest size that may be in memory, all unfinished and unparsed ones together."""


@dataclass(slots=True)
class ServerContext:
    """The parts of one server. `loaded_model` is None until its files have been read."""

    settings: ServerSettings
    client: EngineClient
    generator: Generator
    metrics: Metrics
    keys: KeyRing
    accounts: Accounts
    store: Store
    audit_log: AuditLog | None = None
    workload: ServedWorkload | None = None
    tracer: Tracer | None = None
    loaded_model: ServedModel | None = None
    started: int = field(default_factory=lambda: int(time.time()))
    """Unix time, in seconds."""
    recent_items: RecentItems = field(default_factory=RecentItems)
    background: dict[tuple[str, str], "asyncio.Task[None]"] = field(default_factory=dict)
    """Responses that are being answered behind, by owner and id."""
    grammars: GrammarChecker = field(init=False)
    bodies: IncomingBodies = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.bodies = IncomingBodies(_MOST_BODIES * settings.max_request_bytes)
        self.grammars = GrammarChecker(
            self._grammar_setup, settings.grammar_compile_timeout_s, settings.max_grammar_bytes
        )

    def audit(self, call: Call, status: int) -> None:
        """A request is over: write its lines, where there is an audit log or the workload is recorded."""
        if self.audit_log is not None:
            self.audit_log.write(call, status)
        if self.workload is not None:
            self.workload.write(call, status)

    def share_facts(self) -> None:
        """Tell the model what the engine has said of it, where both are there."""
        if self.loaded_model is not None and self.client.ready is not None:
            self.loaded_model.facts = self.client.ready.model

    def model_when_ready(self) -> ServedModel:
        """The model. Raises EngineUnavailableError, saying why, where no request can be taken."""
        self.generator.check_available()
        if self.loaded_model is None:
            raise EngineUnavailableError("the tokenizer is still loading; try again in a few seconds")
        return self.loaded_model

    def check_name(self, name: str | None) -> None:
        """Raise UnknownModelError unless `name` is served here, to this key; absent or empty means the only model."""
        names = self.settings.model_names
        is_allowed = self._is_allowed(name) if name else any(map(self._is_allowed, names))
        if (name and name not in names) or not is_allowed:
            aliases = ", ".join(self.listed_names) or "none for this API key"
            raise UnknownModelError(
                f"The model `{name or names[0]}` does not exist. Valid aliases: {aliases}.", param="model"
            )

    @property
    def listed_names(self) -> tuple[str, ...]:
        """The model's names that the caller is shown: those that its key may use."""
        return tuple(name for name in self.settings.listed_names if self._is_allowed(name))

    @staticmethod
    def _is_allowed(name: str) -> bool:
        models = current_call().key.models
        return not models or name in models

    def admit(self, name: str | None) -> ServedModel:
        """The model that a request names, before anything else of the request is looked at.

        Raises UnknownModelError, or EngineUnavailableError where no request can be taken, which is counted.
        """
        self.check_name(name)
        try:
            return self.model_when_ready()
        except EngineUnavailableError:
            self.metrics.rejected["draining" if self.generator.is_draining else "not_ready"] += 1
            raise

    def _grammar_setup(self) -> GrammarSetup:
        model = self.model_when_ready()
        tokenizer, facts = model.tokenizer, model.facts
        return GrammarSetup(tokenizer.backend.to_str(), max(facts.vocab_size, tokenizer.num_ids), facts.eos_token_ids)


def context_of(request: Request) -> ServerContext:
    """The server that this request came to."""
    return cast(ServerContext, request.app.state.server)
