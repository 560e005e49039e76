"""The command line of the serving benchmark, and the plan that follows from it."""

import argparse
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load import RequestStyle, Target
from benchmarks.metrics import LATENCIES
from benchmarks.prompts import PromptSpec

LOADING = 503  # what servers answer while the model is not there yet


@dataclass(frozen=True, slots=True)
class Load:
    """How requests come: `concurrency` at a time, or in Poisson arrivals, `rate` a second (inf: at once)."""

    concurrency: int | None
    rate: float | None
    num_prompts: int

    @property
    def label(self) -> str:
        """`c=8` or `rate=2`."""
        return f"c={self.concurrency}" if self.concurrency else f"rate={self.rate:g}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole benchmark. `server_pids` are those given by hand; `goodput` holds limits in ms."""

    targets: tuple[Target, ...]
    loads: tuple[Load, ...]
    rounds: int
    spec: PromptSpec
    style: RequestStyle
    seed: int
    same_prompts: bool
    warmup: int | None
    percentiles: tuple[float, ...]
    table: tuple[str, ...]
    goodput: Mapping[str, float]
    server_pids: Mapping[str, tuple[int, ...]]


def arguments(description: str) -> argparse.ArgumentParser:
    """The parser with all its options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    servers = parser.add_argument_group("servers")
    add_servers(servers)
    servers.add_argument(
        "--endpoint", choices=("completions", "chat"), default="completions", help="default: completions"
    )
    servers.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=True, help="without it: no ttft, tpot or itl"
    )
    add_prompts(parser.add_argument_group("prompts"))
    add_load(parser.add_argument_group("load"))
    add_figures(parser.add_argument_group("figures"))
    return parser


Group = Any  # argparse names the class of a group only with an underscore


def add_servers(group: Group) -> None:
    """Who is asked, and how a request is put."""
    add, on_off = group.add_argument, argparse.BooleanOptionalAction
    add("--url", action="append", required=True, metavar="[NAME=]URL", help="a server; repeat to compare")
    add("--model", action="append", default=[], metavar="[NAME=]ID", help="default: first of /v1/models")
    add(
        "--extra",
        action="append",
        default=[],
        metavar="[NAME=]JSON",
        help="fields for the body, for one server or all; null removes one: llama='{\"seed\": null}'",
    )
    add("--ignore-eos", action=on_off, default=True, help="answers of full length; some servers refuse it")
    add("--temperature", type=float, default=0.0, help="default 0: greedy")
    add("--keep-alive", action=on_off, default=True, help="without it: a new connection per request")
    add("--timeout", type=float, default=600.0, metavar="S", help="seconds per request (default 600)")
    add("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="default: $OPENAI_API_KEY")
    add("--wait", type=float, default=0.0, metavar="S", help="wait up to S seconds for each server to answer")


def add_prompts(group: Group) -> None:
    """What is asked."""
    add = group.add_argument
    add("--dataset", choices=("random", "file", "sharegpt"), default="random", help="default: random words")
    add(
        "--dataset-path",
        type=Path,
        metavar="FILE",
        help="file: a prompt a line, or .jsonl with `prompt` and perhaps `output_len`; sharegpt: .json[l]",
    )
    add("--input-len", type=int, default=128, help="tokens of a random prompt (default 128)")
    add("--output-len", type=int, default=128, help="tokens to ask for (default 128)")
    add("--range-ratio", type=float, default=0.0, help="0.2 spreads both lengths over 0.8 to 1.2 of them")
    add("--shared-prefix-len", type=int, default=0, help="tokens that all prompts of a round begin with")
    add("--tokenizer", metavar="PATH", help="tokenizer.json or its folder, for exact lengths of prompts")
    add("--seed", type=int, help="of prompts and arrivals (default: a new one each time, written to --out)")
    add("--same-prompts", action="store_true", help="repeat the prompts each round (prefix caches will hit)")


def add_load(group: Group) -> None:
    """How much is asked at once, and how often it is measured."""
    add = group.add_argument
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--concurrency",
        "--max-concurrency",
        metavar="N[,N...]",
        help="closed loop: N requests in flight; several are measured in turn (default 1)",
    )
    one.add_argument(
        "--request-rate",
        metavar="R[,R...]",
        help="open loop: Poisson arrivals, R a second; inf: all at once",
    )
    add("--num-prompts", type=int, help="per run (default 4 x concurrency, at least 8; open loop: 64)")
    add(
        "--rounds",
        type=int,
        default=1,
        help="runs of each server per load (default 1; compare with 3 or more)",
    )
    add("--warmup", type=int, help="requests before each load, not measured (default: concurrency, at most 8)")


def add_figures(group: Group) -> None:
    """What is reported."""
    add = group.add_argument
    add(
        "--percentile-metrics",
        default=",".join(LATENCIES),
        metavar="NAMES",
        help="latencies in the table (default ttft,tpot,itl,e2el; the JSON has all)",
    )
    add("--percentiles", default="50,90,99", metavar="RANKS", help="besides the mean (default 50,90,99)")
    add(
        "--goodput",
        nargs="+",
        default=[],
        metavar="NAME:MS",
        help="count requests that keep all limits, e.g. ttft:500 tpot:50 e2el:5000",
    )
    add(
        "--server-pid",
        action="append",
        default=[],
        metavar="[NAME=]PID",
        help="a server process besides those that listen on the port and their children (for CPU shares)",
    )
    add("--out", type=Path, metavar="FILE", help="write everything as JSON")


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan that the arguments describe; asks servers for their model. ValueError if they do not fit."""
    if args.rounds < 1:
        raise ValueError(f"--rounds is {args.rounds} but must be at least 1")
    urls = dict(name_url(text) for text in args.url)
    if len(urls) < len(args.url):
        raise ValueError("two --url have the same name; name them apart: --url a=http://... --url b=http://...")
    return Plan(
        targets=targets_of(args, urls),
        loads=loads_of(args),
        rounds=args.rounds,
        spec=PromptSpec(
            args.dataset,
            args.dataset_path,
            args.input_len,
            args.output_len,
            args.range_ratio,
            args.shared_prefix_len,
        ),
        style=RequestStyle(
            args.endpoint,
            args.stream,
            args.ignore_eos,
            args.temperature,
            args.keep_alive,
            args.timeout,
            args.api_key,
        ),
        seed=random.randrange(1 << 31) if args.seed is None else args.seed,
        same_prompts=args.same_prompts,
        warmup=args.warmup,
        percentiles=tuple(float(rank) for rank in args.percentiles.split(",")),
        table=tuple(known_latency(name) for name in args.percentile_metrics.split(",")),
        goodput=goodput_of(args.goodput),
        server_pids={name: tuple(map(int, pids)) for name, pids in per_target(args.server_pid, urls).items()},
    )


def targets_of(args: argparse.Namespace, urls: Mapping[str, str]) -> tuple[Target, ...]:
    """The servers, each with its model and its extra fields; waits for them if that was asked."""
    models = per_target(args.model, urls)
    extras = per_target(args.extra, urls)
    targets = []
    for name, url in urls.items():
        listed = wait_for_models(url, args.api_key, args.wait) if args.wait or not models[name] else []
        model = models[name][-1] if models[name] else first_model(name, url, listed)
        extra: dict[str, Any] = {}
        for text in extras[name]:
            fields = json.loads(text)
            if not isinstance(fields, dict):
                raise ValueError(f"--extra {text}: want a JSON object")
            extra |= fields
        if args.wait:
            wait_for_token(url, args.api_key, model, args.wait)
        targets.append(Target(name, url, model, extra))
    return tuple(targets)


def name_url(text: str) -> tuple[str, str]:
    """`name=http://host:port/v1` as its name and its bare URL; without a name, host and port name it."""
    name, separator, url = text.partition("=")
    if not separator or "://" in name:
        name, url = urlsplit(text).netloc, text
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"--url {text}: want [NAME=]http://HOST:PORT")
    return name, url.rstrip("/").removesuffix("/v1")


def per_target(texts: Sequence[str], names: Mapping[str, str]) -> dict[str, list[str]]:
    """Values of a repeated `[NAME=]VALUE` option, sorted to the targets; one without a name goes to all."""
    sorted_out: dict[str, list[str]] = {name: [] for name in names}
    for text in texts:
        name, separator, value = text.partition("=")
        if separator and name in sorted_out:
            sorted_out[name].append(value)
        elif separator and name.isidentifier():
            raise ValueError(f"{text!r} is for {name!r}, but the servers are {', '.join(names)}")
        else:
            for values in sorted_out.values():
                values.append(text)
    return sorted_out


def loads_of(args: argparse.Namespace) -> tuple[Load, ...]:
    """The loads to measure, in the order given."""
    if args.request_rate:
        rates = [float(text) for text in args.request_rate.split(",")]
        if min(rates) <= 0:
            raise ValueError("--request-rate must be above 0")
        return tuple(Load(None, rate, args.num_prompts or 64) for rate in rates)
    counts = [int(text) for text in (args.concurrency or "1").split(",")]
    if min(counts) < 1 or (args.num_prompts is not None and args.num_prompts < 1):
        raise ValueError("--concurrency and --num-prompts must be at least 1")
    return tuple(Load(count, None, args.num_prompts or max(8, 4 * count)) for count in counts)


def known_latency(name: str) -> str:
    """The name itself, if it is one of the latencies."""
    if name not in LATENCIES:
        raise ValueError(f"{name!r} is no latency; they are {', '.join(LATENCIES)}")
    return name


def goodput_of(limits: Sequence[str]) -> dict[str, float]:
    """`ttft:500` texts as limits in ms by latency."""
    bounds = {}
    for limit in limits:
        name, separator, value = limit.partition(":")
        if not separator or name not in ("ttft", "tpot", "e2el"):
            raise ValueError(f"--goodput {limit}: want NAME:MS with ttft, tpot or e2el")
        bounds[name] = float(value)
    return bounds


def wait_for_models(url: str, api_key: str | None, wait_s: float) -> list[str]:
    """The ids of /v1/models, asked until the server answers or `wait_s` seconds have passed."""
    request = urllib.request.Request(f"{url}/v1/models")
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    give_up = time.monotonic() + wait_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return [entry["id"] for entry in json.load(response).get("data", [])]
        except urllib.error.HTTPError as error:
            if error.code != LOADING:
                return []  # it is up, but lists nothing
            failure: OSError = error
        except OSError as error:
            failure = error
        if time.monotonic() >= give_up:
            hint = "" if wait_s else "; --wait S waits for it"
            raise ConnectionError(f"{url} does not answer /v1/models: {failure}{hint}") from failure
        time.sleep(0.5)


def wait_for_token(url: str, api_key: str | None, model: str, wait_s: float) -> None:
    """Ask for a token until the server no longer says that it is loading: some list their model before they can."""
    body = json.dumps({"model": model, "prompt": "Hello", "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    give_up = time.monotonic() + wait_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60):
                return
        except urllib.error.HTTPError as error:
            if error.code != LOADING:
                return  # it answers; the first request of the run will say what it does not like
            if time.monotonic() >= give_up:
                raise ConnectionError(f"{url} is still loading after {wait_s:.0f} s: {error}") from error
        time.sleep(0.5)


def first_model(name: str, url: str, listed: Sequence[str]) -> str:
    """The model to ask for when none was given."""
    if not listed:
        raise ValueError(f"{url} lists no model; give it: --model {name}=ID")
    return listed[0]
