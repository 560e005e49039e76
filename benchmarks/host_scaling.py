"""Host time of an engine's turn, and whether it grows where the work does not.

  python -m benchmarks.host_scaling --out host-scaling.json --plot host-scaling.png

A turn is what the engine process does per step: receive, schedule, pack, dispatch, collect, update, send. It runs
in process, over a real socket whose other end is read between turns, with programs that have the real ones'
arguments and compute nothing (`null_device.py`), so that all of the time is the host's, on any machine. What a GPU's
driver takes to launch the work inside a program is not in it. Sweeps:

  rows       decode steps of 1 to 256 sequences, of a model of one layer and of one of 32
  context    8 sequences at 1k, 8k and 64k tokens
  queue      10 to 10,000 requests waiting behind full slots; quiet, and with an arrival and an abort every turn
  turnover   256 sequences of which some end, and as many arrive, every turn
  admission  the costliest turn while a prompt arrives, is computed and ends beside 255 decodes; new, or all cached

`wall` and `cpu` (of the loop's thread) are medians over the turns, of a run without other clocks than these two;
the phases are medians of a second run, in processor time: nothing in them is waiting, and other load moves them
little. `--plot` needs matplotlib (`pip install 'jserve[bench]'`); `--from FILE.json` only plots.
"""

import argparse
import dataclasses
import json
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.host_scaling_plot import scaling_chart
from benchmarks.null_device import start_null_engine
from benchmarks.turn_clock import PHASES, TurnClock, Turns
from jserve.commands.bench.report import machine
from jserve.engine.core import EngineCore
from jserve.engine.process import EngineProcess, settle
from jserve.ipc import EngineSocket, encode_frame
from jserve.protocol import Abort, Request, SamplingParams
from jserve.runtime.platform import choose_platform

SLOTS = 256
PAGE_SIZE = 64
MAX_MODEL_LEN = 80 * 1024
NUM_PAGES = 24_000
WARM_UP = 30
ENDLESS = 10_000
"""Tokens of an answer that no measurement sees the end of."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement; times in microseconds."""

    sweep: str
    layers: int
    rows: int
    context: int = 512
    waiting: int = 0
    turns: int = 0
    wall_us: float = 0.0
    cpu_us: float = 0.0
    p99_us: float = 0.0
    longest_us: float = 0.0
    costliest_us: float = 0.0
    """Most processor time that a turn took."""
    phases_us: dict[str, float] = field(default_factory=dict)
    """In the sweep `admission` those of the costliest turn, else medians."""


class World:
    """One null engine behind a socket."""

    def __init__(self, layers: int, slots: int = SLOTS) -> None:
        self.layers = layers
        self.core: EngineCore = start_null_engine(layers, slots, MAX_MODEL_LEN, NUM_PAGES, PAGE_SIZE)
        near, self._far = socket.socketpair()
        self._far.setblocking(False)
        for end in (near, self._far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self._process = EngineProcess(self.core, EngineSocket(near))
        self.clock = TurnClock(self._process.turn)
        self._names: list[str] = []
        self._num_requests = 0

    def request(self, length: int, answer: int = ENDLESS, prompt: int | None = None) -> Request:
        """A greedy request; two with the same number `prompt` begin alike, by default none do."""
        self._num_requests += 1
        number = self._num_requests if prompt is None else prompt
        tokens = [number % 127, number // 127 % 127, number // 127**2 % 127, *[6] * (length - 3)]
        params = SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True)
        return Request(f"cmpl-{self._num_requests:032x}", tokens, params, arrival=time.time())

    def send(self, *messages: Request | Abort) -> None:
        """Put messages on the socket, for the next turn to find."""
        self._far.setblocking(True)
        for message in messages:
            self._far.sendall(encode_frame(message))
            if isinstance(message, Request):
                self._names.append(message.request_id)
        self._far.setblocking(False)

    def fill(self, rows: int, context: int) -> None:
        """Have `rows` sequences decode at `context` tokens."""
        for _ in range(rows):
            self.send(self.request(context - WARM_UP))
            self.run(1)
        while (stats := self.core.stats()).num_waiting or stats.step_tokens != rows:
            self.run(1)
        self.run(WARM_UP)

    def queue(self, waiting: int) -> None:
        """Have so many requests wait; the slots are full."""
        for _ in range(waiting):
            self.send(self.request(128))
            if self._num_requests % 64 == 0:
                self.run(1)
        self.run(WARM_UP)

    def run(self, count: int) -> None:
        """Turns that are not timed."""
        for _ in range(count):
            self._process.turn()
            self.drain()

    def drain(self) -> None:
        """Read what the engine sent."""
        while True:
            try:
                if not self._far.recv(1 << 20):
                    return
            except BlockingIOError:
                return

    def clear(self) -> None:
        """Abort everything."""
        self.send(Abort(self._names))
        self._names = []
        while not self.core.is_idle:
            self.run(1)

    def oldest_waiting(self) -> str:
        """The name of a request in the queue's front half."""
        return self._names[-len(self._names) // 2]

    def measure(self, point: Point, turns: int, between: Callable[[], None] | None = None) -> Point:
        """`turns` turns of what is running, twice: whole, and in parts."""

        def before() -> None:
            self.drain()
            if between is not None:
                between()

        whole = self.clock.whole(turns, before)
        parts = self.clock.in_parts(turns, before)
        phases = {phase: statistics.median(turn[phase] for turn in parts.phases) * 1e6 for phase in PHASES}
        return summary(point, whole, phases)


def summary(point: Point, turns: Turns, phases: dict[str, float]) -> Point:
    """The point with its figures."""
    walls = sorted(turns.wall)
    return dataclasses.replace(
        point,
        turns=len(walls),
        wall_us=statistics.median(walls) * 1e6,
        cpu_us=statistics.median(turns.cpu) * 1e6,
        p99_us=walls[int(0.99 * (len(walls) - 1))] * 1e6,
        longest_us=walls[-1] * 1e6,
        costliest_us=max(turns.cpu) * 1e6,
        phases_us=phases,
    )


def sweep_rows(world: World, turns: int) -> Iterator[Point]:
    """Decode steps of 1 to 256 sequences."""
    for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        world.fill(rows, 512)
        yield world.measure(Point("rows", world.layers, rows), turns)
        world.clear()


def sweep_context(world: World, turns: int) -> Iterator[Point]:
    """8 sequences at 1k to 64k tokens."""
    for context in (1024, 8 * 1024, 64 * 1024):
        world.fill(8, context)
        yield world.measure(Point("context", world.layers, 8, context), turns)
        world.clear()


def sweep_queue(world: World, turns: int) -> Iterator[Point]:
    """256 sequences decode while 10 to 10,000 requests wait."""
    for waiting in (0, 10, 100, 1_000, 10_000):
        world.fill(SLOTS, 512)
        world.queue(waiting)
        yield world.measure(Point("queue", world.layers, SLOTS, waiting=waiting), turns)
        if waiting:

            def churn() -> None:
                world.send(world.request(128), Abort([world.oldest_waiting()]))

            yield world.measure(Point("queue churn", world.layers, SLOTS, waiting=waiting), turns, churn)
        world.clear()


def sweep_turnover(world: World, turns: int) -> Iterator[Point]:
    """256 sequences with answers of 64 to 256 tokens, so that 4 to 1 of them end and arrive every turn."""
    for answer in (256, 128, 64):
        for _ in range(SLOTS):
            world.send(world.request(128, answer))
            world.run(answer // SLOTS + 1)
        arrivals = SLOTS // answer

        def arrive(count: int = arrivals, answer: int = answer) -> None:
            world.send(*(world.request(128, answer) for _ in range(count)))

        for _ in range(answer):
            arrive()
            world.run(1)
        yield world.measure(Point("turnover", world.layers, SLOTS, waiting=arrivals), turns, arrive)
        world.clear()


def sweep_admission(world: World, turns: int) -> Iterator[Point]:
    """The longest turn in the life of one prompt beside 255 decodes: new, then again from the prefix cache."""
    for length in (1024, 8 * 1024, 64 * 1024):
        world.fill(SLOTS - 1, 512)
        for kind in ("new", "cached"):
            request = world.request(length, 8, prompt=-length)
            world.send(request)
            count = 2 * length // 4096 + 40
            parts = world.clock.in_parts(count, world.drain)
            longest = max(range(count), key=lambda turn: parts.cpu[turn])
            phases = {phase: spent * 1e6 for phase, spent in parts.phases[longest].items()}
            yield summary(Point(f"admission {kind}", world.layers, SLOTS, length), parts, phases)
        world.clear()


SWEEPS = {
    "rows": sweep_rows,
    "context": sweep_context,
    "queue": sweep_queue,
    "turnover": sweep_turnover,
    "admission": sweep_admission,
}


def print_table(points: Sequence[Point]) -> None:
    """The figures for a person, on stdout."""
    columns = ("sweep", "layers", "rows", "context", "waiting", "wall", "cpu", "max cpu", *PHASES)
    table = Table(*columns, title="host time of a turn, us", title_justify="left")
    for p in points:
        figures = [p.wall_us, p.cpu_us, p.costliest_us, *(p.phases_us[phase] for phase in PHASES)]
        sizes = [p.sweep, str(p.layers), str(p.rows), f"{p.context:,}", f"{p.waiting:,}"]
        table.add_row(*sizes, *(f"{figure:,.0f}" for figure in figures))
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def report(points: Sequence[Point], argv: Sequence[str] | None) -> dict[str, Any]:
    """What the JSON file holds."""
    return {
        "command": ["python", "-m", "benchmarks.host_scaling", *(sys.argv[1:] if argv is None else argv)],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "jax": jax.__version__,
        "page_size": PAGE_SIZE,
        "points": [dataclasses.asdict(point) for point in points],
    }


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host_scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sweeps", default=",".join(SWEEPS), help="which of them, with commas between (default: all)")
    add(
        "--layers", default="1,32", metavar="L,...", help="of the model's in the sweep of rows; the others use the last"
    )
    add("--turns", type=int, default=200, help="turns to time of each kind (default 200)")
    add("--out", type=Path, metavar="FILE", help="write everything as JSON")
    add("--plot", type=Path, metavar="FILE", help="write a chart as PNG")
    add("--from", type=Path, dest="source", metavar="FILE", help="measure nothing; plot this JSON file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0"""
    args = arguments().parse_args(argv)
    if args.source is None:
        choose_platform(0.9)
        scaling = report(measure(args), argv)
    else:
        scaling = json.loads(args.source.read_text())
    if args.out:
        args.out.write_text(json.dumps(scaling, indent=1) + "\n")
    if args.plot:
        scaling_chart(scaling).savefig(args.plot, dpi=130)
    return 0


def measure(args: argparse.Namespace) -> list[Point]:
    """All points, each reported on stderr as it comes."""
    points = []
    layers = [int(part) for part in args.layers.split(",")]
    for count in layers:
        world = World(count)
        settle()  # as the engine's process does when it is ready
        for name in args.sweeps.split(","):
            if name != "rows" and count != layers[-1]:
                continue
            for point in SWEEPS[name](world, args.turns):
                points.append(point)
                print(f"{point.sweep} {point.rows} {point.context} {point.waiting}", file=sys.stderr, flush=True)
    print_table(points)
    return points


if __name__ == "__main__":
    sys.exit(main())
