"""`jserve report FILE`: what a recorded workload amounts to, and whether one small machine still bears it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jserve.api.telemetry.workload import RecordedRequest, read_trace
from jserve.commands.parser import Parser
from jserve.commands.workload.decision import decide, moves
from jserve.commands.workload.report_page import bars, histogram, page, steps
from jserve.commands.workload.statistics import Spread, Statistics, measure
from jserve.errors import ConfigError


def run(argv: Sequence[str]) -> None:
    """Print the figures and the decision, or write them as a page. Raises ConfigError for a file that is no trace."""
    parser = Parser(prog="jserve report", description="Say what a recorded workload amounts to.", allow_abbrev=False)
    parser.add_argument("file", type=Path, metavar="FILE", help="what `jserve record` has written")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots as well")
    options = parser.parse_args(list(argv))
    requests = list(read_trace(options.file))
    if not requests:
        raise ConfigError(f"{options.file} holds no request")
    statistics = measure(requests)
    if options.html is not None:
        options.html.write_text(_html(options.file.name, requests, statistics), "utf-8")
    if options.json:
        print(json.dumps(asdict(statistics) | {"moves": moves(statistics), "decision": decide(statistics)}, indent=2))
        return
    for name, value in rows(statistics):
        print(f"{name:<22}{value}")
    print(f"\n{decide(statistics)}")


def rows(statistics: Statistics) -> list[tuple[str, str]]:
    """Name and value of each figure, for people."""
    seconds = int(statistics.seconds)
    lines = [
        ("recorded", f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}, {statistics.requests:,} requests"),
        ("users", f"{statistics.users:,}"),
        ("models", ", ".join(f"{name or '(none)'} {count:,}" for name, count in statistics.models[:5])),
        ("requests a minute", _spread(statistics.a_minute)),
        ("open at once", _spread(statistics.at_once)),
        ("tokens in", _spread(statistics.input_length)),
        ("tokens out", _spread(statistics.output_length)),
        ("context needed", _spread(statistics.context)),
        ("busiest minute", f"{statistics.output_a_second:,.1f} tokens a second out"),
        ("shared beginnings", f"{100 * statistics.shared:.0f}% of the prompts' blocks had been seen"),
        ("first token, s", _spread(statistics.first_token)),
        ("whole answer, s", _spread(statistics.total)),
        ("waits, refusals", f"{100 * statistics.waited:.1f}% over 5 s, {100 * statistics.refused:.1f}% refused, "
         f"{100 * statistics.failed:.1f}% failed"),
    ]  # fmt: skip
    if statistics.estimated:
        lines.append(("guessed", f"lengths of {100 * statistics.estimated:.0f}%, which the server did not count"))
    return lines


def _spread(spread: Spread) -> str:
    return (
        f"mean {spread.mean:,.4g}, half up to {spread.p50:,.4g}, 95% up to {spread.p95:,.4g}, most {spread.most:,.4g}"
    )


def _html(name: str, requests: Sequence[RecordedRequest], statistics: Statistics) -> str:
    answered = [request for request in requests if 200 <= request.status < 400]
    plots = [
        bars("Requests a minute", statistics.minutes, "requests"),
        steps("Requests open at once", statistics.busy, statistics.seconds, "requests"),
        histogram("Tokens in", [request.input_length for request in answered]),
        histogram("Tokens out", [request.output_length for request in answered]),
    ]
    return page(f"Workload of {name}", decide(statistics), rows(statistics), plots)
