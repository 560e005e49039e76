"""What a light key waits beside a heavy one: time to the first token, alone and beside many long prompts.

    python -m benchmarks.fairness --model MODEL

A server is started with two keys. The light one asks for short answers, one after the other: first alone, then while
the heavy one has `--requests` long prompts open at once. Beside them stands the first token of one long prompt by
itself: a step that is being computed cannot be taken back, so that much is added at worst.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.parts import MODEL, MODULE, stop
from benchmarks.servers import free_port
from jserve.commands.bench.load import LoadGenerator, Outcome, RequestStyle, Target
from jserve.commands.bench.prompts import Prompt, PromptSpec, make_prompts
from jserve.commands.bench.readiness import wait_for_models, wait_for_token
from jserve.commands.bench.report import machine

LIGHT, HEAVY = "sk-light", "sk-heavy"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write JSON where that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, metavar="PATH", help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=64, help="of the heavy key at once (default %(default)s)")
    parser.add_argument("--long", type=int, default=1000, help="tokens of its prompts (default %(default)s)")
    parser.add_argument("--turns", type=int, default=15, help="requests of the light key (default %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON")
    options = parser.parse_args(argv)
    port = free_port()
    command = [*MODULE, "jserve", "--model", str(options.model), "--port", str(port), "--api-key", LIGHT, HEAVY]
    with tempfile.NamedTemporaryFile(prefix="fairness-", suffix=".log") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            result = asyncio.run(_measure(f"http://127.0.0.1:{port}", options))
        finally:
            stop(server)
    _print(result)
    if options.out:
        head = {"command": ["python", "-m", "benchmarks.fairness", *(argv or sys.argv[1:])], "machine": machine()}
        options.out.write_text(json.dumps({**head, **result}, indent=1) + "\n")
    return 0


async def _measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    model = (await asyncio.to_thread(wait_for_models, url, LIGHT, 600.0))[0]
    await asyncio.to_thread(wait_for_token, url, LIGHT, model, 600.0)
    await _all_programs(url)
    target = Target("jserve", url, model)
    short = make_prompts(PromptSpec(input_len=16, output_len=8), 2 * options.turns + 4, "light", None)
    long = make_prompts(PromptSpec(input_len=options.long, output_len=16), options.requests + 3, "heavy", None)
    light, heavy = RequestStyle(api_key=LIGHT), RequestStyle(api_key=HEAVY)
    async with LoadGenerator(light) as of_light, LoadGenerator(heavy) as of_heavy:
        await _turns(of_light, target, short[:4])
        one_long = await _turns(of_heavy, target, long[:3])
        alone = await _turns(of_light, target, short[4 : 4 + options.turns])
        crowd = asyncio.create_task(of_heavy.closed_loop(target, long[3:], options.requests))
        await asyncio.sleep(1.0)
        beside = []
        for prompt in short[4 + options.turns :]:
            if crowd.done():
                break
            beside += await _turns(of_light, target, [prompt])
        outcomes = await crowd
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(outcomes)} heavy requests failed: {failed[0]}")
    return {"alone_ms": alone, "beside_ms": beside, "one_long_ms": one_long}


async def _all_programs(url: str) -> None:
    """Wait until nothing is compiled behind any more."""
    import aiohttp

    async with aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{url}/ready") as response:
                programs = (await response.json()).get("programs", {})
            if not programs.get("pending", 0):
                return
            await asyncio.sleep(1.0)


async def _turns(generator: LoadGenerator, target: Target, prompts: Sequence[Prompt]) -> list[float]:
    """Milliseconds to the first token of one request after the other."""
    return [_first(await generator.send(target, prompt, time.perf_counter())) for prompt in prompts]


def _first(outcome: Outcome) -> float:
    if outcome.error or not outcome.text_times:
        raise RuntimeError(f"a request failed: {outcome.error or 'no text came'}")
    return 1e3 * (outcome.text_times[0] - outcome.due)


def _print(result: dict[str, Any]) -> None:
    table = Table(title="time to the first token, ms", title_justify="left")
    for heading in ("", "requests", "median", "most"):
        table.add_column(heading, justify="left" if not heading else "right")
    names = {"alone_ms": "light key, alone", "beside_ms": "light key, beside", "one_long_ms": "one long prompt"}
    for key, name in names.items():
        times = result[key]
        table.add_row(name, str(len(times)), f"{statistics.median(times):.0f}", f"{max(times):.0f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
