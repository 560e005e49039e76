"""The whole comparison on a CPU, unattended, in under half an hour: `make bench`.

    python -m benchmarks.cpu                        all parts, results and charts under benchmarks/results/
    python -m benchmarks.cpu --only serving         one part, or several with commas
    python -m benchmarks.cpu --servers jserve,vllm  some of the servers
    python -m benchmarks.cpu --tiny                 try the logic, with a few tokens: figures mean nothing

Peers that are missing are installed and the model is converted for them first; that happens once and does not count.
Then come the parts: start-up (`start`, `weights`), the host's share (`scaling`, and `ceiling` against vLLM with a
model that costs nothing), and, with all servers resident, a trace under time limits (`goodput`) and throughput against
latency (`serving`). Each has its own limit of time, and `serving` all that is left; its output is in a log and its
figures in a JSON file. Nothing else may run on the machine: rounds that other load disturbed are flagged and take no
part in the medians. Everything that was started is stopped in the end, after a failure or Ctrl-C too. What was left
out is named at the end; loads of `serving` keep what an earlier run on the same machine measured, with its date.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.charts import draw_all
from benchmarks.compare import KINDS, RARE, compare, with_others
from benchmarks.parts import (
    MODEL,
    MODULE,
    ROOT,
    FailedError,
    Outcome,
    SkippedError,
    Visit,
    do,
    leave_on_sigterm,
    must,
    print_parts,
)
from benchmarks.servers import SERVERS, Field, Forms, Running, Server, convert, fastest_dtype, install, with_cache
from benchmarks.speed_table import print_table, write_pages
from jserve.commands.bench.report import machine

RESULTS = ROOT / "benchmarks" / "results"
GOODPUT_S = 210.0
GOODPUT_SERVERS = ("jserve", "vllm")
JSERVE_CHUNK = 256  # tokens of a step, jserve's default on a CPU


@dataclass(frozen=True, slots=True)
class Alone:
    """A part that starts its servers itself: its words after `python -m`, result file, limit in seconds."""

    words: tuple[str, ...]
    file: str
    limit: float
    tiny: tuple[str, ...] = ()


ALONE = {
    "start": Alone(("benchmarks.first_token", "--minutes", "8"), "startup.json", 510.0, ("--servers", "jserve")),
    "ceiling": Alone(
        ("benchmarks.host_ceiling", "--peer", "vllm"),
        "host-ceiling.json",
        420.0,
        ("--streams", "8", "--rounds", "1"),
    ),
    "weights": Alone(
        ("benchmarks.weights", "--limit", "110"), "weights.json", 150.0, ("--gigabytes", "0.5", "--rounds", "1")
    ),
    "scaling": Alone(("benchmarks.host_scaling",), "host-scaling.json", 120.0, ("--turns", "10")),
}
SECOND = "vllm"  # needs minutes to start, so it is not started once more than necessary
RARE_S = 1200.0  # without so much time left, servers that no target names are not started
TOGETHER = ("goodput", "serving")
PARTS = (*ALONE, *TOGETHER)


@dataclass(slots=True)
class Bench:
    """What all parts share: where results go, the forms of the model, the servers, the command for the files."""

    visit: Visit
    results: Path
    forms: Forms
    servers: Field
    kinds: list[str]
    """Kinds of prompt in `serving`."""
    command: list[str]
    caches: Path
    """Folder of what servers compile, from the part `start` on."""
    measures_second: bool
    """`start` starts SECOND once, and its start as a resident server is the second one."""

    def write(self, file: str, result: Mapping[str, Any]) -> None:
        """A result file, which begins with the command, the time and the machine."""
        head = {
            "command": self.command,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": machine(),
            "tiny": self.visit.tiny,
        }
        (self.results / file).write_text(json.dumps({**head, **result}, indent=1) + "\n")


def start_all(bench: Bench, ready: Sequence[Server]) -> None:
    """Start one after the other, each to its first token; jserve in bfloat16 only if that is not its default."""
    servers = bench.servers
    for server in ready:
        first = next((r for r in servers.running if r.server.name == "jserve"), None)
        if server.name == "jserve-bf16" and first is not None and first.precision == "bfloat16":
            servers.left_out[server.name] = "bfloat16 is jserve's default already"
            continue
        if server.name in RARE and bench.visit.left() < RARE_S and not bench.visit.tiny:
            servers.left_out[server.name] = "no time: no target names it"
            continue
        is_second = bench.measures_second and server.name == SECOND
        caches = with_cache(server, bench.caches / f"{server.name}-0")[1] if is_second else None
        started = servers.add(server, bench.forms, caches=caches)
        state = f"ready in {started.ready_s:.1f} s" if started else servers.left_out[server.name]
        print(f"{server.name}: {state}", file=sys.stderr, flush=True)
        if started and is_second:
            add_second_start(bench.results / ALONE["start"].file, started)
    if not servers.running:
        raise FailedError("no server started")


def add_second_start(file: Path, started: Running) -> None:
    """Put the start of a resident server among the starts that were measured before."""
    starts = json.loads(file.read_text())
    starts["seconds"][started.server.name]["second"] = {"first_token_s": started.ready_s, "health_s": None}
    starts["resident"] = [started.server.name]
    file.write_text(json.dumps(starts, indent=1) + "\n")


def serving(bench: Bench) -> tuple[str, ...]:
    """Throughput and latency by kind of prompt and streams; see `benchmarks.compare`."""
    result = compare(bench.servers, bench.forms.folder, bench.visit, bench.kinds)
    if result["summary"] == {}:
        raise FailedError("there was no time for any scenario")
    before = bench.results / "cpu-serving.json"
    bench.write(before.name, with_others(result, json.loads(before.read_text())) if before.exists() else result)
    return tuple(
        f"{kind} {load} {server}: {f['output_tokens_per_s']:.0f} tokens/s"
        + "".join(f", {ratio:.2f} x {peer}" for peer, ratio in f["ratio_to"].items() if peer != "jserve-bf16")
        for kind, loads in result["summary"].items()
        for load, by_server in loads.items()
        for server, f in by_server.items()
        if server.startswith("jserve")
    )


def goodput(bench: Bench) -> tuple[str, ...]:
    """The trace under time limits, against the servers that run already."""
    here = [r for r in bench.servers.running if r.server.name in GOODPUT_SERVERS]
    if not here:
        raise SkippedError(f"none of {', '.join(GOODPUT_SERVERS)} runs")
    words = ["benchmarks.goodput", "--tokenizer", str(bench.forms.folder), "--chunk", f"jserve={JSERVE_CHUNK}"]
    for running in here:
        words += ["--url", f"{running.server.name}={running.url}"]
        words += ["--server-pid", f"{running.server.name}={running.process.pid}"]
    if bench.visit.tiny:
        words += ["--requests", "4", "--length-scale", "0.05"]
    return own_process("goodput", words, "goodput.json", GOODPUT_S, bench)


def alone(name: str, bench: Bench) -> tuple[str, ...]:
    """A part that starts its servers itself."""
    part = ALONE[name]
    words = [*part.words, *(part.tiny if bench.visit.tiny else ())]
    if name == "start" and bench.measures_second:
        words += ["--cold-only", SECOND, "--caches", str(bench.caches)]
    return own_process(name, words, part.file, part.limit, bench)


def own_process(name: str, words: Sequence[str], file: str, limit: float, bench: Bench) -> tuple[str, ...]:
    """A command with a result file of its own, which gets the head that all have."""
    made = bench.visit.folder / file
    made.unlink(missing_ok=True)
    must(bench.visit.run(name, [*MODULE, *words, "--out", str(made)], limit), words[0])
    result = json.loads(made.read_text())
    command = ["python", "-m", *(Path(word).name if word.startswith("/") else word for word in words)]
    bench.write(file, {**result, "command": command})
    made.unlink()
    log = bench.visit.log(name)
    return (f"see {log.relative_to(ROOT) if log.is_relative_to(ROOT) else log}",)


def on_visit(part: Callable[[Bench], tuple[str, ...]], bench: Bench, _visit: Visit) -> tuple[str, ...]:
    """A part of this command in the shape that `do` calls."""
    return part(bench)


def together(names: Sequence[str], bench: Bench, ready: Sequence[Server]) -> list[Outcome]:
    """The parts that share their servers; these run as long as this takes."""
    begin = time.monotonic()
    outcomes = []
    with bench.servers:
        try:
            start_all(bench, ready)
        except FailedError as error:
            return [Outcome(name, "failed", time.monotonic() - begin, str(error)) for name in names]
        for name in names:
            part = serving if name == "serving" else goodput
            outcomes.append(do(name, partial(on_visit, part, bench), bench.visit))
    return outcomes


def finish(results: Path, tiny: bool) -> None:
    """Charts and tables out of the result files; the pages' tables where these are the committed ones."""
    draw_all(results)
    if results == RESULTS and not tiny:
        write_pages(results)
    print_table(results)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join(server.name for server in SERVERS)
    parser.add_argument("--only", metavar="PART,...", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--servers", metavar="NAME,...", help=f"in serving and goodput, of {known}; default: all")
    kinds = ", ".join(kind.name for kind in KINDS)
    parser.add_argument(
        "--kinds", metavar="NAME,...", help=f"of prompts in serving, of {kinds}; the others keep their results"
    )
    parser.add_argument("--minutes", type=float, default=29.0, help="for all parts together (default 29)")
    parser.add_argument("--model", type=Path, default=MODEL, metavar="GGUF", help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a few tokens, to try the command; figures mean nothing")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results; with --tiny: a new one")
    return parser


def chosen(text: str | None, known: Sequence[str], flag: str, parser: argparse.ArgumentParser) -> list[str]:
    """The names of a comma-separated option in the order of `known`, or all; a wrong one ends the program."""
    names = text.split(",") if text else list(known)
    for name in names:
        if name not in known:
            parser.error(f"{flag}: {name!r} is not there; choose from {', '.join(known)}")
    return [name for name in known if name in names]


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 where a part failed, or jserve is missing or a wanted peer that targets name."""
    parser = arguments()
    args = parser.parse_args(argv)
    names = chosen(args.only, PARTS, "--only", parser)
    wanted = chosen(args.servers, [server.name for server in SERVERS], "--servers", parser)
    kinds = chosen(args.kinds, [kind.name for kind in KINDS], "--kinds", parser)
    if not args.model.exists():
        parser.error(f"--model {args.model} is not there; `make model` fetches the default")
    leave_on_sigterm()
    results = (args.out or (Path(tempfile.mkdtemp(prefix="bench-tiny-")) if args.tiny else RESULTS)).resolve()
    logs = results / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    visit = Visit(logs, args.tiny, args.model, float("inf"), {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"})
    servers = Field(visit)
    if args.servers is None and fastest_dtype() != "bfloat16":
        wanted.remove("jserve-bf16")
        servers.left_out["jserve-bf16"] = "this CPU has no bfloat16 instructions; --servers measures it nevertheless"
    ready = install([server for server in SERVERS if server.name in wanted], visit, servers.left_out)
    try:
        forms = convert(args.model, visit)
    except FailedError as error:
        print(f"the model could not be converted: {error}", file=sys.stderr)
        return 1
    visit.deadline = time.monotonic() + 60 * args.minutes
    begin = time.monotonic()
    command = ["python", "-m", "benchmarks.cpu", *(sys.argv[1:] if argv is None else argv)]
    is_resident = bool(set(names) & {*TOGETHER})
    with tempfile.TemporaryDirectory(prefix="bench-caches-", ignore_cleanup_errors=True) as caches:
        can_measure_second = is_resident and not args.tiny and SECOND in [server.name for server in ready]
        bench = Bench(visit, results, forms, servers, kinds, command, Path(caches), can_measure_second)
        outcomes = [do(name, partial(on_visit, partial(alone, name), bench), visit) for name in names if name in ALONE]
        bench.measures_second &= ("start", "done") in [(outcome.part, outcome.status) for outcome in outcomes]
        if is_resident:
            outcomes += together([name for name in names if name in TOGETHER], bench, ready)
    print_parts(outcomes, results)
    finish(results, args.tiny)
    for name, reason in servers.left_out.items():
        print(f"LEFT OUT: {name}: {reason}")
    print(f"took {(time.monotonic() - begin) / 60:.1f} minutes, installing and converting not counted")
    missing = [name for name in servers.left_out if name not in ("jserve-bf16", *RARE)]
    return 1 if missing or any(outcome.status == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; what was started is stopped")
