"""What the server process is told: everything that the engine does not need to know."""

import sys
from pathlib import PurePath

import msgspec

from jserve.errors import ConfigError

DEFAULT_ENGINE_COMMAND = (sys.executable, "-m", "jserve.engine")


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the server listens, whom it answers, and how it looks after its engine.

    `served_model_names` empty means the last part of the model's path, and the path as given. `api_keys`
    empty means no authentication.
    `chat_template` is a template or the path of one. `generation_config` "auto" takes default sampling from
    the model's `generation_config.json`, "vllm" uses neutral defaults, anything else is a folder to read it
    from. `max_engine_restarts` within `restart_window_s` seconds are tried before the server gives up.
    """

    model: str
    served_model_names: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    chat_template: str | None = None
    trust_request_chat_template: bool = False
    generation_config: str = "auto"
    shutdown_timeout_s: float = 30.0
    stall_timeout_s: float = 60.0
    enable_prompt_tokens_details: bool = False
    log_level: str = "info"
    max_engine_restarts: int = 3
    restart_window_s: float = 300.0
    engine_command: tuple[str, ...] = DEFAULT_ENGINE_COMMAND

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port is {self.port} but must be between 0 (any free port) and 65535")
        if self.shutdown_timeout_s < 0:
            raise ConfigError(f"--shutdown-timeout is {self.shutdown_timeout_s} but must be 0 or more seconds")
        if any(not key for key in self.api_keys):
            raise ConfigError("--api-key is empty; give a key, or leave the flag out to serve without one")

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that requests may use; the first is the one that responses carry."""
        if self.served_model_names:
            return self.served_model_names
        name = PurePath(self.model).name.removesuffix(".gguf")
        return tuple(dict.fromkeys((name or self.model, self.model)))

    @property
    def listed_names(self) -> tuple[str, ...]:
        """The names that clients are shown; the path is understood, and not told."""
        return self.served_model_names or self.model_names[:1]
