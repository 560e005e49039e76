"""Time from the command to the first streamed token, with nothing compiled before and again, of jserve and its peers.

    python -m benchmarks.first_token --out startup.json
    python -m benchmarks.first_token --servers jserve --rounds 3

Servers start one after the other, each alone: cold with empty folders for what it compiles, then again with what the
cold start left there. jserve starts a third time as in a container's first start (`image`): with an empty folder, and
`--executables` that `jserve compile` made before; `compile_s` is what that took. The model's files are in the page
cache each time. `health_s` is the first answer of /health
with 200; peers may be alive before they are ready, or not. Seconds from the start of the process.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.parts import MODEL, MODULE, FailedError, Visit, leave_on_sigterm, must, stop
from benchmarks.servers import (
    READY_S,
    SERVERS,
    Forms,
    Server,
    convert,
    first_listed,
    free_port,
    install,
    last_lines,
    version_of,
    with_cache,
)
from jserve.commands.bench.report import machine

NAMES = ("jserve", "llama", "vllm")
KINDS = ("cold", "second", "image")
POLL_S = 0.02
COMPILE_S = 240.0


@dataclass(frozen=True, slots=True)
class Start:
    """One start in seconds from the command; None where it never came."""

    server: str
    kind: str
    round: int
    health_s: float | None
    first_token_s: float


def compile_ahead(forms: Forms, folder: Path, visit: Visit) -> float:
    """Run `jserve compile` into an empty folder; the seconds it took. FailedError where it fails."""
    begin = time.monotonic()
    words = [*MODULE, "jserve", "compile", "--model", str(forms.folder), "--output", str(folder)]
    must(visit.run("compile", words, COMPILE_S), "jserve compile")
    return time.monotonic() - begin


def measure(server: Server, forms: Forms, cache: Path, kind: str, index: int, visit: Visit) -> Start:
    """Start it, wait for its first token, stop it. FailedError if that does not come."""
    port = free_port()
    cached, environment = with_cache(server, cache)
    log = f"start-{server.name}-{kind}"
    begin = time.monotonic()
    process = visit.start(log, cached.words(forms, port), **environment)
    try:
        give_up = begin + min(READY_S, visit.left())
        health, url = None, f"http://127.0.0.1:{port}"
        model = server.model.format(folder=forms.folder) if server.model else None
        while time.monotonic() < give_up:
            if process.poll() is not None:
                raise FailedError(f"{server.name} ended with {process.returncode}: {last_lines(visit.log(log))}")
            if health is None and answers(f"{url}/health"):
                health = time.monotonic() - begin
            try:
                model = model or first_listed(url)
                first_text(url, model, server.extra)
                return Start(server.name, kind, index, health, time.monotonic() - begin)
            except OSError:  # refused connections, HTTP errors and timeouts are all of this kind
                time.sleep(POLL_S)
        raise FailedError(f"{server.name} was not ready after {time.monotonic() - begin:.0f} s")
    finally:
        stop(process)


def answers(url: str) -> bool:
    """Whether a GET gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def first_text(url: str, model: str, extra: Mapping[str, Any]) -> None:
    """Stream a short completion to its first event. OSError if there is none."""
    body = {"model": model, "prompt": "The capital of France is", "max_tokens": 2, "temperature": 0, "stream": True}
    data = json.dumps({key: value for key, value in {**body, **extra}.items() if value is not None}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        if not response.readline().startswith(b"data:"):
            raise ConnectionError("the stream brought no event")
        response.read()


def best(starts: Sequence[Start], server: str, kind: str) -> dict[str, float | None] | None:
    """The quickest of the rounds: what else ran can only have made a start slower."""
    mine = [start for start in starts if start.server == server and start.kind == kind]
    if not mine:
        return None
    healths = [start.health_s for start in mine if start.health_s is not None]
    return {"first_token_s": min(s.first_token_s for s in mine), "health_s": min(healths, default=None)}


def printed(start: Start) -> Start:
    """The same, after a line on standard error."""
    print(f"{start.server} {start.kind}: {start.first_token_s:.1f} s", file=sys.stderr, flush=True)
    return start


def print_starts(starts: Sequence[Start]) -> None:
    """One row a start."""
    table = Table("server", "start", "/health, s", "first token, s")
    for start in starts:
        health = "never" if start.health_s is None else f"{start.health_s:.2f}"
        table.add_row(start.server, start.kind, health, f"{start.first_token_s:.2f}")
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 where jserve did not start; a peer that did not is named and left out."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_token",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--servers", default=",".join(NAMES), metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=1, help="of jserve's starts; peers start once (default 1)")
    parser.add_argument("--model", type=Path, default=MODEL, metavar="GGUF", help="default: %(default)s")
    parser.add_argument("--cold-only", default="", metavar="NAME,...", help="servers that are not started again")
    parser.add_argument("--caches", type=Path, metavar="DIR", help="keep here what servers compile, in NAME-ROUND")
    parser.add_argument("--minutes", type=float, default=15.0, help="for all starts (default 15)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON")
    args = parser.parse_args(argv)
    known = {server.name: server for server in SERVERS}
    names = args.servers.split(",")
    for name in names:
        if name not in known:
            parser.error(f"--servers: {name!r} is not there; choose from {', '.join(known)}")
    leave_on_sigterm()
    folder = Path(tempfile.mkdtemp(prefix="starts-"))
    visit = Visit(folder, False, args.model, time.monotonic() + 60 * args.minutes, {"HF_HUB_OFFLINE": "1"})
    left_out: dict[str, str] = {}
    starts: list[Start] = []
    compile_s: float | None = None
    try:
        ready = install([known[name] for name in names], visit, left_out)
        forms = convert(args.model, visit)
        for server in ready:
            for index in range(args.rounds if server.script is None else 1):
                cache = (args.caches or folder / "caches") / f"{server.name}-{index}"
                try:
                    for kind in ("cold",) if server.name in args.cold_only.split(",") else ("cold", "second"):
                        starts.append(printed(measure(server, forms, cache, kind, index, visit)))
                    if server.name == "jserve":
                        programs = folder / "programs"
                        compile_s = compile_s or compile_ahead(forms, programs, visit)
                        image = replace(server, command=(*server.command, "--executables", str(programs)))
                        starts.append(printed(measure(image, forms, folder / f"empty-{index}", "image", index, visit)))
                except FailedError as error:
                    left_out[server.name] = str(error)
                    print(f"{server.name}: {error}", file=sys.stderr, flush=True)
                    break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_starts(starts)
    if args.out:
        report = {
            "command": ["python", "-m", "benchmarks.first_token", *(sys.argv[1:] if argv is None else argv)],
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": machine(),
            "versions": {server.name: version_of(server) for server in ready},
            "left_out": left_out,
            "compile_s": compile_s,
            "seconds": {s.name: {kind: best(starts, s.name, kind) for kind in KINDS} for s in ready},
            "starts": [asdict(start) for start in starts],
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if "jserve" in left_out else 0


if __name__ == "__main__":
    sys.exit(main())
