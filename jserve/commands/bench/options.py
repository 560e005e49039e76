"""The command line of `jserve bench serve`, with vLLM's names, and the plan that follows from it."""

import argparse
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jserve.commands.bench.load import RequestStyle, Target
from jserve.commands.bench.metrics import LATENCIES
from jserve.commands.bench.prompts import PromptSpec
from jserve.commands.bench.readiness import first_model, wait_for_models, wait_for_token
from jserve.commands.parser import Parser


@dataclass(frozen=True, slots=True)
class Load:
    """How requests come: `concurrency` at a time, in random arrivals, `rate` a second (inf: at once), or, with neither,
    when a trace says. With both no more than `concurrency` are open at once.
    """

    concurrency: int | None
    rate: float | None
    num_prompts: int
    burstiness: float = 1.0
    """1: a Poisson process; less comes in bursts, more at even distances."""

    @property
    def label(self) -> str:
        """`c=8`, `rate=2`, `rate=2 c=8` or `trace`."""
        rate = "" if self.rate is None else f"rate={self.rate:g}"
        at_once = "" if self.concurrency is None else f"c={self.concurrency}"
        return f"{rate} {at_once}".strip() or "trace"


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
    parser = Parser(
        prog="jserve bench serve",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    servers = parser.add_argument_group("servers")
    add_servers(servers)
    servers.add_argument(
        "--endpoint",
        type=_endpoint,
        metavar="ROUTE",
        help="completions or chat, or their routes (default: completions)",
    )
    servers.add_argument(
        "--backend",
        choices=("openai", "vllm", "openai-chat"),
        default="openai",
        help="openai-chat: like --endpoint chat (default: openai)",
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
    add(
        "--url",
        "--base-url",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help="a server; repeat to compare (default: http://HOST:PORT)",
    )
    add("--host", default="127.0.0.1", help="where there is no --url (default: 127.0.0.1)")
    add("--port", type=int, default=8000, help="where there is no --url (default: 8000)")
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
    add(
        "--dataset-name",
        "--dataset",
        dest="dataset",
        choices=("random", "custom", "sharegpt", "timed_trace"),
        default="random",
        help="random words (the default), a file of prompts, or a recorded workload with its times and lengths",
    )
    add(
        "--dataset-path",
        type=Path,
        metavar="FILE",
        help="custom: a prompt a line, or .jsonl with `prompt` and perhaps `output_tokens`; sharegpt: .json[l]; "
        "timed_trace: what `jserve record` writes, or any trace in Mooncake's format",
    )
    add(
        "--random-input-len",
        "--input-len",
        dest="input_len",
        type=int,
        default=128,
        help="tokens of a random prompt (default 128)",
    )
    add(
        "--random-output-len",
        "--sharegpt-output-len",
        "--custom-output-len",
        "--output-len",
        dest="output_len",
        type=int,
        default=128,
        help="tokens to ask for (default 128)",
    )
    add(
        "--random-range-ratio",
        "--range-ratio",
        dest="range_ratio",
        type=float,
        default=0.0,
        help="0.2 spreads both lengths over 0.8 to 1.2 of them",
    )
    add(
        "--random-prefix-len",
        "--shared-prefix-len",
        dest="prefix_len",
        type=int,
        default=0,
        help="tokens that all prompts of a round begin with",
    )
    add("--tokenizer", metavar="PATH", help="tokenizer.json or its folder, for exact lengths of prompts")
    add("--seed", type=int, help="of prompts and arrivals (default: a new one each time, written to --out)")
    add("--same-prompts", action="store_true", help="repeat the prompts each round (prefix caches will hit)")


def add_load(group: Group) -> None:
    """How much is asked at once, and how often it is measured."""
    add = group.add_argument
    add(
        "--max-concurrency",
        "--concurrency",
        dest="concurrency",
        metavar="N[,N...]",
        help="N requests in flight; several are measured in turn",
    )
    add(
        "--request-rate",
        metavar="R[,R...]",
        help="random arrivals, R a second; inf: all at once, which is the default without --max-concurrency",
    )
    add("--burstiness", type=float, default=1.0, help="of arrivals: 1 Poisson, less in bursts, more evenly (default 1)")
    add("--num-prompts", type=int, help="per run (default 4 x concurrency, at least 8; with a rate 64; a trace: all)")
    add(
        "--rounds",
        type=int,
        default=1,
        help="runs of each server per load (default 1; compare with 3 or more)",
    )
    add(
        "--num-warmups",
        "--warmup",
        dest="warmup",
        type=int,
        help="requests before each load, not measured (default: concurrency, at most 8)",
    )


def add_figures(group: Group) -> None:
    """What is reported."""
    add = group.add_argument
    add(
        "--percentile-metrics",
        default=",".join(LATENCIES),
        metavar="NAMES",
        help="latencies in the table (default ttft,tpot,itl,e2el; the JSON has all)",
    )
    add(
        "--metric-percentiles",
        "--percentiles",
        dest="percentiles",
        default="50,90,99",
        metavar="RANKS",
        help="besides the mean (default 50,90,99)",
    )
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
    add("--save-result", action="store_true", help="write each run as JSON with vLLM's names")
    add("--save-detailed", action="store_true", help="with every request's times and lengths")
    add("--result-dir", type=Path, default=Path(), metavar="DIR", help="where to (default: here)")
    add("--result-filename", metavar="NAME", help="its name (default: from backend, load, model and time)")
    add("--disable-tqdm", action="store_true", help="no progress bar")


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan that the arguments describe; asks servers for their model. ValueError if they do not fit."""
    if args.rounds < 1:
        raise ValueError(f"--rounds is {args.rounds} but must be at least 1")
    servers = args.url or [f"http://{args.host}:{args.port}"]
    urls = dict(name_url(text) for text in servers)
    if len(urls) < len(servers):
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
            args.prefix_len,
        ),
        style=RequestStyle(
            args.endpoint or ("chat" if args.backend == "openai-chat" else "completions"),
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
    if args.num_prompts is not None and args.num_prompts < 1:
        raise ValueError(f"--num-prompts is {args.num_prompts} but must be at least 1")
    if args.dataset == "timed_trace":
        if args.request_rate or args.concurrency:
            raise ValueError(
                "a timed_trace says itself when requests come; leave out --request-rate and --max-concurrency"
            )
        return (Load(None, None, args.num_prompts or 0),)
    counts = [int(text) for text in args.concurrency.split(",")] if args.concurrency else []
    if counts and min(counts) < 1:
        raise ValueError(f"--max-concurrency is {min(counts)} but must be at least 1")
    if counts and not args.request_rate:
        return tuple(Load(count, None, args.num_prompts or max(8, 4 * count)) for count in counts)
    rates = [float(text) for text in (args.request_rate or "inf").split(",")]
    if min(rates) <= 0 or args.burstiness <= 0:
        raise ValueError("--request-rate and --burstiness must be above 0")
    limits: list[int | None] = [*counts] or [None]
    return tuple(Load(limit, rate, args.num_prompts or 64, args.burstiness) for rate in rates for limit in limits)


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


def _endpoint(text: str) -> str:
    routes = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}
    name = routes.get(text, text)
    if name not in routes.values():
        raise argparse.ArgumentTypeError(f"{text} is none of completions, chat and {', '.join(routes)}")
    return name
