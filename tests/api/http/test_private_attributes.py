"""Every part of uvicorn that we use and that its documentation does not promise, and what to do when one is gone.

uvicorn is bounded above in pyproject.toml (and starlette and fastapi, of which we use documented parts only). Raise a
bound, run this file, and for each name that fails do what stands beside it.
"""

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tests.api.live_server import ROOT

HTTP = ROOT / "jserve" / "api" / "http"
KNOW_UVICORN = {"http_protocol.py", "body_writer.py", "read_gate.py", "uvicorn_server.py"}

SERVER = {
    "capture_signals": "find what installs signal handlers in `Server.serve` now, and override that with nothing",
    "config": "the argument of `Server`; its `ssl` is the context that connections are made with",
    "should_exit": "find what its own signal handler sets now, and set it in `UvicornServer.stop`",
}
PROTOCOL = {
    "connections": "the set of all connections of the server, this one included; keep one ourselves",
    "cycle": "the request that came last; find it where `on_headers_complete` makes it",
    "flow": "find what pauses reading and writing now; `ReadGate` must stand between it and the transport",
    "headers": "the head that is being received; keep it ourselves in `on_header`",
    "loop": "asyncio.get_running_loop() in `connection_made` does",
    "parser": "ours replaces it in `__init__`, before a connection is made",
    "pipeline": "requests that wait for the one before them; without it nothing bounds them",
    "scope": "made in `on_message_begin`; the body writer must get into it before the app is called",
    "transport": "the argument of `connection_made`",
    "url": "keep it ourselves in `on_url`",
    "on_body": "a callback of httptools, whose names it keeps; look whether uvicorn still is the receiver",
    "on_headers_complete": "as `on_body`; it starts the app, so all that the app needs must be there before",
    "on_message_begin": "as `on_body`",
    "on_message_complete": "as `on_body`",
    "on_response_complete": "find what the cycle calls when an answer is over, and hook in there",
    "send_400_response": "find what answers a head that is not HTTP, and override that, so that errors are JSON",
}
CYCLE = {
    "body": "what has come of the body and nobody has read",
    "chunked_encoding": "set to False it keeps `send` from framing a body; None lets it choose by the head",
    "message_event": "set, it wakes whoever waits in `receive`",
    "more_body": "whether the body is still coming",
    "disconnected": "what makes `RequestResponseCycle.send` drop what a handler still says",
    "flow": "`FlowControl` of the connection",
    "scope": "the dict that the app is called with",
    "response_complete": "set by the last message of an answer",
    "response_started": "set by its first",
    "transport": "as the protocol's",
}
FLOW = {"write_paused": "set between the transport's `pause_writing` and `resume_writing`"}
HOMONYMS = {"root_path"}
"""A field of `ServerSettings`, which is ours."""


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_uvicorn_is_known_in_four_files_and_no_private_module_anywhere() -> None:
    for path in (ROOT / "jserve").rglob("*.py"):
        theirs = [name for name in _imports(path) if name.split(".")[0] in ("uvicorn", "starlette", "fastapi")]
        assert not [name for name in theirs if any(part.startswith("_") for part in name.split("."))], path
        if any(name.split(".")[0] == "uvicorn" for name in theirs):
            assert path.parent == HTTP, path
            assert path.name in KNOW_UVICORN, path


async def _connection() -> tuple[HttpToolsProtocol, RequestResponseCycle]:
    """A connection with a request on it, whose app never answers."""

    async def app(scope: object, receive: object, send: object) -> None:
        await asyncio.sleep(60)

    config = uvicorn.Config(app, loop="none", log_config=None, lifespan="off", http=HttpToolsProtocol)
    config.load()
    protocol = HttpToolsProtocol(config=config, server_state=ServerState(), app_state={})
    transport = _Transport()
    protocol.connection_made(transport)
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}")
    cycle = protocol.cycle
    for task in protocol.tasks:
        task.cancel()
    return protocol, cycle


class _Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def write(self, data: object) -> None:
        self.written += bytes(data)  # type: ignore[call-overload]

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def _names_of(*theirs: object) -> set[str]:
    """Names that uvicorn's objects have beyond what asyncio promises of a protocol and a transport."""
    promised = set(dir(asyncio.Protocol)) | set(dir(asyncio.Transport)) | set(dir(object))
    return {name for each in theirs for name in dir(each)} - promised


def test_the_tables_name_exactly_what_is_used() -> None:
    protocol, cycle = asyncio.run(_connection())
    server = uvicorn.Server(uvicorn.Config("none"))
    theirs = _names_of(protocol, cycle, cycle.flow, server) - HOMONYMS
    used = set()
    for name in KNOW_UVICORN:
        tree = ast.parse((HTTP / name).read_text())
        used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert used & theirs == SERVER.keys() | PROTOCOL.keys() | CYCLE.keys() | FLOW.keys()


def test_each_of_them_is_there() -> None:
    protocol, cycle = asyncio.run(_connection())
    server = uvicorn.Server(uvicorn.Config("none"))
    for owner, table in ((server, SERVER), (protocol, PROTOCOL), (cycle, CYCLE), (cycle.flow, FLOW)):
        for name, remedy in table.items():
            assert hasattr(owner, name), f"{type(owner).__name__}.{name} is gone: {remedy}"
