"""The settings of the server process: all that the engine does not need to know."""

import math
import sys
from pathlib import Path, PurePath
from typing import Literal

import msgspec

from jserve.api.access.limits import Limits
from jserve.checkpoint import is_ollama_name
from jserve.errors import ConfigError

DEFAULT_ENGINE_COMMAND = (sys.executable, "-m", "jserve.engine")


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the server listens, whom it answers, and how it looks after its engine.

    `served_model_names` empty means the last part of the model's path, and the path as given. `api_keys`
    and `api_key_file` empty mean no authentication.
    `chat_template` is a template or the path of one. `generation_config` "auto" takes default sampling from
    the model's `generation_config.json`, "vllm" uses neutral defaults, anything else is a folder to read it
    from. `max_request_bytes` bounds a body; `receive_timeout_s` is what a client has for the head of a request,
    and in which its body must go on by 500 bytes a second. An engine that has owed an answer for `hang_timeout_s` is
    killed and started again, 0 for never. A server that has had no request for `exit_when_idle_s` stops.
    `max_engine_restarts` within `restart_window_s` seconds are tried before the server gives up.
    `uds` is the path of a Unix socket in the place of `host` and `port`. `forwarded_allow_ips` are the proxies, or
    networks, whose `X-Forwarded-For` is believed. `limits_file` is where `limits` were read, and may be read again.
    """

    model: str
    revision: str | None = None
    download_dir: str | None = None
    served_model_names: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    uds: Path | None = None
    forwarded_allow_ips: str = "127.0.0.1,::1"
    root_path: str = ""
    ui: bool = True
    ssl_keyfile: Path | None = None
    ssl_certfile: Path | None = None
    api_keys: tuple[str, ...] = ()
    api_key_file: Path | None = None
    metrics_without_key: bool = False
    limits: Limits | None = None
    limits_file: Path | None = None
    cache_isolation: str = "key"
    max_queued_requests: int | None = None
    max_queued_tokens: int | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    chat_template: str | None = None
    trust_request_chat_template: bool = False
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    exclude_tools_when_none: bool = True
    generation_config: str = "auto"
    pooling: Literal["last", "mean", "cls"] | None = None
    score_method: Literal["generative", "cosine"] = "generative"
    grammar_compile_timeout_s: float = 5.0
    max_grammar_bytes: int = 1 << 20
    shutdown_timeout_s: float = 30.0
    exit_when_idle_s: float | None = None
    health_when: Literal["alive", "ready"] = "alive"
    max_connections: int | None = None
    max_request_bytes: int = 32 << 20
    receive_timeout_s: float = 20.0
    stall_timeout_s: float = 60.0
    hang_timeout_s: float = 300.0
    enable_prompt_tokens_details: bool = False
    enable_force_include_usage: bool = False
    enable_per_request_metrics: bool = False
    stream_interval: int = 1
    sse_keep_alive_interval_s: float = 15.0
    storage_dir: Path | None = None
    storage_bytes_per_key: int = 1 << 30
    max_file_bytes: int = 200 << 20
    storage_retention_hours: float = 720.0
    batch_priority: int = 1_000_000
    audit_log: Path | None = None
    audit_log_max_bytes: int = 100_000_000
    audit_log_files: int = 5
    record_workload: Path | None = None
    log_level: str = "info"
    log_format: str = "text"
    enable_log_requests: bool = False
    otlp_traces_endpoint: str | None = None
    max_engine_restarts: int = 3
    restart_window_s: float = 300.0
    engine_command: tuple[str, ...] = DEFAULT_ENGINE_COMMAND

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port is {self.port} but must be between 0 (any free port) and 65535")
        if not 0 < self.grammar_compile_timeout_s < math.inf:
            raise ConfigError(
                f"--grammar-compile-timeout is {self.grammar_compile_timeout_s} but must be more than 0 seconds"
            )
        if self.max_grammar_bytes < 1:
            raise ConfigError(f"--max-grammar-bytes is {self.max_grammar_bytes} but must be at least 1")
        if self.shutdown_timeout_s < 0:
            raise ConfigError(f"--shutdown-timeout is {self.shutdown_timeout_s} but must be 0 or more seconds")
        if not self.hang_timeout_s >= 0:
            raise ConfigError(f"--hang-timeout is {self.hang_timeout_s:g} but must be 0 (never) or more seconds")
        if not self.storage_retention_hours > 0:
            raise ConfigError(f"--storage-retention-hours is {self.storage_retention_hours:g} but must be more than 0")
        if self.stream_interval < 1:
            raise ConfigError(f"--stream-interval is {self.stream_interval} but must be at least 1 token")
        if self.max_request_bytes < 1:
            raise ConfigError(f"--max-request-bytes is {self.max_request_bytes} but must be at least 1")
        if not self.receive_timeout_s > 0:
            raise ConfigError(f"--receive-timeout is {self.receive_timeout_s:g} but must be more than 0 seconds")
        if any(not key for key in self.api_keys):
            raise ConfigError("--api-key is empty; give a key, or leave the flag out to serve without one")
        if self.allow_credentials and "*" in self.allowed_origins:
            raise ConfigError("--allow-credentials needs --allowed-origins by name: with '*' any site could use them")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ConfigError("--ssl-keyfile and --ssl-certfile belong together; give both, or none")
        if self.ssl_certfile is not None:
            import ssl  # 20 ms, which a start without TLS saves

            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"--ssl-certfile {self.ssl_certfile} and --ssl-keyfile {self.ssl_keyfile}: {error}"
                ) from error
        for flag, limit, least in (
            ("--max-queued-requests", self.max_queued_requests, 0),
            ("--max-queued-tokens", self.max_queued_tokens, 1),
            ("--max-connections", self.max_connections, 1),
            ("--storage-bytes-per-key", self.storage_bytes_per_key, 0),
            ("--max-file-bytes", self.max_file_bytes, 1),
            ("--batch-priority", self.batch_priority, 0),
            ("--audit-log-max-bytes", self.audit_log_max_bytes, 1),
            ("--audit-log-files", self.audit_log_files, 1),
        ):
            if limit is not None and limit < least:
                raise ConfigError(f"{flag} is {limit} but must be at least {least}")

    @property
    def needs_key(self) -> bool:
        """Whether requests must bring a key."""
        return bool(self.api_keys) or self.api_key_file is not None

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that requests may use; the first is the one that responses carry."""
        if self.served_model_names:
            return self.served_model_names
        if is_ollama_name(self.model):
            name = self.model.removeprefix("ollama:").removeprefix("//")
            bare = name.removesuffix(":latest")
            tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
            return tuple(dict.fromkeys((name, *((tagged, bare) if tagged.endswith(":latest") else ()), self.model)))
        name = PurePath(self.model).name.removesuffix(".gguf")
        return tuple(dict.fromkeys((name or self.model, self.model)))

    @property
    def listed_names(self) -> tuple[str, ...]:
        """The names that clients are shown. The model's path is accepted as a name, but not shown."""
        return self.served_model_names or self.model_names[:1]
