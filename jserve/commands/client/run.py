"""`jserve run NAME`: talk to a model by its name, with a server that is started for it where none runs.

The server stays, so that the next `run` finds it loaded, and ends by itself when nobody has asked it anything for
`--keep-alive`.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jserve.commands.client.connection import Connection, ServerError
from jserve.commands.client.conversation import Conversation, answer_once, converse
from jserve.commands.client.local_servers import LocalServer, folder, local_servers
from jserve.commands.hub_model import MODEL_HELP
from jserve.commands.parser import Parser
from jserve.commands.sizes import parse_duration
from jserve.errors import StartupError

_HELP = f"""usage: jserve run MODEL [PROMPT] [options of the server]

Talk to a model. A server is started for it unless one runs already, and ends when it has not been used for a while.

  MODEL              {MODEL_HELP}
  PROMPT             one message; its answer is printed, and that is all. Text that is piped in follows it
  --system TEXT      what the model is told first
  --keep-alive TIME  how long the server stays without a request: 5m (default), 1h, 0 for no longer than this command,
                     -1 for ever
  the others         those of the server, see `jserve --help`
"""
SERVER = (sys.executable, "-m", "jserve")
_LOG_LINES = 12


def run(argv: Sequence[str]) -> None:
    """Answer once or talk. Raises StartupError where no server can be started, ServerError from the server."""
    own = Parser(prog="jserve run", add_help=False, allow_abbrev=False)
    own.add_argument("--system", default="")
    own.add_argument("--keep-alive", type=parse_duration, default=300.0)
    if not argv or {"-h", "--help"} & set(argv):
        own.exit(0 if argv else 2, _HELP)
    words = list(argv)
    model = words.pop(0)
    prompt = words.pop(0) if words and not words[0].startswith("-") else ""
    options, rest = own.parse_known_args(words)
    if model.startswith("-"):
        own.error("which model? Begin with it: jserve run MODEL [PROMPT]")
    server = next((server for server in local_servers() if server.model == model and not rest), None)
    started = server is None
    if server is None:
        server = _start(model, rest, options.keep_alive)
    try:
        connection = Connection(server.url)
        _wait_until_ready(connection, server)
        conversation = Conversation(connection, connection.models()[0], options.system)
        text = "\n\n".join(part for part in (prompt, "" if sys.stdin.isatty() else sys.stdin.read()) if part)
        if text:
            answer_once(conversation, text)
        else:
            converse(conversation)
    finally:
        if started and options.keep_alive == 0:
            server.stop()


def _start(model: str, options: Sequence[str], keep_alive: float) -> LocalServer:
    """A server in a session of its own, on a free port that it takes itself and says in its log."""
    log = folder() / f"{time.time_ns()}.log"
    idle = ["--exit-when-idle", f"{keep_alive:g}"] if keep_alive > 0 else []
    command = [*SERVER, "serve", "--model", model, "--port", str(_free_port()), *idle, *options]
    with log.open("wb") as out:
        popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    url = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
    server = LocalServer(popen.pid, url, model, time.time(), str(log))
    server.write()
    return server


def _free_port() -> int:
    """A port that is free now; the server says so if another program takes it in between."""
    from jserve.api.http.listener import listen

    listener = listen("127.0.0.1", 0)
    try:
        return int(listener.getsockname()[1])
    finally:
        listener.close()


def _wait_until_ready(connection: Connection, server: LocalServer) -> None:
    """Say how far the start is until requests are taken. Raises StartupError with the log's end where it fails."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(f"starting {server.model}") as status:
        while True:
            answer = _readiness(connection)
            if answer is None:
                return
            if not server.is_alive:
                raise StartupError(_end_of_log(server))
            status.update(f"starting {server.model}: {answer}")
            time.sleep(0.1)


def _readiness(connection: Connection) -> str | None:
    """What the server is still doing, None when it is ready."""
    try:
        answer: Any = connection.get("/ready")
    except ServerError as error:
        return "its files are looked at" if "no server answers" in str(error) else str(error)
    return None if answer.get("status") == "ready" else str(answer)


def _end_of_log(server: LocalServer) -> str:
    lines = Path(server.log).read_text(errors="replace").strip().splitlines()
    said = [line.removeprefix("jserve: ") for line in lines if line.startswith("jserve: ")]
    return said[-1] if said else "\n".join(["the server ended; its last words:", *lines[-_LOG_LINES:]])
