"""What a newcomer has in the first minute: tokens/s from ready on, with nothing compiled before, and the same later.

    python -m benchmarks.first_minute --out first-minute.json
    python -m benchmarks.first_minute --streams 8 --seconds 30

For each number of streams a server is started with an empty cache. From its first token on so many chats run without a
pause, each answer after the other. Then the server is left alone until all of its programs are there, and the same
chats run again: the steady rate. `first_token_s` and `all_programs_s` are seconds from the command. Nothing else should
run on the machine; `load` says what did at the begin.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.first_token import first_text
from benchmarks.parts import MODEL, MODULE, FailedError, Visit, leave_on_sigterm, stop
from benchmarks.servers import first_listed, free_port, last_lines
from jserve.commands.bench.prompts import WORDS_FILE
from jserve.commands.bench.report import machine

READY_S = 300.0
POLL_S = 0.1
WINDOW_S = 10.0
WORDS = WORDS_FILE.read_text().split()


@dataclass(frozen=True, slots=True)
class FirstMinute:
    """One server. Rates are output tokens/s of all streams together."""

    streams: int
    first_token_s: float
    all_programs_s: float
    first_rate: float
    by_window: list[float]
    """In each ten seconds of the first minute."""
    programs_by_window: list[int]
    """That were there at the end of each."""
    steady_rate: float
    ratio: float
    """`first_rate` over `steady_rate`."""


class Chats:
    """So many chats without a pause, each an answer after the other, until they are stopped."""

    def __init__(self, url: str, model: str, streams: int, answer: int) -> None:
        self._url, self._model, self._answer = url, model, answer
        self._is_over = threading.Event()
        self._tokens = [0] * streams
        self._threads = [threading.Thread(target=self._chat, args=(i,), daemon=True) for i in range(streams)]
        for thread in self._threads:
            thread.start()

    @property
    def tokens(self) -> int:
        """Received so far."""
        return sum(self._tokens)

    def stop(self) -> None:
        """Hang up, and wait until each chat has."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _chat(self, index: int) -> None:
        turn = 0
        while not self._is_over.is_set():
            begin = (37 * index + 11 * turn) % (len(WORDS) - 40)
            words = " ".join(WORDS[begin : begin + 12 + (7 * turn) % 24])
            body = {"model": self._model, "messages": [{"role": "user", "content": words}], "stream": True}
            body |= {"max_tokens": self._answer, "ignore_eos": True, "temperature": 0.7}
            data = json.dumps(body).encode()
            request = urllib.request.Request(
                f"{self._url}/v1/chat/completions", data, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=120) as response:
                for line in response:
                    self._tokens[index] += line.startswith(b"data: {") and b'"content"' in line
                    if self._is_over.is_set():
                        return
            turn += 1


def measure(visit: Visit, streams: int, seconds: float, answer: int, options: Sequence[str]) -> FirstMinute:
    """Start a server with an empty cache, and end it. FailedError where it does not come up."""
    port, cache = free_port(), Path(tempfile.mkdtemp(prefix="first-minute-"))
    words = [*MODULE, "jserve", "--model", str(visit.model), "--port", str(port), "--compile-cache-dir", str(cache)]
    begin, name = time.monotonic(), f"server-{streams}"
    process = visit.start(name, [*words, *options])
    url = f"http://127.0.0.1:{port}"
    try:
        model = _first_token(url, begin + READY_S, process, visit.log(name))
        first_token_s = time.monotonic() - begin
        windows, programs = _run(url, model, streams, seconds, answer)
        while (counts := _programs(url))["pending"]:
            if time.monotonic() - begin > 2 * READY_S:
                raise FailedError(f"after {2 * READY_S:.0f} s {counts['pending']} programs were still missing")
            time.sleep(POLL_S)
        all_programs_s = time.monotonic() - begin
        steady, _ = _run(url, model, streams, seconds / 2, answer)
    finally:
        stop(process)
        shutil.rmtree(cache, ignore_errors=True)
    first_rate, steady_rate = sum(windows) / len(windows), sum(steady) / len(steady)
    return FirstMinute(
        streams,
        round(first_token_s, 2),
        round(all_programs_s, 2),
        first_rate,
        windows,
        programs,
        steady_rate,
        first_rate / steady_rate,
    )


def _first_token(url: str, give_up: float, process: Any, log: Path) -> str:
    """Ask until a token comes; the model's name."""
    while time.monotonic() < give_up and process.poll() is None:
        try:
            model = first_listed(url)
            first_text(url, model, {})
            return model
        except OSError:
            time.sleep(POLL_S)
    raise FailedError(f"jserve brought no token: {last_lines(log)}")


def _run(url: str, model: str, streams: int, seconds: float, answer: int) -> tuple[list[float], list[int]]:
    """Tokens/s in each window, and the programs that were there at its end."""
    chats, rates, programs = Chats(url, model, streams, answer), [], []
    for _ in range(max(1, round(seconds / WINDOW_S))):
        before, start = chats.tokens, time.monotonic()
        time.sleep(min(WINDOW_S, seconds))
        rates.append((chats.tokens - before) / (time.monotonic() - start))
        programs.append(_programs(url)["ready"])
    chats.stop()
    return rates, programs


def _programs(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/ready", timeout=60) as response:
        counts: dict[str, int] = json.load(response)["programs"]
    return counts


def print_minutes(minutes: Sequence[FirstMinute]) -> None:
    """One row a server."""
    table = Table("streams", "first token, s", "all programs, s", "tokens/s", "steady", "ratio", "by 10 s", "programs")
    for m in minutes:
        rates = [f"{m.first_rate:.1f}", f"{m.steady_rate:.1f}", f"{m.ratio:.2f}"]
        windows = [" ".join(f"{rate:.0f}" for rate in m.by_window), " ".join(map(str, m.programs_by_window))]
        table.add_row(str(m.streams), f"{m.first_token_s:.1f}", f"{m.all_programs_s:.1f}", *rates, *windows)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 where a server did not come up."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_minute",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--streams", default="1,8", metavar="N,...", help="a server for each (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="the first minute's (default %(default)s)")
    parser.add_argument("--answer", type=int, default=64, help="tokens of an answer (default %(default)s)")
    parser.add_argument("--model", type=Path, default=MODEL, metavar="PATH", help="default: %(default)s")
    parser.add_argument("--jserve-args", default="", metavar="TEXT", help="further flags of the server")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON")
    args = parser.parse_args(argv)
    leave_on_sigterm()
    folder = Path(tempfile.mkdtemp(prefix="first-minute-logs-"))
    visit = Visit(folder, False, args.model, time.monotonic() + 3600, {"HF_HUB_OFFLINE": "1"})
    load, minutes = os.getloadavg()[0], []
    try:
        for streams in map(int, args.streams.split(",")):
            minutes.append(measure(visit, streams, args.seconds, args.answer, args.jserve_args.split()))
    except FailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_minutes(minutes)
    if args.out:
        report = {
            "command": ["python", "-m", "benchmarks.first_minute", *(sys.argv[1:] if argv is None else argv)],
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": machine(),
            "load": load,
            "minutes": [asdict(minute) for minute in minutes],
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
