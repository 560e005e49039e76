"""Serving throughput and latency of jserve and its peers: the part `serving` of `benchmarks.cpu`.

All servers are resident at once, and idle but for the one under test. A round goes through every scenario, and in
each scenario through every server with the same prompts, so that drift of the machine hits all of them; rounds are
repeated until the time is used up, at most ROUNDS. In the first round only jserve and the peers that a target names
take part. Ratios are taken within a round.
"""

import dataclasses
import random
import statistics
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from tokenizers import Tokenizer

from benchmarks.parts import Visit
from benchmarks.servers import SERVERS, Field, Running
from jserve.commands.bench.interference import CpuWatch
from jserve.commands.bench.load import RequestStyle, Target
from jserve.commands.bench.metrics import RunMetrics
from jserve.commands.bench.options import Load, Plan
from jserve.commands.bench.prompts import PromptSpec, load_tokenizer, make_prompts
from jserve.commands.bench.report import Ratio, Run, machine, ratios
from jserve.commands.bench.serve import run_once, warm_up

IDLE_SHARE = 0.05  # of a core: below it a server counts as idle
IDLE_S = 120.0
FIRST_S = 20.0  # what a server is taken to need at least for a scenario before it has run once
ROUNDS = 2
SAME_MACHINE = ("processor", "instructions", "cores")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of prompt, its loads as (streams, prompts), how many requests come before the first round, and the peers
    that targets name.
    """

    name: str
    title: str
    input_len: int
    output_len: int
    prefix_len: int
    loads: tuple[tuple[int, int], ...]
    warmup: int
    peers: tuple[str, ...] = ()


KINDS = (
    Kind("128", "prompts of 128 tokens", 128, 128, 0, ((1, 3), (8, 16), (32, 32)), 8, ("vllm", "llama")),
    Kind("shared", "prompts of 128 tokens after 512 shared", 128, 64, 512, ((1, 4), (8, 16), (32, 32)), 2, ("vllm",)),
    Kind("1500", "prompts of 1,500 tokens", 1500, 32, 0, ((1, 2), (8, 8), (32, 32)), 1, ("vllm", "llama")),
)
RARE = ("transformers",)
"""Servers that take part with the first kind of prompt alone."""
TINY = tuple(
    dataclasses.replace(kind, output_len=8, loads=tuple((c, min(c, 2)) for c, _ in kind.loads[:2])) for kind in KINDS
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of prompt under one load, with the servers that take part."""

    kind: Kind
    plan: Plan

    @property
    def load(self) -> Load:
        """The plan's only load."""
        return self.plan.loads[0]


def scenarios(kinds: Sequence[Kind], running: Sequence[Running], seed: int) -> list[Scenario]:
    """Every kind and load, in the order of measuring."""
    planned = []
    for kind in kinds:
        targets = tuple(r.target for r in running if kind.name == KINDS[0].name or r.server.name not in RARE)
        for streams, prompts in kind.loads:
            plan = Plan(
                targets=targets,
                loads=(Load(streams, None, prompts),),
                rounds=1,
                spec=PromptSpec("random", None, kind.input_len, kind.output_len, 0.0, kind.prefix_len),
                style=RequestStyle(keep_alive=False),  # llama.cpp drops reused connections under load
                seed=seed,
                same_prompts=False,
                warmup=min(streams, kind.warmup),
                percentiles=(50.0, 90.0, 99.0),
                table=("tpot",),
                goodput={},
                server_pids={r.server.name: (r.process.pid,) for r in running},
            )
            planned.append(Scenario(kind, plan))
    return planned


def measure_rounds(
    todo: Sequence[Scenario], rounds: int, visit: Visit, tokenizer: Tokenizer | None, left_out: dict[str, str]
) -> list[Run]:
    """Round after round over all scenarios; one that would not fit into the time left goes to `left_out`."""
    runs: list[Run] = []
    took: dict[tuple[str, str], float] = {}
    for index in range(rounds):
        for scenario in todo:
            name = f"{label(scenario)} round {index + 1}"
            targets = taking_part(scenario, index)
            needed = sum(estimate(scenario, target, took) for target in targets)
            if visit.left() < needed * 1.1:
                left_out[name] = f"no time: {needed:.0f} s needed, {visit.left():.0f} left"
                continue
            begin = time.monotonic()
            new = tuple(target for target in targets if (label(scenario), target.name) not in took)
            warm_up(dataclasses.replace(scenario.plan, targets=new), scenario.load, tokenizer)
            runs += measure_scenario(scenario, targets, index, visit, tokenizer, took, left_out)
            print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return runs


def taking_part(scenario: Scenario, index: int) -> list[Target]:
    """The servers of a round, in order. Every other round backwards: who comes first has no advantage of it."""
    if index == 0:
        named = scenario.kind.peers
        return [target for target in scenario.plan.targets if target.name.startswith("jserve") or target.name in named]
    return list(scenario.plan.targets if index % 2 == 0 else reversed(scenario.plan.targets))


def estimate(scenario: Scenario, target: Target, took: Mapping[tuple[str, str], float]) -> float:
    """Seconds that a server may need for a scenario: what it needed, or for each prompt what it, or the slowest of the
    others, needed in the kind's load before.
    """
    if known := took.get((label(scenario), target.name)):
        return known
    for streams, prompts in reversed(scenario.kind.loads):
        before = {name: s for (at, name), s in took.items() if at == f"{scenario.kind.name} c={streams}"}
        if before:
            return max(FIRST_S, before.get(target.name, max(before.values())) / prompts * scenario.load.num_prompts)
    return FIRST_S


def measure_scenario(
    scenario: Scenario,
    targets: Sequence[Target],
    index: int,
    visit: Visit,
    tokenizer: Tokenizer | None,
    took: dict[tuple[str, str], float],
    left_out: dict[str, str],
) -> list[Run]:
    """Each server in turn with the same prompts, new in this round. A run that the end of the time cuts is left out."""
    plan, name = scenario.plan, label(scenario)
    watch = CpuWatch({target.name: target.url for target in plan.targets}, plan.server_pids)
    seed = f"{plan.seed} {name} {index}"
    prompts = make_prompts(plan.spec, scenario.load.num_prompts, seed, tokenizer)
    runs = []
    for target in targets:
        begin, limit = time.monotonic(), max(0.1, min(plan.style.timeout_s, visit.left()))
        limited = dataclasses.replace(plan, style=dataclasses.replace(plan.style, timeout_s=limit))
        metrics = run_once(limited, scenario.load, target, prompts, seed, watch, tokenizer).metrics
        took[name, target.name] = time.monotonic() - begin
        if metrics.failed and visit.left() <= 0:
            left_out[f"{name} round {index + 1} {target.name}"] = f"cut off: {'; '.join(metrics.errors)}"
            continue
        runs.append(Run(target.name, name, index, metrics))
        flags = f"  ({'; '.join(metrics.flags)})" if metrics.flags else ""
        rate = f"{metrics.output_tokens_per_s:.1f} output tokens/s"
        print(f"{name} round {index + 1} {target.name}: {rate}{flags}", file=sys.stderr, flush=True)
    return runs


def label(scenario: Scenario) -> str:
    """`128 c=8`."""
    return f"{scenario.kind.name} {scenario.load.label}"


def summary(runs: Sequence[Run], own_ratios: Sequence[Ratio]) -> dict[str, Any]:
    """By kind, load and server: medians of the clean rounds (of all, if none is), and ratios to the peers.

    `flagged` counts the rounds that were left out of the medians, or all of them if none was clean.
    """
    by_kind: dict[str, Any] = {}
    for name in dict.fromkeys(run.load for run in runs):
        kind, load = name.split(" ")
        here = by_kind.setdefault(kind, {}).setdefault(load, {})
        for target in dict.fromkeys(run.target for run in runs if run.load == name):
            mine = [run.metrics for run in runs if run.load == name and run.target == target]
            clean = [metrics for metrics in mine if not metrics.flags]
            here[target] = medians(clean or mine) | {"rounds": len(mine), "flagged": len(mine) - len(clean)}
            here[target]["ratio_to"] = {
                ratio.to: round(ratio.median["output_rate"], 3)
                for ratio in own_ratios
                if ratio.load == name and ratio.of == target and "output_rate" in ratio.median
            }
    return by_kind


def medians(metrics: Sequence[RunMetrics]) -> dict[str, Any]:
    """The figures that tables and charts show, as medians over rounds."""

    def middle(values: Sequence[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return round(statistics.median(there), 2) if there else None

    return {
        "output_tokens_per_s": middle([m.output_tokens_per_s for m in metrics]),
        "ttft_p50_ms": middle([m.latency_ms["ttft"].get("p50") for m in metrics]),
        "tpot_p50_ms": middle([m.latency_ms["tpot"].get("p50") for m in metrics]),
        "itl_p99_ms": middle([m.latency_ms["itl"].get("p99") for m in metrics]),
        "failed": sum(m.failed for m in metrics),
    }


def wait_idle(running: Sequence[Running]) -> None:
    """Until no server computes: what a start leaves to do behind the first answer must not fall into a run."""
    for one in running:
        give_up = time.monotonic() + IDLE_S
        while (share := busy(one)) > IDLE_SHARE and time.monotonic() < give_up:
            pass
        if share > IDLE_SHARE:
            print(f"{one.server.name} still takes {share:.0%} of a core while nothing is asked", file=sys.stderr)


def busy(running: Running) -> float:
    """Cores that a server and its children take, over a second."""

    def used() -> float:
        family = [psutil.Process(running.process.pid)]
        family += family[0].children(recursive=True)
        return sum(sum(process.cpu_times()[:2]) for process in family)

    before, begin = used(), time.monotonic()
    time.sleep(1.0)
    return (used() - before) / (time.monotonic() - begin)


def compiles_after_ready(running: Running) -> float | None:
    """jserve's own count; None for a peer."""
    if running.server.script is not None:
        return None
    with urllib.request.urlopen(f"{running.url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("jserve_compiles_after_ready_total"))


def in_order(runs: Sequence[Run]) -> list[Run]:
    """The runs in the order of `SERVERS`, whoever came first in a round: jserve stands on top of its ratios."""
    order = [server.name for server in SERVERS]
    return sorted(runs, key=lambda run: order.index(run.target))


def with_others(result: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """A result with what an earlier one of the same machine has of the loads that were not measured again; nothing is
    kept of another machine.
    """
    again = {run["load"] for run in result["runs"]}
    here = machine()
    if any(before["machine"][key] != here[key] for key in SAME_MACHINE if key in before["machine"]):
        return result
    merged = dict(result)
    kept = dict.fromkeys(run["load"] for run in before["runs"] if run["load"] not in again)
    for name in ("ratios", "runs"):
        merged[name] = [each for each in before[name] if each["load"] in kept] + result[name]
    kinds = {kind["name"]: kind for each in (before, result) for kind in each["kinds"]}
    merged["kinds"] = [kinds[kind.name] for kind in KINDS if kind.name in kinds]
    merged["summary"] = {}
    for kind in merged["kinds"]:
        for streams, _ in kind["loads"]:
            source = before if f"{kind['name']} c={streams}" in kept else result
            servers = source["summary"].get(kind["name"], {}).get(f"c={streams}")
            if servers is not None:
                merged["summary"].setdefault(kind["name"], {})[f"c={streams}"] = servers
    merged["measured_before"] = {load: before.get("measured_before", {}).get(load, before["time"]) for load in kept}
    return merged


def compare(servers: Field, folder: Path, visit: Visit, names: Sequence[str]) -> dict[str, Any]:
    """Measure all that runs with these kinds of prompts, and what the result file holds of it. `folder` has the
    tokenizer.
    """
    kinds = tuple(kind for kind in (TINY if visit.tiny else KINDS) if kind.name in names)
    seed = random.randrange(1 << 31)
    wait_idle(servers.running)
    left_out: dict[str, str] = dict(servers.left_out)
    todo = scenarios(kinds, servers.running, seed)
    runs = measure_rounds(todo, ROUNDS, visit, load_tokenizer(str(folder)), left_out)
    own_ratios = [ratio for ratio in ratios(in_order(runs)) if ratio.of.startswith("jserve")]
    return {
        "seed": seed,
        "kinds": [asdict(kind) for kind in kinds],
        "servers": [r.described() | {"compiles_after_ready": compiles_after_ready(r)} for r in servers.running],
        "left_out": left_out,
        "summary": summary(runs, own_ratios),
        "ratios": [asdict(ratio) for ratio in own_ratios],
        "runs": [asdict(run) for run in runs],
    }
