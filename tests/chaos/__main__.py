"""The run: a server, a warm load, harm, and then what must be so.

python -m tests.chaos --minutes 2 [--seed N] [--output FILE]
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.api.tiny_model import byte_tokenizer, write_model
from tests.chaos.harm import Harm
from tests.chaos.load import APIS, Load, Tally
from tests.deploy.proxies import free_port
from tests.patience import wait_until

WARM_S = 5.0
QUIET_GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
MORE_MEMORY = 64 << 20
"""Bytes that the server process may have more at the end than after the warm load: histograms, logs, the allocator."""
MORE_DESCRIPTORS = 8
BATCH_LINES = 400


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the server process holds."""

    num_descriptors: int
    memory: int
    num_children: int


def main() -> None:
    """Run, print the report, and fail where something is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report, problems = asyncio.run(chaos(Path(folder), options.minutes * 60, options.seed))
    text = json.dumps({**report, "problems": problems}, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")
    sys.exit(1 if problems else 0)


async def chaos(folder: Path, seconds: float, seed: int) -> tuple[dict[str, Any], list[str]]:
    """The report of a run, and what was not as it must be."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["--model", str(write_model(folder / "model", byte_tokenizer())), "--port", str(port)]
    command = [sys.executable, "-m", "tests.chaos.server", *command, "--storage-dir", str(folder / "storage")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
        try:
            report, problems = await _under_fire(process, url, port, seconds, seed)
        finally:
            process.terminate()
            status = process.wait(60)
    if status:
        problems.append(f"the server ended with {status}: {(folder / 'log').read_text()[-2000:]}")
    if parts := list((folder / "storage" / "files").glob("*.part")):
        problems.append(f"{len(parts)} files are left half written")
    return report, problems


async def _under_fire(
    process: "subprocess.Popen[bytes]", url: str, port: int, seconds: float, seed: int
) -> tuple[dict[str, Any], list[str]]:
    with httpx.Client(base_url=url, timeout=60) as http:
        await asyncio.to_thread(wait_until, lambda: _status(http, "/ready") == 200)
        await _load(url, seed, Tally(), WARM_S)
        await asyncio.to_thread(_wait_until_quiet, http)
        before = _footprint(process.pid)
        tally, harm = Tally(), Harm(process.pid, port, seed)
        batch_id = _begin_batch(http)
        harming = asyncio.create_task(harm.run())
        await _load(url, seed + 1, tally, seconds)
        harming.cancel()
        await asyncio.gather(harming, return_exceptions=True)
        await asyncio.to_thread(wait_until, lambda: _status(http, "/ready") == 200)
        problems = [*tally.wrong[:20], *_problems_of_batch(http, batch_id)]
        await asyncio.to_thread(_wait_until_quiet, http)
        after = _footprint(process.pid)
    if after.memory > before.memory + MORE_MEMORY:
        problems.append(f"memory grew from {before.memory} to {after.memory} bytes")
    if after.num_descriptors > before.num_descriptors + MORE_DESCRIPTORS:
        problems.append(f"descriptors grew from {before.num_descriptors} to {after.num_descriptors}")
    if after.num_children != before.num_children:
        problems.append(f"there were {before.num_children} children and are {after.num_children}")
    if missing := [path for path in APIS if not tally.outcomes[path, "answered"]]:
        problems.append(f"no request of {missing} was answered")
    outcomes: dict[str, dict[str, int]] = {}
    for (path, outcome), count in sorted(tally.outcomes.items()):
        outcomes.setdefault(path, {})[outcome] = count
    report = {
        "seconds": seconds,
        "harm": dict(harm.done),
        "requests": outcomes,
        "longest_request_s": round(tally.longest_s, 2),
        "longest_from_kill_to_failure_s": round(_slowest_failure(harm, tally), 3),
        "before": {name: getattr(before, name) for name in before.__slots__},
        "after": {name: getattr(after, name) for name in after.__slots__},
    }
    return report, problems


def _slowest_failure(harm: Harm, tally: Tally) -> float:
    """Seconds from an engine's death until the last of its requests was told; clients that read slowly included."""
    delays = [
        failed - max(killed for killed in harm.killed_at if killed <= failed)
        for failed in tally.failed_at
        if any(killed <= failed for killed in harm.killed_at)
    ]
    return max(delays, default=0.0)


async def _load(url: str, seed: int, tally: Tally, seconds: float) -> None:
    load = Load(url, seed, tally)
    asyncio.get_running_loop().call_later(seconds, load.stop)
    await load.run()


def _begin_batch(http: httpx.Client) -> str:
    body = {"prompt": "the quick", "max_tokens": 8, "ignore_eos": True}
    lines = [
        json.dumps({"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": body})
        for n in range(BATCH_LINES)
    ]
    sent = http.post("/v1/files", files={"file": "\n".join(lines).encode()}, data={"purpose": "batch"}).json()
    batch = {"input_file_id": sent["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    return str(http.post("/v1/batches", json=batch).json()["id"])


def _problems_of_batch(http: httpx.Client, batch_id: str) -> list[str]:
    """Wait for its end. Each line has one result; one that was twice on an engine that died may have an error."""
    ends = ("completed", "failed", "expired", "cancelled")
    wait_until(lambda: http.get(f"/v1/batches/{batch_id}").json()["status"] in ends)
    batch = http.get(f"/v1/batches/{batch_id}").json()
    files = [file for name in ("output_file_id", "error_file_id") if (file := batch[name]) is not None]
    texts = [http.get(f"/v1/files/{file}/content").text for file in files]
    ids = sorted(int(json.loads(line)["custom_id"]) for text in texts for line in text.splitlines())
    if batch["status"] != "completed" or ids != list(range(BATCH_LINES)):
        return [f"the batch is {batch['status']} and has the lines {ids}"]
    return []


def _wait_until_quiet(http: httpx.Client) -> None:
    """Return when nothing of any request is left."""

    def is_quiet() -> bool:
        time.sleep(0.1)
        values = {}
        for line in http.get("/metrics").text.splitlines():
            name, _, value = line.rpartition(" ")
            values[name.partition("{")[0]] = value
        return all(float(values[name]) == 0 for name in QUIET_GAUGES) and http.get("/load").json()["server_load"] == 0

    wait_until(is_quiet)


def _footprint(pid: int) -> Footprint:
    process = psutil.Process(pid)
    return Footprint(process.num_fds(), process.memory_info().rss, len(process.children()))


def _status(http: httpx.Client, path: str) -> int:
    try:
        return http.get(path).status_code
    except httpx.TransportError:
        return 0


if __name__ == "__main__":
    main()
